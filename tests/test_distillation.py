"""Soft labels: means over small squares of what a teacher says, made once and kept."""

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny import HEIGHT, WIDTH, scenes
from torch import Tensor

from pipeline import distillation
from pipeline.distillation import STRIDE, Teacher, learned_soft_labels, soft_label_file
from pipeline.errors import ConfigError
from pipeline.teachers import BATCH

Frames = Sequence[NDArray[np.uint8]]


class LightMeter:
    """A teacher that takes brightness for the probability of its first class of two; it counts its pictures."""

    device = torch.device("cpu")

    def __init__(self, made_of: str = "light meter") -> None:
        self.made_of, self.looks = made_of, 0

    def probabilities(self, images: Tensor) -> Tensor:
        self.looks += len(images)
        bright = images.float().mean(1) / 255
        return torch.stack([bright, 1 - bright], 1)

    def acquainted(self, images: Frames, *, share: float) -> Self:
        return self


class Tired(LightMeter):
    """Sees the first few pictures only."""

    def probabilities(self, images: Tensor) -> Tensor:
        if self.looks:
            raise KeyboardInterrupt
        return super().probabilities(images)


def soft_labels(teacher: Teacher, images: Frames) -> NDArray[np.uint8]:
    return np.concatenate(list(distillation.soft_labels(teacher, images)))


def pictures(count: int) -> list[NDArray[np.uint8]]:
    return [one.image for one in scenes(count)]


@pytest.mark.parametrize("count", [1, 4, 7])
def test_soft_labels_are_means_over_small_squares(count: int) -> None:
    soft, images = soft_labels(LightMeter(), pictures(count)), np.stack(pictures(count))
    assert soft.shape == (count, HEIGHT // STRIDE, WIDTH // STRIDE, 2)
    assert soft.dtype == np.uint8
    squares = images.reshape(count, HEIGHT // STRIDE, STRIDE, WIDTH // STRIDE, STRIDE, 3).mean((2, 4, 5))
    assert np.abs(soft[..., 0] - squares).max() <= 0.51
    assert np.abs(soft.astype(int).sum(-1) - 255).max() <= 1


def test_frames_of_a_size_that_does_not_divide_are_refused() -> None:
    with pytest.raises(ConfigError, match="95x64"):
        soft_labels(LightMeter(), [pictures(1)[0][:, :-1]])


def test_frames_of_several_sizes_are_refused() -> None:
    first, second = pictures(2)
    with pytest.raises(ConfigError, match="90x64, 96x64"):
        soft_labels(LightMeter(), [first, second[:, :90]])


def test_no_frames_are_refused() -> None:
    with pytest.raises(ConfigError, match="no size"):
        soft_labels(LightMeter(), [])


def test_soft_labels_are_made_once_and_then_read(tmp_path: Path) -> None:
    teacher, folder = LightMeter(), tmp_path
    first = soft_label_file(folder, pictures(3), teacher)
    assert teacher.looks == 3
    assert isinstance(first, np.memmap)
    assert np.array_equal(first, soft_labels(LightMeter(), pictures(3)))
    assert np.array_equal(soft_label_file(folder, pictures(3), teacher), first)
    assert teacher.looks == 3


def test_soft_labels_of_other_frames_are_made_again(tmp_path: Path) -> None:
    teacher, folder = LightMeter(), tmp_path
    soft_label_file(folder, pictures(2), teacher)
    assert len(soft_label_file(folder, pictures(3), teacher)) == 3
    assert teacher.looks == 5
    changed = pictures(3)
    changed[1][0, 0, 0] ^= 1
    soft_label_file(folder, changed, teacher)
    assert teacher.looks == 8


def test_soft_labels_of_another_teacher_are_made_again(tmp_path: Path) -> None:
    folder, first, second = tmp_path, LightMeter(), LightMeter("another")
    soft_label_file(folder, pictures(2), first)
    soft_label_file(folder, pictures(2), second)
    assert (first.looks, second.looks) == (2, 2)


def test_interrupted_work_is_gone_on_with(tmp_path: Path) -> None:
    folder, whole = tmp_path, LightMeter()
    with pytest.raises(KeyboardInterrupt):
        soft_label_file(folder, pictures(9), Tired())
    assert not (folder / "soft_labels.npy").exists()
    found = soft_label_file(folder, pictures(9), whole)
    assert whole.looks == 9 - BATCH
    assert np.array_equal(found, soft_labels(LightMeter(), pictures(9)))


def test_interrupted_work_of_other_frames_leaves_what_was_finished(tmp_path: Path) -> None:
    folder, whole = tmp_path, LightMeter()
    soft_label_file(folder, pictures(9), LightMeter())
    with pytest.raises(KeyboardInterrupt):
        soft_label_file(folder, pictures(8), Tired("another"))
    assert len(soft_label_file(folder, pictures(9), whole)) == 9
    assert whole.looks == 0
    assert len(soft_label_file(folder, pictures(8), whole)) == 8
    assert whole.looks == 8  # what another teacher had said of them does not count


def test_a_run_finds_what_it_learned_from_in_its_own_folder_and_in_a_cache(tmp_path: Path) -> None:
    alone, sharing, cache = (tmp_path / name for name in ("alone", "sharing", "cache"))
    for run in (alone, sharing):
        run.mkdir()
    made = soft_label_file(alone, pictures(3), LightMeter(), run=alone)
    soft_label_file(cache, pictures(3), LightMeter(), run=sharing)
    assert np.array_equal(learned_soft_labels(alone, alone), made)
    assert np.array_equal(learned_soft_labels(cache, sharing), made)
    with pytest.raises(ConfigError, match=r"sharing: no soft_labels\.npy, .* --cache"):
        learned_soft_labels(sharing, sharing)


def test_what_a_run_learned_from_in_a_cache_does_not_rename_what_it_once_made_itself(tmp_path: Path) -> None:
    run, cache = tmp_path / "run", tmp_path / "cache"
    soft_label_file(run, pictures(3), LightMeter(), run=run)
    made = soft_label_file(cache, pictures(4), LightMeter(), run=run)
    assert np.array_equal(learned_soft_labels(cache, run), made)
    with pytest.raises(ConfigError, match=r"not what run .*run learned from"):
        learned_soft_labels(run, run)
    again = LightMeter()
    assert len(soft_label_file(run, pictures(4), again, run=run)) == again.looks == 4


def test_a_run_does_not_take_what_another_learned_from(tmp_path: Path) -> None:
    first, second, cache = (tmp_path / name for name in ("first", "second", "cache"))
    for run, count in ((first, 3), (second, 4)):
        run.mkdir()
        soft_label_file(cache, pictures(count), LightMeter(), run=run)
    with pytest.raises(ConfigError, match=r"not what run .*first learned from; train once more"):
        learned_soft_labels(cache, first)
    (cache / "soft_labels.txt").unlink()
    with pytest.raises(ConfigError, match=r"not what run .*second learned from"):
        learned_soft_labels(cache, second)
