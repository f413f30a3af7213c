"""Accuracy and estimated rate of a network while it trains, on whole frames; `evaluation` measures what is deployed.

Of an image codec it is how near its pictures come instead of mIoU.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pipeline.accuracy import VOID, mean_iou
from pipeline.datasets import Frames, at_size
from pipeline.errors import ConfigError
from pipeline.losses import squared_error
from pipeline.models.split_segmenter import SplitSegmenter, levels_like, upsample

_TOGETHER = 16  # frames of one size that are measured at once on a GPU


@dataclass(frozen=True, slots=True)
class Measured:
    """Accuracy (0..1) and estimated rate of a network on one split at one quality level."""

    split: str
    quality: int
    miou: float
    rate_bpp: float  # bits per pixel of the split's frames


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """How near an image codec's pictures come on one split at one level, in dB, and its estimated rate."""

    split: str
    quality: int
    psnr_db: float  # mean over the split's frames
    rate_bpp: float  # bits per pixel of the split's frames


def psnr_db(squared_error: float) -> float:
    """Peak signal-to-noise ratio of a mean squared error in squared grey levels; 0 gives that of 0.001 grey levels."""
    return 20 * math.log10(255) - 10 * math.log10(max(squared_error, 1e-6))


@torch.no_grad()
def measure(
    network: SplitSegmenter, data: Frames, split: str, *, classes: int, size: tuple[int, int] | None
) -> list[Measured]:
    """One entry per quality level; the network must be in eval mode. ConfigError on labels that are no class.

    Pictures are brought to `size` (height, width), if there is one, and masks back to that of the labels.
    """
    matrices = np.zeros((network.levels, classes, classes), np.int64)
    bits, pixels = torch.zeros(network.levels), 0
    for images, labels in _groups(data, size, next(network.parameters()).device):
        _check(labels, split, classes)
        pixels += labels.numel()
        with torch.autocast(images.device.type, torch.bfloat16):
            y = network.encode(images.contiguous(memory_format=torch.channels_last))
            for level in range(network.levels):
                coded = network.prior(y, levels_like(images, level))
                logits = upsample(network.decoder(coded.y_hat), images.shape[-2], images.shape[-1])
                matrices[level] += _confusion(labels, _onto(labels, logits.argmax(1)), classes)
                bits[level] += (coded.y_bits + coded.z_bits).sum().cpu()
    return [
        Measured(split, level, mean_iou(matrix), float(bits[level]) / pixels) for level, matrix in enumerate(matrices)
    ]


@torch.no_grad()
def measure_pictures(
    network: SplitSegmenter, data: Frames, split: str, *, size: tuple[int, int] | None
) -> list[Rebuilt]:
    """One entry per quality level of an image codec in eval mode, its pictures held against those of `size` it sees."""
    found, bits, pixels, frames = np.zeros(network.levels), np.zeros(network.levels), 0, 0
    for images, labels in _groups(data, size, next(network.parameters()).device):
        pixels, frames = pixels + labels.numel(), frames + len(images)
        height, width = images.shape[-2:]
        with torch.autocast(images.device.type, torch.bfloat16):
            y = network.encode(images.contiguous(memory_format=torch.channels_last))
            for level in range(network.levels):
                coded = network.prior(y, levels_like(images, level))
                rebuilt = network.decoder(coded.y_hat).float()[..., :height, :width].clamp(0, 255)
                found[level] += sum(psnr_db(squared_error(*pair).item()) for pair in zip(rebuilt, images, strict=True))
                bits[level] += float((coded.y_bits + coded.z_bits).sum())
    return [Rebuilt(split, level, db / frames, bits[level] / pixels) for level, db in enumerate(found.tolist())]


def _groups(data: Frames, size: tuple[int, int] | None, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Images (B, 3, H, W) in 0..255 and labels (B, H, W), frames of one size together; one by one on a CPU."""
    waiting: list[tuple[Tensor, Tensor]] = []
    most = _TOGETHER if device.type == "cuda" else 1
    for index in range(len(data)):
        frame = data.read(index)
        one = torch.from_numpy(at_size(frame.image, size)).permute(2, 0, 1), torch.from_numpy(frame.labels)
        if waiting and (len(waiting) == most or waiting[0][1].shape != one[1].shape):
            yield _stacked(waiting, device)
            waiting = []
        waiting.append(one)
    if waiting:
        yield _stacked(waiting, device)


def _stacked(frames: Sequence[tuple[Tensor, Tensor]], device: torch.device) -> tuple[Tensor, Tensor]:
    images, labels = (torch.stack(parts).to(device) for parts in zip(*frames, strict=True))
    return images.float(), labels


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
