"""Frames of one camera to packets, each a KEY or a WARP of the last one: who decides, and by what.

frame -> due? -> [motion since the key] -> body -> small enough? -> predicted agreement -> WARP
           +------------------------------------------+-------------------+--------------> [Encoder] -> KEY

A WARP refers to a KEY, never to another WARP: where one is lost, nothing else is.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from pipeline import motion
from pipeline.bitstream import MAX_AGE
from pipeline.bundle import Bundle
from pipeline.codec import Encoder, open_encoder, packet_of
from pipeline.errors import ConfigError
from pipeline.flow_coding import encode_flow, grid_of
from pipeline.keys import KeyTable
from pipeline.messages import Frame, Kind, Packet, Region
from pipeline.motion import Motion, MotionTracker

LONGEST_AGE = 30  # frames, of a key where a threshold decides: so long at most lasts what a lost KEY spoils
_CLEARLY_SMALLER = 0.75  # of the key's body; a WARP that saves less is not worth its errors


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """The WARP that a frame could be: its motion since its key, `age` frames ago, and the body that codes it."""

    motion: Motion
    age: int
    body: bytes


Predictor = Callable[[Candidate], float]
"""The share of pixels, 0 to 100, that would have the same class in the warped mask as in a fresh one."""


def linear_agreement(candidate: Candidate) -> float:
    """A plain guess at the agreement, for bundles that bring no better one.

    The residual is in grey levels, the gradient in px from node to node; the length of the flow says nothing more.
    Fitted, without labels, to the agreement with fresh masks of the bundle camvid-holdout at level 6: CamVid val, two
    clips of street and car park, two rendered streets, a key at every 5th frame and ages 1 to 12, least absolute
    differences, each video with the same weight. Its rank correlation with the agreement is 0.8 to 0.95 within a
    moving camera's video, and 0.4 in the car park, where masks change although nothing moves.
    """
    flow, residual = candidate.motion.flow, candidate.motion.residual
    gradient = float(np.abs(np.diff(flow, axis=1)).mean() + np.abs(np.diff(flow, axis=2)).mean())
    doubt = 0.21 * candidate.age + 0.77 * float(residual.mean()) + 0.134 * gradient + 0.0133 * len(candidate.body)
    return min(max(99.6 - doubt, 0.0), 100.0)


@dataclass(frozen=True, slots=True)
class KeyPolicy:
    """When a frame has to be a KEY: its key would be older than `longest_age` frames (0: each frame is a KEY), or the
    predicted agreement of a WARP is below `least_agreement`, 0 to 100. Raises ConfigError on values out of range.
    """

    longest_age: int = 0
    least_agreement: float = 0.0
    predict: Predictor = linear_agreement

    def __post_init__(self) -> None:
        if not 0 <= self.longest_age <= MAX_AGE:
            raise ConfigError(f"longest key age {self.longest_age}: must be 0 to {MAX_AGE} frames")
        if not 0 <= self.least_agreement <= 100:  # not a number is out of range too
            raise ConfigError(f"threshold {self.least_agreement}: must be 0 to 100 percent of the pixels")


EVERY_FRAME = KeyPolicy()


def at_interval(frames: int) -> KeyPolicy:
    """One KEY in so many frames, whatever they show; ConfigError where it is not 1 to 256."""
    if not 1 <= frames <= MAX_AGE + 1:
        raise ConfigError(f"key interval {frames}: must be 1 to {MAX_AGE + 1} frames")
    return KeyPolicy(longest_age=frames - 1)


def at_threshold(
    agreement: float, *, longest_age: int = LONGEST_AGE, predict: Predictor = linear_agreement
) -> KeyPolicy:
    """A KEY where less agreement than this, in percent of the pixels, is predicted; ConfigError as KeyPolicy."""
    return KeyPolicy(longest_age, agreement, predict)


class VideoEncoder:
    """Turns the frames of one camera into packets, each one KEY or one WARP; keep it on one thread."""

    def __init__(self, encoder: Encoder, bundle: Bundle, *, policy: KeyPolicy = EVERY_FRAME) -> None:
        height, width = bundle.manifest.height, bundle.manifest.width
        self._encoder, self._bundle, self._policy = encoder, bundle, policy
        self._tracker, self._grid = MotionTracker(height, width), grid_of(height, width)
        self._table = KeyTable(longest_age=policy.longest_age)
        self._key_bytes = 0  # of the last key's body

    @property
    def quality(self) -> int:
        """The quality level of the frames to come; the first one of another level is a KEY."""
        return self._encoder.quality

    @quality.setter
    def quality(self, quality: int) -> None:
        self._encoder.quality = quality

    def request_key(self) -> None:
        """Make the next packet a KEY."""
        self._table = self._table.request([0])

    def encode(self, frame: Frame) -> Packet:
        """One frame -> one packet; ValueError when the image has another size."""
        packet = self._warp(frame) or self._key(frame)
        self._table = self._table.sent(packet)
        return packet

    def _warp(self, frame: Frame) -> Packet | None:
        """The WARP packet of a frame, unless it has to be a KEY or is better one."""
        head = packet_of(frame, b"", bundle=self._bundle.id, quality=self._encoder.quality)
        if self._table.due(head):
            return None
        age = self._table.age(head, 0)
        found = self._tracker.track(frame.image, age)
        candidate = Candidate(found, age, encode_flow(found.coefficients, self._grid))
        if len(candidate.body) > _CLEARLY_SMALLER * self._key_bytes:
            return None
        if not self._policy.predict(candidate) >= self._policy.least_agreement:  # what is not a number is no promise
            return None
        return replace(head, regions=(Region(Kind.WARP, 0, age, candidate.body),))

    def _key(self, frame: Frame) -> Packet:
        packet = self._encoder.encode(frame)
        if self._policy.longest_age:
            self._tracker.start(frame.image)
        self._key_bytes = len(packet.regions[0].body)
        return packet


def open_video_encoder(
    bundle: Bundle,
    *,
    engine: str = "auto",
    threads: int = 0,
    quality: int | None = None,
    policy: KeyPolicy = EVERY_FRAME,
) -> VideoEncoder:
    """A camera's half for video, ready and warm; ConfigError when the bundle has no such quality level."""
    encoder = open_encoder(bundle, engine=engine, threads=threads, quality=quality)
    if policy.longest_age:
        motion.warm_up_tracking()
    return VideoEncoder(encoder, bundle, policy=policy)
