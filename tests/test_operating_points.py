"""Points of a bundle, what they cost and show, and the best one that a link takes, without swaying."""

import math

import pytest

from pipeline.bundle import Manifest, default_bundle, load_bundle
from pipeline.operating_points import (
    AGE_POWER,
    HEADER_BYTES,
    LONGEST_AGE,
    CostModel,
    Ladder,
    OperatingPoint,
    Sent,
    level_losses,
    points_of,
)
from pipeline.reward import reward

POINT = OperatingPoint(5, 96.0, 10.0)


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    return load_bundle(default_bundle()).manifest


def highest(manifest: Manifest) -> int:
    return max(level.index for level in manifest.quality_levels)


def learn(costs: CostModel, point: OperatingPoint, *, frames: int, key_bytes: int, life: int, warp_bytes: int) -> None:
    """A scene in which every so-many-th frame falls below the threshold; agreement falls by the usual power."""
    change = (100 - point.threshold) / (life / point.fps) ** AGE_POWER
    for frame in range(1, frames + 1):
        age = frame % life or life
        keyed, age_s = age == life, age / point.fps
        predicted = 100 - change * age_s**AGE_POWER - 1e-9
        costs.sent(Sent(point.quality, keyed, key_bytes if keyed else warp_bytes, predicted, age_s, 20.0), point)


@pytest.mark.parametrize("life", [2, 5, 20])
def test_the_rate_is_learned_from_what_is_sent(manifest: Manifest, life: int) -> None:
    costs = CostModel(manifest)
    learn(costs, POINT, frames=200, key_bytes=900, life=life, warp_bytes=70)
    true = 10 * ((900 + (life - 1) * 70) / life + HEADER_BYTES) * 8 / 1000
    assert costs.expected_kbit_s(POINT) == pytest.approx(true, rel=0.15)


def test_what_keys_take_is_told_from_level_to_level(manifest: Manifest) -> None:
    costs = CostModel(manifest)
    before = {level: costs.key_bytes(level) for level in (4, 5, 6)}
    for _ in range(100):
        costs.sent(Sent(5, True, round(2 * before[5])), POINT)
    assert costs.key_bytes(5) == pytest.approx(2 * before[5], rel=0.02)
    assert costs.key_bytes(4) > 1.5 * before[4]
    assert costs.key_bytes(6) > 1.5 * before[6]


def test_a_frame_that_is_key_for_another_reason_says_nothing_of_the_threshold(manifest: Manifest) -> None:
    costs = CostModel(manifest)
    before = costs.key_share(POINT)
    for _ in range(50):
        costs.sent(Sent(5, True, 600), POINT)
    assert costs.key_share(POINT) == before


def test_shares_of_keys_stay_between_the_longest_life_and_all(manifest: Manifest) -> None:
    costs = CostModel(manifest)
    assert costs.key_share(OperatingPoint(5, 100.0, 10.0)) == 1
    for predicted, share in ((0.0, 1.0), (100.0, 1 / (LONGEST_AGE + 1))):
        for _ in range(300):
            costs.sent(Sent(6, predicted < 50, 600, predicted, 0.1, 0.0), POINT)
        assert costs.key_share(OperatingPoint(6, 90.0, 5.0)) == pytest.approx(share, rel=0.1)


def test_a_scene_in_which_nothing_changes_for_hours_is_lived_through(manifest: Manifest) -> None:
    costs = CostModel(manifest)
    for _ in range(20_000):
        costs.sent(Sent(5, False, 70, 100.0, 0.1, 0.0), POINT)
    assert costs.key_share(POINT) == 1 / (LONGEST_AGE + 1)
    assert math.isfinite(reward(costs.expected(POINT, latency_s=0.05)).total)


def test_lower_levels_err_more_and_the_highest_not_at_all(manifest: Manifest) -> None:
    losses = level_losses(manifest)
    assert sorted(losses.values(), reverse=True) == [losses[level] for level in sorted(losses)]
    assert losses[highest(manifest)] == 0
    assert 0.5 < losses[5] < 3 < losses[1] < 8


def test_more_frames_show_more_where_much_changes(manifest: Manifest) -> None:
    still, moving = CostModel(manifest), CostModel(manifest)
    learn(still, POINT, frames=100, key_bytes=600, life=30, warp_bytes=70)
    learn(moving, POINT, frames=100, key_bytes=600, life=1, warp_bytes=70)
    few, many = OperatingPoint(5, 96.0, 5.0), OperatingPoint(5, 96.0, 25.0)
    gains = [
        reward(costs.expected(many, latency_s=0.05)).quality - reward(costs.expected(few, latency_s=0.05)).quality
        for costs in (still, moving)
    ]
    assert 0 < gains[0] < gains[1]


def test_a_thin_link_makes_masks_late(manifest: Manifest) -> None:
    costs = CostModel(manifest)
    wide, thin = (costs.expected(POINT, latency_s=0.05, link_kbit_s=rate) for rate in (math.inf, 40.0))
    assert wide.latency_s == 0.05
    assert thin.latency_s == pytest.approx(0.05 + costs.packet_bytes(POINT) / 5000)


def test_points_keep_to_what_was_asked_for(manifest: Manifest) -> None:
    points = points_of(manifest, fps=12.5, max_quality=4, min_fps=6.0)
    assert max(point.quality for point in points) == 4
    assert {point.fps for point in points} <= {6.0, 8.0, 12.5}


def test_every_level_can_be_key_in_every_frame_whatever_the_model_thinks_of_thresholds(manifest: Manifest) -> None:
    points = points_of(manifest, fps=15.0)
    levels = {point.quality for point in points}
    assert len(levels) > 4
    assert all(OperatingPoint(level, 100.0, 15.0) in points for level in levels)
    assert OperatingPoint(4, 96.0, 15.0) in points_of(manifest, fps=15.0, max_threshold=96.0)


