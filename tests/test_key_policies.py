"""What is asked for -> when KEYs are due; what cannot be is refused."""

import itertools

import pytest

from pipeline.errors import ConfigError
from pipeline.key_policies import EVERY_FRAME, at_interval, at_price, at_threshold, key_policy


def test_an_interval_bounds_the_age_and_a_threshold_makes_keys_sooner() -> None:
    assert key_policy(key_interval=None, threshold=None) == EVERY_FRAME
    assert key_policy(key_interval=1, threshold=90) == at_threshold(90, longest_age=0)
    assert key_policy(key_interval=7, threshold=None) == at_interval(7)
    assert key_policy(key_interval=None, threshold=90) == at_threshold(90)
    assert key_policy(key_interval=7, threshold=90) == at_threshold(90, longest_age=6)
    for interval, threshold in ((0, None), (0, 90), (7, 101)):
        with pytest.raises(ConfigError):
            key_policy(key_interval=interval, threshold=threshold)


@pytest.mark.parametrize("wrong", [0, -1, 257])
def test_an_interval_that_no_age_can_tell_is_refused(wrong: int) -> None:
    with pytest.raises(ConfigError, match=f"key interval {wrong}"):
        at_interval(wrong)


@pytest.mark.parametrize("wrong", [-0.1, 100.1, float("nan")])
def test_a_threshold_that_is_no_percentage_is_refused(wrong: float) -> None:
    with pytest.raises(ConfigError, match="threshold"):
        at_threshold(wrong)


def test_a_longest_age_that_the_wire_cannot_carry_is_refused() -> None:
    for wrong in (-1, 256):
        with pytest.raises(ConfigError, match="longest key age"):
            at_threshold(90, longest_age=wrong)


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("inf"), float("nan"), 1001.0])
def test_a_price_that_is_none_is_refused(wrong: float) -> None:
    with pytest.raises(ConfigError, match="price"):
        at_price(wrong)


def test_a_threshold_and_a_price_are_not_both() -> None:
    with pytest.raises(ConfigError, match="only one of the two"):
        key_policy(threshold=90, price=1.0)
    assert key_policy(key_interval=7, price=2.0) == at_price(2.0, longest_age=6)


def test_every_policy_is_a_plain_value() -> None:
    assert at_interval(1) == EVERY_FRAME
    policies = [EVERY_FRAME, at_interval(5), at_threshold(90), at_threshold(91)]
    assert all(one != other for one, other in itertools.combinations(policies, 2))


def test_a_price_is_for_frames_between_keys() -> None:
    with pytest.raises(ConfigError, match="price 8: every frame is a KEY; give a key interval above 1"):
        key_policy(key_interval=1, price=8.0)
