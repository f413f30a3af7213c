"""The queue between gateways and workers inside one process: for the demo and for tests, the same as on Redis."""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import structlog

from pipeline import metrics
from pipeline.mask_order import FORGET_S, MaskOrder, Position, Turn
from pipeline.work_queue import (
    DEAD_BYTES,
    DEAD_LIMIT,
    DELIVERY_LIMIT,
    HOLD_S,
    KEEP_MOST_S,
    KEEP_S,
    KEY_GENERATIONS,
    KEYS_BYTES,
    KEYS_EXPIRE_S,
    KEYS_LEAST,
    RECLAIM_AFTER_S,
    SHARD_LIMIT,
    SHARDS,
    STEAL_AFTER_S,
    STEAL_RATIO,
    Job,
    Place,
    given_up,
    preferred_shards,
    shard_of,
)

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Entry:
    shard: int
    number: int
    camera: str
    packet: bytes
    added: float
    worker: str | None = None
    claimed: float = 0.0
    deliveries: int = 0

    def job(self) -> Job:
        queued_ms = int(self.added * 1000)
        return Job(self.shard, str(self.number), self.camera, self.packet, self.deliveries, queued_ms)


@dataclass(frozen=True, slots=True)
class _Taken:
    """Who took a shard over, when, and for how long at least."""

    worker: str
    since: float
    keep_s: float


def _number(entry: _Entry) -> int:
    return entry.number


@dataclass(frozen=True, slots=True)
class Buried:
    """A dead letter."""

    camera: str
    packet: bytes
    reason: str
    worker: str


