"""The queue between gateways and workers on Redis Streams.

A job that was claimed is held: while the worker lives, its heartbeat keeps the job's idle time near zero, so
a slow batch is not taken for a dead worker. When the heartbeats end, others take the shards and claim the job again
after `reclaim_after_s`. A job whose answer did not reach Redis is answered with a later heartbeat, so that it does not
come again.
"""

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

import structlog

from pipeline import metrics
from pipeline.errors import TransportError
from pipeline.mask_order import Position, Turn
from pipeline.redis_streams import AGREED_S, IDLE_S, RedisStreams
from pipeline.work_queue import (
    DELIVERY_LIMIT,
    HOLD_S,
    KEEP_S,
    KEY_GENERATIONS,
    RECLAIM_AFTER_S,
    SHARD_LIMIT,
    SHARDS,
    STEAL_AFTER_S,
    STEAL_RATIO,
    Job,
    Place,
    given_up,
    preferred_shards,
)

_BEATS = 4  # while a job could be taken for one of a dead worker
_ALONE_AFTER = 5  # such times without a sign of another worker

log = structlog.get_logger(__name__)


class RedisWorkQueue:
    """WorkQueue on one Redis server: that of one worker, or (worker None) of one that only puts.

    Entering does not wait for Redis. A call that fails raises TransportError and may be tried again; a bad
    address raises ConfigError. What a full stream cut counts as dropped, whether it waited or was worked on.
    """

    def __init__(
        self,
        url: str,
        worker: str | None = None,
        *,
        shards: int = SHARDS,
        shard_limit: int = SHARD_LIMIT,
        reclaim_after_s: float = RECLAIM_AFTER_S,
        steal_after_s: float = STEAL_AFTER_S,
        keep_s: float = KEEP_S,
        hold_s: float = HOLD_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._worker = worker or ""
        self._streams = RedisStreams(url, self._worker, shards)
        self._shards = self._agreed = shards  # and how many others say there are
        self._shard_limit = shard_limit
        self._reclaim_after_s = reclaim_after_s
        self._steal_after_s = steal_after_s
        self._keep_s = keep_s
        self._hold_s = hold_s
        self._clock = clock
        self._own: list[int] | None = None  # shards; None before the first heartbeat
        self._live = frozenset[str]()  # workers that these shards were shared out among
        self._taken = set[int]()  # shards that this worker took over since the last of them came or went
        self._shared: tuple[frozenset[str], dict[int, str]] | None = None  # what the own shards follow from
        self._met = -math.inf  # when another worker was seen to live
        self._held: dict[tuple[int, str], float] = {}  # (shard, entry) -> when it was claimed
        self._ready: list[Job] = []  # claimed, not handed out yet
        self._turns: set[Job] = set()  # whose frames had their turn
        self._published: dict[Job, Place] = {}  # frames of recordings whose masks are out
        self._unanswered: set[Job] = set()  # done, but Redis was away
        self._stolen: int | None = None  # the shard that was last stolen from
        self._reclaimed = self._beaten = clock() - reclaim_after_s
        self._looked = clock()  # at what others are late with
        self._compared = self._forgot = -math.inf  # when: shards with what others say, and those that are gone
        self._dropped = 0
        self._connected = False
        self._resting = True  # a worker that starts has a decoder to open first
        self._group = asyncio.TaskGroup()

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        self._task = self._group.create_task(self._keep_alive(), name=f"redis {self._streams.address}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._task.cancel()
        try:
            await self._group.__aexit__(None, None, None)  # the body's own error goes up as it is
            if self._worker and self._connected:
                with suppress(TransportError):
                    await self._streams.leave()
        finally:
            self._connected = False
            await self._streams.close()

    @property
    def connected(self) -> bool:
        """Whether Redis answered the last heartbeat."""
        return self._connected

    @property
    def alone(self) -> bool:
        """Whether no other worker lived lately: one whose heartbeat is late may go on, as this one may have."""
        return self._clock() - self._met >= _ALONE_AFTER * self._reclaim_after_s

    @property
    def dropped(self) -> int:
        """How many entries were cut from full streams by what was put here."""
        return self._dropped

    async def put(self, camera: str, packet: bytes) -> None:
        """Queue a packet; in a full stream the oldest make room and are counted."""
        self._dropped += await self._streams.add(camera, packet, self._shard_limit)

    async def claim(self, *, batch: int, wait_s: float, steal: bool = True) -> list[Job]:
        """Return up to `batch` jobs, oldest first, or none after `wait_s`."""
        if not self._worker:
            raise ValueError("only a queue with a worker's name claims")
        if self._resting:
            self._resting = False
            await self._beat()
        deadline, left_s = self._clock() + wait_s, wait_s
        await self._gather(batch, left_s, steal)
        while not self._ready and left_s > 0:
            left_s = max(0.0, deadline - self._clock())
            await self._gather(batch, left_s, steal)
        self._ready.sort(key=_age)
        jobs, self._ready = self._ready[:batch], self._ready[batch:]
        return jobs

    async def rest(self) -> None:
        """Leave the own shards, and what was claimed, to others until the next claim."""
        self._resting = True
        await self._streams.leave()

    async def take_turns(self, places: Sequence[Place]) -> list[Turn]:
        """Ask for the turns of frames that are about to be published."""
        turns = await self._streams.take_turns(places)
        given = zip(places, turns, strict=True)
        self._turns.update(place.job for place, turn in given if turn is Turn.MINE)
        return turns

    async def done(self, jobs: Sequence[Job]) -> None:
        """Take the jobs from the queue, and end their turns."""
        self._unanswered.update(jobs)
        await self._answer(self._unanswered.intersection(jobs))

    async def positions(self, cameras: Collection[str]) -> dict[str, Position]:
        """Return how far the recordings of these cameras are, of those where that is known."""
        return await self._streams.positions(sorted(cameras))

    async def published(self, places: Sequence[Place]) -> None:
        """Note that the masks of these frames of recordings are out, and take their jobs from the queue."""
        self._published.update((place.job, place) for place in places)
        await self.done([place.job for place in places])

    async def _answer(self, jobs: Collection[Job]) -> None:
        if not jobs:
            return
        published = [self._published[job] for job in jobs if job in self._published]
        await self._streams.answer(jobs, turns=self._turns.intersection(jobs), published=published)
        self._unanswered.difference_update(jobs)
        self._turns.difference_update(jobs)
        for job in jobs:
            self._published.pop(job, None)
            self._held.pop((job.shard, job.entry), None)

    async def bury(self, job: Job, reason: str) -> None:
        """Take the job from the queue and keep its beginning among the dead letters, where there is room."""
        if not await self._streams.bury(job, reason):
            log.warning("a dead letter is refused", camera=job.camera, reason=reason)
        await self.done([job])

    async def depth(self) -> int:
        """Return how many entries wait or are being worked on."""
        return await self._streams.depth()

    async def store_keys(self, camera: str, keys: Mapping[int, bytes], *, generations: int = KEY_GENERATIONS) -> None:
        """Keep the newest KEY of each region, beside those before it, so many in all, for a minute."""
        await self._streams.store_keys(camera, keys, generations)

    async def fetch_keys(self, camera: str, regions: Collection[int]) -> dict[int, tuple[bytes, ...]]:
        """Return the KEYs that are kept of each of the regions, newest first; of regions without any nothing."""
        return await self._streams.fetch_keys(camera, regions)

    async def _gather(self, batch: int, wait_s: float, steal: bool) -> None:
        """Make jobs ready: abandoned ones, else new ones of own shards, then those that others are late with."""
        if self._own is None:
            await self._beat()
        own = self._own or []
        if self._clock() - self._reclaimed >= self._reclaim_after_s / 2:
            await self._reclaim(batch)
        if self._ready:
            return
        if own:
            await self._take(own, batch, min(wait_s, self._steal_after_s))
        else:
            await asyncio.sleep(min(wait_s, self._steal_after_s))
        idle, room = not self._ready, batch - len(self._ready)
        looks = idle or self._clock() - self._looked >= self._steal_after_s
        if steal and looks and room > 0 and len(own) < self._shards:
            await self._steal(room, own)

    async def _take(self, shards: Sequence[int], batch: int, wait_s: float) -> None:
        """Make up to `batch` new jobs of these shards ready: what is claimed beyond that no other worker could take."""
        left = batch
        if len(shards) > batch:
            _, waited_ms = await self._streams.waited_ms(shards)
            longest = sorted((each for each in zip(waited_ms, shards, strict=True) if each[0] >= 0), reverse=True)
            shards = [shard for _, shard in longest[:batch]] or shards
        while shards:
            count = max(1, left // len(shards))
            jobs = await self._streams.read(shards, count, wait_s)
            self._hold(jobs)
            taken = Counter(job.shard for job in jobs)
            left, wait_s = max(0, left - len(jobs)), 0.0
            shards = [shard for shard in shards if taken[shard] >= count][:left]

    async def _steal(self, batch: int, own: Sequence[int]) -> None:
        """Make what waits in others' shards ready, one shard after the other; best in that whose keys may be here.

        The first that had something and may be taken over is.
        """
        self._looked = self._clock()
        others = [shard for shard in range(self._shards) if shard not in own]
        now_ms, waited_ms = await self._streams.waited_ms(others)
        behind_ms = max((now_ms - job.queued_ms for job in self._ready), default=0)
        late_ms = max(1000 * self._steal_after_s, STEAL_RATIO * behind_ms)
        late = [(ms, shard) for ms, shard in zip(waited_ms, others, strict=True) if ms >= late_ms]
        late.sort(key=lambda each: (each[1] == self._stolen, each), reverse=True)
        self._stolen, took = late[0][1] if late else self._stolen, False
        for _, shard in late:
            if batch > 0:
                jobs = await self._streams.read([shard], batch, 0)
                self._hold(jobs)
                batch -= len(jobs)
                took = took or (bool(jobs) and await self._take_over(shard))

    async def _take_over(self, shard: int) -> bool:
        """Make a shard our own, if that is not too soon."""
        if not await self._streams.take_over(shard, keep_s=self._keep_s, lasts_s=self._reclaim_after_s):
            return False
        self._taken.add(shard)
        self._own, self._shared = sorted({shard, *(self._own or [])}), None  # until the next heartbeat says so too
        return True

    async def _reclaim(self, batch: int) -> None:
        """Claim what dead workers left; bury what was left too often."""
        self._reclaimed = self._clock()
        if self._reclaimed - self._beaten > self._reclaim_after_s / 2:
            await self._beat()  # this process stood still, and to the server what it works on looks abandoned
        found = await self._streams.reclaim(self._reclaim_after_s, batch)
        jobs = [job for job in found if (job.shard, job.entry) not in self._held]
        self._hold(job for job in jobs if job.deliveries <= DELIVERY_LIMIT)  # first: a burial may fail
        for job in jobs:
            if job.deliveries > DELIVERY_LIMIT:
                reason = given_up(job.deliveries)
                await self.bury(job, reason)
                metrics.drop("queue", "given_up")
                log.warning("a packet is given up", camera=job.camera, reason=reason)

    def _hold(self, jobs: Iterable[Job]) -> None:
        for job in jobs:
            self._held[job.shard, job.entry] = self._clock()
            self._ready.append(job)

    async def _keep_alive(self) -> None:
        reported = ""
        while True:
            try:
                await self._beat()
                await self._compare_shards()
                await self._forget_idle()
            except TransportError as error:
                self._connected = False
                if str(error) != reported:
                    log.warning("waiting for redis", address=self._streams.address, reason=str(error))
                reported = str(error)
            else:
                if reported:
                    log.info("connected to redis", address=self._streams.address)
                reported = ""
            await asyncio.sleep(self._reclaim_after_s / _BEATS)

    async def _compare_shards(self) -> None:
        """Warn where others go by another number of shards: some of theirs or of ours nobody reads."""
        if self._clock() - self._compared < AGREED_S / 4:
            return
        self._compared = self._clock()
        agreed = await self._streams.agreed_shards() or self._shards
        if agreed not in (self._shards, self._agreed):
            log.warning("others use another number of shards", queue_shards=self._shards, theirs=agreed)
        self._agreed = agreed

    async def _forget_idle(self) -> None:
        """Now and then, and when this worker comes, delete what Redis keeps of those that are gone."""
        if self._worker and self._clock() - self._forgot >= IDLE_S:
            await self._streams.forget_idle()
            self._forgot = self._clock()

    async def _beat(self) -> None:
        """Say that we live and which jobs are ours; learn who else lives, and so which shards are ours."""
        oldest = self._clock() - self._hold_s
        self._held = {job: since for job, since in self._held.items() if since > oldest}
        if self._worker and not self._resting:
            said = frozenset(self._taken)  # while Redis answers more may be taken over
            live, taken = await self._streams.beat(self._held, said, self._reclaim_after_s)
            self._beaten = self._clock()
            self._met = self._met if live <= {self._worker} else self._clock()
            came_or_went = live != self._live  # then hashing is fair to all, until it shows that it is not
            gone = self._taken if came_or_went else {shard for shard in said if taken.get(shard) != self._worker}
            self._live, self._taken = live, self._taken - gone
            taken |= dict.fromkeys(self._taken, self._worker)
            if self._shared != (live, taken):
                self._shared, self._own = (live, taken), preferred_shards(self._worker, live, self._shards, taken=taken)
        else:
            await self._streams.ping()
        await self._answer(list(self._unanswered))  # after the heartbeat: an answer that is refused is no death
        self._connected = True


def _age(job: Job) -> tuple[int, int]:
    """Entry names are Redis's time and a count, so they order jobs of all shards by age."""
    at_ms, _, count = job.entry.partition("-")
    return int(at_ms), int(count)
