"""What delays tell of a link: how long packets queue up, and how fast they leave while they do.

Queueing is read from one-way delays above the least of the last 30 s, as LEDBAT does (RFC 6817), so the far clock
may be any number of hours wrong. Where it is set while we measure, the delay one way falls below its least by more than
the round trip does, which no route can do: then the least is taken anew.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

LEAST_S = 30.0  # so long a least delay is remembered
_GAP_S = 1.0  # that time passes at most from one packet to the next: silence makes nothing old
_JUMP_MS = 40.0  # of a clock; more than jitter
_SMOOTHING = 0.2
_WAITED_S = 0.04  # a packet that waited longer than jitter lasts did wait for others
_LEAVING_S, _KEPT = 0.6, 64  # over which the rate is taken at which they leave, and how many at most
_ENOUGH_S = 0.1
_IDLE = 6  # packets that must agree that the link is faster than it was
_FASTER, _FASTER_S = 0.35, 0.06  # what they must have gained on what was expected of them
_SAME = 0.25  # rates that differ by less are one


@dataclass(frozen=True, slots=True)
class Load:
    """A packet that the link has to carry."""

    at_s: float
    size_bytes: int


class Least:
    """The least of what was added in the last `LEAST_S`; true once there is one."""

    def __init__(self) -> None:
        self._values: deque[tuple[float, float]] = deque()  # rising; each is the least from its time on

    def __bool__(self) -> bool:
        return bool(self._values)

    @property
    def value(self) -> float:
        """The least."""
        return self._values[0][1]

    def add(self, value: float, now_s: float) -> None:
        """Take note of a value."""
        while self._values and self._values[-1][1] >= value:
            self._values.pop()
        self._values.append((now_s, value))
        while self._values[0][0] < now_s - LEAST_S:
            self._values.popleft()

    def clear(self) -> None:
        """Forget all."""
        self._values.clear()


@dataclass(slots=True)
class Delays:
    """Of packets, in ms: up by two clocks, so that only differences count, and there and back by one.

    `shift_ms`: by how much the least delay up rose when the newest packet came.
    """

    queue_ms: float = 0.0  # of the newest
    shift_ms: float = 0.0
    newest_rtt_ms: float = 0.0
    rtt_ms: float = 0.0  # smoothed
    least_rtt: Least = field(default_factory=Least)
    _up: Least = field(default_factory=Least)
    _down: Least = field(default_factory=Least)
    _heard_s: float = 0.0
    _clock_s: float = 0.0

    def add(self, up_ms: float, rtt_ms: float, now_s: float) -> None:
        """Take note of a packet's delays."""
        self._clock_s += min(now_s - self._heard_s, _GAP_S)
        self._heard_s = now_s
        least_ms = up_ms
        if self._clock_was_set(up_ms, rtt_ms):
            # How much of the delay is queueing only the last packet and the round trip can tell.
            least_ms -= max(0.0, min(self.queue_ms, rtt_ms - self.least_rtt.value))
            self._up.clear()
            self._down.clear()
        before_ms = self._up.value if self._up else least_ms
        self.rtt_ms += (_SMOOTHING if self.least_rtt else 1.0) * (rtt_ms - self.rtt_ms)
        self._up.add(least_ms, self._clock_s)
        self._down.add(rtt_ms - up_ms, self._clock_s)
        self.least_rtt.add(rtt_ms, self._clock_s)
        self.newest_rtt_ms, self.shift_ms = rtt_ms, self._up.value - before_ms
        self.queue_ms = up_ms - self._up.value

    def _clock_was_set(self, up_ms: float, rtt_ms: float) -> bool:
        if not self.least_rtt or rtt_ms < self.least_rtt.value - _JUMP_MS / 2:
            return False
        return up_ms < self._up.value - _JUMP_MS or rtt_ms - up_ms < self._down.value - _JUMP_MS


class Bottleneck:
    """How fast packets leave while they wait for each other, which is how fast the link is.

    What is known is kept while the link is idle, until packets show that it has become faster: a link that is as slow
    as it was would have delayed them longer (pathchar, Jacobson 1997, reads rates from sizes and delays likewise). The
    least delay is that of some packet, and in it the time which that took itself; by so much others seem to be faster
    than they are. How much that is shows when the link turns out to be no faster after all.
    """

    def __init__(self) -> None:
        self.kbit_s: float | None = None
        self._left_s: float | None = None  # when the newest packet had left
        self._leaving: deque[tuple[float, float, int]] = deque(maxlen=_KEPT)  # when, after how long, how many bytes
        self._gains: deque[tuple[float, float]] = deque(maxlen=_IDLE)  # s sooner than expected, s expected
        self._own_s = 0.0  # that the packet of the least delay took itself
        self._doubted: tuple[float, float] | None = None  # kbit/s that packets seemed to be faster than; by s

    def add(self, loads: Sequence[Load], left_s: float, arrived_bytes: int, *, shift_s: float) -> None:
        """Take note of when the last of these packets left the queue, and how much of them all arrived.

        That is when it was sent and its queueing delay, for which the least delay has just shifted.
        """
        self._own_s = max(0.0, self._own_s + shift_s)
        before_s, self._left_s = self._left_s, left_s
        if before_s is None or left_s <= before_s:
            return
        if loads[-1].at_s < before_s - _WAITED_S:
            self._leave(left_s, left_s - before_s, arrived_bytes)
        elif self.kbit_s is not None and arrived_bytes >= sum(load.size_bytes for load in loads):
            self._compare(loads, before_s, left_s)

    def free_s(self, loads: Iterable[Load], left_s: float) -> float:
        """When the link is free again that has these packets to carry, if all before them left by then."""
        if self.kbit_s is None:
            return left_s
        free_s = left_s + self._own_s
        for load in loads:
            free_s = max(free_s, load.at_s) + load.size_bytes / (125 * self.kbit_s)
        return free_s - self._own_s

    def _leave(self, now_s: float, passed_s: float, size_bytes: int) -> None:
        self._gains.clear()
        self._leaving.append((now_s, passed_s, size_bytes))
        while self._leaving[0][0] < now_s - _LEAVING_S:
            self._leaving.popleft()
        total_s = sum(passed for _, passed, _ in self._leaving)
        total_bytes = sum(size for *_, size in self._leaving)
        if total_s < _ENOUGH_S or not total_bytes:
            return
        self.kbit_s = total_bytes / (125 * total_s)
        if self._doubted is not None:
            doubted_kbit_s, gain_s = self._doubted
            self._own_s = self._own_s + gain_s if abs(self.kbit_s / doubted_kbit_s - 1) < _SAME else 0.0
            self._doubted = None

    def _compare(self, loads: Sequence[Load], before_s: float, left_s: float) -> None:
        if self.kbit_s is None:
            return
        expected_s = sum(load.size_bytes for load in loads) / (125 * self.kbit_s)
        self._gains.append((self.free_s(loads, before_s) - left_s, expected_s))
        gain_s, expected_s = (sum(column) for column in zip(*self._gains, strict=True))
        if len(self._gains) == _IDLE and gain_s > max(_FASTER_S, _FASTER * expected_s):
            self._doubted = self.kbit_s, gain_s / _IDLE
            self.kbit_s = None
            self._leaving.clear()
            self._gains.clear()
