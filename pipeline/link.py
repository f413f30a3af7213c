"""What a camera knows of its link, from what it sent and the receipts that came back.

sent, receipt -> delays above the least, rates, losses, what is not heard of yet -> LinkState
"""

from collections import deque
from dataclasses import dataclass

from pipeline.link_delays import Bottleneck, Delays, Load
from pipeline.messages import FrameId
from pipeline.receipts import TOTALS, Receipt

RATE_S, BUSY_RATE_S = 1.0, 0.4  # over which rates are taken: as a rule; of what arrives, while packets queue up
LOSS_S, LOSS_PACKETS = 2.0, 40  # over which losses are counted: the longer of the two
OUTAGE_S = 1.0  # of silence, with packets lost in it
GIVEN_UP_S = 60.0  # by then even 64 KiB at 10 kbit/s have left
_KEPT_PACKETS = 4096  # that were not heard of
_KEPT_RECEIPTS = 256  # more than come in 10 s
_BUSY_MS = 50.0
_RECEIPTS_MS = 60.0  # apart, and a little; a packet is overdue only after that


@dataclass(frozen=True, slots=True)
class LinkState:
    """What is known of the link at one moment; rates in kbit/s, with `header_bytes` per packet counted in.

    `queue_ms`: by how much packets are delayed above the least of the last 30 s; where nothing is heard it grows.
    `rtt_ms`: smoothed, queueing in; `base_rtt_ms`: the least of the last 30 s. `loss`: share of packets lost in the
    last 2 s or of the last 40, 0 to 1. `delivered_kbit_s`: what arrived per second, over 1 s, less while packets queue
    up. `in_flight_bytes`: sent and neither received nor given up. `since_sent_ms`: since the last packet was sent.
    `backlog_ms`: how long a packet sent now would wait for others. `capacity_kbit_s`: how fast packets left when last
    they had to wait; None where they never did, or the link has become faster since. `overdue_ms`: by how much packets
    are that nothing was heard of, and part of `queue_ms`.
    """

    queue_ms: float
    rtt_ms: float
    base_rtt_ms: float
    loss: float
    delivered_kbit_s: float
    sent_kbit_s: float
    in_flight_bytes: int
    since_sent_ms: float = 0.0
    backlog_ms: float = 0.0
    capacity_kbit_s: float | None = None
    overdue_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class _Totals:
    """Packets and their bytes, without headers."""

    packets: int = 0
    size_bytes: int = 0

    def within(self, other: "_Totals") -> bool:
        return self.packets <= other.packets and self.size_bytes <= other.size_bytes


@dataclass(frozen=True, slots=True)
class _Sent(Load):
    """A packet of which nothing was heard; `totals` is what was sent in this epoch with it."""

    sequence: int
    totals: _Totals


@dataclass(frozen=True, slots=True)
class _Heard:
    """What had arrived at one moment, and of how much."""

    at_s: float
    arrived: _Totals
    expected: _Totals


