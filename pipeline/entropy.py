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

import numpy as np
from numpy.typing import NDArray

from pipeline.compiled import compiled
from pipeline.context import (
    HINT_BITS,
    MAGNITUDE_LIMIT,
    MEAN_BITS,
    MEAN_HINT_LIMIT,
    PLACES,
    SCALE_BITS,
    VALUE_LIMIT,
    Context,
)
from pipeline.errors import BitstreamError
from pipeline.frequency_tables import FRACTIONS, MEAN_UNITS, PRECISION, TOTAL, FrequencyTables, laplace_tables, sealed
from pipeline.integer_prior import ACTIVATION_UNITS, Prediction

_BITS = np.uint64(PRECISION)
_WINDOW_BYTES = 6
_ONE = np.uint64(1 << 48)
_LEAST = np.uint64(1 << 40)
_BELOW_TOP = np.uint64((1 << 40) - 1)
_TOP_SHIFT = np.uint64(40)
_BYTE = np.uint64(8)
_BYTE_FREQUENCY = np.uint64(TOTAL >> 8)
_MARK_FREQUENCY = np.uint64(TOTAL >> 4)
_MARK_START = np.uint64(TOTAL - (TOTAL >> 4))
_MAX_SYMBOL_BYTES = 5  # an escape entry is 2 bytes at most, its value 2 more, and what the spans' rounding loses

_SCALE_HALF = 1 << SCALE_BITS - 1
_MEAN_SHIFT = MEAN_BITS - 4  # to sixteenths
_MEAN_HALF = 1 << _MEAN_SHIFT - 1
_UNIT_SHIFT = 4
_UNIT_HALF = MEAN_UNITS // 2

_OK, _NO_ENTRY, _NEEDLESS_ESCAPE, _TOO_LARGE, _NO_MARK, _LEFT_OVER, _NOT_SHORTEST = range(7)
_REASONS = {
    _NO_ENTRY: "they name no symbol",
    _NEEDLESS_ESCAPE: "an escape carries a value that is in the table",
    _TOO_LARGE: "a symbol does not fit into 16 bits",
    _NO_MARK: "they do not lead to the end mark",
    _LEFT_OVER: "bytes are left over after the last symbol",
    _NOT_SHORTEST: "they are not in their shortest form",
}


class Writer:
    """Collects the symbols of one stream; `capacity` is the most that will be put."""

    def __init__(self, capacity: int) -> None:
        self._out = np.empty(_MAX_SYMBOL_BYTES * capacity + 2 * _WINDOW_BYTES, np.uint8)
        self._state = np.array([0, _ONE], np.uint64)  # low, span
        self._at = 0  # bytes given off

    def put(
        self, symbols: NDArray[np.int16], context: Context, tables: FrequencyTables, hints: Prediction | None = None
    ) -> None:
        """Code symbols (C, h, w); ValueError where they are not of the context's channels and rows."""
        _check_size(symbols.shape, context)
        if symbols.dtype != np.int16:
            raise ValueError(f"symbols must be int16, not {symbols.dtype}")
        live = np.ascontiguousarray(symbols[context.channels].transpose(1, 2, 0))  # (h, w, n)
        if np.count_nonzero(live) != np.count_nonzero(symbols):
            raise ValueError("symbols are not zero in channels that are not coded")
        scales, means = _first_sums((symbols.shape[1], symbols.shape[2]), context, hints)
        self._at = _put_all(
            live, scales, means, _flat(context), tables.cumulative, tables.sizes, self._state, self._at, self._out
        )

    def finish(self) -> bytes:
        """The bytes of all that was put."""
        size = _end(self._state, self._at, self._out)
        return self._out[:size].tobytes()


class Reader:
    """Gives back what a Writer was given; raises BitstreamError unless the bytes are exactly what encodes it."""

    def __init__(self, data: bytes) -> None:
        self._data = np.frombuffer(data, np.uint8)
        first = int.from_bytes(data[:_WINDOW_BYTES].ljust(_WINDOW_BYTES, b"\0"))
        self._state = np.array([first, _ONE], np.uint64)  # number less low, span
        self._at = _WINDOW_BYTES  # bytes taken

    def take(
        self, size: tuple[int, int], context: Context, tables: FrequencyTables, hints: Prediction | None = None
    ) -> NDArray[np.int16]:
        """Symbols (C, h, w) of a latent of `size` (h, w); ValueError where the context has other rows."""
        symbols = np.zeros((context.planes, *size), np.int16)
        _check_size(symbols.shape, context)
        live = np.empty((*size, context.channels.size), np.int16)
        scales, means = _first_sums(size, context, hints)
        outcome, self._at = _take_all(
            live, scales, means, _flat(context), tables.cumulative, tables.sizes, self._state, self._at, self._data
        )
        self._check(outcome)
        symbols[context.channels] = live.transpose(2, 0, 1)
        return symbols

    def finish(self) -> None:
        """Make sure that the bytes end with the last symbol."""
        self._check(_check_end(self._state, self._at, self._data))

    def _check(self, outcome: int) -> None:
        if outcome != _OK:
            raise BitstreamError(f"coded symbols ({self._data.size} bytes): {_REASONS[outcome]}")


