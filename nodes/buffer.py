"""The bounded buffer between two stages of a node, and the count of what is lost there."""

import asyncio
from collections import Counter, deque
from collections.abc import Callable
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
    def key(self) -> bool:
        """Whether other packets may refer to this one."""
        ...


T = TypeVar("T", bound=Droppable)


class PacketBuffer(Generic[T]):
    """Packets in order, `limit` at most: for one more, the oldest that is no key goes, else the oldest."""

    def __init__(self, limit: int, *, on_drop: Callable[[], None]) -> None:
        self._limit = limit
        self._on_drop = on_drop
        self._packets: deque[T] = deque()
        self._closed = False
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._packets)

    def put(self, packet: T) -> None:
        """Add a packet, at the cost of an older one where there is no room."""
        self._packets.append(packet)
        self._shrink()
        self._changed.set()

    async def put_when_free(self, packet: T) -> None:
        """Add a packet as soon as there is room: back-pressure instead of loss."""
        while len(self._packets) >= self._limit:
            self._changed.clear()
            await self._changed.wait()
        self.put(packet)

    def give_back(self, packet: T) -> None:
        """Return a packet to the front; now it is the oldest, and goes where there is no room."""
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

    def _shrink(self) -> None:
        if len(self._packets) > self._limit:
            victim = next((at for at, packet in enumerate(self._packets) if not packet.key), 0)
            del self._packets[victim]
            self._on_drop()
