"""MiniNetV2, a second Cityscapes segmentation network used as a teacher (Alonso et al., IEEE T-RO 2020).

Written to load the weights of zh320/realtime-semantic-segmentation-pytorch strictly; the key names are theirs.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models.teacher import Down, Up

_DILATIONS = (1, 2, 1, 4, 1, 8, 1, 16, 1, 1, 1, 2, 1, 4, 1, 8)


def _depthwise(channels: int, dilation: int) -> nn.Sequential:
    conv = nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation, groups=channels, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU(inplace=True))


def _pointwise(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels), nn.ReLU(inplace=True))


class Separable(nn.Module):
    """Depthwise 3x3, then pointwise."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dw_conv = _depthwise(channels, 1)
        self.pw_conv = _pointwise(channels)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.pw_conv(self.dw_conv(x))
        return y


class MultiDilation(nn.Module):
    """A plain and a dilated depthwise 3x3 side by side, summed, then pointwise."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.dw_conv = _depthwise(channels, 1)
        self.ddw_conv = _depthwise(channels, dilation)
        self.pw_conv = _pointwise(channels)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.pw_conv(self.dw_conv(x) + self.ddw_conv(x))
        return y


def _blocks(channels: int, dilations: tuple[int, ...]) -> nn.Sequential:
    return nn.Sequential(*(MultiDilation(channels, d) if d > 1 else Separable(channels) for d in dilations))


class MiniNetV2(nn.Module):
    """RGB normalised (B, 3, H, W), H and W multiples of 8 -> logits (B, classes, H, W), none below zero."""

    def __init__(self, classes: int = 19) -> None:
        super().__init__()
        self.d1_2 = nn.Sequential(Down(3, 16), Down(16, 64))
        self.ref = nn.Sequential(Down(3, 16), Down(16, 64))
        self.m1_10 = _blocks(64, (1,) * 10)
        self.d3 = Down(64, 128)
        self.feature_extractor = _blocks(128, _DILATIONS)
        self.up1 = Up(128, 64)
        self.m26_29 = _blocks(64, (1,) * 4)
        self.output = Up(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        quarter = self.m1_10(self.d1_2(x))  # (B, 64, H/4, W/4)
        deep = self.feature_extractor(self.d3(quarter))  # (B, 128, H/8, W/8)
        half = self.output(self.m26_29(self.up1(deep) + self.ref(x)))  # (B, classes, H/2, W/2)
        return F.interpolate(half, (height, width), mode="bilinear", align_corners=True)
