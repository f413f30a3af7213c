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
from pipeline.bitstream import MAX_REGIONS
from pipeline.bundle import Bundle
from pipeline.codec import Encoder, grid_named, open_encoder, packet_of
from pipeline.deciding import Candidate, Decider, open_decider
from pipeline.flow_coding import FlowGrid, encode_flow, grid_of
from pipeline.key_policies import EVERY_FRAME, KeyPolicy
from pipeline.keys import KeyTable
from pipeline.messages import Frame, Kind, Packet, Region
from pipeline.motion import MotionTracker
from pipeline.regions import CELL_PX, Grid, split
from pipeline.stream_encoder import CLEARLY_SMALLER, StreamEncoder, Tried
from pipeline.triggers import Trigger


@dataclass(slots=True, eq=False)
class _Followed:
    """What the camera knows of one region: its motion since its key, how that is coded, the bytes of the key's body."""

    tracker: MotionTracker
    flow: FlowGrid
    trigger: Trigger
    key_bytes: int = 0


class VideoEncoder(StreamEncoder):
    """Turns the frames of one camera into packets of a grid, each region KEY or WARP.

    The grid is that of `encoder`, 1x1 where none is given. Every packet has all regions: one that was left out would
    tell a worker that missed its key nothing.
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
        super().__init__(encoder, bundle, policy, decider)
        self._grid = grid or Grid(1, 1, bundle.manifest.height, bundle.manifest.width)
        sizes = [(place.picture.height, place.picture.width) for place in self._grid.places]
        self._followed = [_Followed(MotionTracker(*size), grid_of(*size), self._new_trigger()) for size in sizes]
        self._table = KeyTable(longest_age=policy.longest_age)

    @property
    def _regions(self) -> int:
        return self._grid.count

    def _renew_triggers(self) -> None:
        for followed in self._followed:
            followed.trigger = self._new_trigger()

    def request_key(self, regions: Iterable[int] = range(MAX_REGIONS)) -> None:
        self._table = self._table.request(regions)

    @property
    def key_asked(self) -> bool:
        return any(index < self._grid.count for index in self._table.wanted)

    def packets(self, frame: Frame) -> tuple[Packet, ...]:
        return (self.encode(frame),)

    def flush(self) -> tuple[Packet, ...]:
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
        self._catch_up()
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
    decider = None if policy == EVERY_FRAME else open_decider(bundle, engine=engine)
    return VideoEncoder(encoder, bundle, policy=policy, grid=regions, decider=decider)
