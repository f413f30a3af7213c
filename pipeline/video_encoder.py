"""Frames of one camera to packets, each region a KEY, or a WARP of its last one: who decides, and by what.

region -> due? -> [motion since the key] -> body -> [trigger] -> small enough? -> WARP
            |                                           |               +---------> [Encoder] -> KEY
            +-------------------------------------------+-- of which level -------> [Encoder] -> KEY

A WARP refers to a KEY, never to another WARP: where one is lost, nothing else is.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipeline import motion
from pipeline.bitstream import MAX_AGE, MAX_REGIONS
from pipeline.bundle import Bundle
from pipeline.codec import Encoder, grid_named, open_encoder, packet_of
from pipeline.deciding import GRAPH, Candidate, Decider, Predictor, linear_agreement, open_decider, usual_bytes
from pipeline.errors import ConfigError
from pipeline.flow_coding import FlowGrid, encode_flow, grid_of
from pipeline.keys import KeyTable
from pipeline.messages import Frame, Kind, Packet, Region
from pipeline.motion import MotionTracker
from pipeline.regions import CELL_PX, Grid, split
from pipeline.triggers import FALL, MAX_PRICE, RISE, Always, Bargain, Threshold, Trigger

LONGEST_AGE = 30  # frames, of a key where a trigger decides: so long at most lasts what a lost KEY spoils
_ONE_OF_TWO = "a threshold and a price are two ways to decide on a KEY; give only one of the two"
CLEARLY_SMALLER = 0.75  # of the key's body; a WARP that saves less is not worth its errors


@dataclass(frozen=True, slots=True)
class KeyPolicy:
    """When a region has to be a KEY: its key would be older than `longest_age` frames (0: each frame is a KEY), or the
    trigger says so. That is a threshold on the predicted agreement, `least_agreement`, 0 to 100, which KEYs lower and
    WARPs raise if it is `moving`; or, with a `price`, in percent of the pixels for 1000 bytes, the best bargain, which
    also chooses the level of each KEY, up to the one that is asked for. `predict` stands in for the bundle's own
    prediction in a threshold. Raises ConfigError on values out of range.
    """

    longest_age: int = 0
    least_agreement: float = 0.0
    price: float | None = None
    predict: Predictor | None = None
    moving: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.longest_age <= MAX_AGE:
            raise ConfigError(f"longest key age {self.longest_age}: must be 0 to {MAX_AGE} frames")
        if not 0 <= self.least_agreement <= 100:  # not a number is out of range too
            raise ConfigError(f"threshold {self.least_agreement}: must be 0 to 100 percent of the pixels")
        if self.price is not None and not 0 < self.price <= MAX_PRICE:
            raise ConfigError(f"price {self.price}: must be above 0, and {MAX_PRICE:g} at most")
        if self.price is not None and self.least_agreement:
            raise ConfigError(_ONE_OF_TWO)


EVERY_FRAME = KeyPolicy()


def at_interval(frames: int) -> KeyPolicy:
    """One KEY in so many frames, whatever they show; ConfigError where it is not 1 to 256."""
    if not 1 <= frames <= MAX_AGE + 1:
        raise ConfigError(f"key interval {frames}: must be 1 to {MAX_AGE + 1} frames")
    return KeyPolicy(longest_age=frames - 1)


def at_threshold(
    agreement: float, *, longest_age: int = LONGEST_AGE, predict: Predictor | None = None, moving: bool = False
) -> KeyPolicy:
    """A KEY where less agreement than this, in percent of the pixels, is predicted; ConfigError as KeyPolicy."""
    return KeyPolicy(longest_age, agreement, predict=predict, moving=moving)


def at_price(price: float, *, longest_age: int = LONGEST_AGE) -> KeyPolicy:
    """A KEY where it is the better bargain, and of the level that is; ConfigError as KeyPolicy."""
    return KeyPolicy(longest_age, price=price)


def key_policy(
    *, key_interval: int | None = None, threshold: float | None = None, price: float | None = None
) -> KeyPolicy:
    """What commands and settings ask for: one KEY in so many frames at least, and sooner where the trigger says so.

    With none of them each frame is a KEY; ConfigError as the policies' own.
    """
    if threshold is not None and price is not None:
        raise ConfigError(_ONE_OF_TWO)
    if threshold is None and price is None:
        return EVERY_FRAME if key_interval is None else at_interval(key_interval)
    longest_age = LONGEST_AGE if key_interval is None else at_interval(key_interval).longest_age
    return KeyPolicy(longest_age, threshold or 0.0, price)


def trigger_of(policy: KeyPolicy, bundle: Bundle, decider: Decider | None, *, regions: int = 1) -> Trigger:
    """That of one of so many regions; ConfigError where the policy needs a graph that the bundle does not have."""
    if policy.price is None:
        predict = policy.predict or decider or linear_agreement
        if not policy.least_agreement:
            return Always()
        fall, rise = (FALL, RISE) if policy.moving else (0.0, 0.0)
        return Threshold(predict, policy.least_agreement, fall=fall, rise=rise)
    if decider is None:
        raise ConfigError(
            f"price {policy.price:g}: bundle {bundle.manifest.name} has no graph {GRAPH} to decide by; "
            "add one with maskcast train-decide, or use a threshold"
        )
    levels = [usual_bytes(bundle.manifest, level) for level in range(bundle.tables.levels)]
    # All KEYs of a packet are of one level, so that where there are several regions none of them chooses it.
    cheapest = 0 if regions == 1 else len(levels)
    return Bargain(decider.compare, levels, price=policy.price, cheapest=cheapest)


@dataclass(slots=True, eq=False)
class _Followed:
    """What the camera knows of one region: its motion since its key, how that is coded, the bytes of the key's body."""

    tracker: MotionTracker
    flow: FlowGrid
    trigger: Trigger
    key_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Tried:
    """What the WARP of one region would have been like, whether it was sent or not.

    Its key is `age` frames old, the flow since `flow_px` pixels long on average; `predicted` is the agreement in
    percent with a fresh mask, None where nothing predicts it.
    """

    age: int
    flow_px: float
    predicted: float | None