def test_of_levels_that_take_as_much_the_best_is_offered(manifest: Manifest) -> None:
    first, second, *others = manifest.quality_levels
    as_dear = first.model_copy(update={"rate_bpp": second.rate_bpp})
    points = points_of(manifest.model_copy(update={"quality_levels": (as_dear, second, *others)}), fps=12.5)
    assert {0, 1} & {point.quality for point in points} == {1}


def test_points_reach_from_very_thin_links_to_all_that_there_is(manifest: Manifest) -> None:
    points, costs = points_of(manifest, fps=25.0), CostModel(manifest)
    assert min(costs.expected_kbit_s(point) for point in points) < 15
    assert OperatingPoint(highest(manifest), 100.0, 25.0) in points
    assert len(points) < 150


def ladder(manifest: Manifest) -> Ladder:
    return Ladder(points_of(manifest, fps=25.0), CostModel(manifest))


def follow(rule: Ladder, target_kbit_s: float, *, start_s: float, seconds: float) -> list[OperatingPoint]:
    frames = range(round(seconds * 25))
    return [rule.update(target_kbit_s, start_s + frame / 25, latency_s=0.08) for frame in frames]


@pytest.mark.parametrize("target", [40.0, 100.0, 400.0, 1000.0])
def test_the_choice_keeps_within_the_rate(manifest: Manifest, target: float) -> None:
    rule = ladder(manifest)
    point = follow(rule, target, start_s=0, seconds=5)[-1]
    assert rule.costs.expected_kbit_s(point) <= target
    assert point.fps >= 5


def test_what_the_link_has_to_spare_is_used_and_gives_no_worse_masks(manifest: Manifest) -> None:
    qualities, used = [], []
    for target in (20.0, 40.0, 80.0, 160.0, 320.0):
        rule = ladder(manifest)
        point = follow(rule, target, start_s=0, seconds=5)[-1]
        qualities.append(reward(rule.costs.expected(point, latency_s=0.08)).quality)
        used.append(rule.costs.expected_kbit_s(point) / target)
    assert qualities == sorted(qualities)
    assert min(used[1:]) > 0.7  # 20 kbit/s are too few for what would come next: its KEYs take long
    assert used[0] > 0.6


def test_no_key_takes_the_link_long_where_there_is_a_choice(manifest: Manifest) -> None:
    for target in (40.0, 100.0, 400.0):
        rule = ladder(manifest)
        point = follow(rule, target, start_s=0, seconds=5)[-1]
        assert rule.costs.key_bytes(point.quality) * 8 / 1000 / target <= 0.15


def test_a_link_is_asked_for_a_clear_step_up_as_long_as_there_is_one(manifest: Manifest) -> None:
    rule = ladder(manifest)
    point = follow(rule, 40.0, start_s=0, seconds=5)[-1]
    assert rule.wanted_kbit_s is not None
    assert 1.5 < rule.wanted_kbit_s / rule.costs.expected_kbit_s(point) < 2.5
    follow(rule, 1e4, start_s=5, seconds=5)
    assert rule.wanted_kbit_s is None


@pytest.mark.parametrize("change", [4.0, 12.0, 40.0])
@pytest.mark.parametrize("target", [15.0, 20.0, 30.0, 100.0])
def test_a_rate_that_rises_only_as_far_as_is_asked_for_gets_to_the_best_point(
    manifest: Manifest, target: float, change: float
) -> None:
    rule, start_s = ladder(manifest), 0.0
    rule.costs._change = change
    while start_s < 100:
        follow(rule, target, start_s=start_s, seconds=2)
        start_s += 2
        target = 1.04 * (rule.wanted_kbit_s or target)
    assert rule.point.quality == highest(manifest)
    assert rule.wanted_kbit_s is None


def test_worse_at_once_and_better_only_in_time(manifest: Manifest) -> None:
    rule = ladder(manifest)
    good = follow(rule, 600.0, start_s=0, seconds=5)[-1]
    bad = rule.update(50.0, 5.0, latency_s=0.08)
    assert rule.costs.expected_kbit_s(bad) <= 50
    after = follow(rule, 600.0, start_s=5.04, seconds=4)
    assert after[round(0.6 * 25)] == bad
    assert after[-1] == good


def test_a_target_that_sways_a_little_changes_nothing(manifest: Manifest) -> None:
    rule = ladder(manifest)
    follow(rule, 110.0, start_s=0, seconds=5)
    fits = rule.costs.expected_kbit_s(rule.point)
    seen = set()
    for frame in range(500):
        target = max(110.0, fits) * (1 + 0.04 * math.sin(frame / 9))
        seen.add(rule.update(target, 5 + frame / 25, latency_s=0.08))
    assert len(seen) <= 2


def test_where_nothing_fits_the_least_is_sent(manifest: Manifest) -> None:
    rule = ladder(manifest)
    point = follow(rule, 1.0, start_s=0, seconds=3)[-1]
    assert rule.costs.expected_kbit_s(point) == min(offer.kbit_s for offer in rule.offers)


def test_what_the_next_better_point_takes_is_told_until_there_is_none(manifest: Manifest) -> None:
    rule = ladder(manifest)
    follow(rule, 60.0, start_s=0, seconds=5)
    assert rule.wanted_kbit_s is not None
    assert rule.wanted_kbit_s > 60.0 * 0.9
    follow(rule, 5000.0, start_s=5, seconds=5)
    assert rule.wanted_kbit_s is None
