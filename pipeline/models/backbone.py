"""Image-encoder backbones, cut at a stage: the part of a classifier that runs on the camera."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.models.layers import SameConv


@dataclass(frozen=True, slots=True)
class FeatureSpec:
    """One feature map a backbone gives: how many channels, at which stride to the image."""

    channels: int
    stride: int


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


def _unit(c_in: int, c_out: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(SameConv(c_in, c_out, kernel, stride, groups), nn.BatchNorm2d(c_out), nn.ReLU6(inplace=True))


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project; the input is added where shapes allow."""

    def __init__(self, c_in: int, c_out: int, *, expansion: int, stride: int) -> None:
        super().__init__()
        wide = c_in * expansion
        self.expand = _unit(c_in, wide) if expansion > 1 else nn.Identity()
        self.depthwise = _unit(wide, wide, 3, stride, groups=wide)
        self.project = _unit(wide, c_out)[:2]  # linear: no activation (section 3.2 of the paper)
        self.shortcut = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + y if self.shortcut else y


class MobileNetV2(nn.Module):
    """MobileNetV2 1.0 up to its last stage at stride 16."""

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

    def units(self) -> dict[str, tuple[nn.Conv2d, nn.BatchNorm2d]]:
        """The convolution + batch norm pairs by the name that the ImageNet weights give them."""
        named: dict[str, nn.Sequential] = {"Conv2d_0_0": self.stem}
        blocks = [m for m in self.modules() if isinstance(m, InvertedResidual)]
        for number, block in enumerate(blocks, start=1):
            if isinstance(block.expand, nn.Sequential):
                named[f"expanded_conv_{number}.expand"] = block.expand
            named[f"expanded_conv_{number}.depthwise"] = block.depthwise
            named[f"expanded_conv_{number}.project"] = block.project
        return {name: _pair(unit) for name, unit in named.items()}


def _pair(unit: nn.Sequential) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    conv, norm = unit[0], unit[1]
    if not isinstance(conv, nn.Conv2d) or not isinstance(norm, nn.BatchNorm2d):
        raise TypeError("a unit begins with a convolution and its batch norm")
    return conv, norm


def _variance(norm: nn.BatchNorm2d) -> Tensor:
    if norm.running_var is None:
        raise ValueError("a batch norm without running statistics holds no folded weights")
    return norm.running_var


def load_folded(backbone: MobileNetV2, weights: Mapping[str, Tensor]) -> None:
    """Take ImageNet weights whose batch norm was folded into kernel and bias; the batch norms become x + bias."""
    with torch.no_grad():
        for name, (conv, norm) in backbone.units().items():
            conv.weight.copy_(weights[f"MobileNetV2.{name}.weight"].float())
            norm.bias.copy_(weights[f"MobileNetV2.{name}.bias"].float())
            torch.nn.init.constant_(_variance(norm), 1 - norm.eps)


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
