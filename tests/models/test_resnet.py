"""ResNet-50 cut at stride 16: its two parts in a row are torchvision's network, and take torchvision's weights."""

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet50
from torchvision.transforms.functional import normalize

from pipeline.errors import ConfigError
from pipeline.models.resnet import ResNet50, ResNet50Tail, load_torchvision


@pytest.fixture(scope="module")
def reference() -> nn.Module:
    """Torchvision's own, dilated behind the cut, with batch norms that have seen something."""
    torch.manual_seed(0)
    made = resnet50(weights=None, replace_stride_with_dilation=[False, False, True])
    with torch.no_grad():
        for norm in (m for m in made.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.5, 1.5)
    return made.eval()


@pytest.fixture(scope="module")
def weights(reference: nn.Module) -> dict[str, Tensor]:
    return reference.state_dict()


@pytest.fixture(scope="module")
def backbone(weights: dict[str, Tensor]) -> ResNet50:
    made = ResNet50()
    load_torchvision(made, weights)
    return made.eval()


@pytest.fixture(scope="module")
def tail(weights: dict[str, Tensor]) -> ResNet50Tail:
    made = ResNet50Tail()
    load_torchvision(made, weights)
    return made.eval()


def images(height: int = 64, width: int = 96) -> Tensor:
    return torch.randint(0, 256, (2, 3, height, width), generator=torch.Generator().manual_seed(1)).float()


@torch.no_grad()
def test_features_have_the_declared_channels_and_strides(backbone: ResNet50) -> None:
    maps = backbone(images(64, 96))
    for spec, seen in zip(ResNet50.features, maps, strict=True):
        assert seen.shape == (2, spec.channels, 64 // spec.stride, 96 // spec.stride)


@torch.no_grad()
def test_tail_keeps_the_stride(tail: ResNet50Tail) -> None:
    assert tail(torch.randn(1, ResNet50.features[-1].channels, 3, 5)).shape == (1, ResNet50Tail.out_channels, 3, 5)


@torch.no_grad()
def test_both_parts_in_a_row_are_torchvisions_network(
    backbone: ResNet50, tail: ResNet50Tail, reference: nn.Module
) -> None:
    x = normalize(images() / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    for name in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"):
        x = reference.get_submodule(name)(x)
    assert torch.allclose(tail(backbone(images())[-1]), x, rtol=1e-4, atol=1e-4 * x.abs().max())


def test_parts_hold_all_weights_but_the_classifiers(backbone: ResNet50, tail: ResNet50Tail) -> None:
    held = {*backbone.state_dict(), *tail.state_dict()}
    assert held == {name for name in resnet50().state_dict() if not name.startswith("fc.")}


def test_missing_tensor_is_named(weights: dict[str, Tensor]) -> None:
    without = {name: value for name, value in weights.items() if name != "layer4.1.conv2.weight"}
    with pytest.raises(ConfigError, match=r"layer4\.1\.conv2\.weight"):
        load_torchvision(ResNet50Tail(), without)


def test_tensor_of_another_shape_is_named(weights: dict[str, Tensor]) -> None:
    with pytest.raises(ConfigError, match=r"conv1\.weight"):
        load_torchvision(ResNet50(), {**weights, "conv1.weight": torch.zeros(64, 3, 3, 3)})


def test_weights_without_counters_of_batches_are_taken(weights: dict[str, Tensor]) -> None:
    load_torchvision(ResNet50Tail(), {n: v for n, v in weights.items() if not n.endswith("num_batches_tracked")})


def test_part_is_left_as_it_was_when_weights_are_refused(weights: dict[str, Tensor]) -> None:
    part = ResNet50Tail()
    before = {name: value.clone() for name, value in part.state_dict().items()}
    with pytest.raises(ConfigError):
        load_torchvision(part, {name: value for name, value in weights.items() if name != "layer4.2.bn3.bias"})
    assert all(torch.equal(value, before[name]) for name, value in part.state_dict().items())
