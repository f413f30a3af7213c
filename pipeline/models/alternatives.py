"""What the joint decoder is held against: the rest of the task network in the cloud, and an image codec's two halves.

    SE + SD/D      y_hat -> SD -> features at stride 16 -> D            SourceTaskDecoder
    uncompressed                  features at stride 16 -> D            FeatureTaskDecoder
    JSDE           y_hat of an image codec -> upsampled -> stages -> D  JSDEDecoder, behind ImageAnalysis
    image codec    y_hat -> picture                                     ImageSynthesis: what ImageAnalysis learns with

D is the tail of the backbone and DeepLabv3's head. All but the last give logits at stride 4, as the joint decoder does.
Nazir et al. (ECCV 2024, arXiv 2407.11224) name these systems; layers and widths are not published, those here are ours.
"""

import math
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models.backbone import FeatureSpec
from pipeline.models.deeplab import DeepLabHead
from pipeline.models.layers import conv_bn, conv_bn_relu

_STRIDE = 16

# An image codec's transforms. At the start the highest level's quantiser has this many steps in half a colour's range.
_FINEST = 5.5
# Blocks are kept 16 times as large as they act, so that their weights are of the size that Adam's steps are made for;
# what the synthesis adds is a tenth of what its last layer gives, since its errors are in grey levels, not in steps.
_BLOCK_UNITS = 16
_ADDED = 0.1
# A wave of colour comes behind those of grey whose squared frequency is below this many times its own, and this more:
# so the first 192 leave out the least of CamVid's pictures.
_COLOUR_SQUARES, _COLOUR_LATER = 10, 4


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
    """The encoder of a learned image codec, which knows nothing of the task: a block transform and a network beside it.

    The transform begins in JPEG's way, as cosines of blocks in three opponent colours, here of 16 x 16 pixels, and the
    network beside it with nothing: what is learned is added to a codec that works. Residual blocks in place
    of divisive normalisation: He et al., "ELIC", CVPR 2022 (arXiv 2203.10886).
    """

    def __init__(self, latents: int, *, width: int = 64) -> None:
        super().__init__()
        self.blocks = nn.Conv2d(3, latents, _STRIDE, stride=_STRIDE)
        self.fine = nn.Sequential(nn.Conv2d(3, width, 8, stride=4, padding=2), _Refine(width), _Refine(width))
        self.coarse = nn.Sequential(nn.Conv2d(width, 2 * width, 4, stride=4), _Refine(2 * width), _Refine(2 * width))
        self.add = nn.Conv2d(2 * width, latents, 3, padding=1)
        _begin_as_cosines(self.blocks)
        _begin_as_nothing(self.add)

    def forward(self, image: Tensor) -> Tensor:
        """RGB (B, 3, H, W) in 0..255, H and W multiples of 16 -> y (B, C, H/16, W/16)."""
        image = image / 127.5 - 1
        with torch.autocast(image.device.type, enabled=False):  # bfloat16 knows a mean of 100 steps to half a step
            y = self.blocks(image.float()) * (_FINEST / _BLOCK_UNITS)
        found: Tensor = y + self.add(self.coarse(self.fine(image)))
        return found


class ImageSynthesis(nn.Module):
    """The decoder of a learned image codec, the same in reverse: what its encoder learns with, in no bundle.

    The network sees the picture of the transform alone too, and so can mend what blocks leave at their edges.
    """

    def __init__(self, latents: int, *, width: int = 64) -> None:
        super().__init__()
        self.blocks = nn.ConvTranspose2d(latents, 3, _STRIDE, stride=_STRIDE)
        self.coarse = nn.Sequential(
            nn.Conv2d(latents, 2 * width, 3, padding=1),
            _Refine(2 * width),
            _Refine(2 * width),
            nn.ConvTranspose2d(2 * width, width, 4, stride=4),
        )
        self.seen = nn.Conv2d(3, width, 8, stride=4, padding=2)
        self.fine = nn.Sequential(_Refine(width), _Refine(width))
        self.add = nn.ConvTranspose2d(width, 3, 8, stride=4, padding=2)
        _begin_as_cosines(self.blocks)
        _begin_as_nothing(self.add)

    def forward(self, y_hat: Tensor) -> Tensor:
        """Latents (B, C, h, w) -> RGB (B, 3, 16h, 16w), about 0..255."""
        with torch.autocast(y_hat.device.type, enabled=False):
            blocks = self.blocks(y_hat.float() / (_FINEST * _BLOCK_UNITS))
        image: Tensor = blocks + _ADDED * self.add(self.fine(self.coarse(y_hat / _FINEST) + self.seen(blocks)))
        return (image + 1) * 127.5


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
        self.even = nn.BatchNorm2d(latents)
        self.adapt = SourceDecoder(latents, joins.channels * self.factor**2, width=width, blocks=blocks)
        self.smooth = nn.Sequential(
            conv_bn_relu(joins.channels, joins.channels * 2, 3), nn.Conv2d(joins.channels * 2, joins.channels, 1)
        )
        self.stages = stages
        self.task_decoder = task_decoder

    def forward(self, y_hat: Tensor) -> Tensor:
        """Latents (B, C, h, w) -> logits (B, K, 4h, 4w)."""
        with torch.autocast(y_hat.device.type, enabled=False):  # some latents are a hundred times as large as others
            y_hat = self.even(y_hat.float())
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


class _Refine(nn.Module):
    """Two 3x3 convolutions beside the input, (B, C, h, w) -> the same; nothing is normalised, as brightness matters."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        narrow = channels // 2
        self.refine = nn.Sequential(
            nn.Conv2d(channels, narrow, 3, padding=1), nn.ReLU(), nn.Conv2d(narrow, channels, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = x + self.refine(x)
        return found


def block_cosines(count: int) -> Tensor:
    """The first `count` cosines of blocks of 16 x 16 pixels, orthonormal: (count, 3, 16, 16).

    Slow waves come first, those of colour (red against blue, both against green) later than equally slow ones of grey.
    Raises ValueError where there are fewer.
    """
    places = torch.arange(_STRIDE) + 0.5
    waves = torch.cos(math.pi / _STRIDE * torch.arange(_STRIDE)[:, None] * places)  # (frequency, place)
    waves = waves / waves.norm(dim=1, keepdim=True)
    colours = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [1.0, -2.0, 1.0]])
    colours = colours / colours.norm(dim=1, keepdim=True)
    squares = torch.arange(_STRIDE) ** 2
    grey = squares[:, None] + squares  # (down, across)
    colour = _COLOUR_SQUARES * grey + _COLOUR_LATER
    quickness = torch.stack([grey, colour, colour])
    if not 0 < count <= quickness.numel():
        raise ValueError(f"{count} cosines of blocks with {quickness.numel()} values")
    hue, down, across = torch.unravel_index(quickness.flatten().argsort(stable=True)[:count], quickness.shape)
    return torch.einsum("nc,ny,nx->ncyx", colours[hue], waves[down], waves[across])


@torch.no_grad()
def _begin_as_cosines(layer: nn.Conv2d | nn.ConvTranspose2d) -> None:
    layer.weight.copy_(_BLOCK_UNITS * block_cosines(len(layer.weight)))
    nn.init.zeros_(_bias(layer))


def _begin_as_nothing(layer: nn.Conv2d | nn.ConvTranspose2d) -> None:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(_bias(layer))


def _bias(layer: nn.Conv2d | nn.ConvTranspose2d) -> Tensor:
    if layer.bias is None:
        raise ValueError("an image codec's layers need biases")
    return layer.bias
