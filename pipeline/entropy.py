"""Integer symbols <-> bytes: a range coder whose frequencies follow from the symbols already coded.

    Writer.put, put, ...  finish -> bytes        a latent after the other, all in one stream
    Reader.take, take, ... finish                the mirror image

No floating point takes part in coding, so every machine reads the same symbols from the same bytes.

The coder narrows an interval, at first [0, 1): `low` and `span` are its end and its size, in units of 2**-48 of what
the bytes given off so far leave open; one more is given off whenever the span is below 2**40. An escape is followed by
the symbol as two uniform bytes (two's complement, high byte first). After the last symbol stands the end mark, the last
sixteenth of the span, which most damaged bytes miss. The bytes are the fewest that name a number within the interval,
and the smallest such number, its final zeros left out: so symbols have one form only.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pipeline.context import MAGNITUDE_LIMIT, PLACES, VALUE_LIMIT, Context, aligned, lanes_of
from pipeline.errors import BitstreamError
from pipeline.frequency_tables import MAX_SYMBOL, PRECISION, FrequencyTables, laplace_tables, sealed
from pipeline.integer_prior import Prediction
from pipeline.symbol_arrays import Entries, Knowledge, Sums
from pipeline.symbol_loops import (
    FIRST,
    LEFT_OVER,
    NEEDLESS_ESCAPE,
    NO_ENTRY,
    NO_MARK,
    NOT_SHORTEST,
    OK,
    ONE,
    WINDOW_BYTES,
    check_end,
    choose_symbols,
    end,
    put_symbols,
    take_symbols,
)

_MAX_SYMBOL_BYTES = 5  # an escape entry is 2 bytes at most, its value 2 more, and what the spans' rounding loses
_AFTER = b"\0\0"  # of the bytes of a stream, so that two can be read at once

_REASONS = {
    NO_ENTRY: "they name no symbol",
    NEEDLESS_ESCAPE: "an escape carries a value that is in the table",
    NO_MARK: "they do not lead to the end mark",
    LEFT_OVER: "bytes are left over after the last symbol",
    NOT_SHORTEST: "they are not in their shortest form",
}


class Writer:
    """Collects the symbols of one stream; `capacity` is the most that will be put."""

    def __init__(self, capacity: int) -> None:
        self._out = np.empty(_MAX_SYMBOL_BYTES * capacity + 2 * WINDOW_BYTES, np.uint8)
        self._state = np.array([0, ONE], np.int64)  # low, span
        self._at = 0  # bytes given off
        self._room = capacity  # symbols that may still come

    def put(
        self, symbols: NDArray[np.int16], context: Context, tables: FrequencyTables, hints: Prediction | None = None
    ) -> None:
        """Code symbols (C, h, w); ValueError where they are too many, or not of the context's channels and rows."""
        _check_size(symbols.shape, context)
        if symbols.size > self._room:
            raise ValueError(f"{symbols.size} symbols; there is room for {self._room}")
        if symbols.dtype != np.int16:
            raise ValueError(f"symbols must be int16, not {symbols.dtype}")
        if np.count_nonzero(symbols[context.channels]) != np.count_nonzero(symbols):
            raise ValueError("symbols are not zero in channels that are not coded")
        size = symbols.shape[1], symbols.shape[2]
        known = _knowledge(size, context, hints)
        self._room -= symbols.size
        self._at = put_symbols(
            np.ascontiguousarray(symbols), known, _entries(tables), _sums(size, context),
            self._state, self._at, self._out,
        )  # fmt: skip

    def finish(self) -> bytes:
        """The bytes of all that was put."""
        size = end(self._state, self._at, self._out)
        return self._out[:size].tobytes()


class Reader:
    """Gives back what a Writer was given; raises BitstreamError unless the bytes are exactly what encodes it."""

    def __init__(self, data: bytes) -> None:
        self._size = len(data)
        self._data = np.frombuffer(data + _AFTER, np.uint8)
        first = int.from_bytes(data[:WINDOW_BYTES].ljust(WINDOW_BYTES, b"\0"))
        self._state = np.array([first, ONE], np.int64)  # number less low, span
        self._at = WINDOW_BYTES  # bytes taken

    def take(
        self, size: tuple[int, int], context: Context, tables: FrequencyTables, hints: Prediction | None = None
    ) -> NDArray[np.int16]:
        """Symbols (C, h, w) of a latent of `size` (h, w); ValueError where the context or the hints are for another."""
        symbols = np.zeros((context.planes, *size), np.int16)
        _check_size(symbols.shape, context)
        outcome, self._at = take_symbols(
            symbols, _knowledge(size, context, hints), _entries(tables), _sums(size, context),
            self._state, self._at, self._data,
        )  # fmt: skip
        self._check(outcome)
        return symbols

    def finish(self) -> None:
        """Make sure that the bytes end with the last symbol."""
        self._check(check_end(self._state, self._at, self._data))

    def _check(self, outcome: int) -> None:
        if outcome != OK:
            raise BitstreamError(f"coded symbols ({self._size} bytes): {_REASONS[outcome]}")


