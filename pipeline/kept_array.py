"""Arrays that take long to make, kept in a file beside which lies what they were made of."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def kept_array(path: Path, made_of: str, make: Callable[[], NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """What `make` returns, as a memory map of `path`; made once, and again where it was made of something else."""
    source = path.with_suffix(".txt")
    if not (path.is_file() and source.is_file() and source.read_text() == made_of):
        source.unlink(missing_ok=True)
        partial = path.with_suffix(".partial.npy")
        np.save(partial, make())
        partial.replace(path)
        source.write_text(made_of)
    # Copy on write: torch warns of arrays that cannot be written to.
    stored: NDArray[np.uint8] = np.load(path, mmap_mode="c")
    return stored
