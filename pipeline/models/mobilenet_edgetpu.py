"""MobileNetEdgeTPU (Xiong et al., MobileDets, CVPR 2021; here DeepLab's slim form), cut at stride 16.

Its early blocks are full 3 x 3 convolutions: more arithmetic than MobileNetV2's, but of the kind processors do fastest.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from pipeline.models.backbone import FeatureSpec, Unit, block_units, same_conv_bn, unit_of


@dataclass(frozen=True, slots=True)
class _Stage:
    channels: int
    dilations: tuple[int, ...]  # one for each block
    stride: int = 1
    kernel: int = 3


_ENTRY_EXPANSION, _EXPANSION = 8, 4  # of the first block of a stage, of the others
_ENTRY = 16  # channels behind the stem
_TO_4 = _Stage(24, (1, 1, 1, 1), stride=2)
_TO_8 = _Stage(40, (1, 1, 1, 1), stride=2)
_TO_16, _AT_16 = _Stage(72, (1, 1, 1, 1), stride=2), _Stage(72, (1, 1, 1, 1))
# Made for stride 32: where the resolution would halve, the filters behind are dilated instead.
_TAIL, _TAIL_END = _Stage(120, (1, 2, 2, 2), kernel=5), _Stage(144, (2,))


def _unit(
    c_in: int, c_out: int, kernel: int = 1, *, stride: int = 1, groups: int = 1, dilation: int = 1
) -> nn.Sequential:
    layers = same_conv_bn(c_in, c_out, kernel, stride=stride, groups=groups, dilation=dilation)
    return nn.Sequential(*layers, nn.ReLU(inplace=True))


class FusedResidual(nn.Module):
    """Expand and filter in one full convolution, project; the input is added inside a stage."""

    def __init__(self, c_in: int, c_out: int, *, stride: int = 1, shortcut: bool) -> None:
        super().__init__()
        wide = c_in * (_EXPANSION if shortcut else _ENTRY_EXPANSION)
        self.expand = _unit(c_in, wide, 3, stride=stride)
        self.project = same_conv_bn(wide, c_out)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.project(self.expand(x))
        return x + y if self.shortcut else y


class DepthwiseResidual(nn.Module):
    """Expand, filter each channel, project; the input is added inside a stage."""

    def __init__(
        self, c_in: int, c_out: int, *, kernel: int = 3, stride: int = 1, dilation: int = 1, shortcut: bool
    ) -> None:
        super().__init__()
        wide = c_in * (_EXPANSION if shortcut else _ENTRY_EXPANSION)
        self.expand = _unit(c_in, wide)
        self.depthwise = _unit(wide, wide, kernel, stride=stride, groups=wide, dilation=dilation)
        self.project = same_conv_bn(wide, c_out)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + y if self.shortcut else y


def _fused(c_in: int, stage: _Stage) -> nn.Sequential:
    entry = FusedResidual(c_in, stage.channels, stride=stage.stride, shortcut=False)
    others = (FusedResidual(stage.channels, stage.channels, shortcut=True) for _ in stage.dilations[1:])
    return nn.Sequential(entry, *others)


def _depthwise(c_in: int, stage: _Stage) -> nn.Sequential:
    c, kernel = stage.channels, stage.kernel
    dilation, *inner = stage.dilations
    entry = DepthwiseResidual(c_in, c, kernel=kernel, stride=stage.stride, dilation=dilation, shortcut=False)
    others = (DepthwiseResidual(c, c, kernel=kernel, dilation=d, shortcut=True) for d in inner)
    return nn.Sequential(entry, *others)


class MobileNetEdgeTPU(nn.Module):
    """MobileNetEdgeTPU, slim, up to its last block before the resolution would halve a fifth time."""

    prefix = "MobilenetEdgeTPU"
    features = (FeatureSpec(24, 4), FeatureSpec(40, 8), FeatureSpec(72, 16))

    def __init__(self) -> None:
        super().__init__()
        self.stem = _unit(3, 24, 3, stride=2)
        self.entry = same_conv_bn(24, _ENTRY)
        self.to_4 = _fused(_ENTRY, _TO_4)
        self.to_8 = _fused(_TO_4.channels, _TO_8)
        self.to_16 = nn.Sequential(*_depthwise(_TO_8.channels, _TO_16), *_depthwise(_TO_16.channels, _AT_16))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """RGB (B, 3, H, W) in 0..255 -> features at strides 4, 8 and 16."""
        x = self.entry(self.stem(image / 128 - 1))  # (B, 16, H/2, W/2)
        x4 = self.to_4(x)  # (B, 24, H/4, W/4)
        x8 = self.to_8(x4)  # (B, 40, H/8, W/8)
        return x4, x8, self.to_16(x8)  # (B, 72, H/16, W/16)

    def units(self) -> dict[str, Unit]:
        """The convolution + batch norm pairs by the name that the published weights give them."""
        first = {"Conv": unit_of(self.stem), "expanded_conv.project": unit_of(self.entry)}
        return {**first, **block_units([*self.to_4, *self.to_8, *self.to_16], first=1)}


class EdgeTPUTail(nn.Module):
    """The rest of MobileNetEdgeTPU, up to the features that its segmentation head takes, at stride 16."""

    prefix = "MobilenetEdgeTPU"
    out_channels = 1280

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*_depthwise(_AT_16.channels, _TAIL), *_depthwise(_TAIL.channels, _TAIL_END))
        self.head = _unit(_TAIL_END.channels, self.out_channels)

    def forward(self, x16: Tensor) -> Tensor:
        """The backbone's last map (B, 72, h, w) -> features (B, 1280, h, w)."""
        x: Tensor = self.head(self.blocks(x16))
        return x

    def units(self) -> dict[str, Unit]:
        """The convolution + batch norm pairs by the name that the published weights give them."""
        return {**block_units(list(self.blocks), first=17), "Conv_1": unit_of(self.head)}
