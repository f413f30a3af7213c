"""Accuracy and estimated rate of a network while it trains, on whole frames; `evaluation` measures what is deployed.

Of an image codec it is how near its pictures come instead of mIoU.
"""

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pipeline.accuracy import VOID, mean_iou
from pipeline.datasets import Frames, Placed
from pipeline.errors import ConfigError
from pipeline.losses import squared_error
from pipeline.models.entropy_model import Coded
from pipeline.models.layers import short_floats
from pipeline.models.split_segmenter import SplitSegmenter, levels_like, upsample

_TOGETHER = 16  # frames of one size that are measured at once on a GPU


@dataclass(frozen=True, slots=True)
class Measured:
    """Accuracy (0..1) and estimated rate of a network on one split at one quality level."""

    measure = "mIoU"

    split: str
    quality: int
    miou: float
    rate_bpp: float  # bits per pixel of the split's frames

    @property
    def shown(self) -> str:
        """The accuracy as logs have it."""
        return f"{100 * self.miou:.2f}"


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """How near an image codec's pictures come on one split at one level, in dB, and its estimated rate."""

    measure = "PSNR"

    split: str
    quality: int
    psnr_db: float  # mean over the split's frames
    rate_bpp: float  # bits per pixel of the split's frames

    @property
    def shown(self) -> str:
        """How near, as logs have it."""
        return f"{self.psnr_db:.2f} dB"


@dataclass(frozen=True, slots=True, eq=False)
class _Group:
    """Frames of one size as bytes (B, 3, H, W), and their labels (B, h, w)."""

    images: Tensor
    labels: Tensor
    shown: tuple[int, int]  # rows and columns of the images, from the upper left, that the labels are of


@dataclass(frozen=True, slots=True, eq=False)
class _Seen:
    """Frames of a group in 0..255 (B, 3, H, W) at one quality level, their labels (B, h, w), what was coded of them."""

    images: Tensor
    labels: Tensor
    shown: tuple[int, int]  # as of their group
    level: int
    coded: Coded


def psnr_db(error: float) -> float:
    """Peak signal-to-noise ratio of a mean squared error in squared grey levels; none counts as 0.001 grey levels."""
    return 20 * math.log10(255) - 10 * math.log10(max(error, 1e-6))


@torch.no_grad()
def measure(
    network: SplitSegmenter, data: Frames, split: str, *, classes: int, size: tuple[int, int] | None
) -> list[Measured]:
    """One entry per quality level; the network must be in eval mode. ConfigError on labels that are no class.

    Pictures are brought to `size` (height, width), if there is one, and masks back to that of the labels.
    """
    matrices, rates = np.zeros((network.levels, classes, classes), np.int64), _Rates(network.levels)
    for seen in _through(network, data, size):
        _check(seen.labels, split, classes)
        rates.count(seen)
        with short_floats(seen.images.device):
            logits = upsample(network.decoder(seen.coded.y_hat), seen.images.shape[-2], seen.images.shape[-1])
        logits = logits[..., : seen.shown[0], : seen.shown[1]]
        matrices[seen.level] += _confusion(seen.labels, _onto(seen.labels, logits.argmax(1)), classes)
    pairs = enumerate(zip(matrices, rates.bpp, strict=True))
    return [Measured(split, level, mean_iou(matrix), bpp) for level, (matrix, bpp) in pairs]


@torch.no_grad()
def measure_pictures(
    network: SplitSegmenter, data: Frames, split: str, *, size: tuple[int, int] | None
) -> list[Rebuilt]:
    """One entry per quality level of an image codec in eval mode, its pictures held against those of `size` it sees."""
    found: list[list[float]] = [[] for _ in range(network.levels)]
    rates = _Rates(network.levels)
    for seen in _through(network, data, size):
        rates.count(seen)
        height, width = seen.images.shape[-2:]
        with short_floats(seen.images.device):
            rebuilt = network.decoder(seen.coded.y_hat)[..., :height, :width].float().clamp(0, 255)
        found[seen.level] += [psnr_db(error) for error in squared_error(rebuilt, seen.images).tolist()]
    return [
        Rebuilt(split, level, statistics.mean(all_db), bpp)
        for level, (all_db, bpp) in enumerate(zip(found, rates.bpp, strict=True))
    ]


class _Rates:
    """Bits of all frames over their pixels, by level."""

    def __init__(self, levels: int) -> None:
        self._bits, self._pixels = np.zeros(levels), np.zeros(levels, np.int64)

    def count(self, seen: _Seen) -> None:
        self._bits[seen.level] += float((seen.coded.y_bits + seen.coded.z_bits).sum())
        self._pixels[seen.level] += seen.labels.numel()

    @property
    def bpp(self) -> list[float]:
        rates: list[float] = (self._bits / self._pixels).tolist()
        return rates


def _through(network: SplitSegmenter, data: Frames, size: tuple[int, int] | None) -> Iterator[_Seen]:
    """All frames at all levels, each analysed once; several together on a GPU, one by one on a CPU."""
    device = next(network.parameters()).device
    for group in _groups(data, size, most=_TOGETHER if device.type == "cuda" else 1):
        images, labels = group.images.to(device).float(), group.labels.to(device)
        with short_floats(images.device):
            y = network.encode(images.contiguous(memory_format=torch.channels_last))
        for level in range(network.levels):
            with short_floats(images.device):
                coded = network.prior(y, levels_like(images, level))
            yield _Seen(images, labels, group.shown, level, coded)


def _groups(data: Frames, size: tuple[int, int] | None, *, most: int) -> Iterator[_Group]:
    """All frames in their order, those of one size that follow one another together, but no more than `most`."""
    waiting: list[_Group] = []
    for index in range(len(data)):
        one = _alone(data, index, size)
        if waiting and (len(waiting) == most or waiting[0].labels.shape != one.labels.shape):
            yield _joined(waiting)
            waiting = []
        waiting.append(one)
    if waiting:
        yield _joined(waiting)


def _alone(data: Frames, index: int, size: tuple[int, int] | None) -> _Group:
    """One frame at the size that the network takes it at; without one, as it is."""
    frame = data.read(index)
    height, width = frame.labels.shape
    placed = data.placed(frame.image, size) if size else Placed(frame.image, height, width)
    image, labels = torch.from_numpy(placed.image).permute(2, 0, 1), torch.from_numpy(frame.labels)
    return _Group(image[None], labels[None], (placed.rows, placed.columns))


def _joined(groups: Sequence[_Group]) -> _Group:
    images, labels = torch.cat([one.images for one in groups]), torch.cat([one.labels for one in groups])
    return _Group(images, labels, groups[0].shown)


def _check(labels: Tensor, split: str, classes: int) -> None:
    strange = labels[(labels >= classes) & (labels != VOID)]
    if len(strange):
        raise ConfigError(f"labels of {split}: {strange[0]} is none of {classes} classes; take the data set's own")


def _onto(labels: Tensor, guess: Tensor) -> Tensor:
    """Classes (B, H', W') at the size of the labels (B, H, W)."""
    return F.interpolate(guess[:, None].byte(), labels.shape[-2:], mode="nearest-exact")[:, 0].long()


def _confusion(labels: Tensor, guess: Tensor, classes: int) -> NDArray[np.int64]:
    counted = labels != VOID
    pairs = labels[counted].long() * classes + guess[counted]
    counts: NDArray[np.int64] = torch.bincount(pairs, minlength=classes**2).reshape(classes, classes).cpu().numpy()
    return counts
