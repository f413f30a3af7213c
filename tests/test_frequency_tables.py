"""Frequencies: positive, summing exactly, near the Laplace distribution; damaged tables are refused."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.errors import ConfigError
from pipeline.frequency_tables import (
    FRACTIONS,
    MAX_RADIUS,
    MIN_RADIUS,
    NEAR,
    SCALE_COUNT,
    SCALE_MIN,
    SCALE_STEP,
    TOTAL,
    FrequencyTables,
    check_tables,
    laplace_mass,
    laplace_tables,
    quantise_pmf,
)


@pytest.fixture(scope="module")
def tables() -> FrequencyTables:
    return laplace_tables(SCALE_COUNT)


def laplace_distribution(x: float, scale: float) -> float:
    return math.exp(x / scale) / 2 if x < 0 else 1 - math.exp(-x / scale) / 2


@pytest.mark.parametrize("scale", [0.04, 0.3, 1.0, 16.0])
def test_mass_is_the_difference_of_the_distribution_function(scale: float) -> None:
    distances = np.array([-3.0, -0.5, -0.3, 0.0, 0.1, 0.5, 0.7, 2.0, 9.0])
    exact = [laplace_distribution(d + 0.5, scale) - laplace_distribution(d - 0.5, scale) for d in distances]
    np.testing.assert_allclose(laplace_mass(distances, scale), exact, rtol=1e-6, atol=1e-12)


def test_far_tails_keep_their_mass() -> None:
    distance = np.array([4.0])
    assert laplace_mass(distance, 0.1)[0] == pytest.approx(math.exp(-35) * (1 - math.exp(-10)) / 2)


def test_tables_hold_the_distribution_in_order_of_probability(tables: FrequencyTables) -> None:
    for scale_index, fraction in ((0, 0), (20, 3), (40, 8), (63, 5)):
        table = scale_index * FRACTIONS + fraction
        size = int(tables.sizes[table])
        frequencies = np.diff(tables.cumulative[table, : size + 1].astype(np.int64))
        values = [(e + 1) // 2 if e % 2 else -(e // 2) for e in range(size - 1)]
        exact = TOTAL * laplace_mass(np.array(values) - fraction / 16, SCALE_MIN * math.exp(SCALE_STEP * scale_index))
        np.testing.assert_allclose(frequencies[:-1], np.maximum(exact, 1), atol=8)
        assert (np.diff(frequencies[:-1]) <= 1).all()


def test_tables_reach_as_far_as_symbols_are_likely(tables: FrequencyTables) -> None:
    assert tables.scales == SCALE_COUNT
    assert tables.sizes[0] == 2 * MIN_RADIUS + 2
    assert tables.sizes.max() == 2 * MAX_RADIUS + 2
    assert laplace_tables(3).sizes.size == 3 * FRACTIONS


def test_near_bounds_are_those_of_the_tables_up_to_the_escape() -> None:
    whole = laplace_tables(4)
    short = np.repeat(np.array([[0, 60000, TOTAL]], np.uint32), FRACTIONS, 0)
    for made in (whole, check_tables(short, np.full(FRACTIONS, 2, np.int32))):
        near = made.near.reshape(made.scales, 16, NEAR)
        for scale, fraction, entry in np.ndindex(near.shape):
            table = scale * FRACTIONS + abs(fraction - 8)
            assert near[scale, fraction, entry] == made.cumulative[table, min(entry, made.sizes[table] - 1)]


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


Damage = Callable[[NDArray[np.uint32], NDArray[np.int32]], tuple[NDArray[np.generic], NDArray[np.generic]]]
DAMAGES: dict[str, Damage] = {
    "wrong dtype": lambda c, s: (c.astype(np.int64), s),
    "wrong dtype of sizes": lambda c, s: (c, s.astype(np.int64)),
    "wrong rank": lambda c, s: (c[0], s),
    "no tables": lambda c, s: (c[:0], s[:0]),
    "a fraction is missing": lambda c, s: (c[:-1], s[:-1]),
    "too many tables": lambda c, s: (np.repeat(c, 65, 0), np.repeat(s, 65)),
    "a size is missing": lambda c, s: (c, s[:-1]),
    "no entries": lambda c, s: (c, np.zeros_like(s)),
    "an odd number of entries": lambda c, s: (c, s - 1),
    "more entries than columns": lambda c, s: (c, s + 2),
    "more entries than can be": lambda c, s: (np.pad(c, ((0, 0), (0, 300)), mode="edge"), s + 300),
    "does not begin at zero": lambda c, s: (np.maximum(c, 1), s),
    "wrong sum": lambda c, s: (np.minimum(c, TOTAL - 1), s),
    "falling": lambda c, s: (np.where(c == c[0, 2], 1, c).astype(np.uint32), s),
    "a frequency of zero": lambda c, s: (np.where(c == c[0, 2], c[0, 1], c).astype(np.uint32), s),
    "ends before the last entry": lambda c, s: (np.where(c == c[0, 5], TOTAL, c).astype(np.uint32), s),
    "goes on after the last entry": lambda c, s: (c, s - 2),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_tables_are_refused(damage: str) -> None:
    tables = laplace_tables(1)
    with pytest.raises(ConfigError, match="frequency tables"):
        check_tables(*DAMAGES[damage](tables.cumulative, tables.sizes))


def test_tables_survive_being_stored_and_cannot_be_changed() -> None:
    tables = laplace_tables(2)
    again = check_tables(tables.cumulative, tables.sizes)
    np.testing.assert_array_equal(again.cumulative, tables.cumulative)
    with pytest.raises(ValueError, match="read-only"):
        again.cumulative[0, 0] = 1
