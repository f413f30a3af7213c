"""The commands to Redis that make the work queue, each one or two round trips (keys: docs/wire.md, section 3)."""

import asyncio
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, RedisError, ResponseError

from pipeline.cancellation import cancellable
from pipeline.errors import ConfigError, TransportError
from pipeline.mask_order import FORGET_S, POSITION_LASTS_S, TURN_S, Position, Turn
from pipeline.messages import FrameId
from pipeline.redis_scripts import (
    ADVANCE,
    AGREE,
    BEAT,
    END_TURN,
    FORGET_WORKERS,
    STORE_KEYS,
    TAKE_OVER,
    TAKE_TURN,
    WAITED_MS,
)
from pipeline.work_queue import (
    DEAD_BYTES,
    DEAD_LIMIT,
    KEEP_MOST_S,
    KEYS_BYTES,
    KEYS_EXPIRE_S,
    KEYS_LEAST,
    Job,
    Place,
    shard_of,
)

GROUP = "workers"
WORKERS = "maskcast:workers"
DEAD = "maskcast:dead"
AGREED = "maskcast:shards"
AGREED_S = 5.0  # as long as that number stands after the last one who goes by it
IDLE_S = 3600.0  # a worker that asked for nothing for so long is gone
ANSWER_S = 2.0  # for Redis to answer, on top of what a read waits for
_LENGTH_BYTES = 4
_OVER = b"over:"  # and an epoch: a field of an order


