"""The regions of a packet: read, put together for the graphs, and shown; `codec` runs the graphs.

packet -> [read] -> parts, and the keys they refer to -> [canvas_of] -> graphs -> Outputs -> [show] -> Decoded
"""

import itertools
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipeline import canvas, motion
from pipeline.bundle import Bundle
from pipeline.class_map import class_map
from pipeline.errors import BitstreamError, BundleMismatch, ConfigError, MissingKey
from pipeline.flow_coding import FlowGrid, added, decode_flow, grid_of, node_flow, opposite
from pipeline.hysteresis import BorderShares, steadied
from pipeline.keys import CAMERAS, KeyBuffer, Stream, stream_of, too_many
from pipeline.latent_coding import Cells, decode_latents, dequantise, unknown_level
from pipeline.messages import SEQUENCES, Decoded, Kind, Mask, Packet, Region, Scores
from pipeline.regions import CELL_PX, LOGIT_PX, OVERLAP_PX, Grid, Place, Rectangle, merge, onto_last

_HALF = SEQUENCES // 2
_JUST_BEFORE_MS = 2000  # a mask of longer ago says nothing of the next one


@dataclass(frozen=True, slots=True, eq=False)
class Outputs:
    """What the graphs make of latents: logits (K, h4, w4), scores (K,); None where the bundle lacks the graph."""

    logits: NDArray[np.float32] | None
    scores: NDArray[np.float32] | None


@dataclass(slots=True, eq=False)
class HeldKey:
    """What there is of a region's key: latents (C, h, w) of its core, logits of its window, scores of its frame.

    The outputs are set once the graphs have run. Of a region that is the whole frame no latents are kept: they are
    for what is around other regions.
    """

    level: int
    latents: NDArray[np.float32] | None
    outputs: Outputs


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """What one region carries: latents (C, h, w) of a level, of a KEY; flow (2, R, C) from its key, of a WARP or BACK.

    Neither of a BACK that shows its frame's own KEY, which came before.
    """

    region: Region
    place: Place
    level: int
    latents: NDArray[np.float32] | None
    flow: NDArray[np.float32] | None


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """A packet of a camera, read: its parts, and by region the keys that they are or refer to, as far as they are here.

    `missing` says which keys are not here, by their region's index.
    """

    camera: str
    packet: Packet
    grid: Grid
    parts: tuple[Part, ...]
    keys: Mapping[Region, HeldKey]
    missing: Mapping[int, MissingKey]

    @property
    def level(self) -> int | None:
        """That of the latents which it brings, if any."""
        return next((part.level for part in self.parts if part.latents is not None), None)


def cells_of(core: Rectangle) -> Cells:
    """The places of the latent that are a region's own."""
    down, across = core.at(CELL_PX)
    return Cells(down.start, across.start, down.stop - down.start, across.stop - across.start)


def read(
    camera: str, packet: Packet, bundle: Bundle, buffer: KeyBuffer[HeldKey], *, overlap_px: int = OVERLAP_PX
) -> Reading:
    """Read all bodies of a packet, and only then take its keys into the buffer, or find those it refers to.

    Raises BundleMismatch, or BitstreamError where it is none that an encoder makes.
    """
    grid = _grid_of(packet, bundle, overlap_px)
    parts = tuple(read_parts(packet.regions, packet.quality, bundle, grid))
    keys: dict[Region, HeldKey] = {}
    missing: dict[int, MissingKey] = {}
    # First what refers to keys before the packet: one that comes ahead may push those out.
    for part in sorted(parts, key=lambda one: one.region.kind is not Kind.WARP):
        if part.latents is not None:
            held = HeldKey(part.level, part.latents if grid.count > 1 else None, Outputs(None, None))
            keys[part.region] = held
            buffer.put(packet, part.region.index, held, ahead=part.region.age)
            continue
        try:
            keys[part.region] = buffer.get(packet, part.region)
        except MissingKey as error:
            missing[part.region.index] = error
    return Reading(camera, packet, grid, parts, keys, missing)


def _grid_of(packet: Packet, bundle: Bundle, overlap_px: int) -> Grid:
    if packet.bundle != bundle.id:
        raise BundleMismatch(
            f"the packet is of bundle {packet.bundle.hex()}, this worker has {bundle.id.hex()}; "
            "start both with the same bundle"
        )
    if not 0 <= packet.quality < bundle.tables.levels:
        raise BitstreamError(unknown_level(bundle.tables, packet.quality))
    try:
        return Grid(packet.rows, packet.columns, bundle.manifest.height, bundle.manifest.width, overlap_px)
    except ConfigError as error:
        raise BitstreamError(f"packet: {error}") from error


