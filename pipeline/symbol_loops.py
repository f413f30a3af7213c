"""The inner loops of the coder as machine code: symbols, what they say about others, the interval, its bytes.

    choose_symbols  each latent is rounded to what costs least, then says what it says
    put_symbols     all symbols of a place say what they say, then are coded
    take_symbols    each symbol is read, then says what it says

Scale and mean sums stand side by side, as pairs, and the pairs of a place in one block. Blocks of two rows take turns,
those of the symbol's own and of the one below:

    own, below     of the first column of row i, then of the next one ...
         own, below     the same of row i + 1: what was below stays where it is

So the five places that a symbol speaks for are one stretch of memory, its weights stand in the same order, and what it
says is added in one long loop, of which compilers make vector instructions.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pipeline.context import HINT_BITS, MEAN_BITS, MEAN_HINT_LIMIT, PLACES, SCALE_BITS, VALUE_LIMIT
from pipeline.frequency_tables import FRACTIONS, MEAN_UNITS, NEAR, PRECISION, TOTAL
from pipeline.integer_prior import ACTIVATION_UNITS
from pipeline.symbol_arrays import Entries, Knowledge, Sums

F = TypeVar("F", bound=Callable[..., object])

ONE, WINDOW_BYTES = 1 << 48, 6
OK, NO_ENTRY, NEEDLESS_ESCAPE, NO_MARK, LEFT_OVER, NOT_SHORTEST = range(6)
FACTORS = 2 * VALUE_LIMIT + 1
FIRST = 1  # blocks before that of the first place: the one below left of it
_LEAST = 1 << 40  # of a span; each step of it leaves 2**24 at least, so two bytes bring it back
_BELOW_TOP = _LEAST - 1
_TOP_SHIFT = 40
_BYTE_FREQUENCY = TOTAL >> 8
_MARK_FREQUENCY = TOTAL >> 4
_MARK_START = TOTAL - _MARK_FREQUENCY

_SCALE_HALF = 1 << SCALE_BITS - 1
_MEAN_SHIFT = MEAN_BITS - 4  # to sixteenths
_MEAN_HALF = (1 << _MEAN_SHIFT - 1) + (1 << MEAN_BITS - 1)  # rounds to sixteenths, these to whole ones
_FRACTION = MEAN_UNITS - 1
_PLACE = (1 << 30) - 1  # on an index, says that it is not below zero, and spares the compiler looking


def _loop(function: F) -> F:
    """Compile, as `compiled` does, but into the caller, and without counting who holds an array.

    To count is an atomic step at each call, and would be a quarter of the time to take symbols. Such functions cannot
    make arrays.
    """
    options: dict[str, Any] = {"nogil": True, "forceinline": True, "_nrt": False}
    try:
        return cast(F, njit(cache=True, **options)(function))
    except RuntimeError:
        return cast(F, njit(**options)(function))


@_loop
def _int64(number: Any) -> int:
    """Of 64 bits and signed, so that no sum of it with others becomes a float."""
    return int(np.int64(number))


@_loop
def _width(sums: Sums) -> int:
    """Numbers of a block."""
    return sums.factors.size // (FACTORS * len(PLACES)) & _PLACE


@_loop
def _open_row(i: int, known: Knowledge, sums: Sums) -> None:
    """Row i, before its symbols: bias and hints. Row by row of one channel first, since so hints are stored."""
    for c in range(known.channels.size):
        channel = known.channels[c]
        for_scale, for_mean = np.int32(known.hint[0, c]), np.int32(known.hint[1, c])
        scale, mean = np.int32(known.bias[0, i, c]), np.int32(known.bias[1, i, c])
        for j in range(known.indexes.shape[2]):
            index = np.int32(known.indexes[channel, i, j])
            sixteenths = np.int32(known.means[channel, i, j] * np.float32(ACTIVATION_UNITS))
            sixteenths = min(max(sixteenths, np.int32(-MEAN_HINT_LIMIT)), np.int32(MEAN_HINT_LIMIT))
            sums.row[c, 2 * j] = np.int16(scale + (index * for_scale >> HINT_BITS))
            sums.row[c, 2 * j + 1] = np.int16(mean + (sixteenths * for_mean >> HINT_BITS))
    lanes = _width(sums) // 2
    for j in range(sums.row_words.shape[1]):
        at = (2 * j + i + FIRST) * lanes & _PLACE
        for c in range(sums.row_words.shape[0]):
            sums.words[at + c] = sums.row_words[c, j]


@_loop
def _tell(symbol: int, start: int, at: int, told: NDArray[np.int16], sums: Sums) -> None:
    """Add what a symbol says, its channel's weights from `start`, to the blocks from `at`: the first is below left."""
    factor = (min(max(symbol, -VALUE_LIMIT), VALUE_LIMIT) + VALUE_LIMIT) * (sums.factors.size // FACTORS) & _PLACE
    at, start = at & _PLACE, start & _PLACE
    for k in range(sums.factors.size // FACTORS):
        sums.pairs[at + k] += told[start + k] * sums.factors[factor + k]


@_loop
def _expected(at: int, sums: Sums, last: Any) -> tuple[Any, Any]:
    """The pair at `at` -> where the bounds of its table are in `near`, and the whole part of the mean; in 32 bits."""
    index = np.int32(np.int32(sums.pairs[at]) + np.int32(_SCALE_HALF)) >> np.int32(SCALE_BITS)
    mean = np.int32(np.int32(sums.pairs[at + 1]) + np.int32(_MEAN_HALF))
    table = np.int32(min(max(np.int32(index), np.int32(0)), last) * np.int32(MEAN_UNITS))
    fraction = np.int32(mean >> np.int32(_MEAN_SHIFT)) & np.int32(_FRACTION)
    return np.int32((table + fraction) * np.int32(NEAR)), np.int32(mean >> np.int32(MEAN_BITS))


@_loop
def _table_of(near: int) -> tuple[int, int]:
    """Place in `near` -> table, and -1 where signs are changed, else 0."""
    fraction = (near // NEAR & _FRACTION) - MEAN_UNITS // 2
    return near // (NEAR * MEAN_UNITS) * FRACTIONS + abs(fraction), -_int64(fraction < 0)


@_loop
def _entry_of(symbol: int, whole: int, signs: int) -> int:
    """Place of a symbol in the order 0, 1, -1, 2, -2, ... around its mean."""
    value = (symbol - whole ^ signs) - signs
    return 2 * abs(value) - _int64(value > 0)


@_loop
def _symbol_of(entry: int, whole: int, signs: int) -> int:
    signs ^= (entry & 1) - 1
    return whole + ((entry + 1 >> 1 ^ signs) - signs)


@_loop
def _carry(at: int, out: NDArray[np.uint8]) -> None:
    """Add one to the bytes given off; it ends within them, since the number stays below one."""
    at -= 1
    while out[at] == 255:
        out[at] = 0
        at -= 1
    out[at] += 1


@_loop
def _narrow(
    low: int, span: int, at: int, out: NDArray[np.uint8], start: int, frequency: int
) -> tuple[int, int, int]:  # fmt: skip
    """Keep the part of the interval that stands for one entry, and give off the bytes that are settled."""
    part = span >> PRECISION
    low, span = low + part * start, part * frequency
    if low >= ONE:
        low -= ONE
        _carry(at, out)
    while span < _LEAST:
        out[at & _PLACE] = low >> _TOP_SHIFT
        at += 1
        low, span = (low & _BELOW_TOP) << 8, span << 8
    return low, span, at


@_loop
def _widen(offset: int, span: int, at: int, data: NDArray[np.uint8]) -> tuple[int, int, int]:
    """Take the bytes that the encoder gave off here, two at most: without a branch, which would be guessed wrongly."""
    count = _int64(span < _LEAST) + _int64(span < _LEAST >> 8)
    first = min(at, data.size - 2) & _PLACE
    bytes_ahead = _int64(data[first]) << 8 | _int64(data[first + 1])
    return offset << 8 * count | bytes_ahead >> 16 - 8 * count, span << 8 * count, at + count


@_loop
def _put(
    symbol: int, near: int, whole: int, entries: Entries, low: int, span: int, at: int, out: NDArray[np.uint8]
) -> tuple[int, int, int]:
    table, signs = _table_of(near)
    escape = _int64(entries.sizes[table]) - 1
    entry = min(_entry_of(symbol, whole, signs), escape) & _PLACE
    start = _int64(entries.cumulative[table, entry])
    frequency = _int64(entries.cumulative[table, entry + 1]) - start
    low, span, at = _narrow(low, span, at, out, start, frequency)
    if entry == escape:
        low, span, at = _narrow(low, span, at, out, (symbol >> 8 & 255) << 8, _BYTE_FREQUENCY)
        low, span, at = _narrow(low, span, at, out, (symbol & 255) << 8, _BYTE_FREQUENCY)
    return low, span, at


@_loop
def _take(
    near: int, whole: int, entries: Entries, offset: int, span: int, at: int, data: NDArray[np.uint8]
) -> tuple[int, int, int, int, int]:
    """Outcome, symbol, and the interval after it. The first entries are told apart without a branch."""
    part, near = span >> PRECISION, near & _PLACE
    if offset >= part * _int64(entries.near[near + 3]):
        return _take_far(near, whole, entries, offset, span, at, data)
    entry = _int64(offset >= part * _int64(entries.near[near + 1]))
    entry += _int64(offset >= part * _int64(entries.near[near + 2]))
    start = _int64(entries.near[near + entry])
    frequency = _int64(entries.near[near + entry + 1]) - start
    offset, span, at = _widen(offset - part * start, part * frequency, at, data)
    return OK, _symbol_of(entry, whole, _table_of(near)[1]), offset, span, at


@_loop
def _take_far(
    near: int, whole: int, entries: Entries, offset: int, span: int, at: int, data: NDArray[np.uint8]
) -> tuple[int, int, int, int, int]:
    """As _take, whatever the entry. Symbols fit into 16 bits: means and tables reach to a few hundred."""
    table, signs = _table_of(near)
    escape, entry, part = _int64(entries.sizes[table]) - 1, 1, span >> PRECISION
    while entry <= escape and offset >= part * _int64(entries.cumulative[table, entry + 1]):
        entry += 1
    if entry > escape:
        return NO_ENTRY, 0, offset, span, at
    start = _int64(entries.cumulative[table, entry])
    frequency = _int64(entries.cumulative[table, entry + 1]) - start
    offset, span, at = _widen(offset - part * start, part * frequency, at, data)
    if entry < escape:
        return OK, _symbol_of(entry, whole, signs), offset, span, at
    high, offset, span, at = _take_byte(offset, span, at, data)
    less, offset, span, at = _take_byte(offset, span, at, data)
    if high > 255 or less > 255:
        return NO_ENTRY, 0, offset, span, at
    symbol = int(np.int16(high << 8 | less))
    return NEEDLESS_ESCAPE * (_entry_of(symbol, whole, signs) < escape), symbol, offset, span, at


@_loop
def _take_byte(offset: int, span: int, at: int, data: NDArray[np.uint8]) -> tuple[int, int, int, int]:
    """One uniform byte, 256 where the bytes name none."""
    part = (span >> PRECISION) * _BYTE_FREQUENCY
    byte = min(offset // part, 256)
    offset, span, at = _widen(offset - byte * part, part, at, data)
    return byte, offset, span, at


@_loop
def choose_symbols(
    latent: NDArray[np.float32], known: Knowledge, entries: Entries, sums: Sums,
    bits: NDArray[np.float32], rdoq_lambda: float, symbols: NDArray[np.int16],
) -> None:  # fmt: skip
    """Fill zeros (C, h, w) with the symbols, of the nearest and its neighbours, that cost least, one after the other.

    What one costs is its squared distance from the latent and `rdoq_lambda` for each bit. What it costs others, by what
    it says, is not looked at.
    """
    last = np.int32(entries.sizes.size // FRACTIONS - 1)
    _open_row(0, known, sums)
    for i in range(latent.shape[1]):
        if i + 1 < latent.shape[1]:
            _open_row(i + 1, known, sums)
        for j in range(latent.shape[2]):
            here = (2 * j + i + FIRST) * _width(sums)
            for c in range(known.channels.size):
                value = latent[known.channels[c], i, j]
                symbol = _int64(np.floor(value + np.float32(0.5)))
                near, whole = _expected(here + 2 * c & _PLACE, sums, last)
                if symbol != 0 or whole != 0:
                    symbol = _cheapest(value, symbol, near, whole, entries, bits, rdoq_lambda)
                if symbol != 0:
                    symbols[known.channels[c], i, j] = symbol
                    _tell(symbol, int(known.starts[c]), here - _width(sums), known.told, sums)


@_loop
def _cheapest(
    value: float, nearest: int, near: int, whole: int, entries: Entries, bits: NDArray[np.float32], rdoq_lambda: float
) -> int:
    table, signs = _table_of(near)
    escape = _int64(entries.sizes[table]) - 1
    best, least = nearest, np.inf
    for symbol in (nearest, nearest - 1, nearest + 1):
        entry = min(_entry_of(symbol, whole, signs), escape)
        cost = (value - symbol) ** 2 + rdoq_lambda * bits[table, entry]
        if cost < least:
            best, least = symbol, cost
    return best


@_loop
def put_symbols(
    symbols: NDArray[np.int16], known: Knowledge, entries: Entries, sums: Sums,
    state: NDArray[np.int64], at: int, out: NDArray[np.uint8],
) -> int:  # fmt: skip
    """Code symbols (C, h, w), changing state on the way; returns how many bytes are given off."""
    _open_row(0, known, sums)
    for i in range(symbols.shape[1]):
        if i + 1 < symbols.shape[1]:
            _open_row(i + 1, known, sums)
        for c in range(known.channels.size):
            for j in range(symbols.shape[2]):
                sums.line[j, c] = symbols[known.channels[c], i, j]
        at = _put_row(i, known, entries, sums, state, at, out)
    return at


@_loop
def _put_row(
    i: int, known: Knowledge, entries: Entries, sums: Sums,
    state: NDArray[np.int64], at: int, out: NDArray[np.uint8],
) -> int:  # fmt: skip
    """The symbols in `line`, of row i. None speaks for channels before it, so all of a place may speak first."""
    low, span, last = int(state[0]), int(state[1]), np.int32(entries.sizes.size // FRACTIONS - 1)
    for j in range(sums.line.shape[0]):
        here, count = (2 * j + i + FIRST) * _width(sums), 0
        for c in range(known.channels.size):
            sums.heard[count & _PLACE] = c
            count += _int64(sums.line[j, c] != 0)
        for k in range(count):
            c = int(sums.heard[k]) & _PLACE
            _tell(_int64(sums.line[j, c]), int(known.starts[c]), here - _width(sums), known.told, sums)
        first = here & _PLACE
        for c in range(known.channels.size):
            sums.near[c], sums.whole[c] = _expected(first + 2 * c, sums, last)
        for c in range(known.channels.size):
            near, whole = _int64(sums.near[c]) & _PLACE, _int64(sums.whole[c])
            symbol, likeliest = _int64(sums.line[j, c]), (span >> PRECISION) * _int64(entries.near[near + 1])
            if symbol == whole and likeliest >= _LEAST:
                span = likeliest
            else:
                low, span, at = _put(symbol, near, whole, entries, low, span, at, out)
    state[0], state[1] = low, span
    return at


@_loop
def take_symbols(
    symbols: NDArray[np.int16], known: Knowledge, entries: Entries, sums: Sums,
    state: NDArray[np.int64], at: int, data: NDArray[np.uint8],
) -> tuple[int, int]:  # fmt: skip
    """Fill zeros (C, h, w) with symbols; returns OK or what is wrong with the bytes, and how many are taken.

    After `data` stand two zero bytes more than there were.
    """
    _open_row(0, known, sums)
    for i in range(symbols.shape[1]):
        if i + 1 < symbols.shape[1]:
            _open_row(i + 1, known, sums)
        outcome, at = _take_row(i, symbols, known, entries, sums, state, at, data)
        if outcome != OK:
            return outcome, at
    return OK, at


@_loop
def _take_row(
    i: int, symbols: NDArray[np.int16], known: Knowledge, entries: Entries, sums: Sums,
    state: NDArray[np.int64], at: int, data: NDArray[np.uint8],
) -> tuple[int, int]:  # fmt: skip
    offset, span, last = int(state[0]), int(state[1]), np.int32(entries.sizes.size // FRACTIONS - 1)
    for j in range(symbols.shape[2]):
        here = (2 * j + i + FIRST) * _width(sums)
        for c in range(known.channels.size):
            near, symbol = _expected(here + 2 * c & _PLACE, sums, last)
            likeliest = (span >> PRECISION) * _int64(entries.near[(near & _PLACE) + 1])
            if offset < likeliest and likeliest >= _LEAST:
                span = likeliest
            else:
                outcome, symbol, offset, span, at = _take(near, symbol, entries, offset, span, at, data)
                if outcome != OK:
                    return outcome, at
            if symbol != 0:
                symbols[known.channels[c], i, j] = symbol
                _tell(symbol, int(known.starts[c]), here - _width(sums), known.told, sums)
    state[0], state[1] = offset, span
    return OK, at


@_loop
def end(state: NDArray[np.int64], at: int, out: NDArray[np.uint8]) -> int:
    """Put the end mark and the last byte if one is needed; returns how many bytes there are, final zeros left out."""
    low, span, at = _narrow(int(state[0]), int(state[1]), at, out, _MARK_START, _MARK_FREQUENCY)
    if low + span > ONE:  # the next number that needs no byte more is within
        _carry(at, out)
    elif low > 0:
        top = (low + _BELOW_TOP) >> _TOP_SHIFT
        out[at] = top
        at += 1
    while at > 0 and out[at - 1] == 0:
        at -= 1
    return at


@_loop
def check_end(state: NDArray[np.int64], at: int, data: NDArray[np.uint8]) -> int:
    """Whether the end mark follows, and the bytes are those that `end` chooses."""
    offset, part, size = int(state[0]), int(state[1]) >> PRECISION, data.size - 2
    if offset < part * _MARK_START or offset >= part * TOTAL:
        return NO_MARK
    offset, span, at = _widen(offset - part * _MARK_START, part * _MARK_FREQUENCY, at, data)
    if size > at - WINDOW_BYTES + 1:
        return LEFT_OVER
    if size > 0 and data[size - 1] == 0:
        return NOT_SHORTEST
    if size <= at - WINDOW_BYTES:
        return OK  # the number has no byte within the window, and the interval holds no other such number
    number = _int64(data[size - 1]) << _TOP_SHIFT
    # Within the interval must be neither end of the window, nor a smaller number of one byte.
    if offset >= number or number - offset + span > ONE or offset >= _LEAST:
        return NOT_SHORTEST
    return OK
