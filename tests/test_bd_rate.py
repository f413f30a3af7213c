"""Bjontegaard deltas: what a shift of a curve must give, and what is refused."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.bd_rate import NoOverlap, Point, bd_miou, bd_rate, bits_saved, envelope, pareto_front, rate_at

CURVE = [Point(0.008, 0.58), Point(0.02, 0.64), Point(0.05, 0.67), Point(0.15, 0.69)]

floats = st.floats(0, 1, allow_nan=False)


@st.composite
def curves(draw: st.DrawFn, *, least: int = 2) -> list[Point]:
    """Points whose rate and mIoU rise by steps of any size."""
    steps = draw(st.lists(st.tuples(st.floats(0.01, 2), st.floats(1e-3, 0.1)), min_size=least, max_size=9))
    rates = 0.004 * np.exp(np.cumsum([step[0] for step in steps]))
    return [Point(float(r), float(m)) for r, m in zip(rates, np.cumsum([step[1] for step in steps]), strict=True)]


@given(curves(least=1), st.floats(0.05, 20))
def test_a_curve_with_all_rates_times_f_changes_the_rate_by_f_less_one(curve: list[Point], factor: float) -> None:
    shifted = [Point(factor * p.rate_bpp, p.miou) for p in curve]
    assert bd_rate(curve, shifted).value == pytest.approx(factor - 1, rel=1e-9, abs=1e-9)


@given(curves(least=1), st.floats(-0.2, 0.2))
def test_a_curve_with_all_accuracies_raised_changes_the_miou_by_as_much(curve: list[Point], gain: float) -> None:
    raised = [Point(p.rate_bpp, p.miou + gain) for p in curve]
    assert bd_miou(curve, raised).value == pytest.approx(gain, abs=1e-9)


@given(curves(least=1))
def test_a_curve_saves_nothing_over_itself(curve: list[Point]) -> None:
    assert bd_rate(curve, curve).value == bd_miou(curve, curve).value == 0


@given(st.data())
def test_the_order_of_the_points_does_not_matter(data: st.DataObject) -> None:
    curve = data.draw(curves())
    other = [Point(2 * p.rate_bpp, p.miou) for p in curve]
    assert bd_rate(data.draw(st.permutations(curve)), data.draw(st.permutations(other))) == bd_rate(curve, other)


@given(curves(), st.floats(0.5, 2), st.floats(0.1, 0.9))
def test_the_two_directions_undo_each_other(curve: list[Point], factor: float, share: float) -> None:
    other = [Point(factor * p.rate_bpp ** (1 + 0.1 * share), p.miou) for p in curve]
    there, back = bd_rate(curve, other).value, bd_rate(other, curve).value
    assert (1 + there) * (1 + back) == pytest.approx(1)


@given(curves(least=3), st.integers(0, 8), floats)
def test_points_that_another_beats_do_not_count(curve: list[Point], which: int, share: float) -> None:
    best = curve[which % len(curve)]
    beaten = Point(best.rate_bpp * (1 + share), best.miou - 0.01 * share)
    assert pareto_front([*curve, beaten]) == pareto_front(curve) == curve


@given(curves(least=3), floats)
def test_a_curve_stays_between_its_points(curve: list[Point], share: float) -> None:
    for low, high in itertools.pairwise(curve):
        rate = rate_at(curve, low.miou + share * (high.miou - low.miou))
        assert low.rate_bpp * (1 - 1e-9) <= rate <= high.rate_bpp * (1 + 1e-9)


def test_a_curve_passes_through_its_points() -> None:
    assert [rate_at(CURVE, p.miou) for p in CURVE] == pytest.approx([p.rate_bpp for p in CURVE])


def test_straight_lines_in_log_rate_give_the_exact_mean() -> None:
    ratio = bd_rate(
        [Point(1.0, 0.0), Point(math.e, 1.0)], [Point(1.0, 0.0), Point(math.e**2, 0.5), Point(math.e**4, 1.0)]
    )
    assert math.log1p(ratio.value) == pytest.approx(1.5)  # the mean of 3 x over 0..1


def test_only_the_interval_that_both_cover_counts() -> None:
    anchor = [Point(0.1, 0.6), Point(0.2, 0.65), Point(5.0, 0.9)]
    delta = bd_rate(anchor, [Point(0.01, 0.5), Point(0.05, 0.6), Point(0.1, 0.65)])
    assert delta.value == pytest.approx(-0.5, abs=0.03)
    assert (delta.low, delta.high) == (0.6, 0.65)


@given(curves(), st.floats(0.2, 0.9))
def test_the_envelope_is_the_better_curve_where_one_is_better_all_along(curve: list[Point], factor: float) -> None:
    better = [Point(factor * p.rate_bpp, p.miou) for p in curve]
    assert bd_rate(better, envelope([curve, better])).value == pytest.approx(0, abs=1e-3)


def test_a_point_below_another_curve_makes_no_dent_in_the_envelope() -> None:
    dent = [Point(0.045, 0.6401)]  # on the front of all points, yet CURVE reaches 0.667 there
    assert bd_rate(CURVE, [*CURVE, *dent]).value > 0.01
    assert bd_rate(CURVE, envelope([CURVE, dent])).value == pytest.approx(0, abs=1e-3)


def test_a_single_point_is_compared_where_it_lies() -> None:
    delta = bd_rate(CURVE, [Point(0.01, 0.64)])
    assert delta.value == pytest.approx(-0.5)
    assert delta.low == delta.high == 0.64
    assert bd_miou(CURVE, [Point(0.02, 0.63)]).value == pytest.approx(-0.01)


def test_bits_saved_at_one_miou_is_the_ratio_there() -> None:
    cheap = [Point(p.rate_bpp / 10, p.miou) for p in CURVE]
    assert bits_saved(CURVE, cheap, 0.65) == pytest.approx(0.9)


def test_curves_apart_are_not_extrapolated() -> None:
    with pytest.raises(NoOverlap, match=r"common: mIoU 0\.5800 to mIoU 0\.6900 against mIoU 0\.3000 to"):
        bd_rate(CURVE, [Point(0.1, 0.3), Point(0.2, 0.4)])
    with pytest.raises(NoOverlap, match="lies outside the curve"):
        bits_saved(CURVE, CURVE, 0.5)


@pytest.mark.parametrize("points", [[], [Point(0.0, 0.5)], [Point(0.1, math.nan)]])
def test_a_curve_of_nothing_or_no_rate_is_refused(points: list[Point]) -> None:
    with pytest.raises(ValueError, match="a curve"):
        bd_rate(CURVE, points)
