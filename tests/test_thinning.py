"""Fewer pictures than a source has: as many as are wanted, evenly, whatever its rate and its times."""

from itertools import pairwise

import numpy as np
import pytest

from pipeline.thinning import Thinning


@pytest.mark.parametrize("source_fps", [25, 29.97, 30, 50, 60, 12, 9.9])
@pytest.mark.parametrize("max_fps", [10, 15, 1, 0.2])
def test_of_more_pictures_so_many_are_taken_as_are_wanted_and_evenly(source_fps: float, max_fps: float) -> None:
    thinning, count = Thinning(), int(100 * source_fps)
    times_s = [round(number / source_fps, 3) for number in range(count)]  # as files have them, in milliseconds
    taken_s = [time_s for time_s in times_s if thinning.takes(time_s, max_fps)]
    assert len(taken_s) == pytest.approx(100 * min(max_fps, source_fps), rel=0.02, abs=1)
    step_s = max(1 / max_fps, 1 / source_fps)
    assert all(later - time_s <= step_s + 1 / source_fps + 0.002 for time_s, later in pairwise(taken_s))
    assert all(later - time_s >= step_s - max(0.02, 1 / source_fps) - 0.002 for time_s, later in pairwise(taken_s))


def test_after_a_gap_no_pictures_are_taken_to_make_up_for_it_and_times_may_begin_again() -> None:
    thinning = Thinning()
    times_s = [*(0.04 * number for number in range(10)), *(5 + 0.04 * number for number in range(25))]
    assert sum(thinning.takes(time_s, 10) for time_s in times_s[:10]) == 4
    taken_s = [time_s for time_s in times_s[10:] if thinning.takes(time_s, 10)]
    assert len(taken_s) == 10
    assert min(later - time_s for time_s, later in pairwise(taken_s)) > 0.05
    assert thinning.takes(0.0, 10)
    assert not thinning.takes(0.04, 10)


def test_all_pictures_are_taken_unless_fewer_are_wanted() -> None:
    thinning = Thinning()
    assert all(thinning.takes(time_s, None) for time_s in (0.0, 0.001, 0.001, 7.0, 3.0))


@pytest.mark.parametrize("source_fps", [12, 15, 25, 30])
def test_a_source_that_comes_unevenly_gives_as_many(source_fps: float) -> None:
    rng, thinning = np.random.default_rng(1), Thinning()
    times_s = np.arange(int(100 * source_fps)) / source_fps + rng.uniform(-0.01, 0.01, int(100 * source_fps))
    taken = sum(thinning.takes(time_s, 10) for time_s in times_s.tolist())
    assert taken == pytest.approx(1000, rel=0.03)


@pytest.mark.parametrize(("source_fps", "max_fps"), [(25, 25), (25, 20), (30, 25), (15, 15)])
def test_what_comes_late_and_in_bursts_is_taken_all_the_same(source_fps: float, max_fps: float) -> None:
    rng, thinning, count = np.random.default_rng(1), Thinning(), int(200 * source_fps)
    delayed_s = np.arange(count) / source_fps + rng.exponential(0.05, count)
    times_s = np.maximum.accumulate(delayed_s)  # what is behind a late one waits for it
    taken = sum(thinning.takes(time_s, max_fps) for time_s in times_s.tolist())
    assert taken == pytest.approx(200 * max_fps, rel=0.01)


def test_another_limit_holds_from_the_next_picture_on() -> None:
    thinning, times_s = Thinning(), [0.04 * number for number in range(75)]
    limits = [None] * 25 + [5.0] * 25 + [12.5] * 25
    taken = [thinning.takes(time_s, limit) for time_s, limit in zip(times_s, limits, strict=True)]
    assert [sum(taken[begin : begin + 25]) for begin in (0, 25, 50)] == [25, 5, 12]
