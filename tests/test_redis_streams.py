"""What is in Redis, byte for byte, and the addresses it is found by."""

import pytest
import redis.asyncio
from queues import RedisBench, claim

from pipeline.errors import ConfigError
from pipeline.mask_order import Turn
from pipeline.messages import FrameId
from pipeline.redis_queue import RedisWorkQueue
from pipeline.redis_streams import check_redis_url
from pipeline.work_queue import RECORDED_GENERATIONS, Place, shard_of


async def test_redis_keys_are_those_of_the_wire(redis_bench: RedisBench) -> None:
    shard = shard_of("cam-1", 16)
    async with redis_bench.queue() as gateway, redis_bench.queue("w1") as worker:
        await gateway.put("cam-1", b"x")
        await gateway.store_keys("cam-1", {2: b"key"})
        [job] = await claim(worker, 1)
        await worker.take_turns([Place(job, FrameId(7, 3))])
        async with redis.asyncio.from_url(redis_bench.url, protocol=2) as client:
            order = await client.hgetall(f"maskcast:{{{shard}}}:order:cam-1")
            taken_ms = int(order.pop(b"taken"))
            assert order == {b"epoch": b"7", b"sequence": b"3", b"entry": job.entry.encode(), b"worker": b"w1"}
            assert abs((await client.time())[0] - taken_ms / 1000) < 3
            assert 58 <= await client.ttl(f"maskcast:{{{shard}}}:order:cam-1") <= 60
            [(_, fields)] = await client.xrange(f"maskcast:{{{shard}}}:frames")
            assert fields == {b"camera": b"cam-1", b"packet": b"x"}
            [group] = await client.xinfo_groups(f"maskcast:{{{shard}}}:frames")
            assert group["name"] == b"workers"
            assert 58 <= await client.ttl(f"maskcast:{{{shard}}}:keys:cam-1") <= 60
            assert await client.hgetall(f"maskcast:{{{shard}}}:keys:cam-1") == {b"2": b"\0\0\0\3key"}
            assert await client.keys("*keys*") == [f"maskcast:{{{shard}}}:keys:cam-1".encode()]
            await gateway.store_keys("cam-1", {2: b"key 2"}, generations=RECORDED_GENERATIONS)
            assert 58 <= await client.ttl(f"maskcast:{{{shard}}}:keys:cam-1:2") <= 60
            assert await client.lrange(f"maskcast:{{{shard}}}:keys:cam-1:2", 0, -1) == [b"key 2"]
            assert await client.hget(f"maskcast:{{{shard}}}:keys:cam-1", "2") == b"\0\0\0\5key 2\0\0\0\3key"
            assert await worker.fetch_keys("cam-1", [2]) == {2: (b"key 2", b"key")}
            [(name, beat_ms)] = await client.zrange("maskcast:workers", 0, -1, withscores=True)
            seconds, _ = await client.time()
            assert name == b"w1"
            assert abs(seconds - beat_ms / 1000) < 3
    async with redis.asyncio.from_url(redis_bench.url) as client:
        assert await client.zcard("maskcast:workers") == 0


async def test_foreign_entry_and_foreign_key_value_do_no_harm(redis_bench: RedisBench) -> None:
    async with redis_bench.queue("w1") as worker, redis.asyncio.from_url(redis_bench.url) as client:
        await client.xadd("maskcast:{0}:frames", {"what": "ever"})
        shard = shard_of("cam-1", 16)
        await client.hset(f"maskcast:{{{shard}}}:keys:cam-1", mapping={"0": b"\xff\xff\xff\xffx", "1": b"x"})
        [job] = await claim(worker, 1)
        assert (job.camera, job.packet) == ("", b"")
        assert await worker.fetch_keys("cam-1", [0, 1]) == {}
        await worker.store_keys("cam-1", {1: b"key"})
        assert await worker.fetch_keys("cam-1", [0, 1]) == {1: (b"key",)}


@pytest.mark.parametrize(
    "url",
    [
        "",
        "127.0.0.1:6379",
        "http://host",
        "redis://",
        "redis://:secret@host:port",
        "redis://:secret@host:99999",
        "redis://:sec/ret@host",
        "redis://:secret@host/name",
        "redis://:secret@host?db=x",
        "redis://:secret@[::1",
    ],
)
def test_bad_redis_address_is_one_sentence_without_the_password(url: str) -> None:
    with pytest.raises(ConfigError, match="redis address") as caught:
        RedisWorkQueue(url)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_redis_address_has_a_default_port() -> None:
    assert check_redis_url("redis://user:secret@queue.example/3") == "queue.example:6379"


async def test_epochs_that_are_over_are_kept_with_the_time_they_ended_and_dropped_later(
    redis_bench: RedisBench,
) -> None:
    order = f"maskcast:{{{shard_of('cam-1', 16)}}}:order:cam-1"
    async with (
        redis_bench.queue() as gateway,
        redis_bench.queue("w1") as worker,
        redis.asyncio.from_url(redis_bench.url, protocol=2) as client,
    ):
        await gateway.put("cam-1", b"x")
        [job] = await claim(worker, 1)
        for epoch in (1, 2):
            assert await worker.take_turns([Place(job, FrameId(epoch, 9))]) == [Turn.MINE]
        ended_ms = int(await client.hget(order, "over:1"))
        assert await worker.take_turns([Place(job, FrameId(1, 10))]) == [Turn.OVER]
        await client.hset(order, "over:1", ended_ms - 60_000)
        assert await worker.take_turns([Place(job, FrameId(1, 0))]) == [Turn.MINE]
        assert await client.hexists(order, "over:2") and not await client.hexists(order, "over:1")
