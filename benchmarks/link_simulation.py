"""A link in simulated time, to try rate control on: a camera's packets go up, the gateway's receipts come back.

sender -> queue, drained at a rate -> delay line -> gateway: >= 50 ms apart, the last one always -> delay line -> meter

The way up is a data channel's (`in_order` False: what is lost is lost, and packets may overtake one another) or like
TCP's: nothing is lost, and what came after a lost packet waits until that was sent again.
"""

import heapq
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Protocol

from benchmarks.link_traces import Trace, Way
from pipeline.link import LinkMeter, LinkState
from pipeline.messages import FrameId
from pipeline.rate_rule import DelayRule
from pipeline.receipts import RECEIPT_BYTES, Receipt

RECEIPTS_APART_S = 0.05
_RETRY_S = 0.2  # and a round trip: until TCP sends again what was lost
_DOUBLINGS = 4  # of that, where it is lost again
_AFTER_S = 30.0  # until what was sent last has arrived
_EPOCH = 1
_NEVER = float("inf")


@dataclass(frozen=True, slots=True)
class Record:
    """One frame of a simulation.

    `size_bytes`: what was sent for it, without headers; None if nothing was. `arrived_s`: when the gateway had it,
    None if never. `backlog_ms`: how long what waited for the link before this frame would have to wait.
    """

    at_s: float
    state: LinkState | None
    size_bytes: int | None
    arrived_s: float | None
    backlog_ms: float


@dataclass(frozen=True, slots=True)
class Settings:
    """How long is simulated, and what does not change; `clock_ms` is the gateway's wall clock.

    `in_order`: the way up is like TCP's, as far as loss goes; there is no window and no slow start.
    """

    seconds: float
    fps: float = 25.0
    seed: int = 0
    in_order: bool = False
    header_bytes: int = 100
    clock_ms: Callable[[float], int] = lambda now_s: 1_700_000_000_000 + int(now_s * 1000)


class Sender(Protocol):
    """A camera, as far as its link can tell."""

    def frame(self, index: int, now_s: float, state: LinkState | None) -> int | None:
        """The bytes to send for a frame, without headers; None: nothing is sent."""
        ...


class Direction:
    """One way of the link, along a trace: when each packet arrives, if it does."""

    def __init__(self, ways: Sequence[tuple[float, Way]], rng: random.Random) -> None:
        self._ways, self._rng = ways, rng
        self._free_s = 0.0  # when all that was taken will have left
        self._at = 0

    def way(self, now_s: float) -> Way:
        """What it is now; asked in order of time."""
        while self._at + 1 < len(self._ways) and self._ways[self._at + 1][0] <= now_s:
            self._at += 1
        return self._ways[self._at][1]

    def backlog_ms(self, now_s: float) -> float:
        """How long it takes until all that waits has left."""
        return max(0.0, self._free_s - now_s) * 1000

    def offer(self, size_bytes: int, now_s: float) -> float | None:
        """When a packet arrives; None: never."""
        way = self.way(now_s)
        if way.cut or self._rng.random() < way.loss or self._full(way, size_bytes, now_s):
            return None
        self._free_s, left_by = self._sent_s(max(now_s, self._free_s), size_bytes * 8)
        late_ms = left_by.delay_ms + self._rng.uniform(-1, 1) * left_by.jitter_ms
        return None if left_by.cut else self._free_s + max(0.0, late_ms) / 1000

    def _full(self, way: Way, size_bytes: int, now_s: float) -> bool:
        """Whether what waits, at the rate of now, leaves no room; an empty queue takes any packet."""
        waiting_bytes = max(0.0, self._free_s - now_s) * way.rate_kbit_s * 125
        return waiting_bytes > 0 and waiting_bytes + size_bytes > 1024 * way.queue_kib

    def _sent_s(self, start_s: float, bits: float) -> tuple[float, Way]:
        """When so many bits will have left that begin at a time, and the way they left by."""
        at = self._at
        while True:
            end_s = self._ways[at + 1][0] if at + 1 < len(self._ways) else _NEVER
            rate = self._ways[at][1].rate_kbit_s * 1000
            if start_s < end_s:
                done_s = start_s + (bits / rate if rate else 0.0)
                if done_s <= end_s:
                    return done_s, self._ways[at][1]
                bits -= (end_s - start_s) * rate
                start_s = end_s
            at += 1


class _Gateway:
    """Counts what arrives, and says when the next receipt is due."""

    def __init__(self, clock_ms: Callable[[float], int]) -> None:
        self._clock_ms = clock_ms
        self._newest, self._packets, self._bytes = -1, 0, 0
        self._arrived_s, self._told_s = 0.0, -_NEVER
        self._waiting = False

    def take(self, sequence: int, size_bytes: int, now_s: float) -> float | None:
        """When a receipt is due for this packet; None: none, or there is one due already."""
        self._packets, self._bytes = self._packets + 1, self._bytes + size_bytes
        if sequence < self._newest:
            return None
        self._newest, self._arrived_s = sequence, now_s
        due, self._waiting = not self._waiting, True
        return max(now_s, self._told_s + RECEIPTS_APART_S) if due else None

    def receipt(self, now_s: float) -> Receipt:
        self._told_s, self._waiting = now_s, False
        held_ms = round((now_s - self._arrived_s) * 1000)
        frame = FrameId(_EPOCH, self._newest)
        return Receipt(frame, self._packets, self._bytes, self._clock_ms(self._arrived_s), held_ms)


