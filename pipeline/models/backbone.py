"""Image-encoder backbones, cut at a stage: the part of a classifier that runs on the camera, and the part left over.

Published weights come with their batch norms folded in; `load_folded` and `unfold_batch_norm` make them trainable.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.models.layers import Float32SameConv, HalvingSameConv, SameConv

Unit = tuple[nn.Conv2d, nn.BatchNorm2d]


@dataclass(frozen=True, slots=True)
class FeatureSpec:
    """One feature map a backbone gives: how many channels, at which stride to the image."""

    channels: int
    stride: int


class Folded(Protocol):
    """A network whose published weights have their batch norms folded in."""

    prefix: str

    def units(self) -> dict[str, Unit]:
        """The convolution + batch norm pairs by the name that the published weights give them, behind the prefix."""


@dataclass(frozen=True, slots=True)
class _Stage:
    expansion: int
    channels: int
    repeats: int
    stride: int


# MobileNetV2 (Sandler et al., CVPR 2018, table 2) up to stride 16.
_STAGES = (
    _Stage(1, 16, 1, 1),
    _Stage(6, 24, 2, 2),
    _Stage(6, 32, 3, 2),
    _Stage(6, 64, 4, 2),
    _Stage(6, 96, 3, 1),
)


def same_conv_bn(
    c_in: int, c_out: int, kernel: int = 1, *, stride: int = 1, groups: int = 1, dilation: int = 1
) -> nn.Sequential:
    """(B, c_in, H, W) -> (B, c_out, H/stride, W/stride): convolution with "same" padding, then batch norm."""
    conv = SameConv
    if groups > 1 and dilation > 1:
        conv = Float32SameConv
    elif groups == c_in == c_out and (kernel, stride) == (3, 2):
        conv = HalvingSameConv
    return nn.Sequential(conv(c_in, c_out, kernel, stride, groups, dilation=dilation), nn.BatchNorm2d(c_out))


def _unit(
    c_in: int, c_out: int, kernel: int = 1, *, stride: int = 1, groups: int = 1, dilation: int = 1
) -> nn.Sequential:
    layers = same_conv_bn(c_in, c_out, kernel, stride=stride, groups=groups, dilation=dilation)
    return nn.Sequential(*layers, nn.ReLU6(inplace=True))


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project; the input is added where shapes allow."""

    def __init__(self, c_in: int, c_out: int, *, expansion: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        wide = c_in * expansion
        self.expand = _unit(c_in, wide) if expansion > 1 else nn.Identity()
        self.depthwise = _unit(wide, wide, 3, stride=stride, groups=wide, dilation=dilation)
        self.project = same_conv_bn(wide, c_out)  # linear: no activation (section 3.2 of the paper)
        self.shortcut = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + y if self.shortcut else y


class MobileNetV2(nn.Module):
    """MobileNetV2 1.0 up to its last stage at stride 16."""

    prefix = "MobileNetV2"
    features = (FeatureSpec(24, 4), FeatureSpec(32, 8), FeatureSpec(96, 16))

    def __init__(self) -> None:
        super().__init__()
        self.stem = _unit(3, 32, 3, stride=2)
        stages: list[nn.Sequential] = []
        channels = 32
        for stage in _STAGES:
            blocks = []
            for i in range(stage.repeats):
                stride = stage.stride if i == 0 else 1
                blocks.append(InvertedResidual(channels, stage.channels, expansion=stage.expansion, stride=stride))
                channels = stage.channels
            stages.append(nn.Sequential(*blocks))
        self.to_4 = nn.Sequential(*stages[:2])
        self.to_8 = stages[2]
        self.to_16 = nn.Sequential(*stages[3:])

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """RGB (B, 3, H, W) in 0..255 -> features at strides 4, 8 and 16."""
        x = self.stem(image / 127.5 - 1)  # (B, 32, H/2, W/2)
        x4 = self.to_4(x)  # (B, 24, H/4, W/4)
        x8 = self.to_8(x4)  # (B, 32, H/8, W/8)
        return x4, x8, self.to_16(x8)  # (B, 96, H/16, W/16)

    def units(self) -> dict[str, Unit]:
        """The convolution + batch norm pairs by the name that the ImageNet weights give them."""
        blocks = [m for m in self.modules() if isinstance(m, InvertedResidual)]
        return {"Conv2d_0_0": unit_of(self.stem), **block_units(blocks, first=1)}


class MobileNetV2Tail(nn.Module):
    """The rest of MobileNetV2 1.0, up to the features that it classifies by, kept at stride 16.

    Where the classifier halves the resolution, its later filters are dilated instead (Chen et al., 2017, section 3.1).
    """

    prefix = "MobileNetV2"
    out_channels = 1280

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            InvertedResidual(96, 160, expansion=6),
            InvertedResidual(160, 160, expansion=6, dilation=2),
            InvertedResidual(160, 160, expansion=6, dilation=2),
            InvertedResidual(160, 320, expansion=6, dilation=2),
        )
        self.head = _unit(320, self.out_channels)

    def forward(self, x16: Tensor) -> Tensor:
        """The backbone's last map (B, 96, h, w) -> features (B, 1280, h, w)."""
        x: Tensor = self.head(self.blocks(x16))
        return x

    def units(self) -> dict[str, Unit]:
        """The convolution + batch norm pairs by the name that the ImageNet weights give them."""
        return {**block_units(list(self.blocks), first=14), "Conv2d_18_1": unit_of(self.head)}