class MemoryQueueState:
    """What the queues of one process share; times are those of `clock`, in seconds."""

    def __init__(
        self,
        *,
        shards: int = SHARDS,
        shard_limit: int = SHARD_LIMIT,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.clock = clock
        self.entries: list[dict[int, _Entry]] = [{} for _ in range(shards)]  # per shard, oldest first
        self.shard_limit = shard_limit
        self.workers = frozenset[str]()
        self.taken: dict[int, _Taken] = {}  # by shard
        self.dead: deque[Buried] = deque(maxlen=DEAD_LIMIT)
        self.keys: dict[tuple[str, int], tuple[float, tuple[bytes, ...]]] = {}  # of camera and region: until when
        self.orders: dict[str, MaskOrder] = {}  # by camera
        self.changed = asyncio.Event()
        self._count = 0
        self._looked = clock()  # for what is to be forgotten

    def come_or_go(self, workers: frozenset[str]) -> None:
        """These claim from now on; what was taken over goes back when that is another set."""
        if workers != self.workers:
            self.workers = workers
            self.taken.clear()

    def add(self, camera: str, packet: bytes) -> int:
        """Queue a packet; returns how many entries had to make room."""
        shard = shard_of(camera, len(self.entries))
        entries = self.entries[shard]
        self._count += 1
        entries[self._count] = _Entry(shard, self._count, camera, packet, self.clock())
        excess = max(0, len(entries) - self.shard_limit)
        for number in list(entries)[:excess]:
            del entries[number]
        self.changed.set()
        self.changed = asyncio.Event()  # who waits has the old one
        if self.clock() - self._looked >= FORGET_S:
            self._forget()
        return excess

    def _forget(self) -> None:
        """Forget keys and orders that nobody asks for any more: names are anybody's."""
        self._looked = now = self.clock()
        self.keys = {camera: kept for camera, kept in self.keys.items() if kept[0] > now}
        self.orders = {camera: order for camera, order in self.orders.items() if not order.is_forgotten(now_s=now)}


class MemoryWorkQueue:
    """WorkQueue inside one process: a view of the shared state, of one worker or of one that only puts."""

    def __init__(
        self,
        state: MemoryQueueState,
        worker: str | None = None,
        *,
        reclaim_after_s: float = RECLAIM_AFTER_S,
        steal_after_s: float = STEAL_AFTER_S,
        keep_s: float = KEEP_S,
        hold_s: float = HOLD_S,
    ) -> None:
        self._state = state
        self._worker = worker
        self._reclaim_after_s = reclaim_after_s
        self._steal_after_s = steal_after_s
        self._keep_s = keep_s
        self._hold_s = hold_s
        self._entered = False
        self._dropped = 0
        self._stolen: int | None = None  # the shard that was last stolen from

    async def __aenter__(self) -> Self:
        self._entered = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._entered = False
        self._state.come_or_go(self._state.workers - {self._worker or ""})

    @property
    def connected(self) -> bool:
        """Whether the queue is entered."""
        return self._entered

    @property
    def alone(self) -> bool:
        """Whether no other worker claims from the same state."""
        return self._state.workers <= {self._worker}

    @property
    def dropped(self) -> int:
        """How many entries were cut from full shards by what was put here."""
        return self._dropped

    async def put(self, camera: str, packet: bytes) -> None:
        """Queue a packet; in a full shard the oldest make room and are counted."""
        self._dropped += self._state.add(camera, packet)
        await asyncio.sleep(0)  # lets a worker in the same loop run, as a server would

    async def claim(self, *, batch: int, wait_s: float, steal: bool = True) -> list[Job]:
        """Return up to `batch` jobs, oldest first, or none after `wait_s`."""
        if self._worker is None:
            raise ValueError("only a queue with a worker's name claims")
        self._state.come_or_go(self._state.workers | {self._worker})
        await asyncio.sleep(0)
        jobs = self._take(self._worker, batch, steal)
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                while not jobs:
                    await self._wait()
                    jobs = self._take(self._worker, batch, steal)
        return jobs

    async def rest(self) -> None:
        """Leave the own shards, and what was claimed, to others until the next claim."""
        self._state.come_or_go(self._state.workers - {self._worker or ""})

    async def take_turns(self, places: Sequence[Place]) -> list[Turn]:
        """Ask for the turns of frames that are about to be published."""
        return [self._take_turn(place) for place in places]

    def _take_turn(self, place: Place) -> Turn:
        order = self._state.orders.setdefault(place.job.camera, MaskOrder())
        entry, now_s = place.job.entry, self._state.clock()
        return order.take(place.frame, entry=entry, worker=self._worker or "", now_s=now_s)

    async def done(self, jobs: Sequence[Job]) -> None:
        """Take the jobs from the queue, and end their turns."""
        for job in jobs:
            self._state.entries[job.shard].pop(int(job.entry), None)
            if job.camera in self._state.orders:
                self._state.orders[job.camera].end(job.entry)

    async def positions(self, cameras: Collection[str]) -> dict[str, Position]:
        """Return how far the recordings of these cameras are, of those where that is known."""
        now_s, orders = self._state.clock(), self._state.orders
        found = {camera: orders[camera].position(now_s=now_s) for camera in cameras if camera in orders}
        return {camera: position for camera, position in found.items() if position is not None}

    async def published(self, places: Sequence[Place]) -> None:
        """Note that the masks of these frames of recordings are out, and take their jobs from the queue."""
        for place in places:
            order = self._state.orders.setdefault(place.job.camera, MaskOrder())
            order.advance(place.frame, now_s=self._state.clock())
        await self.done([place.job for place in places])

    async def bury(self, job: Job, reason: str) -> None:
        """Take the job from the queue and keep its beginning among the dead letters."""
        self._state.dead.append(Buried(job.camera, job.packet[:DEAD_BYTES], reason, self._worker or ""))
        await self.done([job])

    async def depth(self) -> int:
        """Return how many entries wait or are being worked on."""
        return sum(len(entries) for entries in self._state.entries)

    async def store_keys(self, camera: str, keys: Mapping[int, bytes], *, generations: int = KEY_GENERATIONS) -> None:
        """Keep the newest KEY of each region, beside those before it, so many in all, or so many bytes."""
        for region, key in keys.items():
            before = [each for each in self._held_keys(camera, region) if each != key]
            held = [key, *before[: generations - 1]]
            while len(held) > KEYS_LEAST and sum(map(len, held)) > KEYS_BYTES:
                held.pop()
            self._state.keys[camera, region] = (self._state.clock() + KEYS_EXPIRE_S, tuple(held))

    async def fetch_keys(self, camera: str, regions: Collection[int]) -> dict[int, tuple[bytes, ...]]:
        """Return the KEYs that are kept of each of the regions, newest first."""
        found = {region: self._held_keys(camera, region) for region in regions}
        return {region: keys for region, keys in found.items() if keys}

    def _held_keys(self, camera: str, region: int) -> tuple[bytes, ...]:
        expires, held = self._state.keys.get((camera, region), (0.0, ()))
        if expires <= self._state.clock():
            self._state.keys.pop((camera, region), None)
            return ()
        return held

    async def _wait(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(self._steal_after_s):
                await self._state.changed.wait()

    def _take(self, worker: str, batch: int, steal: bool) -> list[Job]:
        now, shards = self._state.clock(), self._state.entries
        taken = {shard: one.worker for shard, one in self._state.taken.items()}
        own = preferred_shards(worker, self._state.workers, len(shards), taken=taken)
        found = [entry for entries in shards for entry in entries.values() if self._is_abandoned(entry, now)]
        new = [entry for shard in own for entry in shards[shard].values() if entry.worker is None]
        found = sorted([*found, *new], key=_number)[:batch]
        if steal and len(found) < batch:
            behind_s = max((now - entry.added for entry in new), default=0.0)
            late = self._late(set(range(len(shards))).difference(own), now, behind_s)[: batch - len(found)]
            self._take_over(worker, dict.fromkeys(entry.shard for entry in late), now)
            found += late
        return [job for entry in sorted(found, key=_number) for job in self._give(entry, worker, now)]

    def _late(self, others: Iterable[int], now: float, behind_s: float) -> list[_Entry]:
        """What waits in others' shards whose worker is behind, shard by shard."""
        late_s = max(self._steal_after_s, STEAL_RATIO * behind_s)
        waiting = [[each for each in self._state.entries[shard].values() if each.worker is None] for shard in others]
        late = [entries for entries in waiting if entries and now - entries[0].added >= late_s]
        late.sort(key=lambda entries: (entries[0].shard != self._stolen, entries[0].number))
        self._stolen = late[0][0].shard if late else self._stolen
        return [entry for entries in late for entry in entries]

    def _take_over(self, worker: str, late: Iterable[int], now: float) -> None:
        """Make the first of these shards that was not taken over lately this worker's own."""
        for shard in late:
            before = self._state.taken.get(shard, _Taken("", -math.inf, 0.0))
            if now - before.since >= before.keep_s:
                again = now - before.since < 4 * before.keep_s
                keep_s = min(2 * before.keep_s, KEEP_MOST_S) if again else self._keep_s
                self._state.taken[shard] = _Taken(worker, now, keep_s)
                return

    def _is_abandoned(self, entry: _Entry, now: float) -> bool:
        if entry.worker is None:
            return False
        lives = entry.worker in self._state.workers
        return now - entry.claimed >= (self._hold_s if lives else 0.0) + self._reclaim_after_s

    def _give(self, entry: _Entry, worker: str, now: float) -> list[Job]:
        entry.worker, entry.claimed = worker, now
        entry.deliveries += 1
        if entry.deliveries <= DELIVERY_LIMIT:
            return [entry.job()]
        del self._state.entries[entry.shard][entry.number]
        reason = given_up(entry.deliveries)
        metrics.drop("queue", "given_up")
        log.warning("a packet is given up", camera=entry.camera, reason=reason)
        self._state.dead.append(Buried(entry.camera, entry.packet[:DEAD_BYTES], reason, worker))
        return []