class RedisStreams:
    """The streams, heartbeats and keys of one Redis, as one worker (or "") sees them.

    It connects when first used and again after each failure; a call that fails raises TransportError. A bad
    address raises ConfigError.
    """

    def __init__(self, url: str, worker: str, shards: int) -> None:
        self.address = check_redis_url(url)
        # Any: the client's types differ between its releases.
        self._redis: Any = Redis.from_url(
            url,
            protocol=2,
            socket_timeout=ANSWER_S,
            socket_connect_timeout=ANSWER_S,
            retry=Retry(NoBackoff(), 1),  # a pooled connection may be older than the server's last start
        )
        self._worker = worker
        self._shards = shards

    async def close(self) -> None:
        """Close all connections."""
        await self._redis.aclose()

    async def beat(
        self, held: Iterable[tuple[int, str]], taken: Iterable[int], live_s: float
    ) -> tuple[frozenset[str], dict[int, str]]:
        """Say that this worker lives and still holds these (shard, entry), and these shards that it took over.

        Returns who said so within `live_s`, and by shard who took it over.
        """
        pipe = self._redis.pipeline(transaction=False)
        pipe.eval(BEAT, 1, WORKERS, self._worker, int(live_s * 1000))
        for shard, entries in _by_shard(held).items():
            # JUSTID: idle time begins anew, the count of deliveries stays
            pipe.xclaim(self._frames(shard), GROUP, self._worker, 0, entries, justid=True)
        for shard in taken:
            pipe.pexpire(self._taken(shard), int(live_s * 1000))  # if another has it by now, it says so as well
        pipe.mget([self._taken(shard) for shard in range(self._shards)])
        async with self._talk():
            live, *_, holders = await pipe.execute(raise_on_error=False)  # a stream may be gone
            if isinstance(live, Exception):
                raise live
        told = {} if isinstance(holders, Exception) else dict(enumerate(holders))
        by_whom = {shard: value.decode(errors="replace").rpartition(" ")[2] for shard, value in told.items() if value}
        return frozenset(name.decode(errors="replace") for name in live), by_whom

    async def take_over(self, shard: int, *, keep_s: float, lasts_s: float) -> bool:
        """Make a shard this worker's own for `lasts_s`, or for as long as its heartbeats say so.

        False where that is too soon: `keep_s` after it was taken over last, or longer where it went on again and again.
        """
        times_ms = (int(1000 * seconds) for seconds in (keep_s, KEEP_MOST_S, lasts_s))
        async with self._talk():
            try:
                return bool(await self._redis.eval(TAKE_OVER, 1, self._taken(shard), self._worker, *times_ms))
            except ResponseError:  # to help is what matters
                return False

    async def leave(self) -> None:
        """Say that this worker goes, so that others take its shards at once; its name goes where it holds nothing."""
        pipe = self._redis.pipeline(transaction=False)
        pipe.zrem(WORKERS, self._worker)
        await self._forget(pipe, self._worker, IDLE_S)

    async def forget_idle(self, idle_s: float = IDLE_S) -> None:
        """Delete what Redis keeps of workers that were killed and hold nothing any more."""
        await self._forget(self._redis.pipeline(transaction=False), "", idle_s)

    async def ping(self) -> None:
        """Ask whether Redis is there."""
        async with self._talk():
            await self._redis.ping()

    async def agreed_shards(self) -> int | None:
        """Say how many shards there are here; returns how many others say, None where that cannot be known."""
        async with self._talk():
            try:
                return int(await self._redis.eval(AGREE, 1, AGREED, self._shards, int(AGREED_S * 1000)))
            except (ResponseError, ValueError):  # a full Redis, or another's value
                return None

    async def add(self, camera: str, packet: bytes, limit: int) -> int:
        """Append to the camera's stream, in one round trip; returns how many entries were cut for it."""
        key = self._frames(shard_of(camera, self._shards))
        pipe = self._redis.pipeline(transaction=True)  # else another's entry could come between the counts
        pipe.xlen(key)
        pipe.xadd(key, {"camera": camera, "packet": packet}, maxlen=limit, approximate=True)
        pipe.xlen(key)
        async with self._talk():
            before, _, after = await pipe.execute()
        return int(before + 1 - after)

    async def read(self, shards: Sequence[int], count: int, wait_s: float) -> list[Job]:
        """Claim up to `count` new entries of each shard; waits only while there is none in any."""
        streams = {self._frames(shard): ">" for shard in shards}
        block = int(wait_s * 1000) or None  # 0 would wait for ever
        async with self._talk(wait_s):
            try:
                answer = await self._redis.xreadgroup(GROUP, self._worker, streams, count=count, block=block)
            except ResponseError as error:
                if not str(error).startswith(("NOGROUP", "UNBLOCKED")):
                    raise
                await self._create_groups()  # Redis is new, or was emptied
                answer = await self._redis.xreadgroup(GROUP, self._worker, streams, count=count)
        names = {self._frames(shard).encode(): shard for shard in shards}
        return [_job(names[name], *entry, deliveries=1) for name, entries in answer for entry in entries]

    async def waited_ms(self, shards: Sequence[int]) -> tuple[int, list[int]]:
        """Return what Redis's clock says, and for each shard how long its oldest new entry has waited, -1 for none."""
        pipe = self._redis.pipeline(transaction=False)
        for shard in shards:
            pipe.eval(WAITED_MS, 1, self._frames(shard))
        pipe.time()
        async with self._talk():
            *answers, (seconds, microseconds) = await pipe.execute()
        return 1000 * seconds + microseconds // 1000, answers

    async def reclaim(self, idle_s: float, count: int) -> list[Job]:
        """Claim up to `count` entries of each shard that nobody has answered, or held, for that long."""
        pipe = self._redis.pipeline(transaction=False)
        for shard in range(self._shards):
            pipe.xautoclaim(self._frames(shard), GROUP, self._worker, int(idle_s * 1000), count=count)
        async with self._talk():
            answers = await pipe.execute(raise_on_error=False)
            found = [
                (shard, entry, fields)
                for shard, answer in enumerate(answers)
                if not isinstance(answer, Exception)  # no group yet: nothing was claimed there
                for entry, fields in answer[1]
                if fields is not None
            ]
            for shard, entry, _ in found:
                pipe.xpending_range(self._frames(shard), GROUP, min=entry, max=entry, count=1)
            states = await pipe.execute() if found else []
        return [
            _job(*each, deliveries=state[0]["times_delivered"] if state else 1)
            for each, state in zip(found, states, strict=True)
        ]

    async def take_turns(self, places: Iterable[Place]) -> list[Turn]:
        """Ask for the turns of these frames, in one round trip."""
        pipe = self._redis.pipeline(transaction=False)
        for place in places:
            frame, entry, waits = place.frame, place.job.entry, (int(TURN_S * 1000), int(FORGET_S * 1000))
            order = self._order(place.job.camera)
            pipe.eval(TAKE_TURN, 1, order, frame.epoch, frame.sequence, entry, self._worker, *waits)
        async with self._talk():
            return [Turn(answer) for answer in await pipe.execute()]

    async def positions(self, cameras: Sequence[str]) -> dict[str, Position]:
        """Return how far the recordings of these cameras are, of those where that is known."""
        pipe = self._redis.pipeline(transaction=False)
        for camera in cameras:
            pipe.hgetall(self._order(camera))
        async with self._talk():
            orders = await pipe.execute() if cameras else []
        found = {camera: _position(order) for camera, order in zip(cameras, orders, strict=True)}
        return {camera: position for camera, position in found.items() if position is not None}

    async def answer(self, jobs: Iterable[Job], *, turns: Iterable[Job] = (), published: Iterable[Place] = ()) -> None:
        """Acknowledge and delete, end the turns of those that had one, move recordings on, in one round trip."""
        pipe = self._redis.pipeline(transaction=False)
        for place in published:  # first: what is cut off after this is given out again, and known to be out
            frame, times_ms = place.frame, (int(FORGET_S * 1000), int(POSITION_LASTS_S * 1000))
            pipe.eval(ADVANCE, 1, self._order(place.job.camera), frame.epoch, frame.sequence, *times_ms)
        for shard, entries in _by_shard((job.shard, job.entry) for job in jobs).items():
            pipe.xack(self._frames(shard), GROUP, *entries)
            pipe.xdel(self._frames(shard), *entries)
        for job in turns:
            pipe.eval(END_TURN, 1, self._order(job.camera), job.entry)
        async with self._talk():
            await pipe.execute()

    async def bury(self, job: Job, reason: str) -> bool:
        """Append the job's beginning to the dead letters; False where Redis, which is full, refuses it."""
        letter = {"packet": job.packet[:DEAD_BYTES], "reason": reason, "camera": job.camera, "worker": self._worker}
        async with self._talk():
            try:
                await self._redis.xadd(DEAD, letter, maxlen=DEAD_LIMIT, approximate=True)
            except ResponseError:
                return False
        return True

    async def depth(self) -> int:
        """Return how many entries there are, new or claimed."""
        pipe = self._redis.pipeline(transaction=False)
        for shard in range(self._shards):
            pipe.xlen(self._frames(shard))
        async with self._talk():
            return sum(await pipe.execute())

    async def store_keys(self, camera: str, keys: Mapping[int, bytes], generations: int) -> None:
        """Make these the newest KEYs of their regions, before those that were, so many in all, or so many bytes."""
        lists = [self._all_keys(camera, region) for region in keys] if generations > KEYS_LEAST else []
        limits = (int(KEYS_EXPIRE_S * 1000), generations, KEYS_BYTES, KEYS_LEAST)
        values = [part for region, key in keys.items() for part in (region, key)]
        async with self._talk():
            await self._redis.eval(STORE_KEYS, 1 + len(lists), self._keys(camera), *lists, *limits, *values)

    async def fetch_keys(self, camera: str, regions: Collection[int]) -> dict[int, tuple[bytes, ...]]:
        """Return the KEYs of each of the regions that has any, newest first."""
        if not regions:
            return {}
        pipe = self._redis.pipeline(transaction=True)  # else the KEYs of a packet could come between the regions
        pipe.hmget(self._keys(camera), [str(region) for region in regions])
        for region in regions:
            pipe.lrange(self._all_keys(camera, region), 0, -1)
        async with self._talk():
            newest, *all_of = await pipe.execute()
        found = {
            region: tuple(dict.fromkeys([*_generations(value or b""), *kept]))
            for region, value, kept in zip(regions, newest, all_of, strict=True)
        }
        return {region: keys for region, keys in found.items() if keys}

    async def _forget(self, pipe: Any, worker: str, idle_s: float) -> None:
        for shard in range(self._shards):
            pipe.eval(FORGET_WORKERS, 1, self._frames(shard), GROUP, worker, int(idle_s * 1000))
        async with self._talk():
            await pipe.execute()

    async def _create_groups(self) -> None:
        pipe = self._redis.pipeline(transaction=False)
        for shard in range(self._shards):
            pipe.xgroup_create(self._frames(shard), GROUP, id="0", mkstream=True)
        await pipe.execute(raise_on_error=False)  # some may be there already

    @asynccontextmanager
    async def _talk(self, wait_s: float = 0.0) -> AsyncIterator[None]:
        with cancellable():
            try:
                async with asyncio.timeout(wait_s + ANSWER_S):
                    yield
            except AuthenticationError as error:
                raise TransportError(
                    f"redis at {self.address} refuses the login: check user and password in its address ({error})"
                ) from error
            except TimeoutError as error:
                raise TransportError(f"redis at {self.address} does not answer") from error
            except (RedisError, OSError) as error:
                raise TransportError(f"redis at {self.address}: {error}") from error

    def _frames(self, shard: int) -> str:
        return f"maskcast:{{{shard}}}:frames"

    def _taken(self, shard: int) -> str:
        return f"maskcast:{{{shard}}}:taken"

    def _keys(self, camera: str) -> str:
        return f"maskcast:{{{shard_of(camera, self._shards)}}}:keys:{camera}"

    def _all_keys(self, camera: str, region: int) -> str:
        return f"{self._keys(camera)}:{region}"

    def _order(self, camera: str) -> str:
        return f"maskcast:{{{shard_of(camera, self._shards)}}}:order:{camera}"