def read_parts(regions: Sequence[Region], quality: int, bundle: Bundle, grid: Grid) -> Iterator[Part]:
    """What the regions of a packet of this level carry; BitstreamError where one is none that an encoder makes."""
    for index, group in itertools.groupby(regions, key=lambda region: region.index):
        place, same = grid.places[index], tuple(group)
        flows = _flows(same, grid_of(place.picture.height, place.picture.width))
        for region in same:
            latents = _latents(region.body, quality, bundle, place) if region.kind is Kind.KEY else None
            yield Part(region, place, quality, latents, flows.get(region))


def _latents(body: bytes, level: int, bundle: Bundle, place: Place) -> NDArray[np.float32]:
    return dequantise(decode_latents(body, bundle.tables, bundle.latent_size, level, cells_of(place.core)))


def _flows(regions: Sequence[Region], grid: FlowGrid) -> dict[Region, NDArray[np.float32]]:
    """The flow (2, R, C) of those that have one; of two, the one from farther away adds to what the other leads to
    expect."""
    found: dict[Region, NDArray[np.int16]] = {}
    for region in regions:
        if region.kind is Kind.DELTA:
            raise BitstreamError(f"region {region.index}: no version sends a DELTA")
        if region.kind is Kind.BACK and not region.age and region.body:
            raise BitstreamError(f"region {region.index}: a BACK to the frame's own KEY has nothing to say")
        if region.kind is not Kind.KEY and region.age:
            found[region] = decode_flow(region.body, grid)
    if len(found) == 2:
        near, far = by_distance(*found)
        found[far] = added(opposite(found[near], near.age, far.age), found[far])
    return {region: node_flow(one, grid) for region, one in found.items()}


def by_distance(warp: Region, back: Region) -> tuple[Region, Region]:
    """A frame's WARP and BACK, the one whose key is nearer in time first; the WARP, if they are as near."""
    return (warp, back) if warp.age <= back.age else (back, warp)


def canvas_of(reading: Reading, buffer: KeyBuffer[HeldKey]) -> NDArray[np.float32]:
    """The latents (C, h, w) of the frame whose packet brings some; ValueError where it brings none.

    Of a region without new ones those of its key are moved along, as its logits are. Where it has no key here, or is
    absent from the packet, those of the newest key are taken as they are.
    """
    parts = {part.region.index: part for part in reversed(reading.parts)}  # of one region, first comes what it brings
    known = {index: _known(reading, index, parts.get(index), buffer) for index in range(reading.grid.count)}
    return canvas.assemble({index: one for index, one in known.items() if one is not None}, reading.grid)


def _known(reading: Reading, index: int, part: Part | None, buffer: KeyBuffer[HeldKey]) -> NDArray[np.float32] | None:
    """What there is of a region's latents; those of another level are of no use."""
    if part is not None and part.latents is not None:
        return part.latents
    key, newest = part and reading.keys.get(part.region), buffer.newest(reading.packet, index)
    held = key or (newest.value if newest is not None else None)
    if held is None or held.latents is None or held.level != reading.level:
        return None
    if part is None or part.flow is None or key is None:
        return held.latents
    return canvas.move(held.latents, part.flow, part.place)


@dataclass(frozen=True, slots=True, eq=False)
class _Last:
    """The newest mask of a stream, and what all of its masks tell of the classes."""

    stream: Stream
    mask: Mask
    shares: BorderShares


class LastMasks:
    """The newest mask of each camera, for regions that show nothing new, and for hysteresis.

    Masks are of so many classes, and of so many cameras at most. `hysteresis`: logits by which another class must lead
    the one before, 0 for none.
    """

    def __init__(self, classes: int, *, hysteresis: float = 0.0, cameras: int = CAMERAS) -> None:
        self._classes, self._hysteresis, self._cameras = classes, hysteresis, cameras
        self._last: OrderedDict[str, _Last] = OrderedDict()  # least lately used first

    def of(self, reading: Reading) -> NDArray[np.uint8] | None:
        """Classes (H, W) of the newest mask of the reading's stream."""
        last = self._of_stream(reading)
        return None if last is None else last.mask.classes

    def keep(self, reading: Reading, mask: Mask) -> None:
        """Take a mask for the newest, unless it is older than the one that is here."""
        last = self._of_stream(reading)
        if last is not None and (mask.id.sequence - last.mask.id.sequence) % SEQUENCES >= _HALF:
            return
        new = reading.camera not in self._last
        shares = BorderShares(self._classes) if last is None else last.shares
        if last is None and self._hysteresis:
            shares.add(mask.classes)  # those of later ones when they are made
        self._last[reading.camera] = _Last(stream_of(reading.packet), mask, shares)
        self._last.move_to_end(reading.camera)
        other = too_many(self._last, reading.camera, limit=self._cameras) if new else None
        if other is not None:
            del self._last[other]

    def class_map(self, reading: Reading, logits: Mapping[int, NDArray[np.float32]]) -> NDArray[np.uint8]:
        """Logits (K, h, w) of regions -> the mask (H, W), held to that of the frame directly before, if it is here.

        Nothing is held to an older one: of workers that share a camera's frames each would hold to a mask of its own,
        and they would flicker in turns. Nor are recordings, whose masks are the same whichever worker makes them.
        """
        last, grid, merged = self._of_stream(reading), reading.grid, merge(logits, reading.grid)
        plain = class_map(merged, grid.height, grid.width)
        if last is None or not self._hysteresis or reading.packet.recorded:
            return plain
        if len(logits) == grid.count:
            last.shares.add(plain)
        if not _follows(reading.packet, last.mask):
            return plain
        return steadied(plain, merged, last.mask.classes, shares=last.shares, margin=self._hysteresis)

    def _of_stream(self, reading: Reading) -> _Last | None:
        last = self._last.get(reading.camera)
        return last if last is not None and last.stream == stream_of(reading.packet) else None


