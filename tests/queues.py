"""Work queues to test: several views of one queue, in memory or on Redis, and what tests do with them."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
import redis.asyncio

from pipeline.errors import TransportError
from pipeline.memory_queue import MemoryQueueState, MemoryWorkQueue
from pipeline.redis_queue import RedisWorkQueue
from pipeline.work_queue import Job, WorkQueue

LIMIT_S = 10.0
RECLAIM_S = 0.4
Letter = tuple[str, bytes, str, str]  # camera, packet, reason, worker


class MemoryBench:
    """Queues of one process."""

    def __init__(self) -> None:
        self.state = MemoryQueueState(shard_limit=100)

    def queue(self, worker: str | None = None, **options: float) -> WorkQueue:
        return MemoryWorkQueue(self.state, worker, **{"reclaim_after_s": RECLAIM_S, **options})

    async def dead(self) -> list[Letter]:
        return [(each.camera, each.packet, each.reason, each.worker) for each in self.state.dead]

    async def holder(self, shard: int) -> str | None:
        """Who took the shard over."""
        return self.state.taken[shard].worker if shard in self.state.taken else None


class RedisBench:
    """Queues on one database of a Redis."""

    def __init__(self, url: str) -> None:
        self.url = url

    def queue(self, worker: str | None = None, **options: float) -> WorkQueue:
        settings = {"reclaim_after_s": RECLAIM_S, "shard_limit": 100, **options}
        return RedisWorkQueue(self.url, worker, **settings)  # type: ignore[arg-type]

    async def dead(self) -> list[Letter]:
        async with redis.asyncio.from_url(self.url, protocol=2) as client:
            letters = [fields for _, fields in await client.xrange("maskcast:dead")]
        names = (b"camera", b"reason", b"worker")
        texts = [[letter[name].decode() for name in names] for letter in letters]
        return [(t[0], letter[b"packet"], t[1], t[2]) for t, letter in zip(texts, letters, strict=True)]

    async def holder(self, shard: int) -> str | None:
        """Who took the shard over."""
        async with redis.asyncio.from_url(self.url, protocol=2) as client:
            value = await client.get(f"maskcast:{{{shard}}}:taken")
        return None if value is None else value.decode().split(" ")[2]


Bench = MemoryBench | RedisBench


async def claim(queue: WorkQueue, count: int, batch: int = 16, wait_s: float = LIMIT_S) -> list[Job]:
    """Claim until there are `count` jobs."""
    jobs: list[Job] = []
    async with asyncio.timeout(LIMIT_S):
        while len(jobs) < count:
            jobs += await queue.claim(batch=batch, wait_s=wait_s)
    return jobs


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not await holds():  # noqa: ASYNC110 - what it looks at sends no signal
            await asyncio.sleep(0.02)


async def is_empty(queue: WorkQueue) -> bool:
    return await queue.depth() == 0


async def are_connected(expected: bool, *queues: WorkQueue) -> bool:
    return all(queue.connected is expected for queue in queues)


async def are_alone(expected: bool, *queues: WorkQueue) -> bool:
    return all(queue.alone is expected for queue in queues)


async def until_raises(call: Callable[[], Awaitable[object]]) -> None:
    with pytest.raises(TransportError):
        async with asyncio.timeout(LIMIT_S):
            while True:
                await call()
                await asyncio.sleep(0.01)