def warm_up() -> None:
    """Compile both directions, or load them from the cache, so that the first frame is not late."""
    context = Context(
        1, sealed(np.zeros(1), np.int32), sealed(np.zeros((2, 1, 1)), np.int16), sealed(np.zeros((2, 1)), np.int16),
        sealed(np.zeros((2, 1, len(PLACES), 1)), np.int16),
    )  # fmt: skip
    tables = laplace_tables(1)
    nothing = np.zeros((1, 1, 1), np.int16)
    for hints in (None, Prediction(np.zeros((1, 1, 1), np.float32), np.zeros((1, 1, 1), np.uint8))):
        writer = Writer(1)
        writer.put(nothing, context, tables, hints)
        reader = Reader(writer.finish())
        reader.take((1, 1), context, tables, hints)
        reader.finish()


def _check_size(shape: tuple[int, ...], context: Context) -> None:
    if len(shape) != 3 or shape[0] != context.planes or shape[1] != context.rows:
        raise ValueError(f"symbols {shape}; the context is for {context.planes} channels of {context.rows} rows")


def _first_sums(
    size: tuple[int, int], context: Context, hints: Prediction | None
) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
    """Sums for scales and means (h + 1, (w + 2)n) before any symbol is known; the margin is never read."""
    height, width = size
    scales, means = np.empty((2, height + 1, width + 2, context.channels.size), np.int16)
    if hints is None:
        scales[:height, 1:-1], means[:height, 1:-1] = context.bias[:, :, None]
    else:
        _add_hints(hints.indexes, hints.means, context.channels, context.bias, context.hint, scales, means)
    return scales.reshape(height + 1, -1), means.reshape(height + 1, -1)


def _flat(context: Context) -> NDArray[np.int16]:
    """What a symbol of each channel says to all around it: (2, n, 5n)."""
    n = context.channels.size
    return context.spread.reshape(2, n, len(PLACES) * n)


@compiled
def _clamp(number: int, low: int, high: int) -> int:
    return min(max(number, low), high)


@compiled
def _add_hints(
    indexes: NDArray[np.uint8], expected: NDArray[np.float32], channels: NDArray[np.int32],
    bias: NDArray[np.int16], hint: NDArray[np.int16], scales: NDArray[np.int16], means: NDArray[np.int16],
) -> None:  # fmt: skip
    for i in range(indexes.shape[1]):
        for j in range(indexes.shape[2]):
            for c in range(channels.size):
                index = np.int64(indexes[channels[c], i, j])
                mean = int(expected[channels[c], i, j] * ACTIVATION_UNITS)  # exact: means are sixteenths
                mean = _clamp(mean, -MEAN_HINT_LIMIT, MEAN_HINT_LIMIT)
                scales[i, j + 1, c] = bias[0, i, c] + (index * hint[0, c] >> HINT_BITS)
                means[i, j + 1, c] = bias[1, i, c] + (mean * hint[1, c] >> HINT_BITS)


@compiled
def _tell(
    symbol: np.int16, spread: NDArray[np.int16], at: tuple[int, int, int],
    scales: NDArray[np.int16], means: NDArray[np.int16],
) -> None:  # fmt: skip
    """Add what a symbol that is not zero says, spread (2, n, 5n), to the sums of the places around, (h + 1, (w + 2)n).

    `at`: its row, where its place begins there, its channel. What is added to channels before its own is read no more.
    Long loops, written out here, are what the compiler makes vector instructions of; this is most of the time at high
    rates. That sums stay within 16 bits is load_context's business.
    """
    row, here, channel = at
    n = spread.shape[1]
    value = np.int16(_clamp(int(symbol), -VALUE_LIMIT, VALUE_LIMIT))
    magnitude = np.int16(min(abs(int(value)), MAGNITUDE_LIMIT))
    sums, weights = scales[row, here : here + 2 * n], spread[0, channel, : 2 * n]
    for k in range(2 * n):
        sums[k] += weights[k] * magnitude
    sums, weights = scales[row + 1, here - n : here + 2 * n], spread[0, channel, 2 * n :]
    for k in range(3 * n):
        sums[k] += weights[k] * magnitude
    sums, weights = means[row, here : here + 2 * n], spread[1, channel, : 2 * n]
    for k in range(2 * n):
        sums[k] += weights[k] * value
    sums, weights = means[row + 1, here - n : here + 2 * n], spread[1, channel, 2 * n :]
    for k in range(3 * n):
        sums[k] += weights[k] * value


