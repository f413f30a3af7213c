"""The rate follows the link: the queue stays short, the link is used, losses that are not ours change little."""

import math
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from benchmarks.link_simulation import Record, Ruled, Settings, simulate
from benchmarks.link_traces import Trace, Way, mobile, stepping, with_cut
from pipeline.link import LinkState
from pipeline.rate_rule import HALVINGS, DelayRule

HEADER = 100
STEPS = [(0.0, 1000.0), (12.0, 100.0), (24.0, 40.0), (36.0, 400.0)]
END_S = 56.0
CALM = LinkState(
    queue_ms=0, rtt_ms=50, base_rtt_ms=50, loss=0, delivered_kbit_s=200, sent_kbit_s=200, in_flight_bytes=500
)


def sizes(levels: int = 14) -> Sequence[Sequence[int]]:
    """Bytes of 250 frames at each level, a quarter more from one to the next: 48 to 565 kbit/s at 25 fps."""
    rng = random.Random(3)
    busy = [math.exp(rng.gauss(0, 0.15)) for _ in range(250)]
    return [[int(140 * 1.25**level * share) for level in range(levels)] for share in busy]


def most_kbit_s() -> float:
    """What the source sends where the link takes everything."""
    return sum(frame[-1] + HEADER for frame in sizes()) / len(sizes()) * 25 / 125


def follow(trace: Trace, seconds: float, **changes: float | bool) -> list[Record]:
    settings = replace(Settings(seconds=seconds, seed=1, header_bytes=HEADER), **changes)
    return simulate(Ruled(sizes(), DelayRule(), settings), trace, settings)


def within(records: Sequence[Record], begin_s: float, end_s: float) -> list[Record]:
    return [one for one in records if begin_s <= one.at_s < end_s]


def arrived(records: Sequence[Record], begin_s: float, end_s: float) -> list[Record]:
    return [one for one in records if one.arrived_s is not None and begin_s <= one.arrived_s < end_s]


def used(records: Sequence[Record], begin_s: float, end_s: float) -> float:
    """Kbit/s that arrived, with headers."""
    total = sum(HEADER + (one.size_bytes or 0) for one in arrived(records, begin_s, end_s))
    return total * 8 / 1000 / (end_s - begin_s)


def over_s(records: Sequence[Record], begin_s: float, end_s: float) -> float:
    """How long after the begin a packet would have waited 300 ms for the last time."""
    return max((one.at_s - begin_s for one in within(records, begin_s, end_s) if one.backlog_ms > 300), default=0.0)


@pytest.mark.parametrize("queue_kib", [16, 64, 256])
@pytest.mark.parametrize("loss", [0.0, 0.01, 0.05])
@pytest.mark.parametrize("rtt_ms", [20, 80, 150])
def test_a_stepping_link_is_followed(rtt_ms: float, loss: float, queue_kib: float) -> None:
    records = follow(stepping(STEPS, Way(delay_ms=rtt_ms / 2, jitter_ms=2, loss=loss, queue_kib=queue_kib)), END_S)
    for (begin_s, rate), end_s in zip(STEPS, [at_s for at_s, _ in STEPS[1:]] + [END_S], strict=True):
        # Half a second before the next step what waits will leave at its rate already.
        assert over_s(records, begin_s, end_s - 0.5) < 3, rate
        if begin_s:
            assert used(records, begin_s, end_s) > 0.7 * min(rate, most_kbit_s()), rate
        assert max(one.backlog_ms for one in within(records, begin_s + 3, end_s - 0.5)) < 300
    for begin_s in range(24, 34):
        assert len(arrived(records, begin_s, begin_s + 3)) >= 3 * 5


@pytest.mark.parametrize(("rtt_ms", "jitter_ms"), [(5, 0), (5, 2), (80, 30), (400, 2), (400, 30)])
def test_a_steady_link_is_used_without_a_long_queue(rtt_ms: float, jitter_ms: float) -> None:
    records = follow(stepping([(0, 200)], Way(delay_ms=rtt_ms / 2, jitter_ms=jitter_ms)), 30)
    assert used(records, 10, 30) > 0.75 * 200
    assert over_s(records, 5, 30) == 0


