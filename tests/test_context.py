"""Contexts: what they expect, by the definition; stored and loaded; refused where sums might not fit."""

from collections.abc import Callable

import coding
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.context import (
    HINT_BITS,
    MAGNITUDE_LIMIT,
    MEAN_BITS,
    PLACES,
    SCALE_BITS,
    VALUE_LIMIT,
    Context,
    estimated_bits,
    expect,
    lanes_of,
    load_context,
    stored_context,
)
from pipeline.errors import ConfigError
from pipeline.frequency_tables import SCALE_MIN, SCALE_STEP, laplace_mass
from pipeline.integer_prior import Prediction

SHAPE = (5, 4, 3)


def by_definition(symbols: NDArray[np.int16], one: Context, hints: Prediction | None) -> NDArray[np.float64]:
    """Sums (2, n, h, w), symbol by symbol, each telling those after it."""
    _, height, width = symbols.shape
    sums = np.repeat(one.bias.transpose(0, 2, 1)[..., None].astype(np.float64), width, axis=3)
    if hints is not None:
        sums[0] += hints.indexes[one.channels] * one.hint[0][:, None, None] / 2**HINT_BITS
        sums[1] += 16 * hints.means[one.channels] * one.hint[1][:, None, None] / 2**HINT_BITS
    for i, j in np.ndindex(height, width):
        for c, channel in enumerate(one.channels):
            symbol = int(symbols[channel, i, j])
            said = (min(abs(symbol), MAGNITUDE_LIMIT), max(-VALUE_LIMIT, min(symbol, VALUE_LIMIT)))
            for place, (down, right) in enumerate(PLACES):
                if i + down < height and 0 <= j + right < width:
                    first = c + 1 if place == 0 else 0
                    for kind in range(2):
                        sums[kind, first:, i + down, j + right] += one.spread[kind, c, place, first:] * said[kind]
    return sums


@pytest.mark.parametrize("hinted", [False, True])
@pytest.mark.parametrize("live", [0, 1, 3, 5])
def test_expectation_is_that_of_the_definition(live: int, hinted: bool) -> None:
    one = coding.context(live, planes=5, rows=4, live=live)
    symbols = coding.symbols(1, SHAPE, one, spread=3)
    hints = coding.prediction(2, SHAPE) if hinted else None
    scales, means = expect(symbols, one, hints)
    sums = by_definition(symbols, one, hints)
    steps = (sums[0] / 2**SCALE_BITS).clip(0, 63)
    np.testing.assert_allclose(scales, SCALE_MIN * np.exp(SCALE_STEP * steps))
    np.testing.assert_allclose(means, sums[1] / 2**MEAN_BITS)


def test_bits_are_those_of_the_laplace_mass() -> None:
    one = coding.context(3, planes=5, rows=4, live=4)
    symbols = coding.symbols(4, SHAPE, one)
    scales, means = expect(symbols, one)
    mass = laplace_mass(symbols[one.channels] - means, scales)
    assert estimated_bits(symbols, one) == pytest.approx(-np.log2(np.maximum(mass, 2.0**-32)).sum())


def test_no_symbols_are_no_bits() -> None:
    one = coding.context(3, planes=5, rows=4, live=0)
    assert estimated_bits(np.zeros(SHAPE, np.int16), one) == 0


def test_channels_that_are_not_coded_are_silenced() -> None:
    one = coding.context(5, planes=5, rows=4, live=2)
    symbols = np.ones(SHAPE, np.int16)
    assert set(np.flatnonzero(one.silenced(symbols).any((1, 2)))) == set(one.channels)
    assert symbols.all()


def test_a_context_survives_being_stored_and_cannot_be_changed() -> None:
    one = coding.context(6, planes=7, rows=4, live=3)
    again = load_context(stored_context(one, "some"), "some")
    assert (again.planes, again.rows) == (7, 4)
    for name in ("channels", "bias", "hint", "spread"):
        np.testing.assert_array_equal(getattr(again, name), getattr(one, name))
    with pytest.raises(ValueError, match="read-only"):
        again.spread[0] = 1