def check_redis_url(url: str) -> str:
    """Return host:port of `redis[s]://[[user]:password@]host[:port][/number]`; raises ConfigError.

    The text of an error never holds the password.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError(
            "redis address: host or port cannot be read; write redis://:password@host:6379, "
            "with / ? # @ : in the password percent-encoded"
        ) from error
    if parts.scheme not in ("redis", "rediss") or not host:
        raise ConfigError("redis address: write redis://host:6379 or rediss://host:6379")
    number = parts.path.removeprefix("/")
    if (number and not number.isdecimal()) or parts.query or parts.fragment:
        raise ConfigError(f"redis address of {host}: only the number of a database may follow the port")
    return f"{host}:{port or 6379}"


def _job(shard: int, entry: bytes, fields: Mapping[bytes, bytes], *, deliveries: int) -> Job:
    camera = fields.get(b"camera", b"").decode(errors="replace")
    queued_ms = int(entry.partition(b"-")[0])
    return Job(shard, entry.decode(), camera, fields.get(b"packet", b""), deliveries, queued_ms)


def _by_shard(jobs: Iterable[tuple[int, str]]) -> dict[int, list[str]]:
    entries: dict[int, list[str]] = {}
    for shard, entry in jobs:
        entries.setdefault(shard, []).append(entry)
    return entries


def _generations(value: bytes) -> tuple[bytes, ...]:
    """Read a region's value as STORE_KEYS writes it, as far as it is one."""
    keys, at = [], 0
    while (start := at + _LENGTH_BYTES) < len(value):
        at = start + int.from_bytes(value[at:start], "big")
        if not start < at <= len(value):
            break
        keys.append(value[start:at])
    return tuple(keys)


def _position(order: Mapping[bytes, bytes]) -> Position | None:
    """What the hash of a camera's order says, as TAKE_TURN and ADVANCE write it."""
    try:
        frame = FrameId(int(order[b"epoch"]), int(order[b"sequence"]))
        at_ms = int(order[b"taken"])
        over = frozenset(int(field.removeprefix(_OVER)) for field in order if field.startswith(_OVER))
    except (KeyError, ValueError):
        return None
    return Position(frame, at_ms, over)
