"""The arrays that the inner loops of the coder work on.

Compiled code lies on disk and names these types as they are called in symbol_loops, which must go on importing them by
these names: else what was compiled by an older version cannot be read.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Entries(NamedTuple):
    """The arrays of FrequencyTables."""

    near: NDArray[np.int32]
    cumulative: NDArray[np.int32]
    sizes: NDArray[np.int32]


class Knowledge(NamedTuple):
    """Of a latent before its symbols: the arrays of its Context and of a Prediction."""

    channels: NDArray[np.int32]
    bias: NDArray[np.int16]
    hint: NDArray[np.int16]
    told: NDArray[np.int16]
    starts: NDArray[np.int64]  # (n,) of each channel's weights in `told`
    indexes: NDArray[np.uint8]
    means: NDArray[np.float32]


class Sums(NamedTuple):
    """Memory of the loops, and what they multiply by."""

    pairs: NDArray[np.int16]  # blocks of lanes pairs each
    words: NDArray[np.int32]  # the same memory, a pair an element
    row: NDArray[np.int16]  # (n, 2w) the pairs of a row before its symbols
    row_words: NDArray[np.int32]  # (n, w)
    factors: NDArray[np.int16]  # for each value: what weights of all places and lanes are multiplied by, twice each
    line: NDArray[np.int16]  # (w, n) symbols of a row
    heard: NDArray[np.int64]  # (n + 1,) channels
    near: NDArray[np.int32]  # (n,) of the symbols of a place: where the bounds of their tables are
    whole: NDArray[np.int32]  # (n,) and the whole parts of their means
