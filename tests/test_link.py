"""What a camera knows of its link: delays by two clocks, rates, losses, silence; hostile receipts break none of it."""

import math
import random
from dataclasses import astuple, replace

import pytest

from pipeline.link import GIVEN_UP_S, LinkMeter, LinkState
from pipeline.messages import FrameId
from pipeline.receipts import TOTALS, Receipt

EPOCH = 7
HEADER = 100
SIZE = 400  # bytes with the header: 80 kbit/s at 25 packets per second
UP_MS, DOWN_MS = 30.0, 20.0
CLOCK_MS = 1_700_000_000_000.0  # of the gateway when ours is at 0


class Link:
    """A meter, and a gateway whose packets take as long as a test says."""

    def __init__(self, *, first: int = 0) -> None:
        self.meter = LinkMeter(header_bytes=HEADER)
        self.sequence = first - 1
        self.packets = self.size_bytes = 0
        self.clock_ms = CLOCK_MS

    def send(self, now_s: float, *, size_bytes: int = SIZE - HEADER) -> int:
        self.sequence = (self.sequence + 1) % TOTALS
        self.meter.sent(FrameId(EPOCH, self.sequence), size_bytes, now_s)
        return self.sequence

    def arrive(self, sequence: int, sent_s: float, *, up_ms: float = UP_MS, held_ms: int = 0) -> Receipt:
        """The receipt of a packet, which the gateway now has."""
        self.packets, self.size_bytes = self.packets + 1, self.size_bytes + SIZE - HEADER
        arrived_ms = round(self.clock_ms + sent_s * 1000 + up_ms)
        return Receipt(FrameId(EPOCH, sequence), self.packets, self.size_bytes, arrived_ms, held_ms)

    def hear(self, receipt: Receipt, sent_s: float, *, up_ms: float = UP_MS) -> None:
        self.meter.receipt(receipt, sent_s + (up_ms + DOWN_MS + receipt.held_ms) / 1000)

    def carry(self, begin_s: float, packets: int, *, every_s: float = 0.04, up_ms: float = UP_MS) -> float:
        """Send packets that all arrive; returns when the next one would be sent."""
        for count in range(packets):
            sent_s = begin_s + count * every_s
            self.hear(self.arrive(self.send(sent_s), sent_s, up_ms=up_ms), sent_s, up_ms=up_ms)
        return begin_s + packets * every_s

    def state(self, now_s: float) -> LinkState:
        state = self.meter.state(now_s)
        assert state is not None
        return state


def test_nothing_is_known_before_the_first_receipt() -> None:
    link = Link()
    assert link.meter.state(0.0) is None
    link.send(0.0)
    assert link.meter.state(1.0) is None


def test_an_even_stream_is_measured_with_its_headers() -> None:
    link = Link()
    end_s = link.carry(0.0, 100)
    state = link.state(end_s)
    assert state.queue_ms == pytest.approx(0, abs=1)
    assert (state.rtt_ms, state.base_rtt_ms) == pytest.approx((UP_MS + DOWN_MS,) * 2, abs=1)
    assert state.delivered_kbit_s == pytest.approx(80, rel=0.05)
    assert state.sent_kbit_s == pytest.approx(80, rel=0.05)
    assert (state.loss, state.in_flight_bytes, state.overdue_ms) == (0, 0, 0)


@pytest.mark.parametrize("clock_ms", [0.0, 5e12, CLOCK_MS + 0.4])
def test_the_gateways_clock_may_be_any_time_off(clock_ms: float) -> None:
    link = Link()
    link.clock_ms = clock_ms
    link.carry(link.carry(0.0, 10), 1, up_ms=UP_MS + 70)
    assert link.state(0.44 + 0.12).queue_ms == pytest.approx(70, abs=2)


@pytest.mark.parametrize("jump_ms", [-3_600_000, -300, 300, 3_600_000])
def test_a_clock_that_is_set_reads_as_no_queue_and_hides_none(jump_ms: int) -> None:
    link = Link()
    at_s = link.carry(link.carry(0.0, 50), 5, up_ms=UP_MS + 60)
    link.clock_ms += jump_ms
    at_s = link.carry(at_s, 5, up_ms=UP_MS + 60)
    assert link.state(at_s).queue_ms == pytest.approx(60, abs=5)
    at_s = link.carry(at_s, 5)
    assert link.state(at_s).queue_ms == pytest.approx(0, abs=5)
    link.carry(at_s, 1, up_ms=UP_MS + 200)
    assert link.state(at_s).queue_ms == pytest.approx(200, abs=5)


def test_the_time_a_receipt_was_held_is_no_delay() -> None:
    link = Link()
    at_s = link.carry(0.0, 10)
    link.hear(link.arrive(link.send(at_s), at_s, held_ms=50), at_s)
    assert link.state(at_s + 0.1).rtt_ms == pytest.approx(UP_MS + DOWN_MS, abs=1)


