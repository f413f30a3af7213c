"""The keys that WARP regions refer to: what camera and worker hold of them, changed only by packets.

KEY of sequence s -> KeyBuffer.put        WARP of age a in sequence s + a -> KeyBuffer.get, or MissingKey

A KEY may come ahead of its frame, so that the frames before it can refer to it: it is of the frame that its age says.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

from pipeline.bitstream import MAX_AGE, MAX_REGIONS
from pipeline.errors import ConfigError, MissingKey
from pipeline.messages import SEQUENCES, FrameId, Kind, Packet, Region

GENERATIONS = 2  # a WARP that a newer KEY has overtaken still finds its own,
AHEAD_GENERATIONS = 3  # and so does a frame between two KEYs
CAMERAS = 256  # of a worker; the logits of a 480x360 camera's keys, two generations, take 1.2 MB
_NAMES = 16  # of one camera: a recording has another one each time it steps back
IDLE_S = 60.0  # as long as the keys in the queue's server live
_STREAMS = 2  # packets of the last one may still be under way when a camera starts again

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Stream:
    """What a key and the regions that refer to it have in common."""

    epoch: int
    bundle: bytes
    rows: int
    columns: int


def stream_of(packet: Packet) -> Stream:
    """The stream that the packet's regions belong to."""
    return Stream(packet.id.epoch, packet.bundle, packet.rows, packet.columns)


def key_sequence(packet: Packet, region: Region) -> int:
    """The sequence of the key that a region of the packet is or refers to."""
    age = -region.age if region.kind is Kind.WARP or region.kind is Kind.DELTA else region.age
    return (packet.id.sequence + age) % SEQUENCES


def is_whole(packet: Packet) -> bool:
    """Whether the packet shows all regions of its frame, given the keys that it refers to."""
    shown = {region.index for region in packet.regions if region.shows is not None}
    return len(shown) == packet.rows * packet.columns


def stands_alone(packet: Packet) -> bool:
    """Whether the packet shows all of its frame without any other packet: each region has its own KEY."""
    brought = _brought(packet)
    own = [one for one in packet.regions if (one.index, key_sequence(packet, one)) in brought]
    shown = {one.index for one in own if one.shows is not None}
    return len(shown) == packet.rows * packet.columns


def _brought(packet: Packet) -> set[tuple[int, int]]:
    """Region and sequence of each KEY in the packet."""
    return {(one.index, key_sequence(packet, one)) for one in packet.regions if one.kind is Kind.KEY}


def _ahead(frame: FrameId, frames: int) -> FrameId:
    return FrameId(frame.epoch, (frame.sequence + frames) % SEQUENCES)


