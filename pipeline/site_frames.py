"""One site's video: frames to learn from, frames only to measure on, and what teachers see in them."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pipeline.datasets import Image, unlabelled_frames
from pipeline.errors import ConfigError
from pipeline.sources import fit
from pipeline.teachers import BATCH, Teacher, stacked

_MOST = 200  # frames; of a longer video fewer a second are taken
_LEAST = 10
_STRETCHES, _HELD = 10, (2, 7)
_FINER = 2  # than the bundle's frames are those that a teacher sees, in either direction

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, eq=False)
class Shot:
    """One frame RGB (H, W, 3) as the camera encodes it, and as teachers see it: larger, of the source's shape."""

    coded: Image
    shown: Image


@dataclass(frozen=True, slots=True)
class Split:
    """Numbers of the frames to learn from, and of those to measure on."""

    learned: tuple[int, ...]
    held: tuple[int, ...]


def read_shots(source: Path, size: tuple[int, int]) -> list[Shot]:
    """Frames of a folder or clip, spread over its length, for a bundle of `size` (width, height).

    ConfigError when it cannot be read or has too few.
    """
    shots = spread(_shots(unlabelled_frames(source), size), _MOST)
    if len(shots) < _LEAST:
        raise ConfigError(f"source {source}: {len(shots)} frames are too few; name {_LEAST} images or 5 s of video")
    return shots


def _shots(images: Iterable[Image], size: tuple[int, int]) -> Iterator[Shot]:
    larger: tuple[int, int] | None = None  # of the first image; pictures of a folder may differ
    for image in images:
        larger = larger or teacher_size((image.shape[1], image.shape[0]), size)
        yield Shot(fit(image, size), fit(image, larger))


def spread(items: Iterable[_T], most: int) -> list[_T]:
    """Every first, second, fourth ... of the items, so that there are at most `most`, however many come."""
    kept: list[_T] = []
    step = 1
    for i, item in enumerate(items):
        if i % step == 0:
            kept.append(item)
        if len(kept) > most:
            kept, step = kept[::2], 2 * step
    return kept


def split_in_time(count: int) -> Split:
    """Two of ten stretches of time are held out, and what lies right beside them is used for nothing.

    Held out singly, each frame would have a neighbour among those that are learned, half a second away and nearly
    the same.
    """
    held = np.isin(np.arange(count) * _STRETCHES // count, _HELD)
    beside = np.convolve(held, (1, 1, 1), "same") > 0
    return Split(tuple(np.flatnonzero(~beside).tolist()), tuple(np.flatnonzero(held).tolist()))


def teacher_size(source: tuple[int, int], bundle: tuple[int, int]) -> tuple[int, int]:
    """Width and height that a teacher looks at: the shape of the source, four times the bundle's pixels, in eights."""
    scale = _FINER * (bundle[0] * bundle[1] / (source[0] * source[1])) ** 0.5
    width, height = (max(8, 8 * round(length * scale / 8)) for length in source)
    return width, height


@torch.no_grad()
def opinions(
    teacher: Teacher, shots: Sequence[Shot], size: tuple[int, int], progress: Callable[[int], None]
) -> Iterator[Tensor]:
    """What a teacher sees in shots: probabilities (B, K, h, w) at `size` (h, w), batch by batch, in their order."""
    for first in range(0, len(shots), BATCH):
        shown = stacked([shot.shown for shot in shots[first : first + BATCH]], teacher.device)
        yield F.interpolate(teacher.probabilities(shown), size, mode="bilinear", antialias=True)
        progress(min(first + BATCH, len(shots)))


def soft_labels(seen: Iterable[Tensor]) -> NDArray[np.uint8]:
    """Probabilities (B, K, h, w), batch by batch -> (N, K, h, w) in 1/255."""
    return np.concatenate([(255 * one).round().byte().cpu().numpy() for one in seen])


def class_maps(seen: Iterable[Tensor]) -> NDArray[np.uint8]:
    """Probabilities (B, K, h, w), batch by batch -> the likeliest class of each pixel (N, h, w)."""
    return np.concatenate([one.argmax(1).byte().cpu().numpy() for one in seen])
