"""The bounded buffer between two stages of a node, and the count of what is lost there."""

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable
from typing import Generic, Protocol, TypeVar

import structlog

from pipeline import metrics

log = structlog.get_logger()


class Losses:
    """Counts what goes no further, by reason, and says so now and then rather than each time."""

    def __init__(self, node: str, *, camera: str | None = None) -> None:
        self.total: Counter[str] = Counter()
        self._node = node
        self._log = log.bind(node=node) if camera is None else log.bind(node=node, camera=camera)
        self._untold: Counter[str] = Counter()

    def add(self, reason: str, count: int = 1) -> None:
        """Count so many losses."""
        if count:
            metrics.drop(self._node, reason, count)
            self.total[reason] += count
            self._untold[reason] += count

    async def report(self, every_s: float = 10.0) -> None:
        """Write one line for the losses of each interval that had some, for ever."""
        while True:
            await asyncio.sleep(every_s)
            if self._untold:
                self._log.warning("lost", **self._untold)
                self._untold.clear()


class Droppable(Protocol):
    """What waits in a buffer: a packet of this node's making."""

    @property
    def camera(self) -> str:
        """Whose packet it is; packets refer to none of another camera."""
        ...

    @property
    def keys(self) -> Collection[int]:
        """Its KEY regions, to which those of later packets may refer."""
        ...


T = TypeVar("T", bound=Droppable)


class PacketBuffer(Generic[T]):
    """Packets in order, `limit` at most: for one more, the first one goes that no other can need.

    Keys may be needed until the next packet of their camera brings keys of the same regions: without them the WARPs
    behind are of no use, and without one of those only a frame is lost; a frame between two keys can be shown by the
    later one. Where all may be needed the oldest goes.
    """

    def __init__(self, limit: int, *, on_drop: Callable[[], None]) -> None:
        self._limit = limit
        self._on_drop = on_drop
        self._packets: deque[T] = deque()
        self._closed = False
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._packets)

    def put(self, packet: T) -> T | None:
        """Add a packet, at the cost of an older one where there is no room: that one is returned."""
        self._packets.append(packet)
        dropped = self._shrink()
        self._changed.set()
        return dropped

    async def put_when_free(self, packet: T) -> None:
        """Add a packet as soon as there is room: back-pressure instead of loss."""
        while len(self._packets) >= self._limit:
            self._changed.clear()
            await self._changed.wait()
        self.put(packet)

    def give_back(self, packet: T) -> None:
        """Return a packet to the front; now it is the oldest, and may go where there is no room."""
        self._packets.appendleft(packet)
        self._shrink()

    async def take(self) -> T | None:
        """The oldest packet; waits for one. None once the buffer is closed and empty."""
        while not self._packets:
            if self._closed:
                return None
            self._changed.clear()
            await self._changed.wait()
        self._changed.set()
        return self._packets.popleft()

    def close(self) -> None:
        """Nothing more will come."""
        self._closed = True
        self._changed.set()

    def _shrink(self) -> T | None:
        if len(self._packets) <= self._limit:
            return None
        at = _not_needed(self._packets)
        dropped = self._packets[at]
        del self._packets[at]
        self._on_drop()
        return dropped


def _not_needed(packets: Iterable[Droppable]) -> int:
    """Where the first packet is that none behind it, and none yet to come, can refer to; 0 where there is none."""
    keys: dict[str, tuple[int, Droppable]] = {}  # of each camera the last packet looked at, which has keys
    for at, packet in enumerate(packets):
        before, last = keys.get(packet.camera, (at, None))
        if last is not None and set(last.keys) <= set(packet.keys):
            return before
        if not packet.keys:
            return at
        keys[packet.camera] = at, packet
    return 0
