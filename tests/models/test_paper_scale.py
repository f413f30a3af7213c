"""At the paper's scale the joint decoder has 9.8 to 11.59 % of the cloud parameters of SE + SD/D (Nazir et al. 2024).

The networks are those of the committed experiments, built without memory; widths, and so the ratios, are ours.
"""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pipeline import cityscapes, coco
from pipeline.experiment import load_experiment
from pipeline.models.assembly import assemble
from pipeline.models.over_parameterised import merge_branches
from pipeline.models.resnet import ResNet50, ResNet50Tail
from pipeline.models.split_segmenter import SplitSegmenter

CONFIGS = Path(__file__).parents[2] / "configs" / "train"
LEAST, MOST = 0.098, 0.1159  # on COCO, on Cityscapes
CITYSCAPES = ("cityscapes-resnet50.yaml", len(cityscapes.CLASSES.classes), (512, 1024))
COCO = ("coco-resnet50.yaml", len(coco.CLASSES.classes), (513, 513))
both = pytest.mark.parametrize(("config", "classes", "size"), [CITYSCAPES, COCO])


@cache
def network(config: str, classes: int, **changed: Any) -> SplitSegmenter:
    """The experiment's network on the meta device, as it runs: in eval mode, its parallel kernels merged."""
    experiment = load_experiment(CONFIGS / config)
    with torch.device("meta"):
        made = assemble(classes, experiment.loss.levels, **{**experiment.model.model_dump(), **changed})
        return merge_branches(made.eval())


def parameters(*parts: nn.Module) -> int:
    return sum(parameter.numel() for part in parts for parameter in part.parameters())


@both
def test_joint_decoder_has_the_papers_share_of_the_cloud_parameters(
    config: str, classes: int, size: tuple[int, int]
) -> None:
    joint, rebuilt = network(config, classes), network(config, classes, decoder="source_task")
    assert LEAST <= parameters(joint.decoder) / parameters(rebuilt.decoder) <= MOST
    prior = parameters(joint.prior.hyper_decoder)  # both clouds run it: the share is within the range with it as well
    assert LEAST <= (parameters(joint.decoder) + prior) / (parameters(rebuilt.decoder) + prior) <= MOST


@both
def test_cameras_parts_are_equal(config: str, classes: int, size: tuple[int, int]) -> None:
    joint, rebuilt = network(config, classes), network(config, classes, decoder="source_task")
    shapes = [{name: value.shape for name, value in made.analysis.state_dict().items()} for made in (joint, rebuilt)]
    assert shapes[0] == shapes[1]


@both
@pytest.mark.parametrize("decoder", ["joint", "source_task"])
def test_logits_are_at_stride_four_for_any_size(config: str, classes: int, size: tuple[int, int], decoder: str) -> None:
    image = torch.zeros(1, 3, *size, device="meta")
    made = network(config, classes, decoder=decoder)
    latents = tuple(-(-side // 16) for side in size)
    y = made.encode(image)
    assert y.shape == (1, made.prior.hyper_decoder.predict.out_channels // 2, *latents)
    assert made.decoder(y).shape == (1, classes, *(4 * side for side in latents))


@pytest.mark.parametrize(("config", "count"), [(CITYSCAPES[0], 3), (COCO[0], 1)])
def test_parallel_kernels_in_training_are_the_papers(config: str, count: int) -> None:
    assert load_experiment(CONFIGS / config).model.over_parameters == count


def test_merging_takes_the_additional_kernels_away() -> None:
    config, classes, _ = CITYSCAPES
    plain = parameters(network(config, classes, over_parameters=0).decoder)
    merged = parameters(network(config, classes).decoder)
    assert merged <= plain  # a merged convolution has a bias where the plain one has a batch norm


@both
def test_task_network_is_deeplabv3_on_resnet_50(config: str, classes: int, size: tuple[int, int]) -> None:
    """Torchvision's deeplabv3_resnet50 has 39.6 million parameters with 21 classes."""
    head = network(config, classes, decoder="source_task").decoder.task_decoder.head
    with torch.device("meta"):
        whole = parameters(ResNet50(), ResNet50Tail(), head)
    assert whole == pytest.approx(39.6e6, rel=0.005)
