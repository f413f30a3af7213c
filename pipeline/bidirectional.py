"""Frames between two KEYs, each told from both sides: an encoder that lets frames wait for the KEY after them.

frame -> due, or [trigger]? --no--> waits; once too many do, the first of them leaves as WARP
                 +--yes--> KEY -> [motion to it] -> those that waited, as WARP and BACK, the first of them with the KEY

What comes to light between two KEYs is seen in the one after it, and motion is half as far: bidirectional coding, as
with the B pictures of video codecs. Packets leave in the order of time, so that nothing behind the camera is reordered:
the KEY itself travels in the first packet that refers to it, and its own frame only says that it is the one.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from pipeline import motion
from pipeline.bitstream import MAX_AGE, MAX_REGIONS
from pipeline.bundle import Bundle
from pipeline.codec import Encoder, grid_named, open_encoder, packet_of
from pipeline.deciding import Candidate, Decider, open_decider
from pipeline.errors import ConfigError
from pipeline.flow_coding import encode_flow, grid_of, opposite
from pipeline.key_policies import EVERY_FRAME, KeyPolicy
from pipeline.mask_order import frames_after
from pipeline.messages import Frame, FrameId, Kind, Packet, Region
from pipeline.motion import Motion, MotionTracker, Traced
from pipeline.stream_encoder import CLEARLY_SMALLER, StreamEncoder, Tried
from pipeline.video_encoder import open_video_encoder

# A bit must save so many times as much of the motion from the nearer key, and of that from the other, as of a WARP's.
_NEAR, _FAR = 6.0, 24.0
MAX_LOOKAHEAD = 30


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    """A frame that may refer to a KEY to come, and its motion from the KEY before it, `age` frames ago."""

    frame: Frame
    age: int
    traced: Traced
    motion: Motion
    body: bytes


@dataclass(frozen=True, slots=True, eq=False)
class _Sent:
    """The KEY that frames refer to."""

    id: FrameId
    quality: int
    body_bytes: int


class BidirectionalEncoder(StreamEncoder):
    """Turns the frames of one camera into packets of whole frames, up to `lookahead` of them waiting for the next KEY.

    A frame has both, motion from the KEY before it and from the one after it, if that came in time; else it is a WARP
    as any other. KEYs are due as with VideoEncoder; with one, motion is followed back through all frames that waited,
    which takes as long as so many WARPs. They wait for as long as the source stalls. Keep it on one thread; ConfigError
    as VideoEncoder, and where every frame is a KEY.
    """

    def __init__(
        self, encoder: Encoder, bundle: Bundle, *, policy: KeyPolicy, lookahead: int, decider: Decider | None = None
    ) -> None:
        check_lookahead(policy, lookahead)
        super().__init__(encoder, bundle, policy, decider)
        self._lookahead = lookahead
        size = bundle.manifest.height, bundle.manifest.width
        self._size, self._flow = size, grid_of(*size)
        self._forward, self._backward = MotionTracker(*size), MotionTracker(*size)
        self._trigger = self._new_trigger()
        self._waiting: list[_Waiting] = []  # oldest first
        self._key: _Sent | None = None
        self._wanted = False

    @property
    def _regions(self) -> int:
        return 1

    def _renew_triggers(self) -> None:
        self._trigger = self._new_trigger()

    def request_key(self, regions: Iterable[int] = range(MAX_REGIONS)) -> None:
        self._wanted = self._wanted or 0 in regions

    @property
    def key_asked(self) -> bool:
        return self._wanted

    def packets(self, frame: Frame) -> tuple[Packet, ...]:
        if frame.image.shape != (*self._size, 3):
            raise ValueError(f"image {frame.image.shape}; expected {self._size[0]}x{self._size[1]}x3")
        age, self.tried = self._age(frame), ()
        early = self.flush() if age is None else ()  # of before the camera's stream began anew
        if age is not None and self._key is not None and not self._wanted and age <= self._policy.longest_age:
            waiting = self._warped(frame, age, self._key)
            if waiting is not None:
                self._waiting.append(waiting)
                return self._release(self._lookahead)
        return (*early, *self._keyed(frame))

    def flush(self) -> tuple[Packet, ...]:
        return self._release(0)

    def _release(self, most: int) -> tuple[Packet, ...]:
        """The oldest of the frames that wait, until no more than so many do, as WARPs."""
        count = max(len(self._waiting) - most, 0)
        leaving, self._waiting = self._waiting[:count], self._waiting[count:]
        return tuple(self._packet(one, Region(Kind.WARP, 0, one.age, one.body)) for one in leaving)

    def _age(self, frame: Frame) -> int | None:
        """How many frames ago the last KEY was; None where nothing can refer to it, or the frame is none to come."""
        if self._key is None or self._key.id.epoch != frame.id.epoch:
            return None
        if self._waiting and frames_after(frame.id, self._waiting[-1].frame.id) < 1:
            return None
        age = frames_after(frame.id, self._key.id)
        return age if 1 <= age <= MAX_AGE else None

    def _warped(self, frame: Frame, age: int, key: _Sent) -> _Waiting | None:
        """What the frame is as WARP of the last KEY, unless it is better a KEY."""
        traced = self._forward.trace(frame.image, age)
        found = traced.fitted(self._flow)
        body = encode_flow(found.coefficients, self._flow)
        candidate = Candidate(found, age, len(body), key.body_bytes, key.quality, self._quality, self._size)
        level = self._trigger.key_level(candidate)
        self.tried = (Tried(age, float(np.hypot(*found.flow).mean()), self._trigger.predicted),)
        if level is not None:
            self._encoder.quality = level
        if level is not None or len(body) > CLEARLY_SMALLER * key.body_bytes:
            return None
        return _Waiting(frame, age, traced, found, body)

    def _keyed(self, frame: Frame) -> tuple[Packet, ...]:
        """The frame as KEY, after those that waited for it."""
        self._catch_up()
        key = self._encoder.encode(frame)
        body, outline = key.regions[0].body, self._encoder.outline
        waited, self._waiting = self._waiting, []
        self._key, self._wanted = _Sent(frame.id, key.quality, len(body)), False
        self._trigger.keyed(len(body))
        self._forward.start(frame.image, outline)
        if not waited:
            return (key,)
        self._backward.start(frame.image, outline)
        ages = [frames_after(frame.id, one.frame.id) for one in waited]
        regions = [self._told(one, age) for one, age in zip(reversed(waited), reversed(ages), strict=True)][::-1]
        regions[0] = (Region(Kind.KEY, 0, ages[0], body), *regions[0])
        between = [self._packet(one, *told) for one, told in zip(waited, regions, strict=True)]
        return (*between, replace(key, regions=(Region(Kind.BACK, 0, 0, b""),)))

    def _told(self, waiting: _Waiting, ahead: int) -> tuple[Region, ...]:
        """A frame as moved from the KEY before it and from that so many frames after it, the newest frame first."""
        back, warp = self._backward.trace(waiting.frame.image, ahead), waiting.traced
        near, far = (warp, back) if waiting.age <= ahead else (back, warp)
        known = near.fitted(self._flow, rate_weight=motion.RATE_WEIGHT * _NEAR).coefficients
        more = far.beyond(opposite(known, near.age, far.age), self._flow, rate_weight=motion.RATE_WEIGHT * _FAR)
        bodies = {near: encode_flow(known, self._flow), far: encode_flow(more, self._flow)}
        return Region(Kind.WARP, 0, waiting.age, bodies[warp]), Region(Kind.BACK, 0, ahead, bodies[back])

    def _packet(self, waiting: _Waiting, *regions: Region) -> Packet:
        quality = self._key.quality if self._key else self._quality
        return replace(packet_of(waiting.frame, b"", bundle=self._bundle.id, quality=quality), regions=regions)


def check_lookahead(policy: KeyPolicy, lookahead: int) -> int:
    """The lookahead as it is; ConfigError where it is out of range, or the policy is none that frames may wait for."""
    if not 1 <= lookahead <= MAX_LOOKAHEAD:
        raise ConfigError(f"lookahead {lookahead}: must be 1 to {MAX_LOOKAHEAD} frames, or 0 for none")
    if not policy.longest_age:
        raise ConfigError(f"lookahead {lookahead}: every frame is a KEY; give a key interval, threshold or price too")
    return lookahead


def open_stream_encoder(
    bundle: Bundle,
    *,
    engine: str = "auto",
    threads: int = 0,
    quality: int | None = None,
    policy: KeyPolicy = EVERY_FRAME,
    grid: str | None = None,
    lookahead: int = 0,
) -> StreamEncoder:
    """A camera's half for video, ready and warm, whose frames wait for a KEY where the lookahead is not 0.

    ConfigError as open_video_encoder, and where frames cannot wait: as KEYs all of them, or in regions.
    """
    if not lookahead:
        return open_video_encoder(bundle, engine=engine, threads=threads, quality=quality, policy=policy, grid=grid)
    if (regions := grid_named(bundle, grid)).count > 1:
        raise ConfigError(f"grid {regions.rows}x{regions.columns}: with a lookahead frames are whole; use 1x1")
    encoder = open_encoder(bundle, engine=engine, threads=threads, quality=quality, outlines=True)
    motion.warm_up_tracking()
    decider = open_decider(bundle, engine=engine)
    return BidirectionalEncoder(encoder, bundle, policy=policy, lookahead=lookahead, decider=decider)