def test_a_receipt_answers_for_the_packets_before_it() -> None:
    link = Link()
    at_s = link.carry(0.0, 10)
    sequences = [link.send(at_s + 0.01 * count) for count in range(4)]
    for sequence in sequences[:2]:
        link.arrive(sequence, at_s)
    link.hear(link.arrive(sequences[2], at_s + 0.02), at_s + 0.02)
    state = link.state(at_s + 0.1)
    assert state.in_flight_bytes == SIZE
    assert state.loss == 0


def test_lost_receipts_cost_nothing_but_the_news() -> None:
    heard, missed = Link(), Link()
    for link, every in ((heard, 1), (missed, 3)):
        for count in range(90):
            receipt = link.arrive(link.send(count * 0.04), count * 0.04)
            if count % every == every - 1:
                link.hear(receipt, count * 0.04)
    for one, other in zip(astuple(heard.state(3.7)), astuple(missed.state(3.7)), strict=True):
        assert one == pytest.approx(other, rel=0.1) if one is not None else other is None


def test_losses_are_those_of_the_last_seconds() -> None:
    link = Link()
    for count in range(100):
        sequence = link.send(count * 0.04)
        if count % 10:
            link.hear(link.arrive(sequence, count * 0.04), count * 0.04)
    assert link.state(4.1).loss == pytest.approx(0.1, abs=0.03)
    at_s = link.carry(4.0, 100)
    assert link.state(at_s).loss == 0


def test_packets_that_overtake_one_another_are_not_lost() -> None:
    link = Link()
    for count in range(0, 100, 2):
        first_s = count * 0.04
        sequences = link.send(first_s), link.send(first_s + 0.04)
        newer = link.arrive(sequences[1], first_s + 0.04)
        link.hear(newer, first_s + 0.04)
        late = replace(newer, packets=link.packets + 1, size_bytes=link.size_bytes + SIZE - HEADER)
        link.packets, link.size_bytes = late.packets, late.size_bytes
        link.hear(late, first_s + 0.045)
    assert link.state(4.1).loss == 0


def test_duplicate_and_late_receipts_change_nothing() -> None:
    link = Link()
    receipts = []
    for count in range(60):
        receipts.append(link.arrive(link.send(count * 0.04), count * 0.04))
        link.hear(receipts[-1], count * 0.04)
    before = link.state(2.45)
    for receipt in (receipts[-1], receipts[3], receipts[50]):
        link.meter.receipt(receipt, 2.45)
    after = link.state(2.45)
    assert after == replace(before, delivered_kbit_s=after.delivered_kbit_s)
    assert after.delivered_kbit_s == pytest.approx(before.delivered_kbit_s, rel=0.1)


def test_receipts_of_another_epoch_or_of_packets_never_sent_change_nothing() -> None:
    link = Link()
    at_s = link.carry(0.0, 30)
    before = link.state(at_s)
    for frame in (FrameId(EPOCH + 1, 12), FrameId(EPOCH, 4000)):
        link.meter.receipt(Receipt(frame, 9000, 10**6, int(CLOCK_MS), 0), at_s)
    assert link.state(at_s) == before


def test_a_new_epoch_counts_anew_and_keeps_what_is_known_of_the_delays() -> None:
    link = Link()
    at_s = link.carry(0.0, 30, up_ms=UP_MS)
    link.meter.sent(FrameId(EPOCH + 1, 0), 300, at_s)
    link.meter.receipt(Receipt(FrameId(EPOCH + 1, 0), 1, 300, round(CLOCK_MS + at_s * 1000 + 130), 0), at_s + 0.15)
    state = link.state(at_s + 0.15)
    assert state.queue_ms == pytest.approx(100, abs=2)
    assert state.loss == 0


def test_sequences_and_totals_wrap() -> None:
    link = Link(first=TOTALS - 20)
    link.packets, link.size_bytes = 0, 0
    at_s = link.carry(0.0, 60)
    state = link.state(at_s)
    assert (state.loss, state.in_flight_bytes) == (0, 0)


def test_a_gateway_that_began_anew_reads_as_no_loss_and_no_flood() -> None:
    link = Link()
    at_s = link.carry(0.0, 60)
    link.packets = link.size_bytes = 0
    at_s = link.carry(at_s, 60)
    state = link.state(at_s)
    assert state.loss == 0
    assert state.delivered_kbit_s == pytest.approx(80, rel=0.1)


def test_silence_reads_as_a_queue_that_grows() -> None:
    link = Link()
    at_s = link.carry(0.0, 50)
    for count in range(10):
        link.send(at_s + count * 0.04)
    queues = [link.state(at_s + 0.4 + wait_s).queue_ms for wait_s in (0.0, 0.5, 1.0)]
    assert queues[0] > 150
    assert [later - queues[0] for later in queues[1:]] == pytest.approx([500, 1000])