def test_in_order_too_a_stepping_link_is_followed() -> None:
    records = follow(stepping(STEPS, Way(delay_ms=40, loss=0.01)), END_S, in_order=True)
    assert all(over_s(records, begin_s, begin_s + 11) < 3 for begin_s, _ in STEPS)
    assert used(records, 36, END_S) > 0.7 * 400


@pytest.mark.parametrize("queue_kib", [3, 64])
def test_a_queue_that_is_too_short_to_fill_limits_the_rate_by_its_losses(queue_kib: float) -> None:
    records = follow(stepping([(0, 100)], Way(delay_ms=20, queue_kib=queue_kib)), 30)
    assert used(records, 10, 30) > 0.7 * 100
    sent = [one for one in within(records, 10, 30) if one.size_bytes is not None]
    assert sum(one.arrived_s is None for one in sent) < 0.12 * len(sent)


@pytest.mark.parametrize("loss", [0.05, 0.1, 0.2])
def test_losses_that_a_lower_rate_does_not_change_leave_the_link_in_use(loss: float) -> None:
    records = follow(stepping([(0, 400)], Way(delay_ms=20, loss=loss)), 60)
    assert used(records, 20, 60) > 0.7 * (1 - loss) * 400


@pytest.mark.parametrize(("rate", "after"), [(400, 400), (400, 40), (400, 1000)])
def test_after_a_cut_of_30_s_the_link_is_used_again_within_5_s(rate: float, after: float) -> None:
    trace = with_cut(stepping([(0, rate), (20, after)], Way(delay_ms=20)), 10, 40)
    records = follow(trace, 60)
    assert max(one.backlog_ms for one in within(records, 40, 60)) < 500
    assert len(arrived(records, 40, 41)) >= 5
    assert used(records, 44, 46) > 0.5 * min(after, most_kbit_s())


def test_a_longer_way_is_taken_for_a_queue_for_seconds_only() -> None:
    short, long = stepping([(0, 400)], Way(delay_ms=20)), stepping([(0, 400)], Way(delay_ms=120))
    records = follow([short[0], replace(long[0], at_s=10)], 40)
    assert used(records, 25, 40) > 0.7 * 400


def after_20_s(rule: DelayRule, state: LinkState, *, lost_bytes: int = 0) -> float:
    """The rate that becomes of it where nothing changes, but that what is in flight arrives while nothing is sent."""
    for index in range(500):
        in_flight = replace(state, in_flight_bytes=lost_bytes if rule.held else 500)
        rule.update(in_flight, index * 0.04, wanted_kbit_s=60)
    return rule.target_kbit_s


@pytest.mark.parametrize(("queue_ms", "bound"), [(90, 63), (0, 48)])
def test_a_rate_of_the_link_that_was_read_from_a_longer_way_is_no_bound(queue_ms: float, bound: float) -> None:
    slow = replace(CALM, queue_ms=queue_ms, rtt_ms=140, sent_kbit_s=36, delivered_kbit_s=36, capacity_kbit_s=40)
    assert after_20_s(DelayRule(start_kbit_s=36), slow) == pytest.approx(bound)


@pytest.mark.parametrize("lost_bytes", [0, 500])
def test_a_longer_way_is_recognised_although_the_last_packet_is_lost(lost_bytes: int) -> None:
    longer = replace(CALM, queue_ms=130, rtt_ms=180, backlog_ms=60, sent_kbit_s=40, delivered_kbit_s=40)
    assert after_20_s(DelayRule(start_kbit_s=40), longer, lost_bytes=lost_bytes) > 60


def test_silence_is_not_taken_for_a_longer_way() -> None:
    rule = DelayRule()
    late = replace(CALM, queue_ms=130, rtt_ms=180, backlog_ms=60, capacity_kbit_s=100.0)
    for index in range(500):
        rule.update(replace(late, overdue_ms=40.0 if rule.held else 0.0), index * 0.04, wanted_kbit_s=900)
    assert rule.target_kbit_s == pytest.approx(90)


@pytest.mark.parametrize("jump_ms", [-60_000, 60_000])
def test_a_clock_that_is_set_does_not_move_the_rate(jump_ms: int) -> None:
    def clock_ms(now_s: float) -> int:
        return 10**12 + int(now_s * 1000) + (jump_ms if now_s > 10 else 0)

    settings = Settings(seconds=30, clock_ms=clock_ms)
    records = simulate(Ruled(sizes(), DelayRule(), settings), stepping([(0, 400)], Way(delay_ms=20)), settings)
    assert used(records, 11, 30) > 0.7 * 400
    assert over_s(records, 5, 30) == 0