def unit_of(layers: nn.Module) -> Unit:
    """The convolution and the batch norm that a sequence begins with."""
    match list(layers.children()):
        case [nn.Conv2d() as conv, nn.BatchNorm2d() as norm, *_]:
            return conv, norm
    raise TypeError("a unit begins with a convolution and its batch norm")


def block_units(blocks: Sequence[nn.Module], *, first: int) -> dict[str, Unit]:
    """The units of inverted residuals by the names that TensorFlow gives them; the first block has number `first`."""
    return {
        f"expanded_conv_{number}.{part}": unit_of(layers)
        for number, block in enumerate(blocks, start=first)
        for part, layers in block.named_children()
        if isinstance(layers, nn.Sequential)
    }


def load_folded(network: Folded, weights: Mapping[str, Tensor]) -> None:
    """Take weights whose batch norms were folded into kernel and bias; the batch norms become x + bias.

    Raises ConfigError, and leaves the network as it was, when they are not the weights of this network.
    """
    named = {f"{network.prefix}.{name}": unit for name, unit in network.units().items()}
    for name, (conv, norm) in named.items():
        _check(weights, f"{name}.weight", conv.weight.shape)
        _check(weights, f"{name}.bias", norm.bias.shape)
    with torch.no_grad():
        for name, (conv, norm) in named.items():
            conv.weight.copy_(weights[f"{name}.weight"].float())
            norm.bias.copy_(weights[f"{name}.bias"].float())
            torch.nn.init.constant_(variance_of(norm), 1 - norm.eps)


def _check(weights: Mapping[str, Tensor], name: str, shape: torch.Size) -> None:
    wanted = f"{name} of shape {tuple(shape)}"
    if name not in weights:
        raise ConfigError(f"backbone weights: there is no {wanted}; name the weights file of that network")
    if weights[name].shape != shape:
        found = tuple(weights[name].shape)
        raise ConfigError(f"backbone weights: need {wanted}, found {found}; name the weights file of that network")


def variance_of(norm: nn.BatchNorm2d) -> Tensor:
    """The running variance of a batch norm; ValueError where it keeps none."""
    if norm.running_var is None:
        raise ValueError("a batch norm without running statistics holds no folded weights")
    return norm.running_var


def mean_of(norm: nn.BatchNorm2d) -> Tensor:
    """The running mean of a batch norm; ValueError where it keeps none."""
    if norm.running_mean is None:
        raise ValueError("a batch norm without running statistics holds no folded weights")
    return norm.running_mean


def unfold_batch_norm(network: nn.Module, images: Tensor) -> None:
    """Give each batch norm the statistics of its input on these images, keeping the network's function in eval mode.

    A folded network has no statistics to train with; bn(x) = x + b is rewritten as
    gamma * (x - mean) / sqrt(var + eps) + beta with gamma = sqrt(var + eps), beta = b + mean.
    """
    seen: dict[nn.BatchNorm2d, tuple[Tensor, Tensor]] = {}

    def record(bn: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if isinstance(bn, nn.BatchNorm2d):
            seen[bn] = (inputs[0].mean((0, 2, 3)), inputs[0].var((0, 2, 3)))

    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    hooks = [bn.register_forward_pre_hook(record) for bn in norms]
    with torch.no_grad():
        network.eval()(images)
        for bn, (mean, variance) in seen.items():
            bn.running_mean, bn.running_var = mean, variance
            bn.weight.copy_((variance + bn.eps).sqrt())
            bn.bias.add_(mean)
    for hook in hooks:
        hook.remove()