class Simulation:
    """What happens next, by time; a packet's sequence is its place in `sizes` and `arrivals`."""

    def __init__(self, trace: Trace, rng: random.Random, settings: Settings) -> None:
        self._settings = settings
        self.up = Direction([(step.at_s, step.up) for step in trace], rng)
        self._down = Direction([(step.at_s, step.down) for step in trace], rng)
        self._gateway = _Gateway(settings.clock_ms)
        self.meter = LinkMeter(header_bytes=settings.header_bytes)
        self._due: list[tuple[float, int, Callable[[float], None]]] = []
        self._order = count()
        self._sizes: list[int] = []
        self.arrivals: list[float | None] = []
        self._next = 0  # in order: the packet that the gateway waits for
        self._there: set[int] = set()  # in order: those that came before their turn

    def run_until(self, until_s: float) -> None:
        """Let everything happen that is due."""
        while self._due and self._due[0][0] <= until_s:
            now_s, _, happen = heapq.heappop(self._due)
            happen(now_s)

    def send(self, size_bytes: int, now_s: float) -> int:
        """Send a packet; returns its place in `arrivals`."""
        sequence = len(self._sizes)
        self._sizes.append(size_bytes)
        self.arrivals.append(None)
        self.meter.sent(FrameId(_EPOCH, sequence), size_bytes, now_s)
        self._offer(sequence, now_s, 0)
        return sequence

    def _later(self, at_s: float, happen: Callable[[float], None]) -> None:
        heapq.heappush(self._due, (at_s, next(self._order), happen))

    def _offer(self, sequence: int, now_s: float, tries: int) -> None:
        arrival_s = self.up.offer(self._sizes[sequence] + self._settings.header_bytes, now_s)
        if arrival_s is None:
            self._lose(sequence, now_s, tries)
        else:
            self._later(arrival_s, lambda now_s: self._arrive(sequence, now_s, tries))

    def _lose(self, sequence: int, now_s: float, tries: int) -> None:
        if self._settings.in_order:
            round_trip_s = 2 * self.up.way(now_s).delay_ms / 1000
            wait_s = (_RETRY_S + round_trip_s) * 2 ** min(tries, _DOUBLINGS)
            self._later(now_s + wait_s, lambda now_s: self._offer(sequence, now_s, tries + 1))

    def _arrive(self, sequence: int, now_s: float, tries: int) -> None:
        if self.up.way(now_s).cut:
            self._lose(sequence, now_s, tries)
        elif not self._settings.in_order:
            self._take(sequence, now_s)
        else:
            self._there.add(sequence)
            while self._next in self._there:
                self._there.remove(self._next)
                self._next += 1
                self._take(self._next - 1, now_s)

    def _take(self, sequence: int, now_s: float) -> None:
        self.arrivals[sequence] = now_s
        due_s = self._gateway.take(sequence, self._sizes[sequence], now_s)
        if due_s is not None:
            self._later(due_s, self._answer)

    def _answer(self, now_s: float) -> None:
        receipt = self._gateway.receipt(now_s)
        arrival_s = self._down.offer(RECEIPT_BYTES + self._settings.header_bytes, now_s)
        if arrival_s is not None:
            self._later(arrival_s, lambda now_s: self.meter.receipt(receipt, now_s))


def simulate(sender: Sender, trace: Trace, settings: Settings) -> list[Record]:
    """Let a camera send along a trace; one record per frame, the same for the same seed."""
    run = Simulation(trace, random.Random(settings.seed), settings)
    frames = []
    for index in range(round(settings.seconds * settings.fps)):
        now_s = index / settings.fps
        run.run_until(now_s)
        state, backlog_ms = run.meter.state(now_s), run.up.backlog_ms(now_s)
        size_bytes = sender.frame(index, now_s, state)
        sequence = None if size_bytes is None else run.send(size_bytes, now_s)
        frames.append((now_s, state, size_bytes, sequence, backlog_ms))
    run.run_until(settings.seconds + _AFTER_S)
    return [
        Record(at_s, state, size_bytes, None if sequence is None else run.arrivals[sequence], backlog_ms)
        for at_s, state, size_bytes, sequence, backlog_ms in frames
    ]


class Ruled:
    """A camera whose packets come in several sizes per frame, smallest first, and that sends the largest that fits.

    `sizes`: bytes (frames, qualities), without headers, over and over. Frames are left out, evenly, where even the
    smallest does not fit at every frame.
    """

    def __init__(self, sizes: Sequence[Sequence[int]], rule: DelayRule, settings: Settings) -> None:
        self._sizes, self._rule, self._settings = sizes, rule, settings
        self._credit = 0.0  # bytes
        self._wanted: float | None = None

    def frame(self, index: int, now_s: float, state: LinkState | None) -> int | None:
        """The bytes to send for a frame; None: nothing is sent."""
        rule, per_frame = self._rule, self._settings.fps / 125
        rule.update(state, now_s, wanted_kbit_s=self._wanted)
        offers = [size + self._settings.header_bytes for size in self._sizes[index % len(self._sizes)]]
        room = rule.target_kbit_s / per_frame  # bytes per frame
        chosen = max((size for size in offers if size <= room), default=offers[0])
        self._wanted = min((size * per_frame for size in offers if size > chosen), default=None)
        self._credit = min(self._credit + room, 2 * max(offers[0], room))
        if rule.held or self._credit < chosen:
            return None
        self._credit -= chosen
        return chosen - self._settings.header_bytes
