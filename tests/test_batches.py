"""Batches: a matter of seed and step alone, balanced and mixed as asked, the same from memory and from disk."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor

from pipeline.accuracy import VOID
from pipeline.batches import Batches, ClassPixels, Resident, Streamed, class_pixels
from pipeline.datasets import LabelledFrame, Stored
from pipeline.views import Augmentation, Batch

LABELLED, EXTRA = 8, 3
SCENES = tiny.scenes(LABELLED + EXTRA)
CPU = torch.device("cpu")
STILL = Augmentation(1.0, 1.0, 0.0)


def one_hot(labels: np.ndarray) -> Tensor:
    """Labels (H, W) -> soft labels (K, H/2, W/2), void being sky."""
    classes = torch.from_numpy(np.where(labels == VOID, 0, labels)[::2, ::2].astype(np.int64))
    return 255 * torch.nn.functional.one_hot(classes, tiny.CLASSES).permute(2, 0, 1).byte()


def pool(*, soft: bool = False) -> Resident:
    """All scenes, the labels of the last ones being void."""
    labels = torch.from_numpy(np.stack([one.labels for one in SCENES]))
    labels[LABELLED:] = VOID
    hot = torch.stack([one_hot(one.labels) for one in SCENES]) if soft else None
    return Resident(tiny.images(SCENES).byte(), labels, hot)


def batches(**changed: object) -> Batches:
    resident = pool()
    made = Batches(
        pool=resident,
        labelled=LABELLED,
        pixels=class_pixels(resident.labels, tiny.CLASSES),
        levels=3,
        size=4,
        unlabelled=0,
        balanced=0.0,
        mixed=0.0,
        texture=0.0,
        classes=tiny.CLASSES,
        frame_size=resident.size,
        crop=(32, 48),
        augmentation=Augmentation(0.75, 2.0, 0.2),
        seed=1,
    )
    return replace(made, **changed)


def equal(one: Batch, other: Batch) -> bool:
    soft = (one.soft is None and other.soft is None) or torch.equal(one.soft, other.soft)
    same = (torch.equal(getattr(one, name), getattr(other, name)) for name in ("images", "labels", "quality"))
    return soft and all(same)


ALL = {"pool": pool(soft=True), "unlabelled": 1, "balanced": 0.5, "mixed": 0.5, "texture": 0.4}


def test_a_batch_has_the_shapes_it_says() -> None:
    batch = batches(**ALL).at(0)
    assert batch.images.shape == (4, 3, 32, 48)
    assert batch.labels.shape == (4, 32, 48)
    assert batch.soft is not None
    assert batch.soft.shape == (4, tiny.CLASSES, 16, 24)
    assert batch.quality.shape == (4,)
    assert (batch.images.dtype, batch.labels.dtype, batch.quality.dtype) == (torch.float32, torch.uint8, torch.int64)
    assert batches().at(0).soft is None


@pytest.mark.parametrize("changed", [{}, ALL], ids=["plain", "everything"])
def test_a_batch_depends_on_seed_and_step_alone(changed: dict[str, object]) -> None:
    made = batches(**changed)
    torch.manual_seed(1)
    first = made.at(5)
    torch.manual_seed(2)
    made.at(0)
    assert equal(made.at(5), first)
    assert not equal(made.at(5), made.at(5 + made.per_epoch))
    assert not equal(made.at(5), made.at(4))
    assert not equal(made.at(5), replace(made, seed=2).at(5))


def test_making_a_batch_leaves_the_training_steps_chance_alone() -> None:
    """It is made in a thread, while the step draws its noise."""
    before = torch.get_rng_state()
    batches(**ALL).at(3)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_is_made_ahead_is_what_each_step_gives() -> None:
    made = batches(**ALL)
    steps = range(3, 3 + 3 * made.per_epoch)
    for step, batch in zip(steps, made.of(steps), strict=True):
        assert equal(batch, made.at(step))
    assert list(made.of(range(2, 2))) == []


def frame_of(image: Tensor) -> int:
    """Which scene a view at scale one is of, whole and maybe mirrored."""
    scenes = tiny.images(SCENES)
    apart = torch.minimum((scenes - image).abs().mean((1, 2, 3)), (scenes.flip(3) - image).abs().mean((1, 2, 3)))
    assert apart.min() < 0.1
    return int(apart.argmin())


def whole(**changed: object) -> Batches:
    """Views of whole frames, which tell the frame that they are of."""
    return batches(crop=(tiny.HEIGHT, tiny.WIDTH), augmentation=STILL, **changed)


def test_an_epoch_shows_every_frame_once_and_each_epoch_in_another_order() -> None:
    made = whole()
    assert made.per_epoch == 2
    orders = [[frame_of(image) for step in steps for image in made.at(step).images] for steps in ((0, 1), (2, 3))]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(LABELLED))
    assert orders[0] != orders[1]


def test_what_fills_no_batch_sits_out() -> None:
    assert batches(size=3).per_epoch == 2
    assert batches(size=5, unlabelled=2).per_epoch == 2


@pytest.mark.parametrize("unlabelled", [1, 3])
def test_each_batch_has_its_share_of_frames_without_labels(unlabelled: int) -> None:
    made = whole(unlabelled=unlabelled)
    seen = []
    for step in range(6):
        batch = made.at(step)
        seen += [frame_of(image) for image in batch.images[4 - unlabelled :]]
        assert (batch.labels[4 - unlabelled :] == VOID).all()
        assert (batch.labels[: 4 - unlabelled] != VOID).float().mean() > 0.9
        assert all(frame_of(image) < LABELLED for image in batch.images[: 4 - unlabelled])
    assert set(seen) == set(range(LABELLED, LABELLED + EXTRA))


@pytest.mark.parametrize(("size", "levels"), [(4, 3), (8, 8), (4, 8), (6, 2), (3, 1)])
def test_levels_are_evenly_spread_over_every_batch_and_over_time(size: int, levels: int) -> None:
    made, total = batches(size=size, levels=levels), Counter()
    for step in range(levels):
        counts = Counter(made.at(step).quality.tolist())
        assert set(counts) <= set(range(levels))
        assert max(counts.values()) <= -(-size // levels)
        total += counts
    assert set(total.values()) == {size}


def test_levels_do_not_always_fall_on_the_same_place() -> None:
    made = batches(levels=4)
    assert len({tuple(made.at(4 * i).quality.tolist()) for i in range(8)}) > 3


def rare() -> tuple[Resident, ClassPixels]:
    """Frames of sky, in one of which a small car stands in a corner."""
    labels = torch.zeros(LABELLED, tiny.HEIGHT, tiny.WIDTH, dtype=torch.uint8)
    labels[3, :8, :8] = tiny.CAR
    resident = Resident(torch.zeros(LABELLED, 3, tiny.HEIGHT, tiny.WIDTH, dtype=torch.uint8), labels, None)
    return resident, class_pixels(labels, tiny.CLASSES)


@pytest.mark.parametrize(("balanced", "low", "high"), [(0.0, 0.0, 0.1), (0.5, 0.15, 0.4), (1.0, 0.35, 0.65)])
def test_balanced_views_show_a_rare_class_as_often_as_a_common_one(balanced: float, low: float, high: float) -> None:
    resident, pixels = rare()
    made = batches(pool=resident, pixels=pixels, balanced=balanced, crop=(16, 16), augmentation=STILL)
    views = torch.cat([made.at(step).labels for step in range(30)])
    share = (views == tiny.CAR).flatten(1).any(1).float().mean()
    assert low <= share <= high


def test_class_pixels_name_a_frame_and_a_place_of_the_class() -> None:
    labels = pool().labels[:LABELLED]
    pixels = class_pixels(labels, tiny.CLASSES)
    present = sorted(set(labels[:, ::4, ::4].unique().tolist()) - {VOID})
    assert len(pixels.rows) == len(present)
    for index, rows in zip(present, pixels.rows, strict=True):
        assert np.abs(rows[:, 1:]).max() < 1
        columns, lines = ((rows[:, 1] + 1) / 2 * tiny.WIDTH, (rows[:, 2] + 1) / 2 * tiny.HEIGHT)
        at = labels[rows[:, 0].astype(int), (lines - 2).astype(int), (columns - 2).astype(int)]
        assert (at == index).all()


def test_class_pixels_are_drawn_evenly_by_class() -> None:
    _, pixels = rare()
    rng = np.random.default_rng(0)
    frames = [pixels.draw(rng) for _ in range(400)]
    in_car = [frame == 3 and x < -0.7 and y < -0.6 for frame, (x, y) in frames]
    assert 0.4 < np.mean(in_car) < 0.6


def test_pixels_of_a_large_data_set_are_thinned_out() -> None:
    labels = torch.zeros(20, 256, 256, dtype=torch.uint8)
    (rows,) = class_pixels(labels, 3).rows
    assert 4000 <= len(rows) < 8000
    assert set(rows[:, 0]) == set(range(20))


def test_a_share_of_the_views_is_mixed() -> None:
    """A mixed view of whole frames shows pixels of two scenes."""
    still, mixed = whole(), whole(mixed=0.5)
    changed = [
        not torch.equal(a, b)
        for step in range(12)
        for a, b in zip(still.at(step).labels, mixed.at(step).labels, strict=True)
    ]
    assert 0.25 < np.mean(changed) < 0.75


def test_texture_changes_images_and_nothing_else() -> None:
    plain, grainy = batches().at(2), batches(texture=0.5).at(2)
    assert torch.equal(grainy.labels, plain.labels)
    assert torch.equal(grainy.quality, plain.quality)
    assert not torch.equal(grainy.images, plain.images)


def stored(labels: Tensor) -> Stored:
    frames = [LabelledFrame(one.image, labels[i].numpy()) for i, one in enumerate(SCENES)]
    return Stored(tuple(map(str, range(len(frames)))), lambda index: frames[index])


def test_frames_from_disk_give_the_same_batches_as_those_in_memory() -> None:
    resident = pool()
    streamed = Streamed(stored(resident.labels), (tiny.HEIGHT, tiny.WIDTH), CPU)
    assert (len(streamed), streamed.size) == (len(resident), resident.size)
    for changed in ({}, {"unlabelled": 2, "balanced": 0.5, "mixed": 0.5, "texture": 0.3}):
        in_memory = batches(pool=resident, **changed)
        on_disk = replace(in_memory, pool=streamed)
        assert all(equal(in_memory.at(step), on_disk.at(step)) for step in range(4))


def test_an_error_on_disk_reaches_the_training() -> None:
    def damaged(index: int) -> LabelledFrame:
        raise OSError(f"frame {index}")

    source = Stored(tuple(map(str, range(LABELLED))), damaged)
    made = batches(pool=Streamed(source, (tiny.HEIGHT, tiny.WIDTH), CPU))
    with pytest.raises(OSError, match="frame"):
        next(made.of(range(2)))
