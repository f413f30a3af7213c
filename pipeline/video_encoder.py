"""Frames of one camera to packets, each region a KEY, or a WARP or DELTA of its last one: who decides, and by what.

region -> due? -> [motion since the key] -> body -> small enough? -> predicted agreement -> WARP
            |                                          |                   +-- nearly ----> [Encoder] -> DELTA
            +------------------------------------------+-------------------+--------------> [Encoder] -> KEY

A WARP or DELTA refers to a KEY, never to another of its kind: where one is lost, nothing else is.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipeline import delta, motion
from pipeline.bitstream import MAX_AGE, MAX_REGIONS
from pipeline.bundle import Bundle
from pipeline.codec import Encoder, check_quality, grid_named, open_encoder, packet_of
from pipeline.delta import Delta
from pipeline.errors import ConfigError
from pipeline.flow_coding import FlowGrid, encode_flow, grid_of
from pipeline.keys import KeyTable
from pipeline.messages import Frame, Kind, Packet, Region
from pipeline.motion import Motion, MotionTracker
from pipeline.regions import Grid, split

LONGEST_AGE = 30  # frames, of a key where a threshold decides: so long at most lasts what a lost KEY spoils
DELTA_MARGIN = 2.0  # percent of the pixels
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
    predicted agreement of a WARP is below `least_agreement`, 0 to 100. Where it is below by `delta_margin` at most, and
    `delta_level` names the level of its latents, a DELTA will do. Raises ConfigError on values out of range.
    """

    longest_age: int = 0
    least_agreement: float = 0.0
    predict: Predictor = linear_agreement
    delta_level: int | None = None
    delta_margin: float = DELTA_MARGIN

    def __post_init__(self) -> None:
        if not 0 <= self.longest_age <= MAX_AGE:
            raise ConfigError(f"longest key age {self.longest_age}: must be 0 to {MAX_AGE} frames")
        if not 0 <= self.least_agreement <= 100:  # not a number is out of range too
            raise ConfigError(f"threshold {self.least_agreement}: must be 0 to 100 percent of the pixels")
        if not 0 <= self.delta_margin <= 100:
            raise ConfigError(f"margin of a DELTA {self.delta_margin}: must be 0 to 100 percent of the pixels")


EVERY_FRAME = KeyPolicy()


def at_interval(frames: int) -> KeyPolicy:
    """One KEY in so many frames, whatever they show; ConfigError where it is not 1 to 256."""
    if not 1 <= frames <= MAX_AGE + 1:
        raise ConfigError(f"key interval {frames}: must be 1 to {MAX_AGE + 1} frames")
    return KeyPolicy(longest_age=frames - 1)


def at_threshold(
    agreement: float,
    *,
    longest_age: int = LONGEST_AGE,
    predict: Predictor = linear_agreement,
    delta_level: int | None = None,
) -> KeyPolicy:
    """A KEY where less agreement than this, in percent of the pixels, is predicted; ConfigError as KeyPolicy."""
    return KeyPolicy(longest_age, agreement, predict, delta_level)


def key_policy(*, key_interval: int | None, threshold: float | None) -> KeyPolicy:
    """What commands and settings ask for: one KEY in so many frames at least, and sooner where the threshold says so.

    With neither each frame is a KEY; ConfigError as `at_interval` and `at_threshold`.
    """
    if threshold is None:
        return EVERY_FRAME if key_interval is None else at_interval(key_interval)
    longest_age = LONGEST_AGE if key_interval is None else at_interval(key_interval).longest_age
    return at_threshold(threshold, longest_age=longest_age)


@dataclass(slots=True, eq=False)
class _Followed:
    """What the camera knows of one region: its motion since its key, how that is coded, the bytes of the key's body."""

    tracker: MotionTracker
    flow: FlowGrid
    key_bytes: int = 0


