"""Symbols survive the coder exactly, at close to their information content; no bytes lead it astray."""

import itertools
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline import entropy
from pipeline.entropy import (
    TOTAL,
    FrequencyTables,
    build_tables,
    check_tables,
    decode_symbols,
    encode_symbols,
    gaussian_tables,
    ideal_bits,
    quantise_pmf,
)
from pipeline.errors import BitstreamError, ConfigError

GOLDEN = Path(__file__).parent / "golden"
SCALES = np.geomspace(0.11, 64, 64)
LATENTS = 64 * 23 * 30


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    entropy.warm_up()


def three_tables() -> FrequencyTables:
    """An even table, a steep one, and one that has nothing but its escape."""
    cumulative = np.array([
        [0, 16384, 32768, 49152, 65536],
        [0, 65000, 65500, 65536, 65536],
        [0, 65536, 65536, 65536, 65536],
    ], np.uint32)  # fmt: skip
    return check_tables(cumulative, np.array([4, 3, 1], np.int32), np.array([-1, 0, 5], np.int32))


GOLDEN_SYMBOLS = np.array([-1, 0, 1, 0, 0, 1, 2, 7, -32768, 32767, 5, 0, 0], np.int16)
GOLDEN_INDEXES = np.array([0, 0, 0, 1, 1, 1, 0, 1, 2, 2, 2, 1, 1], np.uint8)


def street_latents(seed: int) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """Symbols and indexes (44160,) of about 800 bytes: nearly all at small scales, where 0 has p > 0.99."""
    rng = np.random.default_rng(seed)
    small, large = rng.integers(0, 6, LATENTS), rng.integers(6, 40, LATENTS)
    indexes = np.where(rng.random(LATENTS) < 0.944, small, large).astype(np.uint8)
    return np.rint(rng.normal(0, SCALES[indexes])).astype(np.int16), indexes


@st.composite
def coded_symbols(draw: st.DrawFn) -> tuple[NDArray[np.int16], NDArray[np.uint8], FrequencyTables]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    sizes = draw(st.lists(st.integers(1, 300), min_size=1, max_size=5))
    pmfs = [rng.random(size) ** draw(st.integers(1, 20)) for size in sizes]
    tables = build_tables(pmfs, [int(rng.integers(-(1 << 15), (1 << 15) - size)) for size in sizes])
    count = draw(st.integers(0, 200))
    indexes = rng.integers(0, len(sizes), count).astype(np.uint8)
    inside = tables.offsets[indexes] + rng.integers(-2, np.maximum(tables.sizes[indexes], 1) + 2)
    anywhere = rng.integers(-(1 << 15), 1 << 15, count)
    symbols = np.where(rng.random(count) < 0.1, anywhere, np.clip(inside, -(1 << 15), (1 << 15) - 1))
    return symbols.astype(np.int16), indexes, tables


@settings(deadline=None)
@given(coded_symbols())
def test_decoding_gives_back_what_was_encoded(case: tuple) -> None:
    symbols, indexes, tables = case
    decoded = decode_symbols(encode_symbols(symbols, indexes, tables), indexes, tables)
    assert decoded.dtype == np.int16
    np.testing.assert_array_equal(decoded, symbols)


@settings(deadline=None)
@given(coded_symbols())
def test_coded_size_is_the_information_content_and_a_few_bytes(case: tuple) -> None:
    symbols, indexes, tables = case
    ideal_bytes = ideal_bits(symbols, indexes, tables) / 8
    coded_bytes = len(encode_symbols(symbols, indexes, tables))
    assert ideal_bytes - 1 <= coded_bytes <= ideal_bytes * 1.005 + 5


@pytest.mark.parametrize("seed", range(4))
def test_overhead_on_street_latents_is_below_five_bytes_and_a_seventh_of_a_percent(seed: int) -> None:
    tables = gaussian_tables(SCALES)
    symbols, indexes = street_latents(seed)
    data = encode_symbols(symbols, indexes, tables)
    assert 600 < len(data) < 1000
    assert len(data) <= ideal_bits(symbols, indexes, tables) / 8 * 1.0015 + 5
    np.testing.assert_array_equal(decode_symbols(data, indexes, tables), symbols)


def test_a_frame_is_coded_within_a_millisecond_each_way() -> None:
    tables = gaussian_tables(SCALES)
    symbols, indexes = street_latents(0)
    data = encode_symbols(symbols, indexes, tables)
    assert best_ms(lambda: encode_symbols(symbols, indexes, tables)) < 1
    assert best_ms(lambda: decode_symbols(data, indexes, tables)) < 1


def best_ms(run: Callable[[], object]) -> float:
    run()
    started = []
    for _ in range(51):
        started.append(time.perf_counter())
        run()
    return min(after - before for before, after in itertools.pairwise(started)) * 1e3


def test_no_symbols_are_no_bytes() -> None:
    tables, nothing = three_tables(), np.zeros(0, np.uint8)
    assert encode_symbols(np.zeros(0, np.int16), nothing, tables) == b""
    assert decode_symbols(b"", nothing, tables).size == 0
    with pytest.raises(BitstreamError):
        decode_symbols(b"\x01\0\0\0", nothing, tables)