@pytest.mark.parametrize("lost", ["packet", "receipt"])
def test_one_loss_at_five_frames_per_second_is_no_queue(lost: str) -> None:
    link = Link()
    at_s = link.carry(0.0, 20, every_s=0.2)
    sequence = link.send(at_s)
    if lost == "receipt":
        link.arrive(sequence, at_s)
    assert link.state(at_s + 0.199).queue_ms == pytest.approx(0, abs=1)
    link.send(at_s + 0.2)
    assert link.state(at_s + 0.2 + (UP_MS + DOWN_MS) / 1000).queue_ms == pytest.approx(0, abs=1)


def test_an_outage_is_no_loss_and_does_not_age_the_least_delay() -> None:
    link = Link()
    at_s = link.carry(0.0, 50)
    for count in range(60):
        link.send(at_s + count * 0.5)
    link.carry(at_s + 40, 3, up_ms=UP_MS + 80)
    state = link.state(at_s + 40.2)
    assert state.loss == 0
    assert state.queue_ms == pytest.approx(80, abs=2)


def test_a_gateway_that_falls_silent_for_good_leaves_nothing_known() -> None:
    link = Link()
    at_s = link.carry(0.0, 50)
    for count in range(2 * int(GIVEN_UP_S)):
        link.send(at_s + count)
    assert link.meter.state(at_s + 2 * GIVEN_UP_S) is None


def test_a_source_that_rests_leaves_all_known() -> None:
    link = Link()
    at_s = link.carry(0.0, 50)
    state = link.state(at_s + 10 * GIVEN_UP_S)
    assert state.queue_ms == pytest.approx(0, abs=1)
    assert state.since_sent_ms == pytest.approx(10 * GIVEN_UP_S * 1000 + 40)


def test_what_waits_for_the_link_is_told_from_what_it_carried_last() -> None:
    """A link of 40 kbit/s: each packet of 400 bytes takes it 80 ms, and they come twice as fast."""
    link = Link()
    link.carry(0.0, 30, every_s=0.2)
    for count in range(20):
        sent_s = 6 + count * 0.04
        up_ms = UP_MS + (count + 1) * 80 - count * 40
        link.hear(link.arrive(link.send(sent_s), sent_s, up_ms=up_ms), sent_s, up_ms=up_ms)
    state = link.state(6.8)
    assert state.capacity_kbit_s == pytest.approx(40, rel=0.05)
    assert state.backlog_ms == pytest.approx(840 - 40, abs=50)


def test_what_waits_for_a_link_that_nobody_knows_waits_as_long_as_the_newest_did() -> None:
    """A fast link became slow: the first late packet tells how long those behind it wait, but not the rate."""
    link = Link()
    now_s = link.carry(0.0, 100)
    first = link.send(now_s)
    for ahead in (0.04, 0.08, 0.12):
        link.send(now_s + ahead)
    link.hear(link.arrive(first, now_s, up_ms=UP_MS + 250), now_s, up_ms=UP_MS + 250)
    state = link.state(now_s + 0.3)
    assert state.capacity_kbit_s is None
    assert (state.queue_ms, state.backlog_ms) == pytest.approx((250, 250), abs=1)


def test_nothing_waits_for_a_link_that_nobody_knows_where_nothing_is_under_way() -> None:
    link = Link()
    now_s = link.carry(0.0, 100)
    link.hear(link.arrive(link.send(now_s), now_s, up_ms=UP_MS + 250), now_s, up_ms=UP_MS + 250)
    state = link.state(now_s + 0.3)
    assert (state.queue_ms, state.backlog_ms) == pytest.approx((250, 0), abs=1)


def test_reset_forgets_everything() -> None:
    link = Link()
    at_s = link.carry(0.0, 50)
    link.meter.reset()
    assert link.meter.state(at_s) is None


def test_random_receipts_leave_numbers_that_can_be_used() -> None:
    rng = random.Random(5)
    link = Link()
    for count in range(3000):
        now_s = count * 0.04
        link.send(now_s, size_bytes=rng.randrange(5000))
        frame = FrameId(rng.choice((EPOCH, EPOCH, 8)), max(0, link.sequence - rng.randrange(-2, 30)))
        numbers = (rng.choice((count, rng.randrange(TOTALS))) for _ in range(2))
        arrived_ms = rng.choice((round(CLOCK_MS + now_s * 1000), rng.randrange(1 << 48)))
        link.meter.receipt(Receipt(frame, *numbers, arrived_ms, rng.randrange(1 << 16)), now_s + 0.03)
        state = link.meter.state(now_s + 0.035)
        if state is not None:
            assert all(value is None or (math.isfinite(value) and value >= 0) for value in astuple(state))
            assert state.loss <= 1
