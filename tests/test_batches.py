"""Batches: a matter of seed and step alone, made ahead without changing what comes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.batches import Batch, Batches
from pipeline.datasets import Augmentation, camvid


@pytest.fixture
def batches(tiny_camvid: Path) -> Batches:
    data = camvid(tiny_camvid, "train")
    return Batches(data, None, size=2, crop=(32, 48), augmentation=Augmentation(0.75, 2.0, 0.2), seed=1)


def equal(one: Batch, other: Batch) -> bool:
    return torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)


def test_a_batch_has_the_shapes_it_says(batches: Batches) -> None:
    batch = batches.at(0)
    assert batch.images.shape == (2, 3, 32, 48)
    assert batch.labels.shape == (2, 32, 48)
    assert batch.images.dtype == batch.labels.dtype == torch.uint8
    assert batch.soft is None


def test_what_is_made_ahead_is_what_each_step_gives(batches: Batches) -> None:
    steps = range(3, 3 + 2 * batches.per_epoch)
    for step, batch in zip(steps, batches.of(steps), strict=True):
        assert equal(batch, batches.at(step))


def test_another_seed_or_epoch_gives_other_views(batches: Batches) -> None:
    first = batches.at(0)
    assert not equal(first, batches.at(batches.per_epoch))
    assert not equal(first, replace(batches, seed=2).at(0))


def test_soft_labels_come_along(batches: Batches) -> None:
    height, width = batches.data.labels[0].shape
    soft = np.full((len(batches.data.images), height, width, 11), 23, np.uint8)
    found = replace(batches, soft=soft, augmentation=Augmentation(1.0, 2.0, 0.0)).at(0).soft
    assert found is not None
    assert found.shape == (2, 11, 32, 48)
    assert (found == 23).all()
