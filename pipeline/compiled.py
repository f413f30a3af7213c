"""Machine code for the inner loops: compiled by numba on first use, kept on disk where that is possible."""

from collections.abc import Callable
from typing import TypeVar, cast

from numba import njit

F = TypeVar("F", bound=Callable[..., object])


def compiled(function: F) -> F:
    """Compile on first use; cached in NUMBA_CACHE_DIR, beside the source, in the user's cache, or not at all."""
    try:
        return cast(F, njit(cache=True, nogil=True)(function))
    except RuntimeError:  # numba found no directory it may write to, as in a read-only container
        return cast(F, njit(nogil=True)(function))