@compiled
def _expected(scale: np.int16, mean: np.int16, scale_count: int) -> tuple[int, int, bool]:
    """Sums -> table, whole part of the mean, and whether signs are changed."""
    index = _clamp((int(scale) + _SCALE_HALF) >> SCALE_BITS, 0, scale_count - 1)
    sixteenths = (int(mean) + _MEAN_HALF) >> _MEAN_SHIFT
    whole = (sixteenths + _UNIT_HALF) >> _UNIT_SHIFT
    fraction = sixteenths - (whole << _UNIT_SHIFT)
    return index * FRACTIONS + abs(fraction), whole, fraction < 0


@compiled
def _entry_of(symbol: np.int16, whole: int, mirrored: bool) -> int:
    """Place of a symbol in the order 0, 1, -1, 2, -2, ... around its mean."""
    value = int(symbol) - whole
    value = -value if mirrored else value
    return 2 * value - 1 if value > 0 else -2 * value


@compiled
def _symbol_of(entry: int, whole: int, mirrored: bool) -> int:
    value = (entry + 1) >> 1 if entry & 1 else -(entry >> 1)
    return whole - value if mirrored else whole + value


@compiled
def _narrow(
    low: np.uint64, span: np.uint64, at: int, out: NDArray[np.uint8], start: np.uint64, frequency: np.uint64
) -> tuple[np.uint64, np.uint64, int]:
    """Keep the part of the interval that stands for one entry, and give off the bytes that are settled."""
    part = span >> _BITS
    low, span = low + part * start, part * frequency
    if low >= _ONE:
        low -= _ONE
        _carry(at, out)
    while span < _LEAST:
        out[at] = low >> _TOP_SHIFT
        at += 1
        low, span = (low & _BELOW_TOP) << _BYTE, span << _BYTE
    return low, span, at


@compiled
def _carry(at: int, out: NDArray[np.uint8]) -> None:
    """Add one to the bytes given off; it ends within them, since the number stays below one."""
    at -= 1
    while out[at] == 255:
        out[at] = 0
        at -= 1
    out[at] += 1


