"""Batches of augmented views, made ahead of the training step that takes them."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.datasets import Augmentation, Labelled, random_view

_AHEAD = 3


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Views of B frames: images (B, 3, h, w), labels (B, h, w) and soft labels (B, K, h, w) in 1/255, all uint8."""

    images: Tensor
    labels: Tensor
    soft: Tensor | None


@dataclass(frozen=True, slots=True, eq=False)
class Batches:
    """What batches are drawn from, and how."""

    data: Labelled
    soft: NDArray[np.uint8] | None
    size: int
    crop: tuple[int, int]
    augmentation: Augmentation
    seed: int

    @property
    def per_epoch(self) -> int:
        """Batches in one pass over the data; what is left over sits out."""
        return len(self.data.images) // self.size

    def of(self, steps: range) -> Iterator[Batch]:
        """One batch per step, made ahead in a thread."""
        with ThreadPoolExecutor(1) as pool:
            ahead = [pool.submit(self.at, step) for step in steps[:_AHEAD]]
            for step in steps:
                batch = ahead.pop(0).result()
                if step + _AHEAD in steps:
                    ahead.append(pool.submit(self.at, step + _AHEAD))
                yield batch

    def at(self, step: int) -> Batch:
        """The batch of one step; it depends on seed and step alone, so that a run can resume anywhere."""
        epoch, place = divmod(step, self.per_epoch)
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.data.images))
        rng = np.random.default_rng((self.seed, epoch, place))
        views = [
            random_view(self.data, int(i), soft=self.soft, size=self.crop, augmentation=self.augmentation, rng=rng)
            for i in order[place * self.size : (place + 1) * self.size]
        ]
        softs = [view.soft for view in views if view.soft is not None]
        return Batch(
            torch.from_numpy(np.stack([view.image for view in views])).permute(0, 3, 1, 2),
            torch.from_numpy(np.stack([view.labels for view in views])),
            torch.from_numpy(np.stack(softs)).permute(0, 3, 1, 2) if softs else None,
        )