def test_wandering_links_are_used_and_seldom_far_behind() -> None:
    uses, late = [], []
    for seed in range(8):
        trace = mobile(seed, 60)
        records = follow(trace, 60, seed=seed)
        ends_s = [*(step.at_s for step in trace[1:]), 60.0]
        could = sum(
            min(step.up.rate_kbit_s, most_kbit_s()) * (min(end_s, 60) - step.at_s)
            for step, end_s in zip(trace, ends_s, strict=True)
        )
        uses.append(used(records, 0, 60) * 60 / could)
        late.append(sum(one.backlog_ms > 300 for one in records) / len(records))
    assert sum(uses) / len(uses) > 0.7
    assert sum(late) / len(late) < 0.08


def test_without_receipts_the_rate_stays_where_it_began() -> None:
    rule = DelayRule(start_kbit_s=150)
    for index in range(500):
        rule.update(None, index * 0.04, wanted_kbit_s=900)
    assert (rule.target_kbit_s, rule.held) == (150, False)


def test_the_rate_does_not_run_away_from_what_is_sent() -> None:
    rule = DelayRule()
    for index in range(1000):
        rule.update(replace(CALM, sent_kbit_s=150, delivered_kbit_s=150), index * 0.04)
    assert rule.target_kbit_s == pytest.approx(300)


def test_what_the_source_wants_is_reached_in_seconds() -> None:
    rule = DelayRule()
    for index in range(75):
        rule.update(replace(CALM, sent_kbit_s=20, delivered_kbit_s=20), index * 0.04, wanted_kbit_s=900)
    assert rule.target_kbit_s > 900


def test_the_floor_is_kept() -> None:
    rule = DelayRule(floor_kbit_s=50)
    for index in range(200):
        rule.update(replace(CALM, queue_ms=500, backlog_ms=400, delivered_kbit_s=1), index * 0.04)
    assert rule.target_kbit_s == 50


def test_a_link_far_behind_is_left_to_drain_with_a_packet_now_and_then() -> None:
    rule, behind = DelayRule(), replace(CALM, queue_ms=900, backlog_ms=800, capacity_kbit_s=100.0)
    rule.update(replace(behind, since_sent_ms=40), 0.0)
    assert rule.held
    assert rule.target_kbit_s == pytest.approx(90)
    rule.update(replace(behind, since_sent_ms=240), 0.2)
    assert not rule.held
    rule.update(replace(behind, since_sent_ms=40, backlog_ms=20), 0.24)
    assert not rule.held


def test_silence_halves_the_rate_a_few_times_and_is_probed() -> None:
    rule = DelayRule(start_kbit_s=800)
    held = []
    for index in range(600):
        silent_ms = index * 40.0
        rule.update(
            replace(CALM, queue_ms=silent_ms, overdue_ms=silent_ms, backlog_ms=silent_ms, since_sent_ms=300),
            index * 0.04,
        )
        held.append(rule.held)
    assert rule.target_kbit_s == pytest.approx(800 / 2**HALVINGS, rel=0.1)
    rule.update(replace(CALM, queue_ms=9000, overdue_ms=9000, backlog_ms=9000, since_sent_ms=600), 600 * 0.04)
    assert held[-1]
    assert not rule.held


def test_a_burst_alone_does_not_cut_the_rate() -> None:
    rule = DelayRule()
    for index in range(100):
        late = index % 10 == 0
        rule.update(replace(CALM, queue_ms=160 if late else 20, backlog_ms=90 if late else 0), index * 0.04)
    assert rule.target_kbit_s >= 200


def test_numbers_at_their_limits_leave_a_rate_that_can_be_used() -> None:
    rule = DelayRule()
    for index in range(2000):
        huge = (index % 7) * 1e9
        state = replace(
            CALM, queue_ms=huge, rtt_ms=huge, backlog_ms=huge, delivered_kbit_s=(index % 3) * 1e9, loss=index % 2
        )
        rule.update(state, index * 0.04, wanted_kbit_s=(index % 5) * 1e9)
        assert 20 <= rule.target_kbit_s < math.inf
