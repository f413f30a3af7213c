"""A camera on a simulated link, and what its viewers see: footage -> packets -> link -> masks, in simulated time.

A worker that lacks a KEY asks for one; a mask stands until the next one comes. What viewers see is held, at every
frame of the source, against a fresh mask of the highest level.
"""

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.footage import Footage
from benchmarks.link_simulation import Settings, Simulation
from benchmarks.link_traces import Trace
from pipeline.choosing import Chooser
from pipeline.link import LinkState
from pipeline.operating_points import HEADER_BYTES, LONGEST_AGE, OperatingPoint, Sent
from pipeline.rate_rule import DelayRule
from pipeline.reward import BITS_PRICE, LATE_PRICE, LATE_S, Reward

WORK_S = 0.04  # for coding, queue and worker, from capture to mask beside the link
_PACKET_BYTES = 34  # of a packet beside the body of its one region
_CLEARLY_SMALLER = 0.75  # as in pipeline.video_encoder
_BURST_S = 0.1  # of what the link takes, saved up at most, as in nodes.rate_control
_UNHEARD_S = 0.05  # one way, while nothing was heard
_NOTICED_S, _ASK_APART_S = 1.0, 0.5  # until a packet counts as lost; between two requests for a KEY


@dataclass(frozen=True, slots=True)
class Shot:
    """One frame that was sent: its number, that of its KEY, their level, the packet's bytes and place on the link."""

    frame: int
    key: int
    level: int
    size_bytes: int
    sequence: int
    key_sequence: int


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What came of a run, per second: true rewards in percent (S,), measured ones (S,) where there are, kbit/s (S,).

    By frame of the source: true agreement in percent (N,), target in kbit/s (N,), queueing delay in s (N,), points.
    By mask that was shown: how late it came, in s (M,).
    """

    rewards: NDArray[np.float64]
    measured: NDArray[np.float64]
    kbit_s: NDArray[np.float64]
    agreement: NDArray[np.float64]
    targets: NDArray[np.float64]
    queues_s: NDArray[np.float64]
    points: list[OperatingPoint]
    latencies_s: NDArray[np.float64]


class Constant:
    """A chooser that has no choice."""

    wanted_kbit_s: float | None = None
    earned: Reward | None = None

    def __init__(self, point: OperatingPoint) -> None:
        self.point, self.points = point, (point,)

    def update(self, link: LinkState | None, target_kbit_s: float, now_s: float, *, latency_s: float) -> OperatingPoint:
        return self.point

    def sent(self, frame: Sent, now_s: float) -> None: ...

    def unchanged(self, now_s: float) -> None: ...

    def stood(self, seconds: float) -> None: ...

    def choose_from(self, points: Sequence[OperatingPoint]) -> None: ...

    def begin_anew(self) -> None: ...


class SimulatedCamera:
    """Sends footage over a link, at the points that a chooser sets and within what the delay rule allows."""

    def __init__(self, footage: Footage, chooser: Chooser, trace: Trace, *, seconds: int, seed: int = 0) -> None:
        self._footage, self._chooser = footage, chooser
        self._rule = DelayRule()
        settings = Settings(seconds, fps=footage.fps, seed=seed, header_bytes=HEADER_BYTES)
        self._link = Simulation(trace, random.Random(seed), settings)
        self._seconds, self._frames = seconds, round(seconds * footage.fps)
        self._shots: list[Shot] = []
        self._last: Shot | None = None  # whose KEY can be gone on from
        self._life = 0  # frames sent since that KEY
        self._unchecked: deque[Shot] = deque()
        self._asked_s, self._due_s = -np.inf, np.inf  # a KEY: when last asked for; when the camera hears of it
        self._credit = 1.0  # frames
        self._credit_bytes = 0.0

    def run(self) -> Outcome:
        """From the first frame to the last."""
        measured = np.full(self._seconds, np.nan)
        targets, queues_s, points = np.zeros(self._frames), np.zeros(self._frames), []
        for frame in range(self._frames):
            now_s = frame / self._footage.fps
            self._link.run_until(now_s)
            link = self._link.meter.state(now_s)
            self._rule.update(link, now_s, wanted_kbit_s=self._chooser.wanted_kbit_s)
            base_s = _UNHEARD_S if link is None else link.base_rtt_ms / 2000
            target = self._rule.target_kbit_s
            point = self._chooser.update(link, target, now_s, latency_s=base_s + WORK_S)
            self._obey(now_s, base_s)
            self._send(frame, now_s, point)
            targets[frame], queues_s[frame] = target, 0.0 if link is None else link.queue_ms / 1000
            points.append(point)
            if self._chooser.earned is not None:
                measured[max(int(now_s) - 1, 0)] = self._chooser.earned.total
        self._link.run_until(self._seconds + 30.0)
        return self._outcome(measured, targets, queues_s, points)

    def _obey(self, now_s: float, base_s: float) -> None:
        """Find out where a worker lacks a KEY; what it asks for comes as late as the link is long."""
        while self._unchecked:
            shot = self._unchecked[0]
            arrived_s = self._link.arrivals[shot.sequence]
            if arrived_s is None and now_s < shot.frame / self._footage.fps + _NOTICED_S:
                break
            self._unchecked.popleft()
            lacking = arrived_s is not None and self._link.arrivals[shot.key_sequence] is None
            if arrived_s is not None and lacking and now_s > self._asked_s + _ASK_APART_S:
                self._asked_s, self._due_s = now_s, arrived_s + base_s
        if now_s >= self._due_s:
            self._due_s = np.inf
            self._chooser.stood(2 * base_s)
            self._last = None

    def _send(self, frame: int, now_s: float, point: OperatingPoint) -> None:
        self._credit = min(self._credit + point.fps / self._footage.fps, 2.0 - 1e-6)
        room = self._rule.target_kbit_s * 125  # bytes per second
        self._credit_bytes = min(self._credit_bytes + room / self._footage.fps, room * _BURST_S)
        if self._rule.held or self._credit_bytes < 0 or self._credit < 1 - 1e-9:
            return
        self._credit -= 1
        last = self._last if self._last is not None and self._last.level == point.quality else None
        sent = self._coded(frame, None if last is None else last.key, point)
        self._credit_bytes -= sent.size_bytes + HEADER_BYTES
        sequence = self._link.send(sent.size_bytes, now_s)
        key, key_sequence = (frame, sequence) if sent.keyed or last is None else (last.key, last.key_sequence)
        self._last = Shot(frame, key, point.quality, sent.size_bytes, sequence, key_sequence)
        self._life = 0 if sent.keyed else self._life + 1
        self._shots.append(self._last)
        self._unchecked.append(self._last)
        self._chooser.sent(sent, now_s)

    def _coded(self, frame: int, key: int | None, point: OperatingPoint) -> Sent:
        """A frame as WARP of a KEY, or as KEY."""
        footage, level = self._footage, point.quality
        key_size = footage.key_bytes(frame, level) + _PACKET_BYTES
        if key is None or self._life >= LONGEST_AGE:
            return Sent(level, True, key_size)
        age, moved = frame - key, footage.moved(frame, frame - key, level)
        small = moved.body_bytes <= _CLEARLY_SMALLER * footage.key_bytes(key, level)
        keyed = moved.predicted < point.threshold or not small
        return Sent(
            level,
            keyed,
            key_size if keyed else moved.body_bytes + _PACKET_BYTES,
            predicted=moved.predicted,
            age_s=age / footage.fps,
            speed_px_s=moved.speed_px * footage.fps,
        )

    def _outcome(
        self,
        measured: NDArray[np.float64],
        targets: NDArray[np.float64],
        queues_s: NDArray[np.float64],
        points: list[OperatingPoint],
    ) -> Outcome:
        agreement, shown = self._seen()
        sent_s = np.array([shot.frame / self._footage.fps for shot in self._shots])
        sizes = [shot.size_bytes + HEADER_BYTES for shot in self._shots]
        kbit_s = np.bincount(sent_s.astype(np.int64), weights=sizes, minlength=self._seconds) / 125
        second = (np.arange(self._frames) / self._footage.fps).astype(np.int64)
        quality = np.bincount(second, weights=agreement) / np.bincount(second)
        late_s = np.array([_late_s(shown, one) for one in range(self._seconds)])
        rewards = quality - LATE_PRICE * np.maximum(late_s - LATE_S, 0) - BITS_PRICE * kbit_s / 1000
        latencies_s = np.array([late for _, late in shown])
        return Outcome(rewards, measured, kbit_s, agreement, targets, queues_s, points, latencies_s)

    def _seen(self) -> tuple[NDArray[np.float64], list[tuple[float, float]]]:
        """Agreement (N,) of what is on the screen, percent; when each mask that was shown was captured, how late."""
        footage, arrivals = self._footage, self._link.arrivals
        coming = []
        for shot in self._shots:
            own_s, key_s = arrivals[shot.sequence], arrivals[shot.key_sequence]
            if own_s is not None and key_s is not None:
                coming.append((max(own_s, key_s) + WORK_S, shot))
        coming.sort(key=lambda one: one[0])
        agreement, shown, newest, at = np.zeros(self._frames), [], None, 0
        for frame in range(self._frames):
            while at < len(coming) and coming[at][0] <= (frame + 0.5) / footage.fps:
                come_s, shot = coming[at]
                at += 1
                if newest is None or shot.frame > newest.frame:
                    newest = shot
                    shown.append((shot.frame / footage.fps, come_s - shot.frame / footage.fps))
            if newest is not None:
                mask = footage.mask(newest.frame, newest.frame - newest.key, newest.level)
                agreement[frame] = footage.agreement(mask, frame)
        return agreement, shown


def _late_s(shown: list[tuple[float, float]], second: int) -> float:
    """How late masks captured in a second were, on average; a second without any counts as one late."""
    found = [late for captured_s, late in shown if second <= captured_s < second + 1]
    return sum(found) / len(found) if found else 1.0
