"""Kept arrays: made once, and again where they would be of something else or were not finished."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.kept_array import kept_array

WANTED = np.arange(12, dtype=np.uint8).reshape(3, 4)


class Maker:
    """Makes the array, and counts how often."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> NDArray[np.uint8]:
        self.times += 1
        return WANTED


def test_it_is_made_once_and_then_read(tmp_path: Path) -> None:
    make, path = Maker(), tmp_path / "a.npy"
    for _ in range(2):
        stored = kept_array(path, "of this\n", make)
        assert isinstance(stored, np.memmap)
        assert np.array_equal(stored, WANTED)
    assert make.times == 1
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a.npy", "a.txt"]


@pytest.mark.parametrize("lost", ["a.npy", "a.txt"])
def test_it_is_made_again_of_something_else_and_where_a_file_is_gone(tmp_path: Path, lost: str) -> None:
    make, path = Maker(), tmp_path / "a.npy"
    kept_array(path, "of this\n", make)
    kept_array(path, "of that\n", make)
    assert make.times == 2
    (tmp_path / lost).unlink()
    assert np.array_equal(kept_array(path, "of that\n", make), WANTED)
    assert make.times == 3


def test_one_that_could_not_be_made_leaves_nothing_that_looks_like_it(tmp_path: Path) -> None:
    make, path = Maker(), tmp_path / "a.npy"
    kept_array(path, "of this\n", make)
    with pytest.raises(ZeroDivisionError):
        kept_array(path, "of that\n", lambda: WANTED // (1 // 0))
    kept_array(path, "of this\n", make)
    assert make.times == 2


def test_who_changes_it_changes_no_file(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    kept_array(path, "of this\n", Maker())[:] = 0
    assert np.array_equal(kept_array(path, "of this\n", Maker()), WANTED)