@compiled
def _put_all(
    symbols: NDArray[np.int16], scales: NDArray[np.int16], means: NDArray[np.int16], spread: NDArray[np.int16],
    cumulative: NDArray[np.uint32], sizes: NDArray[np.int32],
    state: NDArray[np.uint64], at: int, out: NDArray[np.uint8],
) -> int:  # fmt: skip
    """Code symbols (h, w, n), changing sums and state on the way; returns how many bytes are given off."""
    low, span = state[0], state[1]
    height, width, channels = symbols.shape
    for i in range(height):
        for j in range(width):
            for c in range(channels):
                symbol = symbols[i, j, c]
                here = (j + 1) * channels
                table, whole, mirrored = _expected(scales[i, here + c], means[i, here + c], sizes.size // FRACTIONS)
                escape = int(sizes[table]) - 1
                entry = min(_entry_of(symbol, whole, mirrored), escape)
                start = np.uint64(cumulative[table, entry])
                frequency = np.uint64(cumulative[table, entry + 1]) - start
                low, span, at = _narrow(low, span, at, out, start, frequency)
                if entry == escape:
                    high, less = np.uint64((symbol >> 8) & 255), np.uint64(symbol & 255)
                    low, span, at = _narrow(low, span, at, out, high << _BYTE, _BYTE_FREQUENCY)
                    low, span, at = _narrow(low, span, at, out, less << _BYTE, _BYTE_FREQUENCY)
                if symbol != 0:
                    _tell(symbol, spread, (i, here, c), scales, means)
    state[0], state[1] = low, span
    return at


@compiled
def _end(state: NDArray[np.uint64], at: int, out: NDArray[np.uint8]) -> int:
    """Put the end mark and the last byte if one is needed; returns how many bytes there are, final zeros left out."""
    low, span, at = _narrow(state[0], state[1], at, out, _MARK_START, _MARK_FREQUENCY)
    if low + span > _ONE:  # the next number that needs no byte more is within
        _carry(at, out)
    elif low > 0:
        top = (low + _BELOW_TOP) >> _TOP_SHIFT
        out[at] = top
        at += 1
    while at > 0 and out[at - 1] == 0:
        at -= 1
    return at


@compiled
def _widen(offset: np.uint64, span: np.uint64, at: int, data: NDArray[np.uint8]) -> tuple[np.uint64, np.uint64, int]:
    """Take the bytes that the encoder gave off here; after the last one follow zeros."""
    while span < _LEAST:
        offset, span = offset << _BYTE, span << _BYTE
        if at < data.size:
            offset |= np.uint64(data[at])
        at += 1
    return offset, span, at


@compiled
def _take_byte(
    offset: np.uint64, span: np.uint64, at: int, data: NDArray[np.uint8]
) -> tuple[np.int64, np.uint64, np.uint64, int]:
    """One uniform byte, 256 where the bytes name none."""
    part = (span >> _BITS) * _BYTE_FREQUENCY
    byte = min(offset // part, np.uint64(256))
    offset, span, at = _widen(offset - byte * part, part, at, data)
    return np.int64(byte), offset, span, at


@compiled
def _take_all(
    symbols: NDArray[np.int16], scales: NDArray[np.int16], means: NDArray[np.int16], spread: NDArray[np.int16],
    cumulative: NDArray[np.uint32], sizes: NDArray[np.int32],
    state: NDArray[np.uint64], at: int, data: NDArray[np.uint8],
) -> tuple[int, int]:  # fmt: skip
    """Fill symbols (h, w, n); returns _OK or what is wrong with the bytes, and how many are taken."""
    offset, span = state[0], state[1]
    height, width, channels = symbols.shape
    for i in range(height):
        for j in range(width):
            for c in range(channels):
                here = (j + 1) * channels
                table, whole, mirrored = _expected(scales[i, here + c], means[i, here + c], sizes.size // FRACTIONS)
                escape, entry, part = int(sizes[table]) - 1, 0, span >> _BITS
                while entry <= escape and offset >= part * np.uint64(cumulative[table, entry + 1]):
                    entry += 1
                if entry > escape:
                    return _NO_ENTRY, at
                start = np.uint64(cumulative[table, entry])
                frequency = np.uint64(cumulative[table, entry + 1]) - start
                offset, span, at = _widen(offset - part * start, part * frequency, at, data)
                symbol = _symbol_of(entry, whole, mirrored)
                if entry == escape:
                    high, offset, span, at = _take_byte(offset, span, at, data)
                    less, offset, span, at = _take_byte(offset, span, at, data)
                    if high > 255 or less > 255:
                        return _NO_ENTRY, at
                    symbol = int(np.int16(high << 8 | less))
                    if _entry_of(np.int16(symbol), whole, mirrored) < escape:
                        return _NEEDLESS_ESCAPE, at
                if symbol != int(np.int16(symbol)):
                    return _TOO_LARGE, at
                symbols[i, j, c] = symbol
                if symbol != 0:
                    _tell(np.int16(symbol), spread, (i, here, c), scales, means)
    state[0], state[1] = offset, span
    return _OK, at


@compiled
def _check_end(state: NDArray[np.uint64], at: int, data: NDArray[np.uint8]) -> int:
    """Whether the end mark follows, and the bytes are those that `_end` chooses."""
    part = state[1] >> _BITS
    if state[0] < part * _MARK_START or state[0] >= part * np.uint64(TOTAL):
        return _NO_MARK
    offset, span, at = _widen(state[0] - part * _MARK_START, part * _MARK_FREQUENCY, at, data)
    if data.size > at - _WINDOW_BYTES + 1:
        return _LEFT_OVER
    if data.size and data[data.size - 1] == 0:
        return _NOT_SHORTEST
    if data.size <= at - _WINDOW_BYTES:
        return _OK  # the number has no byte within the window, and the interval holds no other such number
    number = np.uint64(data[data.size - 1]) << _TOP_SHIFT
    # Within the interval must be neither end of the window, nor a smaller number of one byte.
    if offset >= number or number - offset + span > _ONE or offset >= _LEAST:
        return _NOT_SHORTEST
    return _OK
