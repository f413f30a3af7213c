"""The rate that a link takes, from the delay of what is sent: AIMD on a target queueing delay.

calm         -> grow, by a share per second: fast, but gently near the rate at which packets queued up
queueing     -> a share of what the link carried, at once
far behind   -> send nothing until the link has caught up, but for a packet now and then
much lost    -> a share of what arrives; losses that stay the same at a lower rate are not ours

The form is Chiu and Jain's (1989), with growth that is multiplicative as in NADA's ramp-up (RFC 8698), since a camera
has to find the rate of a link that became ten times faster in seconds; to cut to a share of what arrives, and to grow
slowly near it, are from Google's congestion control (Carlucci et al., MMSys 2016), the target delay from LEDBAT (RFC
6817), not to count on a rate that is not used from SCReAM (RFC 8298).
"""

import math
from collections import deque

from pipeline.link import LinkState

FAST, GENTLE = 1.0, 0.06  # growth per second: with room, and near the rate at which packets queued up
NEAR, BEYOND = 0.8, 1.1  # of that rate: from where on growth is gentle, and where it is the rate no longer
TRIED = 1.2  # times that rate, until the link has carried more: what is tried in vain queues up
PATIENCE_S, HASTE = 3.0, 0.1  # after which gentle growth gets faster, by so much per second
CUT = 0.9  # of what the link carries, where packets queue up
LOSS = 0.12  # more than is usual
HOLD, RELEASE = 1.5, 0.5  # times the target that waits: begin to drain, and enough drained
PROBE_S, SLOW_PROBE_S = 0.2, 0.5  # between packets while the link drains, and where nothing is heard
SILENT_MS = 1000.0  # the rate is halved for each such time that nothing is heard,
HALVINGS = 3  # but so often only
_STANDING_S = 0.1  # a queue that was shorter within it is a burst
_USED_S = 3.0  # what was sent in it may be sent again, and more
_IDLE_FALL = 0.05  # per second, of a rate that is not used
_TIRED_S, _PAUSE_S = 4.0, 1.0  # queueing for so long is looked into; by a pause of so long at most
_WATCH_S = 0.3  # after it
_RECEIPTS_S = 0.12  # two of them, apart
_FORGIVE_S = 10.0  # in which losses that became fewer are no longer usual
_LOSS_S = 2.0  # until a cut shows in the losses
_LONGEST_STEP_S = 0.2


class _Recent:
    """Values of the last so many seconds."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._values: deque[tuple[float, float]] = deque()

    def add(self, value: float, now_s: float) -> list[float]:
        """Take note of one; returns all that are left."""
        self._values.append((now_s, value))
        while self._values[0][0] < now_s - self._seconds:
            self._values.popleft()
        return [one for _, one in self._values]


class _Offset:
    """Delay that is not of our making: it stays when nothing of ours is in the link.

    A link that became longer looks like a queue that never empties, and so does other people's traffic. Where packets
    queue up for long, we pause until nothing is in flight, and what the next packets are delayed by is not ours.

    Who takes such a delay for a queue thinks that packets left as fast as they were sent: what was then known as the
    link's rate is `doubted_kbit_s`, until another is.
    """

    def __init__(self, calm_ms: float) -> None:
        self.ms = 0.0
        self.pausing = False
        self.doubted_kbit_s: float | None = None
        self._calm_ms = calm_ms
        self._calm_s: float | None = None
        self._pause_s = self._watch_s = -math.inf
        self._least_ms = math.inf

    def update(self, state: LinkState, now_s: float) -> None:
        """Take note of the link's state."""
        self.ms = min(self.ms, state.queue_ms)
        if self._calm_s is None or state.queue_ms - self.ms < self._calm_ms or state.overdue_ms > 0:
            self._calm_s = now_s
        if self.pausing:
            self._pause(state, now_s)
        elif now_s < self._watch_s:
            if now_s > self._watch_s - _WATCH_S:
                self._least_ms = min(self._least_ms, state.queue_ms)
        elif self._least_ms < math.inf:
            self.ms, self._least_ms, self._calm_s = self._least_ms, math.inf, now_s
            self.doubted_kbit_s = state.capacity_kbit_s
        elif now_s - self._calm_s > _TIRED_S:
            self.pausing, self._pause_s = True, now_s

    def _pause(self, state: LinkState, now_s: float) -> None:
        # One that is not heard of in twice the time that is usual is lost, or its receipt; more than one is an outage.
        usual_ms = max(state.rtt_ms, state.base_rtt_ms + state.queue_ms)
        last_lost = state.overdue_ms == 0 and now_s - self._pause_s > 2 * usual_ms / 1000 + _RECEIPTS_S
        if state.in_flight_bytes == 0 or last_lost:
            self.pausing = False
            self._watch_s = now_s + state.rtt_ms / 1000 + _WATCH_S
        elif now_s - self._pause_s > _PAUSE_S:
            self.pausing, self._calm_s = False, now_s