def _follows(packet: Packet, mask: Mask) -> bool:
    """Whether a packet is of the next frame after a mask's, and not much later."""
    next_one = (packet.id.sequence - mask.id.sequence) % SEQUENCES == 1
    return next_one and packet.captured_ms - mask.captured_ms <= _JUST_BEFORE_MS


def show(reading: Reading, fresh: Outputs | None, last: LastMasks) -> Decoded:
    """What a packet is decoded to, given what the graphs made of its canvas, if it has one; its keys are complete then.

    A region whose key is missing, or that is absent, keeps its part of the last mask; one that has two keys is shown
    by the other. Raises MissingKey where nothing of the packet can be shown, or nothing was before it. Scores are those
    of the nearest latents that are shown.
    """
    packet, moved = reading.packet, _moved(reading, fresh)
    if reading.missing and not moved:
        raise next(iter(reading.missing.values()))
    mask, shown = None, {index: _fused(ones) for index, ones in moved.items()}
    logits = {index: one for index, one in shown.items() if one is not None}
    if logits or not shown:
        classes = _classes(reading, logits, last)
        kinds = {index: ones[0].region.shows for index, ones in moved.items()}
        every = tuple(kinds.get(index) for index in range(reading.grid.count))
        mask = Mask(packet.id, packet.captured_ms, packet.bundle, classes, packet.rows, packet.columns, every)
        last.keep(reading, mask)
    nearest = min((one for ones in moved.values() for one in ones), key=lambda one: one.region.age, default=None)
    values = None if nearest is None else nearest.outputs.scores
    scores = None if values is None else Scores(packet.id, packet.captured_ms, packet.bundle, values)
    return Decoded(mask, scores, tuple(reading.missing))


@dataclass(frozen=True, slots=True, eq=False)
class _Moved:
    """What one part shows of its region."""

    region: Region
    outputs: Outputs


def _moved(reading: Reading, fresh: Outputs | None) -> dict[int, list[_Moved]]:
    """By region, what its parts show; those whose key is missing are left out."""
    shown: dict[int, list[_Moved]] = {}
    for part in reading.parts:
        region, key = part.region, reading.keys.get(part.region)
        if part.latents is not None and fresh is not None and key is not None:
            key.outputs = _window(fresh, part.place)
        if key is not None and region.shows is not None:
            shown.setdefault(region.index, []).append(_Moved(region, _along(key.outputs, part)))
    return shown


def _window(fresh: Outputs, place: Place) -> Outputs:
    """Those of a region; copied, since a view would keep the whole batch for as long as it is a key."""
    if fresh.logits is None:
        return fresh
    return replace(fresh, logits=fresh.logits[:, *place.window.at(LOGIT_PX)].copy())


def _along(key: Outputs, part: Part) -> Outputs:
    """A key's outputs moved by the part's flow, if it has one; scores are the key's."""
    if key.logits is None or part.flow is None:
        return key
    return replace(key, logits=motion.warp(key.logits, part.flow, part.place.picture.height, part.place.picture.width))


def _fused(parts: Sequence[_Moved]) -> NDArray[np.float32] | None:
    """The logits (K, h, w) of one region: those of its part, or of two, the nearer in time counting the more."""
    if len(parts) == 1:
        return parts[0].outputs.logits
    one, other = parts
    if one.outputs.logits is None or other.outputs.logits is None:
        return None
    share = other.region.age / (one.region.age + other.region.age)
    return motion.fuse(one.outputs.logits, other.outputs.logits, share)


def _classes(reading: Reading, logits: Mapping[int, NDArray[np.float32]], last: LastMasks) -> NDArray[np.uint8]:
    """The mask (H, W) where regions have logits, the last one elsewhere; MissingKey where there is none yet."""
    grid, before = reading.grid, last.of(reading)
    if len(logits) < grid.count and before is None:
        absent = min(set(range(grid.count)).difference(logits))
        raise reading.missing.get(absent) or MissingKey(
            f"region {absent}: neither in the packet nor in a mask before it"
        )
    if not logits and before is not None:
        return before
    classes = last.class_map(reading, logits)
    if before is None or len(logits) == grid.count:
        return classes
    return onto_last(classes, before, present=logits, grid=grid)
