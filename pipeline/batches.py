"""Batches of augmented views, a matter of seed and step alone, made ahead of the training step that takes them."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline import datasets
from pipeline.views import (
    Augmentation,
    Batch,
    Frames,
    change_light,
    change_texture,
    cut_views,
    draw_cut,
    draw_light,
    draw_texture,
    mix_classes,
)

_AHEAD = 3
_READERS = 4
_PER_CLASS = 4000  # pixels kept per class, to centre views on


class Pool(Protocol):
    """Frames to draw from by number, all of one size (height, width) once taken."""

    @property
    def size(self) -> tuple[int, int]: ...

    @property
    def device(self) -> torch.device: ...

    def __len__(self) -> int: ...

    def take(self, indexes: NDArray[np.int64]) -> Frames:
        """The frames of these numbers, on the device that trains."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Resident:
    """All frames in the device's memory: images (N, 3, H, W), labels (N, H, W), soft (N, K, H', W') or None; uint8."""

    images: Tensor
    labels: Tensor
    soft: Tensor | None

    @property
    def size(self) -> tuple[int, int]:
        height, width = self.images.shape[-2:]
        return height, width

    @property
    def device(self) -> torch.device:
        return self.images.device

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indexes: NDArray[np.int64]) -> Frames:
        chosen = torch.from_numpy(indexes).to(self.images.device)
        soft = None if self.soft is None else self.soft[chosen]
        return Frames(self.images[chosen], self.labels[chosen], soft)


@dataclass(frozen=True, slots=True, eq=False)
class Streamed:
    """Frames of one size (height, width) that are read from disk each time: data sets larger than memory."""

    source: datasets.Frames
    size: tuple[int, int]
    device: torch.device

    def __len__(self) -> int:
        return len(self.source)

    def take(self, indexes: NDArray[np.int64]) -> Frames:
        with ThreadPoolExecutor(_READERS) as readers:
            read = list(readers.map(self.source.read, indexes.tolist()))
        images = torch.from_numpy(np.stack([frame.image for frame in read])).permute(0, 3, 1, 2)
        labels = torch.from_numpy(np.stack([frame.labels for frame in read]))
        return Frames(images.to(self.device), labels.to(self.device), None)


@dataclass(frozen=True, slots=True, eq=False)
class ClassPixels:
    """For each class that occurs, some of its pixels: rows of frame number, x, y, the last two in -1..1 (M, 3)."""

    rows: tuple[NDArray[np.float32], ...]

    def draw(self, rng: np.random.Generator) -> tuple[int, tuple[float, float]]:
        """A frame and a point in it, its class drawn evenly."""
        rows = self.rows[rng.integers(len(self.rows))]
        frame, x, y = rows[rng.integers(len(rows))]
        return int(frame), (float(x), float(y))


def class_pixels(labels: Tensor, classes: int) -> ClassPixels:
    """Pixels to centre views on, from labels (N, H, W); every fourth row and column is looked at."""
    sparse = labels[:, ::4, ::4].cpu().numpy()
    size = np.array(sparse.shape[1:])
    rows = []
    for index in range(classes):
        places = np.argwhere(sparse == index)  # (M, 3): frame, row, column
        places = places[:: max(1, len(places) // _PER_CLASS)]
        xy = (places[:, 2:0:-1] + 0.5) / size[::-1] * 2 - 1
        if len(places):
            rows.append(np.concatenate([places[:, :1], xy], 1).astype(np.float32))
    return ClassPixels(tuple(rows))


@dataclass(frozen=True, slots=True, eq=False)
class Batches:
    """What batches are drawn from, and how.

    The first `labelled` frames of the pool have labels; `unlabelled` views of each batch show one of the others, and
    `balanced` is the share of the rest that is centred on a pixel of a class drawn evenly. `mixed` is the share of all
    views that show half of the classes of one frame before another. At scale 1 frames are of `frame_size`
    (height, width), whatever the pool's own.
    """

    pool: Pool
    labelled: int
    pixels: ClassPixels
    levels: int
    size: int
    unlabelled: int
    balanced: float
    mixed: float
    texture: float
    classes: int
    frame_size: tuple[int, int]
    crop: tuple[int, int]
    augmentation: Augmentation
    seed: int

    @property
    def per_epoch(self) -> int:
        """Batches in one pass over the labelled frames; what is left over sits out."""
        return self.labelled // self._fresh

    @property
    def _fresh(self) -> int:
        return self.size - self.unlabelled

    def of(self, steps: range) -> Iterator[Batch]:
        """One batch per step, made ahead in a thread; on a GPU they are made in time by themselves."""
        if self.pool.device.type == "cuda":
            yield from map(self.at, steps)
            return
        with ThreadPoolExecutor(1) as maker:
            ahead = [maker.submit(self.at, step) for step in steps[:_AHEAD]]
            for step in steps:
                batch = ahead.pop(0).result()
                if step + _AHEAD in steps:
                    ahead.append(maker.submit(self.at, step + _AHEAD))
                yield batch

    @torch.no_grad()
    def at(self, step: int) -> Batch:
        """The batch of one step; it depends on seed and step alone, so that a run can resume anywhere."""
        epoch, place = divmod(step, self.per_epoch)
        order = np.random.default_rng((self.seed, epoch)).permutation(self.labelled)
        rng = np.random.default_rng((self.seed, epoch, place))
        indexes = order[place * self._fresh : (place + 1) * self._fresh].astype(np.int64)
        around: list[tuple[float, float] | None] = [None] * self.size
        for i in np.flatnonzero(rng.random(self._fresh) < self.balanced):
            indexes[i], around[i] = self.pixels.draw(rng)
        others = rng.integers(self.labelled, max(len(self.pool), self.labelled + 1), self.unlabelled)
        frames = self.pool.take(np.concatenate([indexes, others]))
        cut = draw_cut(self.frame_size, self.crop, self.augmentation, rng, around=around)
        light = draw_light(self.size, self.augmentation.jitter, rng)
        levels = rng.permutation((np.arange(self.size) + step) % self.levels)
        batch = cut_views(frames, cut, self.crop, torch.from_numpy(levels).to(frames.images.device))
        if self.mixed > 0:
            plain = rng.random((self.size, 1)) >= self.mixed
            batch = mix_classes(batch, plain | (rng.random((self.size, self.classes)) < 0.5))
        images = change_light(batch.images, light)
        if self.texture > 0:
            texture = draw_texture(self.size, self.texture, rng)
            images = change_texture(images, texture, seed=int(rng.integers(1 << 32)))
        return replace(batch, images=images)
