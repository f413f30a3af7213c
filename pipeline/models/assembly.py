"""Networks by the names of their parts, as experiments give them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.models.alternatives import (
    FeatureTaskDecoder,
    ImageAnalysis,
    ImageSynthesis,
    JSDEDecoder,
    SourceTaskDecoder,
)
from pipeline.models.backbone import MobileNetV2, MobileNetV2Tail, load_folded, unfold_batch_norm
from pipeline.models.entropy_model import MeanScaleHyperprior, NoBottleneck
from pipeline.models.joint_decoder import JointDecoder
from pipeline.models.mobilenet_edgetpu import EdgeTPUTail, MobileNetEdgeTPU
from pipeline.models.resnet import ResNet50, ResNet50Tail, load_torchvision
from pipeline.models.source_encoder import SourceEncoder
from pipeline.models.split_segmenter import FeatureEncoder, SplitSegmenter


@dataclass(frozen=True, slots=True)
class BackboneParts:
    """A backbone cut at stride 16: the camera's part, the rest, and how published weights get into either.

    `load` takes the part, the weights and an input of the part, for the statistics of batch norms.
    """

    head: type[Any]
    tail: type[Any]
    load: Callable[[Any, Mapping[str, Tensor], Tensor], None]


IMAGE = "image"  # rebuilds the picture, which is what a learned image codec learns by; it makes no masks
DECODERS = ("joint", "source_task", "task", "latent_task", IMAGE)


def assemble(classes: int, levels: int, **settings: Any) -> SplitSegmenter:
    """A network with fresh weights; settings are those of an experiment's section `model`.

    Decoders: `joint` is JD; `source_task` is SE + SD/D; `task` is D on the backbone's untouched features; `latent_task`
    is JSDE, whose camera runs an image codec's encoder; `image` is what that encoder learns with. Raises ConfigError on
    names that do not exist.
    """
    for key, known in (("backbone", BACKBONES), ("decoder", DECODERS)):
        if settings[key] not in known:
            raise ConfigError(f"model.{key} {settings[key]!r} is unknown; use one of {', '.join(known)}")
    untouched = settings["decoder"] == "task"
    if untouched and settings["bottleneck"] != "none":
        raise ConfigError("model.decoder task sees the backbone's features as they are: model.bottleneck must be none")
    return SplitSegmenter(_analysis(settings), _prior(levels, settings), _decoder(classes, settings))


def pretrained(network: SplitSegmenter) -> list[nn.Module]:
    """The parts that published weights are loaded into."""
    kinds = tuple(part for parts in BACKBONES.values() for part in (parts.head, parts.tail))
    found = [module for module in network.modules() if isinstance(module, kinds)]
    return [*found, *([network.decoder.stages] if isinstance(network.decoder, JSDEDecoder) else [])]


def slower_parts(network: SplitSegmenter) -> list[nn.Module]:
    """The parts that learn slower: what is pretrained, or both transforms of an image codec, which begin as one."""
    return [network.analysis, network.decoder] if _is_image_codec(network) else pretrained(network)


@torch.no_grad()
def begin_prior(network: SplitSegmenter, images: Tensor) -> None:
    """Let an image codec's entropy model begin with what its transform makes of images (N, 3, h, w)."""
    if _is_image_codec(network) and isinstance(network.prior, MeanScaleHyperprior):
        network.prior.begin_with(network.encode(images))


def _is_image_codec(network: SplitSegmenter) -> bool:
    return isinstance(network.decoder, ImageSynthesis)


@torch.no_grad()
def load_pretrained(network: SplitSegmenter, name: str, weights: Mapping[str, Tensor], images: Tensor) -> None:
    """Load the published weights of backbone `name` into every part of the network that has them.

    Batch norms that were published folded get the statistics of a few images (N, 3, h, w). Raises ConfigError when the
    weights are another network's.
    """
    parts = BACKBONES[name]
    device = images.device
    head = next((m for m in network.modules() if isinstance(m, parts.head)), None) or parts.head().to(device)
    parts.load(head, weights, images)
    for tail in (module for module in network.modules() if isinstance(module, parts.tail)):
        parts.load(tail, weights, head.eval()(images)[-1])  # in train mode it would change its own statistics
    if isinstance(network.decoder, JSDEDecoder):
        network.decoder.stages.load_state_dict(head.to_16.state_dict())


def _load_folded(part: Any, weights: Mapping[str, Tensor], inputs: Tensor) -> None:
    load_folded(part, weights)
    unfold_batch_norm(part, inputs)


def _load_plain(part: Any, weights: Mapping[str, Tensor], _: Tensor) -> None:
    load_torchvision(part, weights)


BACKBONES: Mapping[str, BackboneParts] = {
    "mobilenet_v2": BackboneParts(MobileNetV2, MobileNetV2Tail, _load_folded),
    "mobilenet_edgetpu": BackboneParts(MobileNetEdgeTPU, EdgeTPUTail, _load_folded),
    "resnet50": BackboneParts(ResNet50, ResNet50Tail, _load_plain),
}


def _analysis(settings: Mapping[str, Any]) -> nn.Module:
    if settings["decoder"] in ("latent_task", IMAGE):
        return ImageAnalysis(settings["latents"], width=settings["encoder_width"])
    backbone = BACKBONES[settings["backbone"]].head()
    if settings["decoder"] == "task":
        return FeatureEncoder(backbone, LastFeatures())
    encoder = SourceEncoder(backbone.features, width=settings["encoder_width"], latents=settings["latents"])
    return FeatureEncoder(backbone, encoder)


class LastFeatures(nn.Module):
    """The source encoder of a network that codes nothing: the backbone's last map as it is."""

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        """Feature maps, finest first -> the last one (B, C, H/16, W/16)."""
        return features[-1]


def _prior(levels: int, settings: Mapping[str, Any]) -> MeanScaleHyperprior | NoBottleneck:
    if settings["bottleneck"] == "none":
        return NoBottleneck()
    return MeanScaleHyperprior(
        settings["latents"], settings["hyper_latents"], width=settings["prior_width"], levels=levels
    )


def _decoder(classes: int, settings: Mapping[str, Any]) -> nn.Module:
    latents, width, dilations = settings["latents"], settings["decoder_width"], tuple(settings["dilations"])
    if settings["decoder"] == IMAGE:
        return ImageSynthesis(latents, width=width)
    if settings["decoder"] == "joint":
        return JointDecoder(
            latents,
            classes,
            width=width,
            branch=settings["branch"],
            dilations=dilations,
            branches=settings["over_parameters"],
        )
    parts = BACKBONES[settings["backbone"]]
    task = FeatureTaskDecoder(parts.tail(), classes, dilations=dilations)
    if settings["decoder"] == "task":
        return task
    head = parts.head()
    if settings["decoder"] == "source_task":
        channels = head.features[-1].channels
        return SourceTaskDecoder(latents, channels=channels, width=width, blocks=2, task_decoder=task)
    joins = head.features[-2]  # stride 8: the backbone's last stages run in the cloud, from its map there
    return JSDEDecoder(latents, joins=joins, width=width, blocks=2, stages=head.to_16, task_decoder=task)
