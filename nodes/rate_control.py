"""Fits what a camera sends to its link: whether the next frame is sent, at which level, with which threshold.

receipt -> LinkMeter -> DelayRule -> kbit/s -> Ladder or Bandit -> OperatingPoint -> [sent now?] -> encoder
              ^                                      ^                                               |
              +---------------- packets that left ---+---------------- packets as they were coded <--+

It only ever takes away: no level, threshold or frame rate is above what the camera's settings ask for.
"""

import math
import time
from collections import deque
from collections.abc import Callable

from pipeline import metrics
from pipeline.bitstream import MAX_AGE
from pipeline.choosing import Chooser
from pipeline.link import LinkMeter
from pipeline.messages import FrameId, Kind, Packet
from pipeline.operating_points import HEADER_BYTES, OperatingPoint, Sent
from pipeline.rate_rule import DelayRule
from pipeline.receipts import unpack_receipt
from pipeline.stream_encoder import Tried

_WORK_S = 0.03  # from capture to packet and from packet to mask, beside the link
_EARLY = 0.5  # of the source's own frame interval: so much sooner a frame may come than its turn is
_BURST_S = 0.1  # of what the link takes, saved up at most
_NO_LIMIT_KBIT_S = 1e6


class RateControl:
    """That of one camera; keep it on the event loop.

    `choose` makes what chooses, for a highest level and the source's frames per second; these are asked for when the
    first frame comes, since a source that is waited for tells them late. Without a `rule` only the pinned `max_kbit_s`
    holds, and no receipts are asked for.
    """

    def __init__(
        self,
        choose: Callable[[int, float], Chooser],
        *,
        quality: int,
        rule: DelayRule | None,
        max_kbit_s: float | None,
        source_fps: Callable[[], float],
        header_bytes: int = HEADER_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._choose, self._quality, self._rule, self._max_kbit_s = choose, quality, rule, max_kbit_s
        self._chosen: Chooser | None = None
        self._fps = 0.0  # of the source, when it was last chosen for
        self._source_fps, self._header_bytes, self._clock = source_fps, header_bytes, clock
        self._meter = LinkMeter(header_bytes=header_bytes)
        self._updated_s = clock()
        self._credit_bytes = 0.0
        self._due_s = clock()  # when the next frame has its turn
        self._came_s: deque[float] = deque(maxlen=MAX_AGE)  # when the frames came that were coded

    @property
    def asks_receipts(self) -> bool:
        """Whether the gateway is to tell what arrives."""
        return self._rule is not None

    @property
    def _chooser(self) -> Chooser:
        if self._chosen is None:
            self._fps = self._source_fps()
            self._chosen = self._choose(self._quality, self._fps)
        return self._chosen

    @property
    def point(self) -> OperatingPoint:
        """Level, threshold and frame rate for the next frame."""
        return self._chooser.point

    @property
    def max_kbit_s(self) -> float | None:
        """The rate that is pinned, headers counted in, if one is."""
        return self._max_kbit_s

    def limit(self, max_kbit_s: float | None) -> None:
        """Pin the rate, headers counted in, from now on; None lets go."""
        self._max_kbit_s = max_kbit_s

    def cap(self, quality: int) -> None:
        """Choose no level above this one from now on, at once; what was learned of scene and link is kept."""
        if self._chosen is not None:
            same = quality == self._quality
            self._chosen.choose_from((self._chosen if same else self._choose(quality, self._source_fps())).points)
        self._quality = quality

    def key_lost(self) -> None:
        """Take note that a worker asked for a KEY: what was shown since it was sent is of no use."""
        state = self._meter.state(self._clock())
        if self._chosen is not None:  # else it is about a camera of that name before us
            self._chosen.stood(0.0 if state is None else state.rtt_ms / 1000)

    def begin_anew(self) -> None:
        """Forget what was known of the link: it may be another one now, after a time without it."""
        self._meter.reset()
        if self._chosen is not None:
            self._chosen.begin_anew()

    def admits(self) -> bool:
        """Whether the frame that came may be sent; to be asked for each of the source."""
        now_s = self._clock()
        self._follow_source(now_s)
        self._update(now_s)
        if (self._rule is not None and self._rule.held) or self._credit_bytes < 0:
            return False
        return now_s >= self._due_s - _EARLY / self._source_fps()

    def coded(self, packet: Packet, size_bytes: int, tried: tuple[Tried, ...]) -> None:
        """Take note of a frame as it was coded, before it leaves."""
        now_s = self._clock()
        self._due_s = max(self._due_s + 1 / self.point.fps, now_s)
        self._credit_bytes -= size_bytes + self._header_bytes
        keyed = any(region.kind is Kind.KEY for region in packet.regions)
        predicted = [one.predicted for one in tried if one.predicted is not None and math.isfinite(one.predicted)]
        ages_s = [self._updated_s - self._came_s[-one.age] for one in tried if one.age <= len(self._came_s)]
        age_s = sum(ages_s) / len(ages_s) if ages_s else None
        self._came_s.append(self._updated_s)
        self._chooser.sent(
            Sent(
                quality=packet.quality,
                keyed=keyed,
                size_bytes=size_bytes,
                predicted=sum(predicted) / len(predicted) if predicted else None,
                age_s=age_s,
                speed_px_s=sum(one.flow_px for one in tried) / len(tried) / age_s if age_s else None,
            ),
            now_s,
        )

    def unchanged(self) -> None:
        """Take note of a frame that showed nothing new: the mask that stands is as good as its own would be."""
        self._chooser.unchanged(self._clock())

    def left(self, frame: FrameId, size_bytes: int) -> None:
        """Take note of a packet that was handed to the channel."""
        self._meter.sent(frame, size_bytes, self._clock())

    def heard(self, payload: bytes) -> None:
        """Take note of a receipt; raises BitstreamError where it is none."""
        self._meter.receipt(unpack_receipt(payload), self._clock())

    def _follow_source(self, now_s: float) -> None:
        """Choose anew where the source has another frame rate now; what was learned of scene and link is kept."""
        if self._chosen is not None and (fps := self._source_fps()) != self._fps:
            self._chosen.choose_from(self._choose(self._quality, fps).points)
            self._fps, self._due_s = fps, min(self._due_s, now_s)

    def _update(self, now_s: float) -> None:
        """Bring rule, point and credit up to now."""
        state = self._meter.state(now_s)
        target_kbit_s = _NO_LIMIT_KBIT_S
        if self._rule is not None:
            self._rule.update(state, now_s, wanted_kbit_s=self._chooser.wanted_kbit_s)
            target_kbit_s = self._rule.target_kbit_s
        if self._max_kbit_s is not None:
            target_kbit_s = min(target_kbit_s, self._max_kbit_s)
        way_s = 0.0 if state is None else state.base_rtt_ms / 2000
        self._chooser.update(state, target_kbit_s, now_s, latency_s=way_s + _WORK_S)
        earned_bytes = target_kbit_s * 125 * (now_s - self._updated_s)
        self._credit_bytes = min(self._credit_bytes + earned_bytes, target_kbit_s * 125 * _BURST_S)
        self._updated_s = now_s
        self._tell(target_kbit_s, 0.0 if state is None else state.queue_ms / 1000)

    def _tell(self, target_kbit_s: float, queue_s: float) -> None:
        metrics.CAMERA_TARGET.set(target_kbit_s)
        metrics.CAMERA_QUEUE.set(queue_s)
        metrics.CAMERA_LEVEL.set(self.point.quality)
        metrics.CAMERA_THRESHOLD.set(self.point.threshold)
        metrics.CAMERA_FPS.set(self.point.fps)
