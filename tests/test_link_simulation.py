"""The link in simulated time: its queue, its losses, both forms of the way up, and the receipts that come back."""

from dataclasses import replace

import pytest

from benchmarks.link_simulation import RECEIPTS_APART_S, Record, Settings, simulate
from benchmarks.link_traces import Trace, Way, stepping, with_cut
from pipeline.link import LinkState

SETTINGS = Settings(seconds=10, header_bytes=0)
WAY = Way(delay_ms=20, queue_kib=16)


class Steady:
    """Sends the same for every frame, and keeps what it was told."""

    def __init__(self, size_bytes: int, *, until_s: float = 1e9) -> None:
        self._size_bytes, self._until_s = size_bytes, until_s
        self.states: list[LinkState | None] = []

    def frame(self, index: int, now_s: float, state: LinkState | None) -> int | None:
        self.states.append(state)
        return self._size_bytes if now_s < self._until_s else None


def delays_ms(records: list[Record]) -> list[float]:
    return [(one.arrived_s - one.at_s) * 1000 for one in records if one.arrived_s is not None]


def run(size_bytes: int, trace: Trace, settings: Settings = SETTINGS) -> list[Record]:
    return simulate(Steady(size_bytes), trace, settings)


def test_a_packet_takes_its_time_on_the_wire_and_the_delay() -> None:
    assert delays_ms(run(500, stepping([(0, 400)], WAY))) == pytest.approx([30] * 250)


def test_what_is_too_much_queues_up_to_the_limit_and_then_is_lost() -> None:
    records = run(1000, stepping([(0, 100)], WAY))
    assert max(delays_ms(records)) == pytest.approx(20 + 16 * 1024 * 8 / 100, rel=0.06)
    assert sum(one.arrived_s is None for one in records) > 100
    assert sum(one.arrived_s is not None and one.arrived_s < 10 for one in records) == pytest.approx(125, abs=3)


def test_what_waits_leaves_at_the_rate_of_the_moment() -> None:
    sender = Steady(1000, until_s=1.0)
    records = simulate(sender, stepping([(0, 40), (1, 1000)], replace(WAY, queue_kib=64)), SETTINGS)
    assert records[24].arrived_s == pytest.approx(1 + (25 * 8 - 40) / 1000 + 0.02, abs=0.001)


def test_losses_are_of_the_share_asked_for_and_the_same_for_the_same_seed() -> None:
    trace = stepping([(0, 1000)], replace(WAY, loss=0.2))
    lost = [one.arrived_s is None for one in run(500, trace, replace(SETTINGS, seconds=80))]
    assert sum(lost) == pytest.approx(400, abs=60)
    assert lost == [one.arrived_s is None for one in run(500, trace, replace(SETTINGS, seconds=80))]
    assert lost != [one.arrived_s is None for one in run(500, trace, replace(SETTINGS, seconds=80, seed=1))]


def test_in_order_nothing_is_lost_and_all_wait_for_what_was() -> None:
    settings = replace(SETTINGS, in_order=True)
    records = run(500, stepping([(0, 1000)], replace(WAY, loss=0.05, jitter_ms=30)), settings)
    arrivals = [one.arrived_s for one in records]
    assert None not in arrivals
    assert arrivals == sorted(arrivals)
    assert max(delays_ms(records)) > 200


def test_nothing_passes_a_cut_and_in_order_it_comes_afterwards() -> None:
    trace = with_cut(stepping([(0, 1000)], WAY), 3, 6)
    lossy = run(500, trace)
    assert [one.at_s for one in lossy if one.arrived_s is None] == pytest.approx(
        [2.96 + 0.04 * n for n in range(1, 76)]
    )
    assert None not in [one.arrived_s for one in run(500, trace, replace(SETTINGS, in_order=True))]


def test_the_backlog_is_what_waits_before_the_frame() -> None:
    records = run(1000, stepping([(0, 100)], replace(WAY, queue_kib=64)))
    assert [one.backlog_ms for one in records[:4]] == pytest.approx([0, 40, 80, 120])


def test_the_sender_learns_of_the_link_by_receipts() -> None:
    sender = Steady(500)
    simulate(sender, stepping([(0, 1000)], WAY), SETTINGS)
    assert sender.states[0] is None
    state = sender.states[-1]
    assert state is not None
    assert state.base_rtt_ms == pytest.approx(44, abs=2)
    assert state.delivered_kbit_s == pytest.approx(100, rel=0.05)
    assert state.loss == 0


def test_the_last_packet_of_a_burst_is_answered() -> None:
    sender = Steady(100, until_s=5.0)
    simulate(sender, stepping([(0, 1000)], WAY), replace(SETTINGS, fps=200))
    state = sender.states[round(200 * (5 + RECEIPTS_APART_S + 0.05))]
    assert state is not None
    assert state.in_flight_bytes == 0
