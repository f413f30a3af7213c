"""What a worker keeps of each camera it serves: the order of its frames, its clock and its statistics."""

import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import structlog
from numpy.typing import NDArray

from pipeline.messages import FrameId

_WINDOWS = 5  # the percentiles of latency are over this many intervals, one alone is too few frames
_SETTLE_MS, _SETTLE_PACKETS = 3000, 10
_STEADY_MS = 500  # a wrong clock is wrong by the same amount, a backlog is not
_OLD_EPOCHS = 8
_SILENT_S = 5.0  # a camera that is silent for longer is not spoken of
_FORGET_S = 60.0

log = structlog.get_logger()


class Order:
    """Lets the frames of one camera pass in order: each newer than the last, and no epoch that is over."""

    def __init__(self) -> None:
        self._last: FrameId | None = None
        self._over: deque[int] = deque(maxlen=_OLD_EPOCHS)

    def admit(self, id: FrameId) -> bool:
        """Whether the frame is newer than all that passed; if so it is the newest now."""
        last = self._last
        if last is not None:
            if id.epoch in self._over or (id.epoch == last.epoch and id.sequence <= last.sequence):
                return False
            if id.epoch != last.epoch:
                self._over.append(last.epoch)
        self._last = id
        return True


class CaptureClock:
    """Tells how old a frame is although the camera's wall clock may be wrong.

    Packets that are too old are dropped, and that empties any backlog at once. So when all packets of a while are
    too old by about the same, or a packet comes from the future, it is the clock that is off: the least age then
    seen counts as none.
    """

    def __init__(self, camera: str, *, deadline_ms: int) -> None:
        self.offset_ms = 0
        self._camera, self._deadline_ms = camera, deadline_ms
        self._late: list[int] = []  # ages as the clock says, of the late packets since the last timely one
        self._late_since_ms = 0

    def age_ms(self, captured_ms: int, *, now_ms: int) -> int:
        """Milliseconds since capture, never negative."""
        raw_ms = now_ms - captured_ms
        self.offset_ms = min(self.offset_ms, raw_ms if self.offset_ms <= 0 else max(0, raw_ms))
        if raw_ms - self.offset_ms > self._deadline_ms > 0:
            self._note_late(raw_ms, now_ms)
        else:
            self._late.clear()
        return max(0, raw_ms - self.offset_ms)

    def _note_late(self, raw_ms: int, now_ms: int) -> None:
        if not self._late:
            self._late_since_ms = now_ms
        self._late.append(raw_ms)
        if len(self._late) <= _SETTLE_PACKETS or now_ms - self._late_since_ms < _SETTLE_MS:
            return
        least_ms, most_ms = min(self._late), max(self._late)
        self._late.clear()
        if most_ms - least_ms <= _STEADY_MS:
            self.offset_ms = 0 if 0 <= least_ms <= self._deadline_ms else least_ms
            log.warning("the camera's clock is off", camera=self._camera, behind_ms=self.offset_ms)


@dataclass(frozen=True, slots=True)
class MaskFacts:
    """What one published mask adds to the statistics; `share` (K,) is the part of the pixels per class."""

    latency_ms: float
    share: NDArray[np.float64]


class CameraStats:
    """The statistics of one camera, over intervals that each end with a summary."""

    def __init__(self, class_names: Sequence[str]) -> None:
        self._class_names = class_names
        self.drops: Counter[str] = Counter()  # since this worker first saw the camera
        self._latencies_ms: deque[list[float]] = deque([[]], maxlen=_WINDOWS)
        self._begin()

    def _begin(self) -> None:
        self.masks = self._bytes = self._keys = self._regions = 0
        self._share = np.zeros(len(self._class_names))

    def packet(self, *, size_bytes: int, keys: int, regions: int) -> None:
        """Count a packet that came, whatever becomes of it."""
        self._bytes += size_bytes
        self._keys += keys
        self._regions += regions

    def mask(self, facts: MaskFacts) -> None:
        """Count a mask that was published."""
        self.masks += 1
        self._latencies_ms[-1].append(facts.latency_ms)
        self._share += facts.share

    def summary(self, elapsed_s: float) -> dict[str, object]:
        """The JSON of WIRE.md section 2 for the interval of this length, which ends here."""
        latencies_ms = [each for window in self._latencies_ms for each in window]
        p50, p95 = np.percentile(latencies_ms, (50, 95)).tolist() if latencies_ms else (None, None)
        share = self._share / max(1, self.masks)
        facts = {
            "fps": round(self.masks / elapsed_s, 2),
            "kbit_s": round(self._bytes * 8 / 1000 / elapsed_s, 2),
            "latency_p50_ms": p50 and round(p50, 1),
            "latency_p95_ms": p95 and round(p95, 1),
            "drops": dict(self.drops),
            "share": dict(zip(self._class_names, share.round(4).tolist(), strict=True)),
            "key_share": round(self._keys / max(1, self._regions), 4),
            "masks": self.masks,
        }
        self._latencies_ms.append([])
        self._begin()
        return facts


@dataclass(slots=True, eq=False)
class Served:
    """A camera as a worker sees it."""

    clock: CaptureClock
    stats: CameraStats
    heard_s: float
    order: Order = field(default_factory=Order)
    mismatch_told: bool = False


class Cameras:
    """The cameras a worker serves; one that is silent is forgotten after a while."""

    def __init__(
        self, class_names: Sequence[str], *, deadline_ms: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._class_names, self._deadline_ms, self._clock = class_names, deadline_ms, clock
        self._served: dict[str, Served] = {}

    def of(self, name: str) -> Served:
        """The camera of that name, which may be new."""
        camera = self._served.get(name)
        if camera is None:
            clock = CaptureClock(name, deadline_ms=self._deadline_ms)
            camera = self._served[name] = Served(clock, CameraStats(self._class_names), self._clock())
        return camera

    def heard_of_late(self) -> dict[str, Served]:
        """The cameras that sent something within some seconds, by name."""
        silent_s = {name: self._clock() - camera.heard_s for name, camera in self._served.items()}
        self._served = {name: each for name, each in self._served.items() if silent_s[name] <= _FORGET_S}
        return {name: each for name, each in self._served.items() if silent_s[name] <= _SILENT_S}
