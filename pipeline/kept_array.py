"""Arrays that take long to make, kept in a file beside which lies what they were made of.

soft_labels.npy, .txt            the array, and what it was made of
soft_labels.partial.npy, .txt    rows of one that is not whole yet: how many, and what they are made of
soft_labels.new                  what the array was made of, while that is put in its place
soft_labels.lock                 held by the process that makes it; others wait, and find it made
"""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import structlog
from numpy.lib import format as npy
from numpy.typing import NDArray

log = structlog.get_logger(__name__)

_SAY_EVERY_S = 30
_open_memmap: Any = npy.open_memmap  # older numpy says no types of it
Rows = Callable[[int], Iterator[NDArray[np.uint8]]]


def kept_array(path: Path, source: str, make: Callable[[], NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """What `make` returns, as a memory map of `path`; made once, and again where it was made of something else."""
    with _alone(path):
        if not _is_kept(path, source):
            np.save(_partial_of(path), make())
            _keep(path, source)
        return _mapped(path)


def kept_rows(path: Path, source: str, make: Rows, *, count: int) -> NDArray[np.uint8]:
    """The same of `count` rows that `make` gives from a row on, some at a time; those it gave outlast the process.

    `make` must give the same rows wherever it begins; it begins where it had ended a part. ValueError where it gives
    more or fewer rows, or such of several shapes.
    """
    with _alone(path):
        if not _is_kept(path, source):
            _complete(path, source, make, count=count)
            _keep(path, source)
        return _mapped(path)


def _complete(path: Path, source: str, make: Rows, *, count: int, now_s: Callable[[], float] = time.monotonic) -> None:
    """Add to the partial file, or to a new one, the rows that it lacks."""
    rows, done = _begun(path, source, count)
    said_s = now_s()
    for some in make(done):
        if rows is None:
            _note_of(path).unlink(missing_ok=True)  # it may be of rows that are gone from here on
            rows = _reserved(_partial_of(path), (count, *some.shape[1:]))
        if done + len(some) > count or some.shape[1:] != rows.shape[1:]:
            raise ValueError(f"rows {some.shape} after {done} of {rows.shape}")
        rows[done : done + len(some)] = some
        rows.flush()
        done += len(some)
        fresh = _note_of(path).with_suffix(".new")
        fresh.write_text(f"{done}\n{source}")
        fresh.replace(_note_of(path))
        if now_s() - said_s > _SAY_EVERY_S:
            log.info("rows made; a run that is stopped goes on from here", file=path.name, rows=done, of=count)
            said_s = now_s()
    if done != count:
        raise ValueError(f"{done} rows were made; expected {count}")


def _begun(path: Path, source: str, count: int) -> tuple[Any, int]:
    """The partial array and how many of its rows are made; None and 0 where there is none that can be gone on with."""
    note = _note_of(path)
    done, _, theirs = note.read_text().partition("\n") if note.is_file() else ("", "", "")
    if theirs != source:
        return None, 0
    try:
        rows = _open_memmap(_partial_of(path), mode="r+")
    except (OSError, ValueError):  # gone, or damaged
        return None, 0
    return (rows, int(done)) if len(rows) == count else (None, 0)


def _reserved(path: Path, shape: tuple[int, ...]) -> Any:
    """A new array of uint8 in a file; OSError where the disk is too small for it: a map would end the process later."""
    rows = _open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    with path.open("r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error
    return rows


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Wait until no other process makes this array; the lock ends with the process, however that ends.

    What one that died had all but finished is finished.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("another process makes this file; waiting for it", file=path.name)
            fcntl.flock(file, fcntl.LOCK_EX)
        _finish_keeping(path)
        yield


def made_of(path: Path) -> str | None:
    """What the array in this file was made of, as it was told; None where nothing tells."""
    source = path.with_suffix(".txt")
    return source.read_text() if source.is_file() else None


def _is_kept(path: Path, wanted: str) -> bool:
    return path.is_file() and made_of(path) == wanted


def _keep(path: Path, source: str) -> None:
    """Put the partial array in its place; wherever the process dies, that can be finished."""
    path.with_suffix(".txt").unlink(missing_ok=True)
    path.unlink(missing_ok=True)  # so that what lies there beside `.new` is the new one
    path.with_suffix(".new").write_text(source)
    _partial_of(path).replace(path)
    path.with_suffix(".new").replace(path.with_suffix(".txt"))
    _note_of(path).unlink(missing_ok=True)


def _finish_keeping(path: Path) -> None:
    """Say what the array is made of where a process died before it could, its partial file in place already."""
    fresh = path.with_suffix(".new")
    if fresh.is_file() and path.is_file() and not _partial_of(path).exists():
        fresh.replace(path.with_suffix(".txt"))


def _partial_of(path: Path) -> Path:
    return path.with_suffix(".partial.npy")


def _note_of(path: Path) -> Path:
    """The file that says how many rows of the partial one are made, and of what."""
    return path.with_suffix(".partial.txt")


def _mapped(path: Path) -> NDArray[np.uint8]:
    # Copy on write: torch warns of arrays that cannot be written to.
    stored: NDArray[np.uint8] = np.load(path, mmap_mode="c")
    return stored