def rdoq(
    latent: NDArray[np.float32],
    context: Context,
    tables: FrequencyTables,
    hints: Prediction | None,
    *,
    rdoq_lambda: float,
) -> NDArray[np.int16]:
    """Round a latent (C, h, w) to symbols, each with the least squared distance plus `rdoq_lambda` for each bit.

    So what costs many bits and is hardly a symbol is none (rate-distortion optimised quantisation, as video encoders
    have it). ValueError as Writer.put.
    """
    _check_size(latent.shape, context)
    size = latent.shape[1], latent.shape[2]
    symbols = np.zeros(latent.shape, np.int16)
    choose_symbols(
        np.ascontiguousarray(latent.clip(-MAX_SYMBOL, MAX_SYMBOL), np.float32), _knowledge(size, context, hints),
        _entries(tables), _sums(size, context), _bits(tables), rdoq_lambda, symbols,
    )  # fmt: skip
    return symbols


@lru_cache(maxsize=8)
def _bits(tables: FrequencyTables) -> NDArray[np.float32]:
    """What each entry of each table takes (T, L), of an escape the value too."""
    frequencies = np.diff(tables.cumulative.astype(np.int64), axis=1)
    bits = PRECISION - np.log2(np.maximum(frequencies, 1))
    bits[np.arange(len(bits)), tables.sizes - 1] += 16
    return sealed(bits, np.float32)


def warm_up() -> None:
    """Compile both directions, or load them from the cache, so that the first frame is not late."""
    context, tables = _smallest()
    writer = Writer(1)
    writer.put(np.zeros((1, 1, 1), np.int16), context, tables)
    reader = Reader(writer.finish())
    reader.take((1, 1), context, tables)
    reader.finish()


def warm_up_rounding() -> None:
    """The same for `rdoq`: a camera may begin with a level that does without, and go to one that does not."""
    context, tables = _smallest()
    rdoq(np.zeros((1, 1, 1), np.float32), context, tables, None, rdoq_lambda=0.0)


def _smallest() -> tuple[Context, FrequencyTables]:
    """A context for one latent, and tables for it."""
    context = Context(
        1, sealed(np.zeros(1), np.int32), sealed(np.zeros((2, 1, 1)), np.int16), sealed(np.zeros((2, 1)), np.int16),
        sealed(np.zeros((2, 1, len(PLACES), 1)), np.int16),
    )  # fmt: skip
    return context, laplace_tables(1)


def _check_size(shape: tuple[int, ...], context: Context) -> None:
    if len(shape) != 3 or shape[0] != context.planes or shape[1] != context.rows:
        raise ValueError(f"symbols {shape}; the context is for {context.planes} channels of {context.rows} rows")


def _knowledge(size: tuple[int, int], context: Context, hints: Prediction | None) -> Knowledge:
    """What the loops read; ValueError where the hints are not of that size, since nothing is checked within them."""
    shape = (context.planes, *size)
    if hints is not None and not hints.indexes.shape == hints.means.shape == shape:
        raise ValueError(f"hints {hints.indexes.shape} and {hints.means.shape}; the symbols are {shape}")
    indexes = np.zeros(shape, np.uint8) if hints is None else np.ascontiguousarray(hints.indexes)
    means = np.zeros(shape, np.float32) if hints is None else np.ascontiguousarray(hints.means)
    return Knowledge(context.channels, context.bias, context.hint, context.told, context.starts, indexes, means)


def _entries(tables: FrequencyTables) -> Entries:
    return Entries(tables.near, tables.cumulative.view(np.int32), tables.sizes)


def _sums(size: tuple[int, int], context: Context) -> Sums:
    """Memory for latents of that size; nothing in it is read before it is written."""
    height, width = size
    n = context.channels.size
    lanes = lanes_of(n)
    last = 2 * (width - 1) + height - 1 + FIRST  # block of the last symbol, which speaks from the one before it on
    pairs = aligned((last - 1 + len(PLACES)) * 2 * lanes)
    row = np.empty((n, 2 * width), np.int16)
    return Sums(
        pairs, pairs.view(np.int32), row, row.view(np.int32), _factors(lanes), np.empty((width, n), np.int16),
        np.empty(n + 1, np.int64), np.empty(n, np.int32), np.empty(n, np.int32),
    )  # fmt: skip


@lru_cache
def _factors(lanes: int) -> NDArray[np.int16]:
    """What each value's weights are multiplied by, pair by pair."""
    values = np.arange(-VALUE_LIMIT, VALUE_LIMIT + 1)
    pairs = np.stack([np.minimum(np.abs(values), MAGNITUDE_LIMIT), values], 1)  # (FACTORS, 2)
    factors = aligned(len(values) * len(PLACES) * lanes * 2)
    factors[:] = np.tile(pairs, (1, len(PLACES) * lanes)).ravel()
    factors.flags.writeable = False
    return factors
