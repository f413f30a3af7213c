"""When a KEY is due: below a threshold, or when renewing is the better bargain; and of which level."""

from collections.abc import Sequence

import numpy as np
import pytest

from pipeline.deciding import Candidate
from pipeline.motion import Motion
from pipeline.triggers import FALL, RISE, Bargain, Threshold

LEVELS = (100.0, 400.0, 1600.0)  # usual bytes


def candidate(
    age: int, *, key_quality: int = 2, quality: int = 2, flow_bytes: int = 50, speed: float = 1.0
) -> Candidate:
    flow = np.full((2, 9, 9), speed, np.float32)
    found = Motion(np.zeros((2, 1), np.int16), flow, np.ones((8, 8), np.float32), np.ones((8, 8), np.float32))
    return Candidate(found, age, flow_bytes, round(LEVELS[key_quality]), key_quality, quality, (96, 96))


def falls_with_age(one: Candidate) -> float:
    return 100.0 - one.age


def test_a_threshold_is_kept_from_below() -> None:
    trigger = Threshold(falls_with_age, 95)
    assert [trigger.key_level(candidate(age)) for age in (1, 5, 6, 9)] == [None, None, 2, 2]


def test_a_key_is_of_the_level_that_is_asked_for() -> None:
    assert Threshold(falls_with_age, 95).key_level(candidate(9, key_quality=0, quality=1)) == 1


def test_what_is_not_a_number_is_no_promise() -> None:
    assert Threshold(lambda _: float("nan"), 0).key_level(candidate(1)) == 2


def test_a_moving_threshold_falls_with_keys_and_rises_with_warps() -> None:
    trigger = Threshold(falls_with_age, 95, fall=FALL, rise=RISE)
    assert trigger.key_level(candidate(6)) == 2
    trigger.keyed(500)  # 94
    assert trigger.key_level(candidate(6)) is None  # 94.1
    assert trigger.key_level(candidate(6)) == 2


def test_a_moving_threshold_stays_a_percentage() -> None:
    low, high = Threshold(falls_with_age, 0.5, fall=1.0), Threshold(falls_with_age, 99.9, rise=1.0)
    low.keyed(500)
    assert low.key_level(candidate(100)) is None
    assert high.key_level(candidate(0)) is None
    assert high.key_level(candidate(0)) is None  # 100 is not above 100


class Agreement:
    """A scene: what is lost at each level at once, and how fast masks age; counts how often it is asked."""

    def __init__(self, *, at_once: Sequence[float], per_frame: float) -> None:
        self.at_once, self.per_frame, self.asked = at_once, per_frame, 0

    def __call__(self, candidates: Sequence[Candidate]) -> np.ndarray:
        self.asked += 1
        assert len({id(one.motion) for one in candidates}) == 1
        lost = [self.at_once[one.key_quality] + self.per_frame * one.age for one in candidates]
        return np.array([100 - one for one in lost], np.float32)


def life(trigger: Bargain, *, quality: int = 2, key_quality: int | None = None) -> tuple[int, int]:
    """After how many frames a KEY is due, and its level."""
    own = quality if key_quality is None else key_quality
    trigger.keyed(round(LEVELS[own]))
    for age in range(1, 200):
        level = trigger.key_level(
            candidate(age, quality=quality, key_quality=quality if key_quality is None else key_quality)
        )
        if level is not None:
            return age, level
    return 200, -1


def bargain(*, at_once: Sequence[float], per_frame: float, price: float, cheapest: int = 0) -> Bargain:
    return Bargain(Agreement(at_once=at_once, per_frame=per_frame), LEVELS, price=price, cheapest=cheapest)


def test_a_key_is_renewed_when_that_costs_least_on_average() -> None:
    price, growth = 5.0, 0.5
    age, level = life(bargain(at_once=(50, 50, 0), per_frame=growth, price=price))
    averages = [
        (price * (1.6 + 0.05 * (n - 1)) + growth * sum(range(n))) / n for n in range(1, 60)
    ]  # of a life of n frames
    assert (age, level) == (1 + int(np.argmin(averages)), 2)


def test_keys_last_the_longer_the_dearer_bits_are_and_the_slower_masks_age() -> None:
    usual = life(bargain(at_once=(50, 50, 0), per_frame=0.5, price=5))[0]
    assert life(bargain(at_once=(50, 50, 0), per_frame=0.5, price=20))[0] > usual
    assert life(bargain(at_once=(50, 50, 0), per_frame=0.1, price=5))[0] > usual
    assert life(bargain(at_once=(50, 50, 0), per_frame=5.0, price=5))[0] < usual


def test_a_cheaper_level_is_taken_where_it_loses_less_than_its_bits_are_worth() -> None:
    assert life(bargain(at_once=(9, 0.5, 0), per_frame=0.5, price=10))[1] == 1
    assert life(bargain(at_once=(9, 0.5, 0), per_frame=0.5, price=0.1))[1] == 2
    assert life(bargain(at_once=(0.6, 0.5, 0), per_frame=0.5, price=10))[1] == 0


def test_no_level_above_the_one_asked_for_is_taken() -> None:
    assert life(bargain(at_once=(9, 0.5, 0), per_frame=0.5, price=0.01), quality=1)[1] == 1


@pytest.mark.parametrize(("cheapest", "level"), [(0, 0), (1, 1), (2, 2)])
def test_no_level_below_the_cheapest_is_taken(cheapest: int, level: int) -> None:
    assert life(bargain(at_once=(0.6, 0.5, 0), per_frame=0.5, price=50, cheapest=cheapest))[1] == level


def test_a_level_that_is_asked_for_is_taken_though_it_is_below_the_cheapest() -> None:
    assert life(bargain(at_once=(0.6, 0.5, 0), per_frame=0.5, price=5, cheapest=2), quality=1)[1] == 1


def test_from_a_cheap_key_it_goes_back_to_a_good_one_when_masks_age_fast() -> None:
    assert life(bargain(at_once=(30, 20, 0), per_frame=1.0, price=1.0), key_quality=0) == (1, 2)


def test_one_look_a_frame_and_one_more_after_a_key() -> None:
    scene = Agreement(at_once=(50, 50, 0), per_frame=0.0)
    trigger = Bargain(scene, LEVELS, price=5)
    trigger.keyed(1600)
    for age in range(1, 6):
        assert trigger.key_level(candidate(age)) is None
    assert scene.asked == 6
    trigger.keyed(1600)
    trigger.key_level(candidate(1))
    assert scene.asked == 8


def test_a_graph_that_gives_no_number_asks_for_a_key() -> None:
    trigger = Bargain(lambda candidates: np.full(len(candidates), np.nan, np.float32), LEVELS, price=5)
    assert trigger.key_level(candidate(1)) is not None