class _Epoch:
    """What was sent and heard of one epoch: the gateway counts anew with each."""

    def __init__(self, number: int | None, header_bytes: int) -> None:
        self.number, self._header_bytes = number, header_bytes
        self.in_flight: deque[_Sent] = deque()
        self.in_flight_bytes = 0
        self.newest: _Sent | None = None  # that arrived
        self._sent = _Totals()
        self._told = 0, 0  # packets and bytes, as the last receipt had them
        self._heard: deque[_Heard] = deque(maxlen=_KEPT_RECEIPTS)

    def send(self, sequence: int, size_bytes: int, now_s: float) -> None:
        self._sent = _Totals(self._sent.packets + 1, self._sent.size_bytes + size_bytes)
        sent = _Sent(now_s, size_bytes + self._header_bytes, sequence, self._sent)
        self.in_flight.append(sent)
        self.in_flight_bytes += sent.size_bytes
        if len(self.in_flight) > _KEPT_PACKETS:
            self.drop_oldest()

    def take(self, sequence: int) -> list[_Sent]:
        """The packets up to the one that arrived, off the list; none where it is not on the list."""
        if not any(one.sequence == sequence for one in self.in_flight):
            return []
        taken = [self.drop_oldest()]
        while taken[-1].sequence != sequence:
            taken.append(self.drop_oldest())
        self.newest = taken[-1]
        return taken

    def drop_oldest(self) -> _Sent:
        oldest = self.in_flight.popleft()
        self.in_flight_bytes -= oldest.size_bytes
        return oldest

    def count(self, receipt: Receipt, newest: _Sent, at_s: float) -> int:
        """Take note of a receipt's totals; returns the bytes that are new in it, with headers."""
        told = receipt.packets, receipt.size_bytes
        packets, size_bytes = ((new - old) % TOTALS for new, old in zip(told, self._told, strict=True))
        self._told = told
        before = self._heard[-1] if self._heard else _Heard(at_s, _Totals(), _Totals())
        arrived = _Totals(before.arrived.packets + packets, before.arrived.size_bytes + size_bytes)
        if not arrived.within(newest.totals):
            # Nobody can have received that: the gateway began to count anew, or before us.
            self._heard.clear()
            arrived, packets, size_bytes = newest.totals, 0, 0
        if at_s > before.at_s + OUTAGE_S and newest.totals.packets - before.expected.packets > packets + 1:
            self._heard.clear()  # what an outage took is no loss that sending less would save
        self._heard.append(_Heard(max(at_s, before.at_s), arrived, newest.totals))
        return size_bytes + packets * self._header_bytes

    def loss(self) -> float:
        """Of the packets up to the newest that arrived."""
        if not self._heard:
            return 0.0
        last = first = self._heard[-1]
        for first in reversed(self._heard):
            if first.at_s <= last.at_s - LOSS_S and last.expected.packets - first.expected.packets >= LOSS_PACKETS:
                break
        expected = last.expected.packets - first.expected.packets
        return max(0.0, 1 - (last.arrived.packets - first.arrived.packets) / expected) if expected else 0.0

    def delivered(self, now_s: float, window_s: float) -> float | None:
        """Kbit/s over a window that ends with what arrived last, or a little before now where that is long ago."""
        if len(self._heard) < 2:
            return None
        last = self._heard[-1]
        end_s = max(last.at_s, now_s - window_s / 2)
        first = next((one for one in reversed(self._heard) if one.at_s <= end_s - window_s), self._heard[0])
        packets = last.arrived.packets - first.arrived.packets
        size_bytes = last.arrived.size_bytes - first.arrived.size_bytes + packets * self._header_bytes
        # What came long after the one before it came within the window, not evenly.
        return size_bytes / (125 * min(max(end_s - first.at_s, window_s / 2), 1.5 * window_s))