class VideoEncoder:
    """Turns the frames of one camera into packets of a grid, each region KEY, WARP or DELTA; keep it on one thread.

    The grid is that of `encoder`, 1x1 where none is given. Every packet has all regions: one that was left out would
    tell a worker that missed its key nothing.
    """

    def __init__(
        self, encoder: Encoder, bundle: Bundle, *, policy: KeyPolicy = EVERY_FRAME, grid: Grid | None = None
    ) -> None:
        self._encoder, self._bundle, self._policy = encoder, bundle, policy
        self._grid = grid or Grid(1, 1, bundle.manifest.height, bundle.manifest.width)
        pictures = [place.picture for place in self._grid.places]
        self._followed = [
            _Followed(MotionTracker(*size), grid_of(*size)) for size in ((p.height, p.width) for p in pictures)
        ]
        self._table = KeyTable(longest_age=policy.longest_age)

    @property
    def quality(self) -> int:
        """The quality level of the frames to come; the first one of another level is a KEY."""
        return self._encoder.quality

    @quality.setter
    def quality(self, quality: int) -> None:
        self._encoder.quality = quality

    def request_key(self, regions: Iterable[int] = range(MAX_REGIONS)) -> None:
        """Make these regions of the next packet KEY, or all; those that the grid does not have are passed over."""
        self._table = self._table.request(regions)

    def encode(self, frame: Frame) -> Packet:
        """One frame -> one packet; ValueError when the image has another size."""
        pictures, head = split(frame.image, self._grid), self._head(frame)
        due = self._table.due(head)
        candidates = [index for index in range(self._grid.count) if index not in due]
        moved = [self._moved(frame, head, index, pictures[index]) for index in candidates]
        packet = self._with_keys(frame, replace(head, regions=tuple(filter(None, moved))), pictures)
        self._table = self._table.sent(packet)
        return packet

    def _head(self, frame: Frame) -> Packet:
        head = packet_of(frame, b"", bundle=self._bundle.id, quality=self._encoder.quality)
        return replace(head, rows=self._grid.rows, columns=self._grid.columns, regions=())

    def _moved(self, frame: Frame, head: Packet, index: int, picture: NDArray[np.uint8]) -> Region | None:
        """A region as WARP or DELTA, unless it is better a KEY."""
        followed, age = self._followed[index], self._table.age(head, index)
        found = followed.tracker.track(picture, age)
        candidate = Candidate(found, age, encode_flow(found.coefficients, followed.flow))
        kind = self._kind(candidate)
        body = self._delta(frame, candidate.body) if kind is Kind.DELTA else candidate.body
        if kind is Kind.KEY or len(body) > _CLEARLY_SMALLER * followed.key_bytes:
            return None
        return Region(kind, index, age, body)

    def _with_keys(self, frame: Frame, packet: Packet, pictures: Sequence[NDArray[np.uint8]]) -> Packet:
        """The packet with KEYs for all regions that it lacks."""
        present = {region.index for region in packet.regions}
        lacking = [index for index in range(self._grid.count) if index not in present]
        if not lacking:
            return packet
        keys = self._encoder.encode(frame, lacking) if present else self._encoder.encode(frame)
        for region in keys.regions:
            followed = self._followed[region.index]
            followed.key_bytes = len(region.body)
            if self._policy.longest_age:
                followed.tracker.start(pictures[region.index])
        regions = sorted((*packet.regions, *keys.regions), key=lambda region: region.index)
        return replace(keys, regions=tuple(regions))

    def _kind(self, candidate: Candidate) -> Kind:
        """What the frame is to be, if that is small enough; what is not a number is no promise."""
        policy, agreement = self._policy, self._policy.predict(candidate)
        if agreement >= policy.least_agreement:
            return Kind.WARP
        nearly = agreement >= policy.least_agreement - policy.delta_margin
        whole = self._grid.count == 1  # all that a DELTA is there for
        return Kind.DELTA if nearly and whole and policy.delta_level is not None else Kind.KEY

    def _delta(self, frame: Frame, flow: bytes) -> bytes:
        level = self._policy.delta_level or 0
        return delta.join(Delta(level, flow, self._encoder.body(frame.image, level)))


def open_video_encoder(
    bundle: Bundle,
    *,
    engine: str = "auto",
    threads: int = 0,
    quality: int | None = None,
    policy: KeyPolicy = EVERY_FRAME,
    grid: str | None = None,
) -> VideoEncoder:
    """A camera's half for video, ready and warm; ConfigError when the bundle has no such quality level or grid.

    `grid`, such as 2x2, is the bundle's own unless told.
    """
    regions = grid_named(bundle, grid)
    encoder = open_encoder(bundle, engine=engine, threads=threads, quality=quality, grid=regions)
    if policy.delta_level is not None:
        check_quality(bundle, policy.delta_level)
    if policy.longest_age:
        motion.warm_up_tracking()
    return VideoEncoder(encoder, bundle, policy=policy, grid=regions)
