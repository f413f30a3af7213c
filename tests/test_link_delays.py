"""What delays tell: the least of a while, whose clock was set, and how fast the link is."""

from collections.abc import Sequence

import pytest

from pipeline.link_delays import LEAST_S, Bottleneck, Delays, Least, Load

SIZE = 500
EVERY_S = 0.04


def carry(bottleneck: Bottleneck, kbit_s: float, sends_s: Sequence[float], *, free_s: float = 0.0) -> float:
    """Let a link of this rate carry packets of one size, and tell of each; returns when it is free again."""
    for sent_s in sends_s:
        free_s = max(free_s, sent_s) + SIZE / (125 * kbit_s)
        bottleneck.add([Load(sent_s, SIZE)], free_s, SIZE, shift_s=0.0)
    return free_s


def times(begin_s: float, packets: int, every_s: float = EVERY_S) -> list[float]:
    return [begin_s + count * every_s for count in range(packets)]


def test_the_least_is_that_of_the_last_while() -> None:
    least = Least()
    assert not least
    for at_s, value in ((0, 5), (1, 3), (2, 4), (LEAST_S, 9)):
        least.add(value, at_s)
    assert least.value == 3
    least.add(9, 1.1 + LEAST_S)
    assert least.value == 4


def test_a_shift_of_the_least_is_told_but_not_that_of_a_clock() -> None:
    delays = Delays()
    delays.add(1000, 50, 0.0)
    assert delays.shift_ms == 0
    delays.add(990, 40, 0.1)
    assert (delays.queue_ms, delays.shift_ms) == (0, -10)
    delays.add(-5000, 50, 0.2)
    assert (delays.queue_ms, delays.shift_ms) == (0, 0)


def test_a_route_that_became_shorter_is_no_clock_that_was_set() -> None:
    delays = Delays()
    delays.add(1200, 250, 0.0)
    delays.add(1000, 50, 0.1)
    delays.add(1030, 80, 0.2)
    assert delays.queue_ms == 30


def test_an_idle_link_has_no_known_rate() -> None:
    bottleneck = Bottleneck()
    carry(bottleneck, 1000, times(0, 50))
    assert bottleneck.kbit_s is None
    assert bottleneck.free_s([Load(2.0, 10**6)], 2.0) == 2.0


@pytest.mark.parametrize("kbit_s", [10, 40, 90])
def test_packets_that_wait_for_each_other_tell_the_rate(kbit_s: float) -> None:
    bottleneck = Bottleneck()
    free_s = carry(bottleneck, kbit_s, times(0, 30))
    assert bottleneck.kbit_s == pytest.approx(kbit_s, rel=0.01)
    assert bottleneck.free_s([Load(1.2, SIZE)], free_s) == pytest.approx(free_s + SIZE / (125 * kbit_s), rel=0.01)


def test_the_rate_is_kept_while_the_link_rests_and_found_wrong_when_it_became_faster() -> None:
    bottleneck = Bottleneck()
    carry(bottleneck, 40, times(0, 20))
    carry(bottleneck, 40, times(10, 20, 0.2))
    assert bottleneck.kbit_s == pytest.approx(40, rel=0.01)
    carry(bottleneck, 400, times(20, 6, 0.2))
    assert bottleneck.kbit_s is None


def test_a_rate_that_was_doubted_for_nothing_is_not_doubted_again() -> None:
    """All delays are above that of a packet which took 100 ms itself, as all of them do."""
    bottleneck, doubts = Bottleneck(), 0
    for cycle in range(6):
        free_s = 0.0
        for sent_s in [*times(10 * cycle, 12), *times(10 * cycle + 2, 20, 0.2)]:
            known = bottleneck.kbit_s
            free_s = max(free_s, sent_s) + 0.1
            bottleneck.add([Load(sent_s, SIZE)], free_s - 0.1, SIZE, shift_s=0.0)
            doubts += known is not None and bottleneck.kbit_s is None
    assert doubts == 1
    assert bottleneck.kbit_s == pytest.approx(40, rel=0.05)


def test_lost_packets_make_no_link_faster() -> None:
    bottleneck = Bottleneck()
    carry(bottleneck, 40, times(0, 20))
    for sent_s in times(10, 20, 0.2):
        bottleneck.add([Load(sent_s - 0.1, 10 * SIZE), Load(sent_s, SIZE)], sent_s + 0.1, SIZE, shift_s=0.0)
    assert bottleneck.kbit_s == pytest.approx(40, rel=0.01)


def test_a_packet_that_seems_to_have_left_in_years_leaves_no_list_that_grows() -> None:
    bottleneck, ages_s = Bottleneck(), 1e9
    bottleneck.add([Load(0.0, SIZE)], 1.0, SIZE, shift_s=0.0)
    bottleneck.add([Load(0.0, SIZE)], ages_s, SIZE, shift_s=0.0)
    carry(bottleneck, 90, times(0, 500, 0.01))
    assert len(bottleneck._leaving) < 100