def _after(sequence: int, other: int) -> int:
    """How far a sequence is after another, negative if before; they wrap at 2**32 (as in RFC 1982)."""
    return (sequence - other + SEQUENCES // 2) % SEQUENCES - SEQUENCES // 2


@dataclass(frozen=True, slots=True, eq=False)
class Key(Generic[T]):
    """The key of one region: the frame it is of, and what it was decoded to or made from."""

    id: FrameId
    value: T


@dataclass(slots=True, eq=False)
class _Held(Generic[T]):
    used_s: float
    keys: dict[int, tuple[Key[T], ...]] = field(default_factory=dict)  # by region, newest first


class KeyBuffer(Generic[T]):
    """The two newest keys of each region of one camera, three where they come ahead of their frames.

    A key is found by epoch, sequence, bundle and grid, or not.

    Packets may be lost, repeated and out of order. Another epoch, bundle or grid is another stream; the last two that
    keys came of are kept, each until it was of no use for `idle_s`: so a new run that drew the epoch of the one
    before it, and whose keys look old, is not locked out for longer.
    """

    def __init__(self, *, idle_s: float = IDLE_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._idle_s, self._clock = idle_s, clock
        self._streams: OrderedDict[Stream, _Held[T]] = OrderedDict()

    def __len__(self) -> int:
        return sum(len(keys) for held in self._streams.values() for keys in held.keys.values())

    def put(self, packet: Packet, index: int, value: T, *, ahead: int = 0) -> None:
        """Keep what a KEY region stands for, of the packet's frame or of one so many frames ahead.

        Unless so many newer ones are here; ValueError off the grid.
        """
        if not 0 <= index < min(packet.rows * packet.columns, MAX_REGIONS):
            raise ValueError(f"region {index} is not of a {packet.rows}x{packet.columns} grid")
        held, id = self._held(packet) or _Held(self._clock()), _ahead(packet.id, ahead)
        keys = [Key(id, value), *(key for key in held.keys.get(index, ()) if key.id != id)]
        keys.sort(key=lambda key: -_after(key.id.sequence, id.sequence))
        generations = AHEAD_GENERATIONS if ahead else GENERATIONS
        if all(key.id != id for key in keys[:generations]):
            return
        held.keys[index] = tuple(keys[:generations])
        held.used_s = self._clock()
        self._streams[stream_of(packet)] = held
        self._streams.move_to_end(stream_of(packet))
        if len(self._streams) > _STREAMS:
            self._streams.popitem(last=False)

    def get(self, packet: Packet, region: Region) -> T:
        """What the key stands for that a region of the packet refers to; MissingKey where it is not here."""
        key = self._named(packet, region)
        if key is None:
            named = f"epoch {packet.id.epoch}, sequence {key_sequence(packet, region)}"
            raise MissingKey(f"region {region.index}: the key of {named} is not here")
        self._streams[stream_of(packet)].used_s = self._clock()
        return key.value

    def missing(self, packet: Packet) -> tuple[Region, ...]:
        """The regions of the packet whose keys are neither here nor in the packet itself."""
        brought = _brought(packet)
        others = [one for one in packet.regions if (one.index, key_sequence(packet, one)) not in brought]
        return tuple(one for one in others if self._named(packet, one) is None)

    def newest(self, packet: Packet, index: int) -> Key[T] | None:
        """What a region of the packet would refer to at the camera, which put every key that it sent."""
        held = self._held(packet)
        if held is None or index not in held.keys:
            return None
        held.used_s = self._clock()
        return held.keys[index][0]

    def _named(self, packet: Packet, region: Region) -> Key[T] | None:
        held, sequence = self._held(packet), key_sequence(packet, region)
        keys = held.keys.get(region.index, ()) if held else ()
        return next((key for key in keys if key.id.sequence == sequence), None)

    def _held(self, packet: Packet) -> _Held[T] | None:
        """What is kept of the packet's stream; streams that were of no use for too long are dropped."""
        now_s = self._clock()
        for stream in [stream for stream, held in self._streams.items() if now_s - held.used_s > self._idle_s]:
            del self._streams[stream]
        return self._streams.get(stream_of(packet))


def too_many(names: Collection[str], newest: str, *, limit: int) -> str | None:
    """Which of these names, the least lately used first, goes for the newest; None where there is room.

    What stands before a / is the camera. One of many names has its own first one go, and no other camera's.
    """
    camera = newest.partition("/")[0]
    own = [name for name in names if name.partition("/")[0] == camera]
    return own[0] if len(own) > _NAMES else next(iter(names)) if len(names) > limit else None


class KeyBuffers(Generic[T]):
    """The key buffers of the cameras that a worker serves: so many at most, none of a camera silent for `idle_s`."""

    def __init__(
        self, *, cameras: int = CAMERAS, idle_s: float = IDLE_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.cameras, self._idle_s, self._clock = cameras, idle_s, clock
        self._buffers: OrderedDict[str, KeyBuffer[T]] = OrderedDict()  # least lately used first
        self._used_s: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._buffers)

    def of(self, camera: str) -> KeyBuffer[T]:
        """The buffer of a camera, which may be new; then, if there are too many, another one goes."""
        now_s = self._clock()
        while self._buffers and now_s - self._used_s[next(iter(self._buffers))] > self._idle_s:
            self._drop(next(iter(self._buffers)))
        if camera not in self._buffers:
            self._buffers[camera] = KeyBuffer(idle_s=self._idle_s, clock=self._clock)
            other = too_many(self._buffers, camera, limit=self.cameras)
            if other is not None:
                self._drop(other)
        self._buffers.move_to_end(camera)
        self._used_s[camera] = now_s
        return self._buffers[camera]

    def _drop(self, camera: str) -> None:
        del self._buffers[camera]
        del self._used_s[camera]


@dataclass(frozen=True, slots=True)
class KeyTable:
    """Which regions a camera has to send as KEY, whatever else it would rather do; every change is a new table.

    `longest_age`: largest age that a region may refer to, 0 to 255: 0 is a key in every packet, n - 1 one in n.
    """

    longest_age: int = MAX_AGE
    stream: Stream | None = None
    quality: int | None = None
    sequences: Mapping[int, int] = field(default_factory=dict)  # of the newest key sent, by region
    wanted: frozenset[int] = frozenset()  # by a KeyRequest

    def __post_init__(self) -> None:
        if not 0 <= self.longest_age <= MAX_AGE:
            raise ConfigError(f"longest key age {self.longest_age}: must be 0 to {MAX_AGE}")

    def request(self, regions: Iterable[int]) -> "KeyTable":
        """The table once these regions were asked for."""
        return replace(self, wanted=self.wanted.union(regions))

    def due(self, packet: Packet) -> frozenset[int]:
        """The regions that must be KEY in a packet with this head; what regions it has already does not matter."""
        every = frozenset(range(packet.rows * packet.columns))
        if not self._continues(packet):
            return every
        ages = {index: _after(packet.id.sequence, sequence) for index, sequence in self.sequences.items()}
        return every.difference(index for index, age in ages.items() if 1 <= age <= self.longest_age) | (
            every & self.wanted
        )

    def age(self, packet: Packet, index: int) -> int:
        """How old the region's key is in a packet with this head, in packets; KeyError where none was sent."""
        return _after(packet.id.sequence, self.sequences[index])

    def sent(self, packet: Packet) -> "KeyTable":
        """The table once the packet, its regions all in it, is on its way."""
        keys = {one.index: key_sequence(packet, one) for one in packet.regions if one.kind is Kind.KEY}
        before = self.sequences if self._continues(packet) else {}
        return replace(
            self,
            stream=stream_of(packet),
            quality=packet.quality,
            sequences={**before, **keys},
            wanted=self.wanted.difference(keys),
        )

    def _continues(self, packet: Packet) -> bool:
        return stream_of(packet) == self.stream and packet.quality == self.quality