@pytest.mark.parametrize("live", [0, 1, 32, 33])
def test_loops_read_the_weights_in_the_order_of_the_sums(live: int) -> None:
    one = coding.context(live, planes=40, rows=4, live=live)
    told = one.told.reshape(live, len(PLACES), lanes_of(live), 2)
    for place, at in zip(((1, -1), (0, 0), (1, 0), (0, 1), (1, 1)), range(len(PLACES)), strict=True):
        weights = one.spread[:, :, PLACES.index(place)]
        weights = np.triu(weights, 1) if place == (0, 0) else weights
        np.testing.assert_array_equal(told[:, at, :live], weights.transpose(1, 2, 0))
    assert not told[:, :, live:].any()
    np.testing.assert_array_equal(one.starts, np.arange(live) * told[:1].size)


def test_weights_for_the_loops_begin_on_a_cache_line_and_cannot_be_changed() -> None:
    told = coding.context(6, planes=7, rows=4).told
    assert told.ctypes.data % 64 == 0
    with pytest.raises(ValueError, match="read-only"):
        told[0] = 1


def changed(key: str, change: Callable[[NDArray[np.generic]], NDArray[np.generic]]) -> coding.Stored:
    stored = stored_context(coding.context(6, planes=7, rows=4, live=3), "some")
    return {**stored, f"some_{key}": change(stored[f"some_{key}"])}


DAMAGES: dict[str, coding.Stored] = {
    "planes of another type": changed("planes", lambda a: a.astype(np.int64)),
    "two numbers of planes": changed("planes", lambda a: np.append(a, a).astype(np.int32)),
    "fewer planes than channels": changed("planes", lambda a: a * 0 + np.int32(2)),
    "too many planes": changed("planes", lambda a: a * 0 + np.int32(1 << 20)),
    "channels out of order": changed("channels", lambda a: a[::-1]),
    "a channel twice": changed("channels", lambda a: a[[0, 0, 1]]),
    "a channel below zero": changed("channels", lambda a: a - a[0] - 1),
    "a channel beyond the planes": changed("channels", lambda a: a + 7),
    "one channel fewer": changed("channels", lambda a: a[1:]),
    "no rows": changed("bias", lambda a: a[:, :0]),
    "a flat bias": changed("bias", lambda a: a[0]),
    "bias of another type": changed("bias", lambda a: a.astype(np.int32)),
    "one kind of hint": changed("hint", lambda a: a[:1]),
    "a place is missing": changed("spread", lambda a: a[:, :, 1:]),
    "a bias too large": changed("bias", lambda a: np.full_like(a, -32768)),
    "hints too large": changed("hint", lambda a: np.full_like(a, 32767)),
    "a spread too large": changed("spread", lambda a: np.full_like(a, 2000)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_context_is_refused(damage: str) -> None:
    with pytest.raises(ConfigError, match="context"):
        load_context(DAMAGES[damage], "some")


@pytest.mark.parametrize("part", ["planes", "channels", "bias", "hint", "spread"])
def test_a_missing_array_is_named(part: str) -> None:
    stored = stored_context(coding.context(6, planes=7, rows=4), "some")
    del stored[f"some_{part}"]
    with pytest.raises(ConfigError, match=f"some_{part} is missing"):
        load_context(stored, "some")


def test_sums_may_come_to_15_bits_and_no_further() -> None:
    stored = stored_context(coding.context(6, planes=1, rows=1), "some")
    stored["some_hint"] = np.zeros((2, 1), np.int16)
    stored["some_bias"] = np.zeros((2, 1, 1), np.int16)
    spread = np.zeros((2, 1, len(PLACES), 1), np.int16)
    spread[0, 0, 1] = (1 << 13) - 1
    load_context({**stored, "some_spread": spread}, "some")  # and one for what hints are rounded by
    spread[0, 0, 2] = -1
    with pytest.raises(ConfigError, match="2\\*\\*15"):
        load_context({**stored, "some_spread": spread}, "some")
