"""Kept arrays: made once, and again where they would be of something else or were not finished."""

import errno
import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog
from numpy.typing import NDArray

from pipeline import kept_array as module
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
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a.lock", "a.npy", "a.txt"]


@pytest.mark.parametrize("lost", ["a.npy", "a.txt"])
def test_it_is_made_again_of_something_else_and_where_a_file_is_gone(tmp_path: Path, lost: str) -> None:
    make, path = Maker(), tmp_path / "a.npy"
    kept_array(path, "of this\n", make)
    kept_array(path, "of that\n", make)
    assert make.times == 2
    (tmp_path / lost).unlink()
    assert np.array_equal(kept_array(path, "of that\n", make), WANTED)
    assert make.times == 3


def test_one_that_could_not_be_made_leaves_the_one_before(tmp_path: Path) -> None:
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
            kept_rows(path, "of this\n", until_tired, count=len(TALL))
    assert not path.exists()

    def rest(first: int) -> Iterator[NDArray[np.uint8]]:
        begun.append(first)
        return by_pairs(first)

    assert np.array_equal(kept_rows(path, "of this\n", rest, count=len(TALL)), TALL)
    assert begun == [8]
    assert np.array_equal(kept_rows(path, "of this\n", until_tired, count=len(TALL)), TALL)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a.lock", "a.npy", "a.txt"]


def others(first: int) -> Iterator[NDArray[np.uint8]]:
    return (rows + 100 for rows in by_pairs(first))


def others_until_tired(first: int) -> Iterator[NDArray[np.uint8]]:
    return (rows + 100 for rows in until_tired(first))


def test_rows_of_something_else_are_made_from_the_first_on(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    with pytest.raises(KeyboardInterrupt):
        kept_rows(path, "of that\n", others_until_tired, count=len(TALL))
    assert np.array_equal(kept_rows(path, "of this\n", by_pairs, count=len(TALL)), TALL)


def test_rows_that_were_written_over_are_not_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.npy"
    with pytest.raises(KeyboardInterrupt):
        kept_rows(path, "of this\n", until_tired, count=len(TALL))
    with monkeypatch.context() as patched, pytest.raises(OSError, match="full"):
        patched.setattr(Path, "write_text", full)  # the process ends before it can say what it made
        kept_rows(path, "of that\n", others, count=len(TALL))
    assert np.array_equal(kept_rows(path, "of this\n", by_pairs, count=len(TALL)), TALL)


def full(*_: object) -> int:
    raise OSError("the disk is full")


@pytest.fixture(params=range(6))
def half_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """TALL, of this, on its way to the place of another's array, by a process that died after so many steps."""
    path, left = tmp_path / "a.npy", request.param
    kept_rows(path, "of that\n", others, count=len(TALL))  # it takes another's place

    def dying(name: str) -> Callable[..., Any]:
        real = getattr(Path, name)

        def one(self: Path, *arguments: Any, **options: Any) -> Any:
            nonlocal left
            if left == 0:
                raise KeyboardInterrupt
            left -= 1
            return real(self, *arguments, **options)

        return one

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        np.save(path.with_suffix(".partial.npy"), TALL)
        path.with_suffix(".partial.txt").write_text(f"{len(TALL)}\nof this\n")
        for name in ("write_text", "unlink", "replace"):
            patched.setattr(Path, name, dying(name))
        module._keep(path, "of this\n")
    return path


def test_wherever_a_process_dies_while_it_keeps_a_whole_array_that_is_not_lost(half_kept: Path) -> None:
    assert np.array_equal(kept_rows(half_kept, "of this\n", nothing, count=len(TALL)), TALL)
    assert np.array_equal(kept_rows(half_kept, "of that\n", others, count=len(TALL)), TALL + 100)


def test_an_array_is_not_taken_for_another_where_someone_tidies_up_after_a_process_that_died(half_kept: Path) -> None:
    for left in half_kept.parent.glob("*.partial.*"):
        left.unlink()
    assert np.array_equal(kept_rows(half_kept, "of this\n", by_pairs, count=len(TALL)), TALL)


def nothing(first: int) -> Iterator[NDArray[np.uint8]]:
    assert first == len(TALL), "made again"
    return iter(())


def test_a_disk_that_is_full_is_said_before_anything_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module.os, "posix_fallocate", full_disk)
    with pytest.raises(OSError, match="No space left") as caught:
        kept_rows(tmp_path / "a.npy", "of this\n", by_pairs, count=len(TALL))
    assert caught.value.filename == str(tmp_path / "a.partial.npy")


@pytest.mark.parametrize("content", [None, b"", b"\x93NUMPY"], ids=["gone", "empty", "damaged"])
def test_rows_that_cannot_be_read_are_made_again(tmp_path: Path, content: bytes | None) -> None:
    path, partial = tmp_path / "a.npy", tmp_path / "a.partial.npy"
    with pytest.raises(KeyboardInterrupt):
        kept_rows(path, "of this\n", until_tired, count=len(TALL))
    partial.unlink()
    if content is not None:
        partial.write_bytes(content)
    assert np.array_equal(kept_rows(path, "of this\n", by_pairs, count=len(TALL)), TALL)


def test_who_comes_while_it_is_made_waits_and_finds_it(tmp_path: Path) -> None:
    path, begun, go_on = tmp_path / "a.npy", threading.Event(), threading.Event()

    def slowly(first: int) -> Iterator[NDArray[np.uint8]]:
        for rows in by_pairs(first):
            begun.set()
            go_on.wait(10)
            yield rows

    with structlog.testing.capture_logs() as said, ThreadPoolExecutor(2) as pool:
        one = pool.submit(kept_rows, path, "of this\n", slowly, count=len(TALL))
        assert begun.wait(10)
        two = pool.submit(kept_rows, path, "of this\n", others, count=len(TALL))
        while not said:  # until it waits
            assert not two.done()
        go_on.set()
        assert np.array_equal(one.result(10), TALL)
        assert np.array_equal(two.result(10), TALL)
    assert [line["event"] for line in said] == ["another process makes this file; waiting for it"]


def test_how_far_it_is_is_said_every_half_minute(tmp_path: Path) -> None:
    seconds = itertools.count(0, 20)
    with structlog.testing.capture_logs() as said:
        module._complete(tmp_path / "a.npy", "of this\n", by_pairs, count=len(TALL), now_s=lambda: float(next(seconds)))
    assert [one["rows"] for one in said] == [4, 8, 11]
    assert {one["of"] for one in said} == {len(TALL)}


@pytest.mark.parametrize("count", [10, 12])
def test_rows_are_as_many_as_were_announced(tmp_path: Path, count: int) -> None:
    with pytest.raises(ValueError, match="rows"):
        kept_rows(tmp_path / "a.npy", "of this\n", by_pairs, count=count)


def test_rows_are_of_one_shape(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rows"):
        kept_rows(tmp_path / "a.npy", "of this\n", lambda _: iter([TALL[:2], TALL[2:4, :1]]), count=4)


def test_who_changes_it_changes_no_file(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    kept_array(path, "of this\n", Maker())[:] = 0
    assert np.array_equal(kept_array(path, "of this\n", Maker()), WANTED)
