"""The network lab's link: what it does to packets, exactly, by a made-up clock."""

import random
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.netlab import Way
from benchmarks.netlab_link import Direction

PACKET = bytes(1000)


def direction(**fields: float) -> Direction:
    return Direction(replace(Way(), **fields), random.Random(0))


def arrivals(way: Direction, until_s: float) -> list[float]:
    """When packets arrive, looked at each millisecond."""
    times = [ms / 1000 + 1e-6 for ms in range(round(until_s * 1000) + 1)]
    return [round(now_s, 3) for now_s in times for _ in way.due(now_s)]


def test_packets_leave_at_the_rate_and_arrive_after_the_delay() -> None:
    way = direction(rate_kbit_s=800, delay_ms=50)
    for _ in range(3):
        way.offer(PACKET, 0.0)  # of 10 ms each
    assert arrivals(way, 1.0) == pytest.approx([0.06, 0.07, 0.08])


def test_an_idle_wire_takes_a_packet_at_once() -> None:
    way = direction(rate_kbit_s=800)
    for offered_s in (0.0, 0.1):
        way.offer(PACKET, offered_s)
    assert arrivals(way, 1.0) == pytest.approx([0.01, 0.11])


def test_a_link_that_is_looked_at_late_has_lost_no_time() -> None:
    way = direction(rate_kbit_s=800)
    for _ in range(10):
        way.offer(PACKET, 0.0)
    assert len(way.due(0.0999)) == 9
    assert len(way.due(0.1001)) == 1


def test_what_waits_goes_on_at_a_new_rate() -> None:
    way = direction(rate_kbit_s=800)
    for _ in range(3):
        way.offer(PACKET, 0.0)
    way.change(Way(rate_kbit_s=80), 0.005)  # half of the first packet is left: 50 ms now
    assert arrivals(way, 1.0) == pytest.approx([0.055, 0.155, 0.255])


def test_a_link_that_loses_its_limit_sends_at_once_what_waited() -> None:
    way = direction(rate_kbit_s=8)
    for _ in range(3):
        way.offer(PACKET, 0.0)
    way.change(Way(), 0.5)
    assert len(way.due(0.5)) == 3


def test_a_full_queue_refuses_the_newest_and_counts_it() -> None:
    way = direction(rate_kbit_s=800, queue_kib=4)
    for number in range(10):
        way.offer(bytes([number]) + PACKET[1:], 0.0)
    assert way.counts.refused == 6
    assert way.counts.waiting_bytes == 4000
    assert [packet[0] for packet in way.due(1.0)] == [0, 1, 2, 3]


def test_a_packet_larger_than_the_queue_passes_alone() -> None:
    way = direction(rate_kbit_s=800, queue_kib=0)
    way.offer(PACKET, 0.0)
    way.offer(PACKET, 0.0)
    assert (len(way.due(1.0)), way.counts.refused) == (1, 1)


def test_lost_packets_take_their_time_on_the_wire_and_are_counted() -> None:
    way = direction(rate_kbit_s=800, loss=0.5, queue_kib=2000)
    for _ in range(1000):
        way.offer(PACKET, 0.0)
    seen = arrivals(way, 10.0)
    assert 430 < len(seen) < 570
    assert way.counts.lost == 1000 - len(seen)
    assert way.counts.carried_bytes == 1_000_000
    assert seen[-1] == pytest.approx(10.0, abs=0.2)


def test_order_is_kept_without_jitter_and_not_with() -> None:
    def order(way: Direction) -> list[int]:
        for number in range(100):
            way.offer(bytes([number]), 0.0001 * number)
        return [packet[0] for packet in way.due(10.0)]

    assert order(direction(delay_ms=50)) == list(range(100))
    jittered = order(direction(delay_ms=50, jitter_ms=20))
    assert jittered != list(range(100))
    assert sorted(jittered) == list(range(100))


def test_jitter_is_around_the_delay_and_never_ahead_of_time() -> None:
    way = direction(delay_ms=50, jitter_ms=20)
    for _ in range(500):
        way.offer(PACKET, 0.0)
    seen = np.array(arrivals(way, 1.0))
    assert seen.min() >= 0.030
    assert seen.max() <= 0.071
    assert seen.mean() == pytest.approx(0.050, abs=0.003)
    early = direction(delay_ms=0, jitter_ms=20)
    early.offer(PACKET, 1.0)
    assert not early.due(0.999)


def test_a_cut_loses_what_is_offered_and_what_is_under_way() -> None:
    way = direction(delay_ms=50)
    way.offer(PACKET, 0.0)
    way.change(replace(way.way, cut=True), 0.01)
    way.offer(PACKET, 0.02)
    assert arrivals(way, 0.2) == []
    way.change(replace(way.way, cut=False), 0.2)
    way.offer(PACKET, 0.2)
    assert len(way.due(0.25)) == 1
    assert way.counts.lost == 2