class VideoEncoder:
    """Turns the frames of one camera into packets of a grid, each region KEY or WARP; keep it on one thread.

    The grid is that of `encoder`, 1x1 where none is given. Every packet has all regions: one that was left out would
    tell a worker that missed its key nothing. `decider` is the bundle's own, if it has one.
    """

    def __init__(
        self,
        encoder: Encoder,
        bundle: Bundle,
        *,
        policy: KeyPolicy = EVERY_FRAME,
        grid: Grid | None = None,
        decider: Decider | None = None,
    ) -> None:
        self._encoder, self._bundle, self._policy = encoder, bundle, policy
        self._decider = decider
        self._grid = grid or Grid(1, 1, bundle.manifest.height, bundle.manifest.width)
        sizes = [(place.picture.height, place.picture.width) for place in self._grid.places]
        self._followed = [_Followed(MotionTracker(*size), grid_of(*size), self._trigger()) for size in sizes]
        self._table = KeyTable(longest_age=policy.longest_age)
        self._quality = encoder.quality
        self._outdated = False  # KEYs are of another level than those to come
        self.tried: tuple[Tried, ...] = ()  # of the last frame, where keys were not due anyway

    def _trigger(self) -> Trigger:
        return trigger_of(self._policy, self._bundle, self._decider, regions=self._grid.count)

    @property
    def quality(self) -> int:
        """The quality level of the frames to come, and where a price is set the highest; a new one gives a KEY."""
        return self._quality

    @quality.setter
    def quality(self, quality: int) -> None:
        if quality != self._quality or self._outdated:
            self._quality = self._encoder.quality = quality
            self._outdated = False
            self.request_key()  # a trigger may have gone down to that very level, and weighs levels it no longer has

    @property
    def threshold(self) -> float:
        """The least agreement, in percent of the pixels, that a WARP has to promise; a new one holds at once.

        ConfigError where a price decides, or on a value out of range.
        """
        return self._policy.least_agreement

    @threshold.setter
    def threshold(self, agreement: float) -> None:
        if agreement != self._policy.least_agreement:
            self._policy = replace(self._policy, least_agreement=agreement)
            for followed in self._followed:
                followed.trigger = self._trigger()

    def code_keys_at(self, quality: int) -> None:
        """Change the level of the KEYs to come, and ask for none: the next one is due when it was.

        A packet has KEYs of one level only, so that a grid of several regions sends all of them at once; and a price
        weighs each level against that of the key, so that there one is sent at once too.
        """
        if self._grid.count > 1 or self._policy.price is not None:
            self.quality = quality
        elif quality != self._quality:
            self._quality, self._outdated = quality, True

    def request_key(self, regions: Iterable[int] = range(MAX_REGIONS)) -> None:
        """Make these regions of the next packet KEY, or all; those that the grid does not have are passed over."""
        self._table = self._table.request(regions)

    @property
    def key_asked(self) -> bool:
        """Whether a key was asked for that no packet has brought yet."""
        return any(index < self._grid.count for index in self._table.wanted)

    def packets(self, frame: Frame) -> tuple[Packet, ...]:
        """The same as `encode`, where frames may wait."""
        return (self.encode(frame),)

    def flush(self) -> tuple[Packet, ...]:
        """Those of frames that wait: none does."""
        return ()

    def encode(self, frame: Frame) -> Packet:
        """One frame -> one packet; ValueError when the image has another size."""
        pictures, head = split(frame.image, self._grid), self._head(frame)
        due = self._table.due(head)
        candidates = [index for index in range(self._grid.count) if index not in due]
        self.tried = ()
        moved = [self._moved(head, index, pictures[index]) for index in candidates]
        packet = self._with_keys(frame, replace(head, regions=tuple(filter(None, moved))), pictures)
        self._table = self._table.sent(packet)
        return packet

    def _head(self, frame: Frame) -> Packet:
        head = packet_of(frame, b"", bundle=self._bundle.id, quality=self._encoder.quality)
        return replace(head, rows=self._grid.rows, columns=self._grid.columns, regions=())

    def _moved(self, head: Packet, index: int, picture: NDArray[np.uint8]) -> Region | None:
        """A region as WARP, unless it is better a KEY."""
        followed, age = self._followed[index], self._table.age(head, index)
        found = followed.tracker.track(picture, age)
        body = encode_flow(found.coefficients, followed.flow)
        size = picture.shape[0], picture.shape[1]
        candidate = Candidate(found, age, len(body), followed.key_bytes, head.quality, self._quality, size)
        level = followed.trigger.key_level(candidate)
        flow_px = float(np.hypot(*found.flow).mean())
        self.tried = (*self.tried, Tried(age, flow_px, followed.trigger.predicted))
        if level is not None:
            self._encoder.quality = level
            return None
        return None if len(body) > CLEARLY_SMALLER * followed.key_bytes else Region(Kind.WARP, index, age, body)

    def _with_keys(self, frame: Frame, packet: Packet, pictures: Sequence[NDArray[np.uint8]]) -> Packet:
        """The packet with KEYs for all regions that it lacks."""
        present = {region.index for region in packet.regions}
        lacking = [index for index in range(self._grid.count) if index not in present]
        if not lacking:
            return packet
        if self._outdated:
            self._encoder.quality, self._outdated = self._quality, False
        keys = self._encoder.encode(frame, lacking) if present else self._encoder.encode(frame)
        for region in keys.regions:
            followed = self._followed[region.index]
            followed.key_bytes = len(region.body)
            followed.trigger.keyed(len(region.body))
            if self._policy.longest_age:
                followed.tracker.start(pictures[region.index], self._outline(region.index))
        regions = sorted((*packet.regions, *keys.regions), key=lambda region: region.index)
        return replace(keys, regions=tuple(regions))

    def _outline(self, index: int) -> NDArray[np.float32] | None:
        """Where the mask of the frame that was just encoded has edges in one region's window."""
        whole = self._encoder.outline
        return None if whole is None else whole[self._grid.places[index].window.at(CELL_PX)]


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

    `grid`, such as 2x2, is the bundle's own unless told. ConfigError too where the policy asks for what it lacks.
    """
    regions = grid_named(bundle, grid)
    encoder = open_encoder(
        bundle, engine=engine, threads=threads, quality=quality, grid=regions, outlines=policy.longest_age > 0
    )
    if policy.longest_age:
        motion.warm_up_tracking()
    decider = None if policy == EVERY_FRAME else open_decider(bundle)
    return VideoEncoder(encoder, bundle, policy=policy, grid=regions, decider=decider)