class _Losses:
    """Losses beyond what is usual; usual is what a lower rate did not change."""

    def __init__(self) -> None:
        self._usual = 0.0
        self._cut_s = -math.inf
        self._at_cut = 0.0

    def too_many(self, state: LinkState, now_s: float, passed_s: float) -> bool:
        """Whether the rate should be cut now."""
        if state.loss < self._usual:
            self._usual += (state.loss - self._usual) * passed_s / _FORGIVE_S
        wait_s = _LOSS_S + state.rtt_ms / 1000
        if state.loss <= self._usual + LOSS or now_s < self._cut_s + wait_s:
            return False
        if now_s < self._cut_s + 2 * wait_s and state.loss > 0.7 * self._at_cut:
            self._usual = state.loss
            return False
        self._cut_s, self._at_cut = now_s, state.loss
        return True


class DelayRule:
    """Holds the queueing delay near `target_ms`; need not know the link's rate. Rates are in kbit/s, headers in.

    Until the link's state is known, and for ever where the gateway sends no receipts, the rate is `start_kbit_s` at
    most. It is never below `floor_kbit_s`, unless it starts there.
    """

    def __init__(self, *, target_ms: float = 100.0, start_kbit_s: float = 200.0, floor_kbit_s: float = 20.0) -> None:
        self._target_ms, self._start, self._floor = target_ms, start_kbit_s, floor_kbit_s
        self._rate = start_kbit_s
        self._held = self._draining = False
        self._updated_s: float | None = None
        self._cut_s = self._halved_s = -math.inf
        self._halvings = 0
        self._queues, self._sends = _Recent(_STANDING_S), _Recent(_USED_S)
        self._offset, self._losses = _Offset(target_ms / 2), _Losses()

    @property
    def target_kbit_s(self) -> float:
        """What may be sent, headers counted in."""
        return self._rate

    @property
    def held(self) -> bool:
        """Whether nothing is to be sent now, because the link is draining."""
        return self._held

    def update(self, state: LinkState | None, now_s: float, *, wanted_kbit_s: float | None = None) -> None:
        """Take note of the link's state, at least once per frame.

        `wanted_kbit_s` is the rate of the next better thing that the source could send: so far the rate rises, however
        little is sent. Without it the rate rises to twice what is sent.
        """
        passed_s = 0.0 if self._updated_s is None else min(now_s - self._updated_s, _LONGEST_STEP_S)
        self._updated_s = now_s
        if state is None:
            self._rate, self._held = min(self._rate, self._start), False
            return
        self._offset.update(state, now_s)
        standing_ms = min(self._queues.add(state.queue_ms, now_s)) - self._offset.ms
        backlog_ms = state.backlog_ms - self._offset.ms
        used_kbit_s = max(self._sends.add(state.sent_kbit_s, now_s))
        if standing_ms > self._target_ms and backlog_ms > self._target_ms / 2:
            self._yield(state, now_s)
        elif self._losses.too_many(state, now_s, passed_s):
            self._cut(state.delivered_kbit_s, now_s)
        elif backlog_ms < self._target_ms:
            most = 2 * used_kbit_s if wanted_kbit_s is None else max(1.3 * used_kbit_s, 1.05 * wanted_kbit_s)
            self._grow(state, passed_s, room=1 - max(0.0, standing_ms) / self._target_ms, most=most)
        self._drain(state, standing_ms, backlog_ms)

    def _yield(self, state: LinkState, now_s: float) -> None:
        """Cut to what the link carries; while nothing is heard nobody knows what that is."""
        if state.queue_ms - state.overdue_ms - self._offset.ms > self._target_ms:
            self._halvings = 0
            self._cut(state.capacity_kbit_s or state.delivered_kbit_s, now_s)
        elif state.overdue_ms > SILENT_MS and self._halvings < HALVINGS and now_s >= self._halved_s + SILENT_MS / 1000:
            self._halved_s, self._halvings = now_s, self._halvings + 1
            self._rate = max(self._floor, self._rate / 2)

    def _cut(self, carried_kbit_s: float, now_s: float) -> None:
        self._rate = max(self._floor, min(self._rate, CUT * carried_kbit_s))
        self._cut_s = now_s

    def _grow(self, state: LinkState, passed_s: float, *, room: float, most: float) -> None:
        """Grow by a share per second, of which queueing leaves `room`, to `most`."""
        self._halvings = 0
        speed, full, now_s = FAST, state.capacity_kbit_s, self._updated_s or 0.0
        if full is not None and self._rate > NEAR * full and state.delivered_kbit_s < BEYOND * full:
            speed = min(FAST, GENTLE + HASTE * max(0.0, now_s - self._cut_s - PATIENCE_S))
            if full != self._offset.doubted_kbit_s:
                most = min(most, TRIED * full)
        most = max(self._floor, most)
        if self._rate < most:
            self._rate = min(most, self._rate * math.exp(speed * max(0.0, room) * passed_s))
        else:
            self._rate = max(most, self._rate * math.exp(-_IDLE_FALL * passed_s))

    def _drain(self, state: LinkState, standing_ms: float, backlog_ms: float) -> None:
        if self._draining:
            self._draining = backlog_ms > RELEASE * self._target_ms
        else:
            self._draining = standing_ms > self._target_ms and backlog_ms > HOLD * self._target_ms
        probe_s = PROBE_S if state.overdue_ms < SILENT_MS else SLOW_PROBE_S
        self._held = self._offset.pausing or (self._draining and state.since_sent_ms < probe_s * 1000)
