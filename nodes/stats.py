"""What a worker keeps of each camera it serves: the order of its frames, its clock and its statistics."""

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import structlog
from numpy.typing import NDArray

from pipeline import metrics
from pipeline.mask_order import FORGET_S, frames_after
from pipeline.messages import FrameId, Kind, Packet

_WINDOWS = 5  # the percentiles of latency are over this many intervals, one alone is too few frames
_SETTLE_MS, _SETTLE_PACKETS = 6000, 10
# A wrong clock is wrong by the same amount, a backlog is not. Between the halves of a while this is a backlog that
# grows by 33 ms a second; jitter of the network does not move the least age of each half.
_STEADY_MS = 100
_LATE = 512  # ages kept of a while; of more each two neighbours become one
_SLOT_MS, _SLOTS = 10_000, 6  # a clock that was ahead for a while is believed again after a minute
_OLD_EPOCHS = 8
_SILENT_S = 5.0  # a camera that is silent for longer is not spoken of
_ABSENT = "absent"  # what regions are called that are not in a packet
_CAMERAS = 1024  # a stranger may make up names without end

log = structlog.get_logger()


class Order:
    """Lets the frames of one camera pass in order: each newer than the last, and no epoch that is over.

    Both are forgotten after a while, as by `MaskOrder`: a camera that starts again may draw an epoch that was.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: FrameId | None = None
        self._passed_s = 0.0
        self._over: dict[int, float] = {}  # epochs, and when they ended, the newest last

    def admit(self, id: FrameId) -> bool:
        """Whether the frame is newer than all that passed; if so it is the newest now."""
        last, now_s = self._last, self._clock()
        if last is not None and now_s - self._passed_s < FORGET_S:
            if id.epoch == last.epoch:
                if frames_after(id, last) <= 0:
                    return False
            elif now_s - self._over.get(id.epoch, -FORGET_S) < FORGET_S:
                return False
            else:
                self._end(last.epoch, now_s)
        self._last, self._passed_s = id, now_s
        return True

    def _end(self, epoch: int, now_s: float) -> None:
        self._over = {one: at_s for one, at_s in self._over.items() if one != epoch} | {epoch: now_s}
        if len(self._over) > _OLD_EPOCHS:
            del self._over[next(iter(self._over))]


class CaptureClock:
    """Tells how old a frame is although the camera's wall clock may be wrong.

    Packets that are too old are dropped, and that empties any backlog at once. So when all packets of a while are
    too old, the least of them by about the same all the time, or a packet comes from the future, it is the clock
    that is off: the least age then seen, or seen in the last minute, counts as none.
    """

    def __init__(self, camera: str, *, deadline_ms: int) -> None:
        self.offset_ms = 0
        self._camera, self._deadline_ms = camera, deadline_ms
        self._least: dict[int, int] = {}  # least age as the clock says, of each slot of the last minute
        self._late: list[int] = []  # such ages of the late packets since the last timely one
        self._late_since_ms = 0

    def age_ms(self, captured_ms: int, *, now_ms: int) -> int:
        """Milliseconds since capture, never negative."""
        return max(0, now_ms - captured_ms - self.offset_ms)

    def learn(self, captured_ms: int, *, now_ms: int) -> None:
        """Take note of a packet that just came."""
        raw_ms = now_ms - captured_ms
        self._note_least(raw_ms, now_ms // _SLOT_MS)
        if self.offset_ms > 0:
            self.offset_ms = min(self.offset_ms, max(0, raw_ms))
        else:
            self.offset_ms = min(0, *self._least.values())
        if raw_ms - self.offset_ms > self._deadline_ms > 0:
            self._note_late(raw_ms, now_ms)
        else:
            self._late.clear()

    def _note_least(self, raw_ms: int, slot: int) -> None:
        self._least[slot] = min(raw_ms, self._least.get(slot, raw_ms))
        if len(self._least) > _SLOTS or min(self._least) <= slot - _SLOTS:
            self._least = {at: ms for at, ms in self._least.items() if slot - _SLOTS < at <= slot}

    def _note_late(self, raw_ms: int, now_ms: int) -> None:
        if not self._late or now_ms < self._late_since_ms:  # the worker's own clock may be set back
            self._late, self._late_since_ms = [], now_ms
        if len(self._late) >= _LATE:
            self._late = list(map(min, self._late[::2], self._late[1::2]))
        self._late.append(raw_ms)
        if len(self._late) <= _SETTLE_PACKETS or now_ms - self._late_since_ms < _SETTLE_MS:
            return
        middle = len(self._late) // 2
        before_ms, after_ms = min(self._late[:middle]), min(self._late[middle:])
        least_ms = min(before_ms, after_ms)
        self._late.clear()
        if abs(after_ms - before_ms) <= _STEADY_MS:
            self._least.clear()
            self.offset_ms = 0 if 0 <= least_ms <= self._deadline_ms else least_ms
            log.warning("the camera's clock is off", camera=self._camera, behind_ms=self.offset_ms)


@dataclass(frozen=True, slots=True)
class MaskFacts:
    """What one published mask adds to the statistics.

    `share` (K,) is the part of the pixels per class, `zones` the same of each zone of the camera.
    """

    latency_ms: float
    share: NDArray[np.float64]
    zones: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)


class CameraStats:
    """The statistics of one camera, over intervals that each end with a summary."""

    def __init__(self, class_names: Sequence[str]) -> None:
        self._class_names = class_names
        self.drops: Counter[str] = Counter()  # since this worker first saw the camera
        self._latencies_ms: deque[list[float]] = deque([[]], maxlen=_WINDOWS)
        # What the last interval with masks showed: the last mask stands while none comes.
        self._shown: dict[str, object] = {"share": self._by_class(np.zeros(len(class_names))), "zones": {}}
        self._begin()

    def _begin(self) -> None:
        self.masks = self._bytes = 0
        self._kinds: Counter[str] = Counter()  # regions, by what they are called in the summary
        self._kind_bytes: Counter[str] = Counter()
        self._share = np.zeros(len(self._class_names))
        self._zones: dict[str, tuple[NDArray[np.float64], int]] = {}  # by name: sums, and of how many masks

    def take(self, packet: Packet, *, size_bytes: int) -> None:
        """Count a packet that came and what its regions are, whatever becomes of it."""
        self._bytes += size_bytes
        shown = {region.index: region.shows for region in packet.regions if region.shows is not None}
        self._kinds[_ABSENT] += packet.rows * packet.columns - len(shown)
        self._kinds.update(map(_called, shown.values()))
        for region in packet.regions:
            self._kind_bytes[_called(region.shows or region.kind)] += len(region.body)

    def mask(self, facts: MaskFacts) -> None:
        """Count a mask that was published."""
        self.masks += 1
        self._latencies_ms[-1].append(facts.latency_ms)
        self._share += facts.share
        for name, share in facts.zones.items():
            total, masks = self._zones.get(name, (np.zeros_like(share), 0))
            self._zones[name] = (total + share, masks + 1)

    def summary(self, elapsed_s: float) -> dict[str, object]:
        """The JSON of docs/wire.md, section 2, for the interval of this length, which ends here."""
        latencies_ms = [each for window in self._latencies_ms for each in window]
        p50, p95 = np.percentile(latencies_ms, (50, 95)).tolist() if latencies_ms else (None, None)
        if self.masks:
            zones = {name: self._by_class(total / masks) for name, (total, masks) in self._zones.items()}
            self._shown = {"share": self._by_class(self._share / self.masks), "zones": zones}
        sent = self._kinds.total() - self._kinds[_ABSENT]
        facts = {
            "fps": round(self.masks / elapsed_s, 2),
            "kbit_s": round(self._bytes * 8 / 1000 / elapsed_s, 2),
            "latency_p50_ms": p50 and round(p50, 1),
            "latency_p95_ms": p95 and round(p95, 1),
            "drops": dict(self.drops),
            **self._shown,
            "key_share": round(self._kinds[_called(Kind.KEY)] / max(1, sent), 4),
            "kinds": self._kinds_summary(elapsed_s),
            "masks": self.masks,
        }
        self._latencies_ms.append([])
        self._begin()
        return facts

    def _by_class(self, share: NDArray[np.float64]) -> dict[str, float]:
        return dict(zip(self._class_names, share.round(4).tolist(), strict=True))

    def _kinds_summary(self, elapsed_s: float) -> dict[str, dict[str, float]]:
        return {
            kind: {
                "regions_s": round(count / elapsed_s, 2),
                "kbit_s": round(self._kind_bytes[kind] * 8 / 1000 / elapsed_s, 2),
            }
            for kind in sorted(self._kinds | self._kind_bytes)
            if (count := self._kinds[kind]) or self._kind_bytes[kind]
        }


def _called(kind: Kind) -> str:
    return kind.name.lower()


@dataclass(slots=True, eq=False)
class Served:
    """A camera as a worker sees it."""

    clock: CaptureClock
    stats: CameraStats
    heard_s: float
    order: Order
    mismatch_told: bool = False
    waiting_epoch: int | None = None  # the last one in which frames waited for a KEY after them


class Cameras:
    """The cameras a worker serves; one that is silent is forgotten after a while, or for a new one when full."""

    def __init__(
        self,
        class_names: Sequence[str],
        *,
        deadline_ms: int,
        limit: int = _CAMERAS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._class_names, self._deadline_ms, self._clock = class_names, deadline_ms, clock
        self._limit = limit
        self._served: dict[str, Served] = {}

    def of(self, name: str) -> Served:
        """The camera of that name, which may be new."""
        camera = self._served.get(name)
        if camera is None:
            if len(self._served) >= self._limit:
                self._forget(min(self._served, key=lambda each: self._served[each].heard_s))
            clock = CaptureClock(name, deadline_ms=self._deadline_ms)
            camera = self._served[name] = Served(
                clock, CameraStats(self._class_names), self._clock(), Order(clock=self._clock)
            )
        return camera

    def heard_of_late(self) -> dict[str, Served]:
        """The cameras that sent something within some seconds, by name."""
        silent_s = {name: self._clock() - camera.heard_s for name, camera in self._served.items()}
        for name in [name for name in self._served if silent_s[name] > FORGET_S]:
            self._forget(name)
        return {name: each for name, each in self._served.items() if silent_s[name] <= _SILENT_S}

    def __contains__(self, name: str) -> bool:
        return name in self._served

    def _forget(self, name: str) -> None:
        del self._served[name]
        metrics.forget(name)
