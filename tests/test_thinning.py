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


def test_after_a_gap_a_fifth_of_a_second_is_made_up_for_and_times_may_begin_again() -> None:
    thinning = Thinning()
    times_s = [*(0.04 * number for number in range(10)), *(5 + 0.04 * number for number in range(25))]
    assert sum(thinning.takes(time_s, 10) for time_s in times_s[:10]) == 4
    taken_s = [time_s for time_s in times_s[10:] if thinning.takes(time_s, 10)]
    assert len(taken_s) == 12
    assert min(later - time_s for time_s, later in pairwise(taken_s[4:])) > 0.05
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


def bound(max_fps: float) -> float:
    """What a second has at most: what is wanted, what is made up for, and one that begins it."""
    return max_fps + max(1, 0.2 * max_fps) + 1


def most_in_a_second(taken_s: list[float]) -> int:
    ends = np.searchsorted(taken_s, np.array(taken_s) + 1 - 1e-9)  # the end is not in it
    return int((ends - np.arange(len(taken_s))).max())


@pytest.mark.parametrize("max_fps", [5, 10, 20, 25])
def test_of_a_source_with_jitter_as_many_are_taken_as_are_wanted(max_fps: float) -> None:
    rng, thinning = np.random.default_rng(1), Thinning()
    times_s = np.arange(25 * 200) / 25 + rng.uniform(-0.015, 0.015, 25 * 200)
    taken_s = [time_s for time_s in times_s.tolist() if thinning.takes(time_s, max_fps)]
    assert len(taken_s) / 200 == pytest.approx(max_fps, abs=0.1)
    assert most_in_a_second(taken_s) <= bound(max_fps)


@pytest.mark.parametrize(("delay_s", "share"), [(0.01, 0.995), (0.05, 0.97)])
@pytest.mark.parametrize(("source_fps", "max_fps"), [(25, 25), (25, 20), (30, 25), (15, 15), (25, 10), (25, 5)])
def test_of_what_comes_late_and_in_bursts_no_second_has_many_more(
    source_fps: float, max_fps: float, delay_s: float, share: float
) -> None:
    rng, thinning, count = np.random.default_rng(1), Thinning(), int(200 * source_fps)
    delayed_s = np.arange(count) / source_fps + rng.exponential(delay_s, count)
    times_s = np.maximum.accumulate(delayed_s)  # what is behind a late one waits for it
    taken_s = [time_s for time_s in times_s.tolist() if thinning.takes(time_s, max_fps)]
    assert len(taken_s) >= share * 200 * max_fps
    assert most_in_a_second(taken_s) <= bound(max_fps)


@pytest.mark.parametrize("gap_s", [0.1, 0.3, 0.5, 1.0, 1.3, 7.0])
@pytest.mark.parametrize("max_fps", [1, 2, 5, 10, 25])
def test_after_a_gap_no_second_has_many_more(max_fps: float, gap_s: float) -> None:
    thinning, sent_s = Thinning(), np.arange(1000) / 25
    times_s = [max(time_s, 3.001 + gap_s) if time_s > 3 else time_s for time_s in sent_s.tolist()]  # it comes in one
    taken_s = [time_s for time_s in times_s if thinning.takes(time_s, max_fps)]
    assert most_in_a_second(taken_s) <= bound(max_fps)
    assert len(taken_s) >= max_fps * (40 - gap_s) - 1


def test_another_limit_holds_from_the_next_picture_on() -> None:
    thinning, times_s = Thinning(), [0.04 * number for number in range(75)]
    limits = [None] * 25 + [5.0] * 25 + [12.5] * 25
    taken = [thinning.takes(time_s, limit) for time_s, limit in zip(times_s, limits, strict=True)]
    assert [sum(taken[begin : begin + 25]) for begin in (0, 25, 50)] == [25, 5, 12]