def test_golden_symbols_keep_their_bytes() -> None:
    data = (GOLDEN / "symbols.bin").read_bytes()
    np.testing.assert_array_equal(decode_symbols(data, GOLDEN_INDEXES, three_tables()), GOLDEN_SYMBOLS)
    assert encode_symbols(GOLDEN_SYMBOLS, GOLDEN_INDEXES, three_tables()) == data


def test_width_and_memory_layout_of_symbols_do_not_matter() -> None:
    tables, data = three_tables(), (GOLDEN / "symbols.bin").read_bytes()
    strided = np.repeat(GOLDEN_SYMBOLS, 2)[::2]
    sealed = GOLDEN_INDEXES.copy()
    sealed.flags.writeable = False
    assert encode_symbols(strided.astype(np.int32), sealed, tables) == data
    assert encode_symbols(strided, np.repeat(GOLDEN_INDEXES, 3)[::3], tables) == data
    np.testing.assert_array_equal(decode_symbols(data, sealed, tables), GOLDEN_SYMBOLS)


def test_an_escape_costs_its_entry_and_sixteen_bits() -> None:
    index = np.zeros(1, np.uint8)
    assert ideal_bits(np.array([7], np.int16), index, three_tables()) == 2 + 16
    assert ideal_bits(np.array([0], np.int16), index, three_tables()) == 2


def test_truncated_or_extended_bytes_are_rejected() -> None:
    tables = gaussian_tables(SCALES)
    symbols, indexes = street_latents(5)
    data = encode_symbols(symbols[:4000], indexes[:4000], tables)
    for size in range(len(data)):
        with pytest.raises(BitstreamError):
            decode_symbols(data[:size], indexes[:4000], tables)
    with pytest.raises(BitstreamError, match="left over"):
        decode_symbols(data + b"\0", indexes[:4000], tables)


@settings(deadline=None)
@given(st.binary(max_size=64), st.lists(st.integers(0, 2), max_size=20))
def test_any_bytes_give_symbols_or_an_error(data: bytes, indexes: list[int]) -> None:
    assert_canonical_or_rejected(data, np.array(indexes, np.uint8), three_tables())


def test_ten_thousand_mutations_give_symbols_or_an_error() -> None:
    rng = np.random.default_rng(1)
    data = (GOLDEN / "symbols.bin").read_bytes()
    for _ in range(10_000):
        mutated = bytearray(data)
        for _ in range(rng.integers(1, 4)):
            mutated[rng.integers(len(mutated))] = rng.integers(256)
        assert_canonical_or_rejected(bytes(mutated), GOLDEN_INDEXES, three_tables())


def test_a_symbol_has_one_form_only() -> None:
    """Of all states that one symbol of probability 1/4 can come from, three are the table's symbols."""
    tables, index = three_tables(), np.zeros(1, np.uint8)
    accepted = {}
    for low in range(0, TOTAL, 64):
        try:
            symbols = decode_symbols(((4 << 24) + low).to_bytes(4), index, tables)
        except BitstreamError:
            continue
        accepted[low] = symbols.tolist()
    assert accepted == {0: [-1], 16384: [0], 32768: [1]}


def assert_canonical_or_rejected(data: bytes, indexes: NDArray[np.uint8], tables: FrequencyTables) -> None:
    try:
        symbols = decode_symbols(data, indexes, tables)
    except BitstreamError:
        return
    assert encode_symbols(symbols, indexes, tables) == data


def test_an_escaped_value_that_is_in_the_table_is_rejected() -> None:
    """The escape of table 0 is its entry 3; as the encoder would push it, but for the value 0."""
    state = 1 << 24
    for start, frequency in ((0, 256), (0, 256), (49152, 16384)):
        state = (state // frequency << 16) + state % frequency + start
    tail = b""
    while state >> 32:
        tail, state = bytes([state & 255]) + tail, state >> 8
    with pytest.raises(BitstreamError):
        decode_symbols(state.to_bytes(4) + tail, np.zeros(1, np.uint8), three_tables())


def test_wrong_arguments_are_told_from_wrong_bytes() -> None:
    tables, index = three_tables(), np.zeros(1, np.uint8)
    symbol = np.zeros(1, np.int16)
    for symbols, indexes in (
        (symbol, np.array([3], np.uint8)),
        (symbol, np.zeros(2, np.uint8)),
        (symbol, np.zeros(1, np.int64)),
        (symbol.reshape(1, 1), index.reshape(1, 1)),
        (np.array([40_000], np.int32), index),
        (np.zeros(1, np.float32), index),
    ):
        with pytest.raises(ValueError, match=r"symbol|index"):
            encode_symbols(symbols, indexes, tables)
    with pytest.raises(ValueError, match="names none"):
        decode_symbols(b"", np.array([3], np.uint8), tables)


def test_multiplying_by_the_reciprocal_is_dividing() -> None:
    """At every frequency, for the states below, at and above a multiple and for the largest state."""
    frequency = np.arange(1, TOTAL + 1, dtype=np.uint64)
    reciprocal = (1 << 48) // frequency + np.uint64(1)
    largest = (frequency << np.uint64(16)) - np.uint64(1)
    middle = frequency * np.uint64(40_503)
    for state in (np.minimum(np.uint64(1 << 24), largest), middle - np.uint64(1), middle, largest):
        np.testing.assert_array_equal((state * reciprocal) >> np.uint64(48), state // frequency)


@settings(deadline=None)
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=200).filter(lambda values: sum(values) > 0))
def test_quantised_frequencies_are_positive_and_sum_exactly(pmf: list[float]) -> None:
    frequencies = quantise_pmf(np.array(pmf))
    assert frequencies.min() >= 1
    assert frequencies.sum() == TOTAL


