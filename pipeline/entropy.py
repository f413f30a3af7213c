"""Integer symbols <-> bytes: range asymmetric numeral systems (rANS) over integer frequency tables.

No floating point takes part in coding, so every machine reads the same symbols from the same bytes. Floats
appear only where tables are made, once, at export; the integers travel in the bundle.

The state is a number in [2**24, 2**32), renormalised byte by byte; probabilities are multiples of 2**-16. It
has 4 bytes and not 8, since a packet has a few hundred. Each symbol has a table; the last entry of a table
is the escape, which is followed by the value itself as two uniform bytes (two's complement, high byte first).
The coded bytes are the encoder's last state, big endian, then the renormalisation bytes as they are read. The
decoder must end in the encoder's first state, 2**24, with all bytes consumed. No symbols are no bytes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.compiled import compiled
from pipeline.errors import BitstreamError, ConfigError

PRECISION = 16
TOTAL = 1 << PRECISION
MAX_TABLES = 256  # an index is one byte
MAX_ENTRIES = 4096
MIN_RADIUS = 2  # an escape costs 32 bits, so that rare small values are better in the table

_LOW = np.uint64(1 << 24)
_MASK = np.uint64(TOTAL - 1)
_BITS = np.uint64(PRECISION)
_TOTAL = np.uint64(TOTAL)
_BYTE = np.uint64(8)
_BYTE_MASK = np.uint64(255)
_BYTE_FREQUENCY = np.uint64(TOTAL >> 8)
_BYTE_RECIPROCAL = np.uint64((1 << 48) // (TOTAL >> 8) + 1)
_RECIPROCAL_SHIFT = np.uint64(48)
_STATE_BYTES = 4
_MAX_SYMBOL_BYTES = 4  # an escape entry is 2 bytes at most, its value 2 more

_OK, _TRUNCATED, _BAD_START, _BAD_END, _LEFT_OVER, _NEEDLESS_ESCAPE = range(6)
_REASONS = {
    _TRUNCATED: "the bytes end before the last symbol",
    _BAD_START: "the first state is too small",
    _BAD_END: "the last state is not the one the encoder starts from",
    _LEFT_OVER: "bytes are left over after the last symbol",
    _NEEDLESS_ESCAPE: "an escape carries a value that is in the table",
}


@dataclass(frozen=True, slots=True, eq=False)
class FrequencyTables:
    """T tables of at most L integer frequencies, each table summing to 2**16; made by check_tables only.

    The first three arrays are what a bundle stores, the rest follows from them.
    """

    cumulative: NDArray[np.uint32]  # (T, L + 1), padded with 2**16
    sizes: NDArray[np.int32]  # (T,) entries of each table, the escape (its last entry) included
    offsets: NDArray[np.int32]  # (T,) symbol value of entry 0
    reciprocals: NDArray[np.uint64]  # (T, L) 2**48 // frequency + 1: a multiplication instead of a division
    lookup: NDArray[np.uint16]  # (T, 256) the entry at the first position of each of 256 equal buckets
    likely: NDArray[np.uint16]  # (T,) the most probable entry


def build_tables(pmfs: Sequence[NDArray[np.float64]], offsets: Sequence[int]) -> FrequencyTables:
    """Quantise one distribution per table; the last probability of each is that of the escape."""
    sizes = np.array([len(pmf) for pmf in pmfs], np.int32)
    cumulative = np.full((len(pmfs), sizes.max() + 1), TOTAL, np.uint32)
    for row, pmf in zip(cumulative, pmfs, strict=True):
        row[0] = 0
        row[1 : len(pmf) + 1] = np.cumsum(quantise_pmf(pmf))
    return check_tables(cumulative, sizes, np.array(offsets, np.int32))


def check_tables(
    cumulative: NDArray[np.uint32], sizes: NDArray[np.int32], offsets: NDArray[np.int32]
) -> FrequencyTables:
    """Complete the arrays of a bundle; raises ConfigError where they would lead the coder astray."""
    _check_shapes(cumulative, sizes, offsets)
    escapes = sizes.astype(np.int64) - 1  # (T,)
    used = np.arange(cumulative.shape[1] - 1) <= escapes[:, None]  # (T, L)
    frequencies = np.diff(cumulative.astype(np.int64), axis=1)  # (T, L)
    if cumulative[:, 0].any() or (frequencies[used] < 1).any() or frequencies[~used].any():
        raise ConfigError("frequency tables: frequencies must start at 0, be positive and padded with zero")
    if (cumulative[:, -1] != TOTAL).any():
        raise ConfigError(f"frequency tables: each table must sum to {TOTAL}")
    if (offsets < -(1 << 15)).any() or (offsets + escapes > 1 << 15).any():
        raise ConfigError("frequency tables: symbol values must fit into 16 bits")
    reciprocals = np.where(used, (1 << 48) // np.maximum(frequencies, 1) + 1, 0).astype(np.uint64)
    buckets = np.arange(256, dtype=np.uint32) << 8
    lookup = [np.searchsorted(row, buckets, side="right") - 1 for row in cumulative]
    return FrequencyTables(
        cumulative=_sealed(cumulative, np.uint32),
        sizes=_sealed(sizes, np.int32),
        offsets=_sealed(offsets, np.int32),
        reciprocals=_sealed(reciprocals, np.uint64),
        lookup=_sealed(np.array(lookup), np.uint16),
        likely=_sealed(frequencies.argmax(axis=1), np.uint16),
    )


def _check_shapes(cumulative: NDArray[np.uint32], sizes: NDArray[np.int32], offsets: NDArray[np.int32]) -> None:
    if cumulative.dtype != np.uint32 or sizes.dtype != np.int32 or offsets.dtype != np.int32:
        raise ConfigError("frequency tables: cumulative must be uint32, sizes and offsets int32")
    if cumulative.ndim != 2 or not 1 <= len(cumulative) <= MAX_TABLES:
        raise ConfigError(f"frequency tables: cumulative must be (1..{MAX_TABLES}, L + 1)")
    if sizes.shape != (len(cumulative),) or offsets.shape != sizes.shape:
        raise ConfigError("frequency tables: sizes and offsets must have one number per table")
    entries = cumulative.shape[1] - 1
    if entries > MAX_ENTRIES or (sizes < 1).any() or (sizes > entries).any():
        raise ConfigError(f"frequency tables: a table has 1..{MAX_ENTRIES} entries, no more than cumulative")


def _sealed(array: NDArray[np.generic], dtype: type[np.generic]) -> NDArray[Any]:
    """A contiguous read-only copy, which later changes of the original cannot reach."""
    copy = np.array(array, dtype, order="C")
    copy.flags.writeable = False
    return copy


def gaussian_tables(scales: NDArray[np.float64], *, tail_mass: float = 2.0**-16) -> FrequencyTables:
    """One table per scale (S,): a zero-mean Gaussian convolved with a unit box, on -R..R, and the escape.

    R is the smallest radius (not below MIN_RADIUS) that leaves at most tail_mass outside.
    """
    pmfs = [_gaussian_pmf(float(scale), tail_mass) for scale in scales]
    return build_tables(pmfs, [-(len(pmf) // 2 - 1) for pmf in pmfs])


def _gaussian_pmf(scale: float, tail_mass: float) -> NDArray[np.float64]:
    """Probabilities (2R + 2,) of -R..R and of the escape."""
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"scale {scale} is not a positive number")
    edges = (np.arange(MAX_ENTRIES // 2) + 0.5) / (scale * math.sqrt(2))
    outside = [math.erfc(edge) for edge in edges]  # mass beyond -r..r, for r = 0, 1, ...
    radius = max(MIN_RADIUS, sum(mass > tail_mass for mass in outside))
    if radius >= len(outside):
        raise ValueError(f"scale {scale} needs more than {MAX_ENTRIES} entries")
    side = -np.diff(outside[: radius + 1]) / 2  # (R,) of 1..R
    return np.concatenate([side[::-1], [1 - outside[0]], side, [outside[radius]]])


def quantise_pmf(pmf: NDArray[np.float64], precision: int = PRECISION) -> NDArray[np.int64]:
    """Probabilities (L,) -> the integers (L,) >= 1, summing to 2**precision, that cost the fewest bits.

    The cost is a sum of convex functions, so the best is reached when no single move of one unit lowers it.
    """
    total = 1 << precision
    if pmf.ndim != 1 or not 1 <= pmf.size <= total:
        raise ValueError(f"a distribution needs 1..{total} probabilities, not {pmf.shape}")
    if not (np.isfinite(pmf).all() and (pmf >= 0).all() and pmf.sum() > 0):
        raise ValueError("probabilities must be finite, not negative, and not all zero")
    p = pmf / pmf.sum()
    f: NDArray[np.int64] = np.maximum(1, np.floor(p * total)).astype(np.int64)
    gain = p * np.log1p(1 / f)  # nats saved by one unit more
    while True:
        loss = np.where(f > 1, p * np.log1p(1 / np.maximum(f - 1, 1)), np.inf)  # nats lost by one unit less
        up, down, missing = int(gain.argmax()), int(loss.argmin()), total - int(f.sum())
        if missing == 0 and gain[up] <= loss[down] * (1 + 1e-9):
            return f
        if missing >= 0:
            f[up] += 1
            gain[up] = p[up] * math.log1p(1 / f[up])
        if missing <= 0:
            f[down] -= 1
            gain[down] = p[down] * math.log1p(1 / f[down])


def encode_symbols(
    symbols: NDArray[np.int16] | NDArray[np.int32], indexes: NDArray[np.uint8], tables: FrequencyTables
) -> bytes:
    """Code symbols (N,), each with the table its index (N,) names.

    Raises ValueError where shapes, dtypes or indexes are wrong or a symbol does not fit into 16 bits.
    """
    _check_indexes(indexes, tables)
    if symbols.shape != indexes.shape:
        raise ValueError(f"symbols {symbols.shape} and indexes {indexes.shape} differ in shape")
    if symbols.size == 0:
        return b""
    out = np.empty(_MAX_SYMBOL_BYTES * symbols.size + _STATE_BYTES, np.uint8)
    start = _encode(
        _fixed(_narrow(symbols)), _fixed(indexes),
        tables.cumulative, tables.sizes, tables.offsets, tables.reciprocals, out,
    )  # fmt: skip
    return out[start:].tobytes()


def decode_symbols(data: bytes, indexes: NDArray[np.uint8], tables: FrequencyTables) -> NDArray[np.int16]:
    """Symbols int16 (N,) for indexes (N,); raises BitstreamError unless data is exactly what encodes them."""
    _check_indexes(indexes, tables)
    symbols = np.empty(indexes.size, np.int16)
    if indexes.size == 0:
        if data:
            raise BitstreamError(f"coded symbols: {len(data)} bytes where no symbol is coded")
        return symbols
    outcome = _decode(
        np.frombuffer(data, np.uint8), _fixed(indexes),
        tables.cumulative, tables.sizes, tables.offsets, tables.lookup, tables.likely, symbols,
    )  # fmt: skip
    if outcome != _OK:
        raise BitstreamError(f"coded symbols ({len(data)} bytes): {_REASONS[outcome]}")
    return symbols


def ideal_bits(
    symbols: NDArray[np.int16] | NDArray[np.int32], indexes: NDArray[np.uint8], tables: FrequencyTables
) -> float:
    """Information content of symbols (N,) in bits under the integer tables: what no coder can go below."""
    _check_indexes(indexes, tables)
    entries = _narrow(symbols).astype(np.int64) - tables.offsets[indexes]  # (N,)
    escapes = tables.sizes[indexes].astype(np.int64) - 1  # (N,)
    escaped = (entries < 0) | (entries >= escapes)
    entries = np.where(escaped, escapes, entries)
    frequencies = tables.cumulative[indexes, entries + 1] - tables.cumulative[indexes, entries]
    return float(np.sum(PRECISION - np.log2(frequencies)) + 16 * np.count_nonzero(escaped))


def warm_up() -> None:
    """Compile both directions, or load them from the cache, so that the first frame is not late."""
    tables = build_tables([np.array([0.5, 0.5])], [0])
    indexes = np.zeros(1, np.uint8)
    decode_symbols(encode_symbols(np.zeros(1, np.int16), indexes, tables), indexes, tables)


def _check_indexes(indexes: NDArray[np.uint8], tables: FrequencyTables) -> None:
    if indexes.dtype != np.uint8 or indexes.ndim != 1:
        raise ValueError(f"indexes must be uint8 (N,), not {indexes.dtype} {indexes.shape}")
    if indexes.size and indexes.max() >= tables.sizes.size:
        raise ValueError(f"index {indexes.max()} names none of the {tables.sizes.size} tables")


def _narrow(symbols: NDArray[np.int16] | NDArray[np.int32]) -> NDArray[np.int16]:
    if symbols.dtype == np.int16:
        return symbols.astype(np.int16, copy=False)
    narrow = symbols.astype(np.int16)
    if symbols.dtype != np.int32 or not np.array_equal(narrow, symbols):
        raise ValueError(f"symbols must be int16, or int32 that fit into 16 bits, not {symbols.dtype}")
    return narrow


_Array = TypeVar("_Array", NDArray[np.uint8], NDArray[np.int16])


def _fixed(array: _Array) -> _Array:
    """A contiguous read-only view: one array type, so that a kernel is compiled once and not per caller."""
    view = np.ascontiguousarray(array).view()
    view.flags.writeable = False
    return view


@compiled
def _push(
    state: np.uint64, at: int, out: NDArray[np.uint8],
    start: np.uint64, frequency: np.uint64, reciprocal: np.uint64,
) -> tuple[np.uint64, int]:  # fmt: skip
    """Put one entry on top of the state, writing at most two bytes before `at`."""
    while state >= frequency << _BITS:
        at -= 1
        out[at] = state & _BYTE_MASK
        state >>= _BYTE
    # state < frequency * 2**16 and frequency <= 2**16, where this quotient is exact and stays below 2**64
    quotient = (state * reciprocal) >> _RECIPROCAL_SHIFT
    return state + start + quotient * (_TOTAL - frequency), at


@compiled
def _encode(
    symbols: NDArray[np.int16], indexes: NDArray[np.uint8],
    cumulative: NDArray[np.uint32], sizes: NDArray[np.int32], offsets: NDArray[np.int32],
    reciprocals: NDArray[np.uint64], out: NDArray[np.uint8],
) -> int:  # fmt: skip
    """Fill out from its end, last symbol first, to be read forwards; returns where the bytes begin."""
    state, at = _LOW, out.size
    for i in range(symbols.size - 1, -1, -1):
        table = indexes[i]
        escape = np.int64(sizes[table]) - 1
        entry = np.int64(symbols[i]) - offsets[table]
        if entry < 0 or entry >= escape:
            entry = escape
            value = np.uint64(symbols[i])
            low, high = (value & _BYTE_MASK) << _BYTE, value & (_BYTE_MASK << _BYTE)
            state, at = _push(state, at, out, low, _BYTE_FREQUENCY, _BYTE_RECIPROCAL)
            state, at = _push(state, at, out, high, _BYTE_FREQUENCY, _BYTE_RECIPROCAL)
        start = np.uint64(cumulative[table, entry])
        frequency = np.uint64(cumulative[table, entry + 1]) - start
        state, at = _push(state, at, out, start, frequency, reciprocals[table, entry])
    for _ in range(_STATE_BYTES):
        at -= 1
        out[at] = state & _BYTE_MASK
        state >>= _BYTE
    return at


@compiled
def _refill(state: np.uint64, at: int, data: NDArray[np.uint8]) -> tuple[np.uint64, int]:
    """Bring the state back to its range; it stays below where the bytes have ended."""
    while state < _LOW and at < data.size:
        state = state << _BYTE | np.uint64(data[at])
        at += 1
    return state, at


@compiled
def _pull_byte(state: np.uint64, at: int, data: NDArray[np.uint8]) -> tuple[np.int64, np.uint64, int]:
    """Take one uniform byte off the state."""
    position = state & _MASK
    state, at = _refill(_BYTE_FREQUENCY * (state >> _BITS) + (position & _BYTE_MASK), at, data)
    return np.int64(position >> _BYTE), state, at


@compiled
def _decode(
    data: NDArray[np.uint8], indexes: NDArray[np.uint8],
    cumulative: NDArray[np.uint32], sizes: NDArray[np.int32], offsets: NDArray[np.int32],
    lookup: NDArray[np.uint16], likely: NDArray[np.uint16], symbols: NDArray[np.int16],
) -> int:  # fmt: skip
    """Fill symbols; returns _OK or what is wrong with the bytes."""
    if data.size < _STATE_BYTES:
        return _TRUNCATED
    if data[0] == 0:
        return _BAD_START
    state, at = _refill(np.uint64(data[0]), 1, data)  # three more bytes
    for i in range(indexes.size):
        table = indexes[i]
        position = state & _MASK
        entry = np.int64(likely[table])
        if position < cumulative[table, entry] or position >= cumulative[table, entry + 1]:
            entry = np.int64(lookup[table, position >> _BYTE])
            while cumulative[table, entry + 1] <= position:  # ends: the last one is 2**16
                entry += 1
        start = np.uint64(cumulative[table, entry])
        frequency = np.uint64(cumulative[table, entry + 1]) - start
        state, at = _refill(frequency * (state >> _BITS) + position - start, at, data)
        value = offsets[table] + entry
        escape = np.int64(sizes[table]) - 1
        if entry == escape and state >= _LOW:
            high, state, at = _pull_byte(state, at, data)
            low, state, at = _pull_byte(state, at, data)
            value = np.int64(np.int16(high << 8 | low))
            if 0 <= value - offsets[table] < escape:
                return _NEEDLESS_ESCAPE
        if state < _LOW:
            return _TRUNCATED
        symbols[i] = value
    if at != data.size:
        return _LEFT_OVER
    return _OK if state == _LOW else _BAD_END
