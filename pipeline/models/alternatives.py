"""What the joint decoder is held against: the rest of the task network in the cloud, and an image codec's two halves.

    SE + SD/D      y_hat -> SD -> features at stride 16 -> D            SourceTaskDecoder
    uncompressed                  features at stride 16 -> D            FeatureTaskDecoder
    JSDE           y_hat of an image codec -> upsampled -> stages -> D  JSDEDecoder, behind ImageAnalysis
    image codec    y_hat -> picture                                     ImageSynthesis: what ImageAnalysis learns with

D is the tail of the backbone and DeepLabv3's head. All but the last give logits at stride 4, as the joint decoder does.
Nazir et al. (ECCV 2024, arXiv 2407.11224) name these systems; layers and widths are not published, those here are ours.
"""

from typing import Protocol

import torch.nn.functional as F
from compressai.layers import GDN
from torch import Tensor, nn

from pipeline.models.backbone import FeatureSpec
from pipeline.models.deeplab import DeepLabHead
from pipeline.models.layers import conv_bn, conv_bn_relu

_STRIDE = 16


class Tail(Protocol):
    """The stages of a backbone behind the cut, stride kept: (B, C, h, w) -> (B, out_channels, h, w); a module."""

    out_channels: int

    def __call__(self, x: Tensor) -> Tensor:
        """The last map of the backbone."""
        ...


class FeatureTaskDecoder(nn.Module):
    """D: features at stride 16, untouched or rebuilt -> logits at stride 4."""

    def __init__(
        self, tail: Tail, classes: int, *, dilations: tuple[int, ...] = (3, 6, 9), dropout: float = 0.5
    ) -> None:
        super().__init__()
        self.tail = tail
        self.head = DeepLabHead(tail.out_channels, classes, dilations=dilations, dropout=dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, C, h, w) -> logits (B, K, 4h, 4w), bilinear from stride 16."""
        logits = self.head(self.tail(x))  # (B, K, h, w)
        return F.interpolate(logits, scale_factor=4, mode="bilinear", align_corners=False)


class SourceTaskDecoder(nn.Module):
    """SD, then D: latents -> the features that the camera's backbone had at stride 16 -> logits at stride 4."""

    def __init__(
        self, latents: int, *, channels: int, width: int, blocks: int, task_decoder: FeatureTaskDecoder
    ) -> None:
        super().__init__()
        self.source_decoder = SourceDecoder(latents, channels, width=width, blocks=blocks)
        self.task_decoder = task_decoder

    def forward(self, y_hat: Tensor) -> Tensor:
        """Latents (B, C, h, w) -> logits (B, K, 4h, 4w)."""
        logits: Tensor = self.task_decoder(self.source_decoder(y_hat))
        return logits


class ImageAnalysis(nn.Module):
    """The encoder of a learned image codec, which knows nothing of the task: four strided convolutions, GDN between.

    g_a of Balle et al. 2018 (arXiv 1802.01436); its width at low rates is 128.
    """

    def __init__(self, latents: int, *, width: int = 128) -> None:
        super().__init__()
        channels = (3, width, width, width)
        blocks = [nn.Sequential(_halve(c_in, width), GDN(width)) for c_in in channels[:-1]]
        self.down = nn.Sequential(*blocks, _halve(channels[-1], latents))

    def forward(self, image: Tensor) -> Tensor:
        """RGB (B, 3, H, W) in 0..255, H and W multiples of 16 -> y (B, C, H/16, W/16)."""
        y: Tensor = self.down(image / 127.5 - 1)
        return y


class ImageSynthesis(nn.Module):
    """The decoder of a learned image codec, g_s of the same paper: what its encoder learns with, in no bundle."""

    def __init__(self, latents: int, *, width: int = 128) -> None:
        super().__init__()
        blocks = [nn.Sequential(_double(c_in, width), GDN(width, inverse=True)) for c_in in (latents, width, width)]
        self.up = nn.Sequential(*blocks, _double(width, 3))

    def forward(self, y_hat: Tensor) -> Tensor:
        """Latents (B, C, h, w) -> RGB (B, 3, 16h, 16w), about 0..255."""
        image: Tensor = (self.up(y_hat) + 1) * 127.5
        return image


class JSDEDecoder(nn.Module):
    """JSDE: latents of a learned image codec -> a map of the backbone where `stages` begin -> those stages -> D.

    No image is rebuilt. The map is upsampled by pixel shuffle, a transposed convolution whose kernel is its stride and
    so leaves no checkerboard, and its last convolution is linear, as the maps between a MobileNet's stages are.
    """

    def __init__(
        self,
        latents: int,
        *,
        joins: FeatureSpec,
        width: int,
        blocks: int,
        stages: nn.Module,
        task_decoder: FeatureTaskDecoder,
    ) -> None:
        super().__init__()
        self.factor = _STRIDE // joins.stride
        self.adapt = SourceDecoder(latents, joins.channels * self.factor**2, width=width, blocks=blocks)
        self.smooth = nn.Sequential(
            conv_bn_relu(joins.channels, joins.channels * 2, 3), nn.Conv2d(joins.channels * 2, joins.channels, 1)
        )
        self.stages = stages
        self.task_decoder = task_decoder

    def forward(self, y_hat: Tensor) -> Tensor:
        """Latents (B, C, h, w) -> logits (B, K, 4h, 4w)."""
        x = F.pixel_shuffle(self.adapt(y_hat), self.factor)  # (B, channels, 16h/stride, 16w/stride)
        x = x + self.smooth(x)
        logits: Tensor = self.task_decoder(self.stages(x))
        return logits


class SourceDecoder(nn.Module):
    """SD: latents (B, C, h, w) -> features (B, channels, h, w), the source encoder's last layers in reverse order.

    Residual blocks stand in the middle: SE sees three maps of the backbone, SD has the latents alone.
    """

    def __init__(self, latents: int, channels: int, *, width: int, blocks: int) -> None:
        super().__init__()
        self.widen = conv_bn_relu(latents, width, 3)
        self.blocks = nn.Sequential(*(_Residual(width) for _ in range(blocks)))
        self.project = nn.Conv2d(width, channels, 1)

    def forward(self, y_hat: Tensor) -> Tensor:
        x: Tensor = self.project(self.blocks(self.widen(y_hat)))
        return x


class _Residual(nn.Module):
    """Two 3x3 convolutions beside the input, (B, C, h, w) -> the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.refine = nn.Sequential(*conv_bn_relu(channels, channels, 3), *conv_bn(channels, channels, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.refine(x))


def _halve(c_in: int, c_out: int) -> nn.Conv2d:
    conv = nn.Conv2d(c_in, c_out, 5, stride=2, padding=2)
    # torch's own start takes two thirds of the variance at each layer: all of y would be rounded to zero.
    nn.init.kaiming_normal_(conv.weight, nonlinearity="linear")
    return conv


def _double(c_in: int, c_out: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(c_in, c_out, 5, stride=2, padding=2, output_padding=1)
