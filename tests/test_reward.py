"""What viewers have is worth less when it is late, old, of a low level or dear; it is measured as it is expected."""

from dataclasses import replace

import pytest

from pipeline.reward import LATE_S, Shown, Watch, reward, stale_loss

GOOD = Shown(
    level_loss=1.0, warp_loss=1.0, stale_s=0.1, latency_s=0.08, change=10.0, speed_px_s=50.0, kbit_s=100.0
)  # fmt: skip


def test_nothing_wrong_is_worth_a_hundred() -> None:
    assert reward(Shown(0.0, 0.0, 0.0, 0.0, 10.0, 50.0, 0.0)).total == 100


@pytest.mark.parametrize("worse", ["level_loss", "warp_loss", "stale_s", "change", "speed_px_s", "kbit_s"])
def test_more_of_what_is_bad_is_worth_less(worse: str) -> None:
    assert reward(replace(GOOD, **{worse: 2 * getattr(GOOD, worse)})).total < reward(GOOD).total


def test_lateness_costs_from_a_third_of_a_second_on() -> None:
    assert reward(replace(GOOD, latency_s=LATE_S)).lateness == 0
    assert reward(replace(GOOD, latency_s=LATE_S + 0.5)).lateness == pytest.approx(10)


def test_time_without_a_mask_is_worth_nothing() -> None:
    assert reward(replace(GOOD, blind=1.0)).quality == 0
    assert reward(replace(GOOD, blind=0.5)).quality == pytest.approx(reward(GOOD).quality / 2)


def test_errors_of_several_causes_add_as_squares() -> None:
    both = reward(replace(GOOD, level_loss=3.0, warp_loss=4.0, stale_s=0.0)).quality
    assert both == pytest.approx(95)


def test_what_stands_still_does_not_grow_old() -> None:
    assert stale_loss(2.0, change=0.0, speed_px_s=0.0) == 0


def watched(*, interval: int, loss: float = 0.0) -> Shown:
    """The second second of a source of 20 frames per second, of which one in `interval` was sent."""
    watch = Watch()
    for frame in range(40):
        if frame == 20:
            watch.close(1.0, change=10.0, speed_px_s=50.0)
        watch.look(frame / 20, latency_s=0.1, loss=loss)
        if frame % interval == 0:
            watch.sent(frame / 20, 500, level_loss=2.0, warp_loss=frame % 2)
    shown = watch.close(2.0, change=10.0, speed_px_s=50.0)
    assert shown is not None
    return shown


def test_a_second_is_measured() -> None:
    shown = watched(interval=1)
    assert shown.kbit_s == pytest.approx(80)
    assert (shown.level_loss, shown.warp_loss) == (2.0, 0.5)
    assert shown.latency_s == pytest.approx(0.1)
    assert shown.blind == 0


def test_fewer_frames_stand_longer() -> None:
    assert watched(interval=4).stale_s - watched(interval=1).stale_s == pytest.approx(0.5 / 5 - 0.5 / 20, abs=0.05)


def test_lost_packets_age_what_is_shown() -> None:
    assert watched(interval=2, loss=0.5).stale_s > watched(interval=2).stale_s


def test_a_lost_key_ages_what_is_shown() -> None:
    watch = Watch()
    watch.sent(0.0, 500, level_loss=0.0, warp_loss=0.0)
    watch.look(0.0, latency_s=0.0, loss=0.0)
    watch.stood(0.6)
    shown = watch.close(1.0, change=0.0, speed_px_s=0.0)
    assert shown is not None
    assert shown.stale_s == pytest.approx(0.5 + 0.18)


def test_a_frame_that_shows_nothing_new_ages_nothing() -> None:
    ages_s = []
    for gated in (False, True):
        watch = Watch()
        watch.sent(0.0, 500, level_loss=0.0, warp_loss=0.0)
        for frame in range(20):
            if gated:
                watch.unchanged(frame / 20)
            watch.look(frame / 20, latency_s=0.0, loss=0.0)
        shown = watch.close(1.0, change=0.0, speed_px_s=0.0)
        assert shown is not None
        ages_s.append(shown.stale_s)
    assert ages_s == pytest.approx([0.5, 0.025])


def test_before_the_first_frame_there_is_nothing_to_see() -> None:
    watch = Watch()
    assert watch.close(1.0, change=0.0, speed_px_s=0.0) is None
    watch.look(1.0, latency_s=0.0, loss=0.0)
    shown = watch.close(2.0, change=0.0, speed_px_s=0.0)
    assert shown is not None
    assert shown.blind == 1
