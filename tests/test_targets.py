"""The least loss at a share of the bits, of made-up points."""

import pytest

from benchmarks.targets import least_at


def test_it_is_that_of_a_point_or_of_two_in_turns() -> None:
    points = [(1.0, 0.0), (0.3, 3.5), (0.1, 4.0), (0.3, 1.0)]
    assert least_at(points, 0.2) == pytest.approx(2.5)  # between the third and the last
    assert least_at(points, 0.3) == 1
    assert least_at(points, 0.65) == pytest.approx(0.5)
    assert least_at(points, 0.05) is None
    assert least_at([], 0.5) is None


def test_a_point_that_takes_less_counts_too() -> None:
    assert least_at([(0.3, 1.0), (0.2, 2.0)], 0.4) == 1


def test_a_point_that_loses_more_for_more_bits_changes_nothing() -> None:
    points = [(1.0, 0.0), (0.2, 2.0)]
    for share in (0.2, 0.25, 0.4, 1.0):
        assert least_at([*points, (0.3, 9.0), (0.1, 8.0)], share) == least_at(points, share)
