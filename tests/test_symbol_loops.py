"""The loops of the coder: nothing is read before it is written, nothing is written outside, whatever the size."""

import coding
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline import entropy
from pipeline.context import Context
from pipeline.entropy import Reader, Writer
from pipeline.errors import BitstreamError
from pipeline.frequency_tables import FRACTIONS, TOTAL, check_tables
from pipeline.symbol_loops import ONE, Sums, end, put_symbols

SIZES = [(1, 1), (1, 7), (7, 1), (2, 5), (5, 2)]
GUARD = 64


def made_up(size: tuple[int, int]) -> tuple[NDArray[np.int16], Context]:
    one = coding.context(3, planes=9, rows=size[0], live=7)
    return coding.symbols(4, (9, *size), one), one


def guarded(sums: Sums, fill: int) -> tuple[Sums, list[NDArray[np.generic]]]:
    """The same memory, all of it `fill`, and that of what is found by computed places, with a margin on both sides."""
    margins = [np.full(part.size + 2 * GUARD, fill, part.dtype) for part in (sums.pairs, sums.near, sums.whole)]
    pairs, near, whole = (one[GUARD:-GUARD] for one in margins)
    row, line, heard = (np.full_like(part, fill) for part in (sums.row, sums.line, sums.heard))
    return Sums(pairs, pairs.view(np.int32), row, row.view(np.int32), sums.factors, line, heard, near, whole), margins


def coded(symbols: NDArray[np.int16], one: Context, sums: Sums) -> bytes:
    size = symbols.shape[1], symbols.shape[2]
    state, out = np.array([0, ONE], np.int64), np.empty(8 * symbols.size + 16, np.uint8)
    known, entries = entropy._knowledge(size, one, None), entropy._entries(coding.TABLES)
    at = put_symbols(symbols, known, entries, sums, state, 0, out)
    return out[: end(state, at, out)].tobytes()


@pytest.mark.parametrize("size", SIZES)
def test_nothing_is_read_before_it_is_written_and_nothing_is_written_outside(size: tuple[int, int]) -> None:
    symbols, one = made_up(size)
    found = set()
    for fill in (0, 3, -5):
        sums, margins = guarded(entropy._sums(size, one), fill)
        found.add(coded(symbols, one, sums))
        assert all((margin[:GUARD] == fill).all() and (margin[-GUARD:] == fill).all() for margin in margins)
    writer = Writer(symbols.size)
    writer.put(symbols, one, coding.TABLES)
    assert found == {writer.finish()}


@pytest.mark.parametrize("size", SIZES)
def test_every_size_is_read_as_it_was_written(size: tuple[int, int]) -> None:
    symbols, one = made_up(size)
    writer = Writer(symbols.size)
    writer.put(symbols, one, coding.TABLES)
    reader = Reader(writer.finish())
    np.testing.assert_array_equal(reader.take(size, one, coding.TABLES), symbols)
    reader.finish()


def test_tables_of_a_zero_and_the_escape_are_enough() -> None:
    cumulative = np.repeat(np.array([[0, TOTAL - 9, TOTAL]], np.uint32), FRACTIONS, 0)
    tables = check_tables(cumulative, np.full(FRACTIONS, 2, np.int32))
    one = coding.context(6, planes=5, rows=4)
    symbols = coding.symbols(7, (5, 4, 3), one, 20)
    writer = Writer(symbols.size)
    writer.put(symbols, one, tables)
    reader = Reader(writer.finish())
    np.testing.assert_array_equal(reader.take((4, 3), one, tables), symbols)
    reader.finish()


def test_more_symbols_than_were_announced_are_refused() -> None:
    symbols, one = made_up((2, 5))
    writer = Writer(2 * symbols.size - 1)
    writer.put(symbols, one, coding.TABLES)
    with pytest.raises(ValueError, match=f"room for {symbols.size - 1}"):
        writer.put(symbols, one, coding.TABLES)


@pytest.mark.parametrize("shape", [(9, 2, 6), (9, 3, 5), (8, 2, 5)])
def test_hints_of_another_size_are_refused(shape: tuple[int, int, int]) -> None:
    symbols, one = made_up((2, 5))
    hints = coding.prediction(1, shape)
    with pytest.raises(ValueError, match="hints"):
        Writer(symbols.size).put(symbols, one, coding.TABLES, hints)
    with pytest.raises(ValueError, match="hints"):
        Reader(b"\xf0").take((2, 5), one, coding.TABLES, hints)


def test_reading_far_beyond_the_last_byte_ends() -> None:
    one = coding.context(6, planes=64, rows=23)
    for data in (b"", b"\1", b"\x7f\xff", b"\xff" * 5, b"\xff" * 9):
        with pytest.raises(BitstreamError):
            reader = Reader(data)
            reader.take((23, 30), one, coding.TABLES)
            reader.finish()
