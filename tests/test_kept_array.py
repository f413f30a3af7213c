"""Kept arrays: made once, and again where they would be of something else or were not finished."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.kept_array import kept_array, kept_rows

WANTED = np.arange(12, dtype=np.uint8).reshape(3, 4)
TALL = np.arange(33, dtype=np.uint8).reshape(11, 3)


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
    assert make.times == 1  # the other stays what it is until there is a new one


def by_pairs(first: int) -> Iterator[NDArray[np.uint8]]:
    return (TALL[i : i + 2] for i in range(first, len(TALL), 2))


def until_tired(first: int) -> Iterator[NDArray[np.uint8]]:
    yield from itertools.islice(by_pairs(first), 2)
    raise KeyboardInterrupt


def test_rows_that_were_made_outlast_who_made_them(tmp_path: Path) -> None:
    path, begun = tmp_path / "a.npy", []
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            kept_rows(path, "of this\n", len(TALL), until_tired)
    assert not path.exists()

    def rest(first: int) -> Iterator[NDArray[np.uint8]]:
        begun.append(first)
        return by_pairs(first)

    assert np.array_equal(kept_rows(path, "of this\n", len(TALL), rest), TALL)
    assert begun == [8]
    assert np.array_equal(kept_rows(path, "of this\n", len(TALL), until_tired), TALL)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a.npy", "a.txt"]


def test_rows_of_something_else_are_made_from_the_first_on(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    with pytest.raises(KeyboardInterrupt):
        kept_rows(path, "of that\n", len(TALL), until_tired)
    assert np.array_equal(kept_rows(path, "of this\n", len(TALL), by_pairs), TALL)


def test_rows_are_as_many_as_were_announced(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="11 rows were made; expected 12"):
        kept_rows(tmp_path / "a.npy", "of this\n", 12, by_pairs)


def test_who_changes_it_changes_no_file(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    kept_array(path, "of this\n", Maker())[:] = 0
    assert np.array_equal(kept_array(path, "of this\n", Maker()), WANTED)
