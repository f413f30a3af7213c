"""Arrays that take long to make, kept in a file beside which lies what they were made of."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import structlog
from numpy.lib import format as npy
from numpy.typing import NDArray

log = structlog.get_logger(__name__)

_SAY_EVERY_S = 30
_open_memmap: Any = npy.open_memmap  # older numpy says no types of it


def kept_array(path: Path, made_of: str, make: Callable[[], NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """What `make` returns, as a memory map of `path`; made once, and again where it was made of something else."""
    if not _is_kept(path, made_of):
        partial = path.with_suffix(".partial.npy")
        np.save(partial, make())
        _keep(partial, path, made_of)
    return _mapped(path)


def kept_rows(
    path: Path, made_of: str, count: int, make: Callable[[int], Iterator[NDArray[np.uint8]]]
) -> NDArray[np.uint8]:
    """The same of `count` rows that `make` gives from a row on, some at a time; those it gave outlast the process.

    `make` must give the same rows wherever it begins, and begins where it had ended a part.
    """
    if not _is_kept(path, made_of):
        partial = path.with_suffix(".partial.npy")
        _complete(partial, made_of, count, make)
        _keep(partial, path, made_of)
        _note_of(partial).unlink()
    return _mapped(path)


def _complete(partial: Path, made_of: str, count: int, make: Callable[[int], Iterator[NDArray[np.uint8]]]) -> None:
    """Add to the partial file, or to a new one, the rows that it lacks."""
    done, note = _rows_in(partial, made_of), _note_of(partial)
    rows = _open_memmap(partial, mode="r+") if done else None
    said_s = time.monotonic()
    for some in make(done):
        if rows is None:
            rows = _open_memmap(partial, mode="w+", dtype=np.uint8, shape=(count, *some.shape[1:]))
        rows[done : done + len(some)] = some
        rows.flush()
        done += len(some)
        fresh = note.with_suffix(".new")
        fresh.write_text(f"{done}\n{made_of}")
        fresh.replace(note)
        if time.monotonic() - said_s > _SAY_EVERY_S:
            log.info("made, and kept if this is stopped", file=str(partial), rows=done, of=count)
            said_s = time.monotonic()
    if done != count:
        raise ValueError(f"{done} rows were made; expected {count}")


def _rows_in(partial: Path, made_of: str) -> int:
    """How many rows the partial file has of an array that is made of that."""
    note = _note_of(partial)
    if not (partial.is_file() and note.is_file()):
        return 0
    done, _, theirs = note.read_text().partition("\n")
    return int(done) if theirs == made_of else 0


def _note_of(partial: Path) -> Path:
    """The file that says how many rows of a partial one are made, and of what."""
    return partial.with_suffix(".txt")


def _is_kept(path: Path, made_of: str) -> bool:
    source = path.with_suffix(".txt")
    return path.is_file() and source.is_file() and source.read_text() == made_of


def _keep(partial: Path, path: Path, made_of: str) -> None:
    source = path.with_suffix(".txt")
    source.unlink(missing_ok=True)
    partial.replace(path)
    source.write_text(made_of)


def _mapped(path: Path) -> NDArray[np.uint8]:
    # Copy on write: torch warns of arrays that cannot be written to.
    stored: NDArray[np.uint8] = np.load(path, mmap_mode="c")
    return stored
