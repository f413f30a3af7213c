"""Soft labels in the words of the labels: what the labels of some frames teach holds on frames without any."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.accuracy import VOID
from pipeline.translation import translated, translated_file

CLASSES, HEIGHT, WIDTH = 3, 24, 32
STEPS = 60
EVENLY = np.ones(CLASSES, np.float32)
Shares = NDArray[np.uint8]


def streets(count: int, seed: int = 0) -> NDArray[np.uint8]:
    """Labels (N, 2h, 2w): class 0 above class 1, with blocks of class 2 between."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((count, 2 * HEIGHT, 2 * WIDTH), np.uint8)
    for one in labels:
        one[rng.integers(16, 32) :] = 1
        row, column = rng.integers(0, 32), rng.integers(0, 48)
        one[row : row + 16, column : column + 16] = 2
    return labels


def told(labels: NDArray[np.uint8], *, words: tuple[int, ...], surely: float = 0.8) -> Shares:
    """What a teacher says of labels (N, 2h, 2w) that has another word for each class."""
    named = np.array(words)[labels[:, 1::2, 1::2]]
    shares = np.full((*named.shape, CLASSES), 255 * (1 - surely) / (CLASSES - 1))
    np.put_along_axis(shares, named[..., None], 255 * surely, 3)
    return shares.astype(np.uint8)


def agreement(soft: Shares, labels: NDArray[np.uint8]) -> float:
    return float((soft.argmax(3) == labels[:, 1::2, 1::2]).mean())


def test_exchanged_words_are_put_right_on_frames_without_labels() -> None:
    labels = streets(8)
    soft = told(labels, words=(1, 0, 2))
    assert agreement(soft[5:], labels[5:]) < 0.3
    assert agreement(translated(soft, labels[:5], EVENLY, steps=4 * STEPS)[5:], labels[5:]) > 0.95


def test_a_class_that_the_teacher_does_not_know_is_told_by_its_surroundings() -> None:
    labels = streets(12)
    labels[labels == 2] = 0
    soft = told(labels, words=(0, 1, 2))
    above = np.roll(labels, -8, 1) == 1
    labels[above & (labels == 0)] = 2  # in the labels' words what lies just above class 1 is another class
    made = translated(soft, labels[:9], EVENLY, steps=3 * STEPS)
    assert agreement(soft[9:], labels[9:]) < 0.9 < 0.97 < agreement(made[9:], labels[9:])


def test_they_are_shares_of_the_same_frames_still() -> None:
    labels = streets(3)
    soft = told(labels, words=(0, 1, 2))
    made = translated(soft, labels[:2], EVENLY, steps=2)
    assert (made.shape, made.dtype) == (soft.shape, np.uint8)
    assert np.abs(made.astype(int).sum(3) - 255).max() <= CLASSES


def test_void_teaches_nothing() -> None:
    labels = streets(12)  # so that some draws are of void alone
    soft = told(labels, words=(0, 1, 2))
    void = np.full_like(labels, VOID)
    void[0] = labels[0]
    assert agreement(translated(soft, void, EVENLY, steps=STEPS), labels) > 0.95


def test_the_same_is_made_again_whatever_else_was_drawn() -> None:
    labels = streets(3)
    soft = told(labels, words=(1, 0, 2))
    torch.manual_seed(1)
    first, drawn = translated(soft, labels, EVENLY, steps=5), torch.rand(1)
    torch.manual_seed(1)
    assert drawn == torch.rand(1), "and whoever draws beside it draws what it would have drawn"
    torch.manual_seed(2)
    assert np.array_equal(first, translated(soft, labels, EVENLY, steps=5))


@pytest.mark.parametrize("changed", ["soft", "labels", "weights"])
def test_a_file_of_something_else_is_made_again(tmp_path: Path, changed: str) -> None:
    labels, path = streets(3), tmp_path / "translated.npy"
    soft, weights = told(labels, words=(1, 0, 2)), EVENLY
    translated_file(path, soft, labels, weights, steps=2)
    made = path.stat().st_mtime_ns
    match changed:
        case "soft":
            soft = told(labels, words=(0, 1, 2))
        case "labels":
            labels = labels[:2]
        case _:
            weights = weights * np.array([1, 2, 3], np.float32)
    translated_file(path, soft, labels, weights, steps=2)
    assert path.stat().st_mtime_ns != made