@settings(deadline=None)
@given(st.lists(st.floats(1e-3, 1), min_size=3, max_size=3))
def test_no_other_frequencies_cost_fewer_bits(pmf: list[float]) -> None:
    p = np.array(pmf) / sum(pmf)

    def bits(f: NDArray[np.int64]) -> float:
        return float(-(p * np.log2(f / 32)).sum())

    rest = [np.array([a, b, 32 - a - b]) for a in range(1, 31) for b in range(1, 32 - a)]
    assert bits(quantise_pmf(p, precision=5)) <= min(map(bits, rest)) + 1e-9


@pytest.mark.parametrize("pmf", [[], [0.0, 0.0], [1.0, -0.1], [1.0, math.nan], [math.inf]])
def test_what_is_no_distribution_is_refused(pmf: list[float]) -> None:
    with pytest.raises(ValueError, match="probabilities"):
        quantise_pmf(np.array(pmf))


def test_gaussian_tables_hold_the_gaussian() -> None:
    tables = gaussian_tables(np.array([0.11, 1.0, 64.0]))
    assert tables.offsets.tolist()[0] == -entropy.MIN_RADIUS
    np.testing.assert_array_equal(tables.sizes, 2 - 2 * tables.offsets)
    for scale, table in ((1.0, 1), (64.0, 2)):
        values = np.arange(tables.sizes[table] - 1) + tables.offsets[table]
        frequencies = np.diff(tables.cumulative[table, : tables.sizes[table]].astype(np.int64))
        edge = math.sqrt(2) * scale
        exact = [(math.erf((v + 0.5) / edge) - math.erf((v - 0.5) / edge)) / 2 * TOTAL for v in values]
        np.testing.assert_allclose(frequencies, exact, atol=6)
        assert math.erfc((values[-1] + 0.5) / edge) <= 2**-16 < math.erfc((values[-1] - 0.5) / edge)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf, 1e6])
def test_a_scale_that_has_no_table_is_refused(scale: float) -> None:
    with pytest.raises(ValueError, match="scale"):
        gaussian_tables(np.array([scale]))


DAMAGES: dict[str, Callable[[NDArray[np.uint32], NDArray[np.int32], NDArray[np.int32]], object]] = {
    "wrong dtype": lambda c, s, o: (c.astype(np.int64), s, o),
    "wrong rank": lambda c, s, o: (c[0], s, o),
    "no tables": lambda c, s, o: (c[:0], s[:0], o[:0]),
    "too many tables": lambda c, s, o: (np.repeat(c, 100, 0), np.repeat(s, 100), np.repeat(o, 100)),
    "too many entries": lambda c, s, o: (np.pad(c, ((0, 0), (0, 5000)), mode="edge"), s, o),
    "a size is missing": lambda c, s, o: (c, s[:-1], o),
    "no entries": lambda c, s, o: (c, s - 1, o),
    "more entries than columns": lambda c, s, o: (c, s + 1, o),
    "does not begin at zero": lambda c, s, o: (np.maximum(c, 1), s, o),
    "wrong sum": lambda c, s, o: (np.minimum(c, 65535), s, o),
    "falling": lambda c, s, o: (np.where(c == 32768, 1, c).astype(np.uint32), s, o),
    "a frequency of zero": lambda c, s, o: (np.where(c == 32768, 16384, c).astype(np.uint32), s, o),
    "ends before the last entry": lambda c, s, o: (c, np.array([4, 4, 1], np.int32), o),
    "goes on after the last entry": lambda c, s, o: (c, np.array([3, 3, 1], np.int32), o),
    "values below 16 bits": lambda c, s, o: (c, s, o - 32768),
    "values above 16 bits": lambda c, s, o: (c, s, o + 32766),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_tables_are_refused(damage: str) -> None:
    tables = three_tables()
    with pytest.raises(ConfigError, match="frequency tables"):
        check_tables(*DAMAGES[damage](tables.cumulative, tables.sizes, tables.offsets))


def test_tables_survive_being_stored_and_cannot_be_changed() -> None:
    tables = gaussian_tables(SCALES[:8])
    again = check_tables(tables.cumulative, tables.sizes, tables.offsets)
    np.testing.assert_array_equal(again.lookup, tables.lookup)
    with pytest.raises(ValueError, match="read-only"):
        again.cumulative[0, 0] = 1