class LinkMeter:
    """Measures one camera's link; all times are seconds of one monotonic clock.

    `header_bytes`: what the network adds to a packet, about 100 over WebRTC (IP, UDP, DTLS, SCTP), 70 over MQTT. A
    gateway that sends no receipts, or none for GIVEN_UP_S, leaves `state` at None.
    """

    def __init__(self, *, header_bytes: int = 100) -> None:
        self._header_bytes = header_bytes
        self.reset()

    def reset(self) -> None:
        """Forget everything: the link is another one now."""
        self._epoch = _Epoch(None, self._header_bytes)
        self._sends: deque[tuple[float, int]] = deque()  # when, and bytes, of the last RATE_S
        self._sent_s = -GIVEN_UP_S
        self._forget()

    def sent(self, frame_id: FrameId, size_bytes: int, now_s: float) -> None:
        """Take note of a packet that was handed to the channel."""
        if frame_id.epoch != self._epoch.number:
            self._epoch = _Epoch(frame_id.epoch, self._header_bytes)
        self._epoch.send(frame_id.sequence, size_bytes, now_s)
        self._sends.append((now_s, size_bytes + self._header_bytes))
        while self._sends[0][0] <= now_s - RATE_S:
            self._sends.popleft()
        self._sent_s = now_s
        self._give_up(now_s)

    def receipt(self, receipt: Receipt, now_s: float) -> None:
        """Take note of a receipt; one of another epoch, or of a packet that was not sent, changes nothing."""
        epoch, held_s = self._epoch, receipt.held_ms / 1000
        if receipt.newest.epoch != epoch.number:
            return
        taken = epoch.take(receipt.newest.sequence)
        if taken:
            newest = taken[-1]
            arrived_bytes = epoch.count(receipt, newest, now_s - held_s)
            rtt_ms = max(0.0, now_s - newest.at_s - held_s) * 1000
            delays = self._delays
            delays.add(receipt.arrived_ms - newest.at_s * 1000, rtt_ms, now_s)
            left_s = newest.at_s + delays.queue_ms / 1000
            self._bottleneck.add(taken, left_s, arrived_bytes, shift_s=delays.shift_ms / 1000)
        elif epoch.newest is not None and receipt.newest.sequence == epoch.newest.sequence:
            epoch.count(receipt, epoch.newest, now_s)  # an older packet came after it

    def state(self, now_s: float) -> LinkState | None:
        """What is known now; None while nothing was heard."""
        self._give_up(now_s)
        if not self._delays.least_rtt:
            return None
        overdue_ms, sent_kbit_s = self._overdue_ms(now_s), self._sent_rate(now_s)
        queue_ms = self._delays.queue_ms + overdue_ms
        delivered = self._epoch.delivered(now_s, BUSY_RATE_S if queue_ms > _BUSY_MS else RATE_S)
        return LinkState(
            queue_ms=queue_ms,
            rtt_ms=self._delays.rtt_ms,
            base_rtt_ms=self._delays.least_rtt.value,
            loss=self._epoch.loss(),
            delivered_kbit_s=sent_kbit_s if delivered is None else delivered,
            sent_kbit_s=sent_kbit_s,
            in_flight_bytes=self._epoch.in_flight_bytes,
            since_sent_ms=(now_s - self._sent_s) * 1000,
            backlog_ms=max(self._backlog_ms(now_s), queue_ms if overdue_ms else 0.0),
            capacity_kbit_s=self._bottleneck.kbit_s,
            overdue_ms=overdue_ms,
        )

    def _forget(self) -> None:
        self._delays, self._bottleneck = Delays(), Bottleneck()

    def _give_up(self, now_s: float) -> None:
        """Drop what will not be heard of; as nothing else was since, there may be nobody who tells."""
        while self._epoch.in_flight and self._epoch.in_flight[0].at_s < now_s - GIVEN_UP_S:
            self._epoch.drop_oldest()
            self._forget()

    def _overdue_ms(self, now_s: float) -> float:
        """By how much packets are; one that is lost, or its receipt, says nothing until another is due."""
        if len(self._epoch.in_flight) < 2:
            return 0.0
        age_ms = (now_s - self._epoch.in_flight[1].at_s) * 1000
        return max(0.0, age_ms - self._delays.newest_rtt_ms - _RECEIPTS_MS)

    def _backlog_ms(self, now_s: float) -> float:
        newest = self._epoch.newest
        if self._bottleneck.kbit_s is None and len(self._epoch.in_flight) > 1:
            # How long those in flight take nobody knows: they wait as the newest did until they tell otherwise.
            return self._delays.queue_ms
        left_s = newest.at_s + self._delays.queue_ms / 1000 if newest is not None else now_s
        return max(0.0, self._bottleneck.free_s(self._epoch.in_flight, left_s) - now_s) * 1000

    def _sent_rate(self, now_s: float) -> float:
        return sum(size for at_s, size in self._sends if at_s > now_s - RATE_S) / (125 * RATE_S)
