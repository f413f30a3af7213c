"""The scripts do on Redis what the queue in memory does; what they are used for is in test_work_queue."""

import random

import pytest
import redis.asyncio
from queues import RedisBench
from redis.exceptions import ResponseError
from servers import Server

from pipeline.mask_order import MaskOrder, Turn
from pipeline.messages import FrameId
from pipeline.redis_scripts import ADVANCE, BEAT, END_TURN, STORE_KEYS, TAKE_TURN, WAITED_MS

FOREVER_MS = 10**7
HOUR_MS = 3_600_000


@pytest.mark.parametrize("seed", range(4))
async def test_turns_on_redis_are_those_of_the_order_in_memory(redis_bench: RedisBench, seed: int) -> None:
    rng, order, answers = random.Random(seed), MaskOrder(), set()
    async with redis.asyncio.from_url(redis_bench.url, protocol=2) as client:
        for number in range(300):
            entry, worker = str(rng.randrange(max(0, number - 6), number + 1)), rng.choice("abc")
            frame = FrameId(1 + number // 80 - rng.randrange(2), (2**32 - 100 + int(entry)) % 2**32)
            if rng.random() < 0.4:
                order.end(entry)
                await client.eval(END_TURN, 1, "order", entry)
                continue
            asked = (frame.epoch, frame.sequence, entry, worker, FOREVER_MS, FOREVER_MS)
            answer = Turn(await client.eval(TAKE_TURN, 1, "order", *asked))
            assert answer is order.take(frame, entry=entry, worker=worker, now_s=0.0), number
            answers.add(answer)
    assert answers == set(Turn)


async def test_a_turn_that_nobody_ended_is_given_away_after_the_time_that_is_given(redis_bench: RedisBench) -> None:
    async with redis.asyncio.from_url(redis_bench.url, protocol=2) as client:
        assert await client.eval(TAKE_TURN, 1, "order", 7, 1, "1-0", "a", 0, FOREVER_MS) == Turn.MINE
        assert await client.eval(TAKE_TURN, 1, "order", 7, 2, "2-0", "b", FOREVER_MS, FOREVER_MS) == Turn.WAIT
        assert await client.eval(TAKE_TURN, 1, "order", 7, 2, "2-0", "b", 0, FOREVER_MS) == Turn.MINE


async def test_a_turn_taken_before_the_clock_was_set_back_is_given_away(redis_bench: RedisBench) -> None:
    async with redis.asyncio.from_url(redis_bench.url, protocol=2) as client:
        ahead_ms = 1000 * (await client.time())[0] + HOUR_MS
        assert await client.eval(TAKE_TURN, 1, "order", 7, 1, "1-0", "a", FOREVER_MS, FOREVER_MS) == Turn.MINE
        await client.hset("order", "taken", ahead_ms)
        assert await client.eval(TAKE_TURN, 1, "order", 7, 2, "2-0", "b", FOREVER_MS, FOREVER_MS) == Turn.MINE
        await client.hset("order", mapping={"over:5": ahead_ms, "over:6": ahead_ms})
        assert await client.eval(TAKE_TURN, 1, "order", 6, 0, "3-0", "b", FOREVER_MS, FOREVER_MS) == Turn.MINE
        assert [each for each in await client.hkeys("order") if each.startswith(b"over:")] == [b"over:7"]


async def test_workers_from_before_the_clock_was_set_back_count_as_gone(redis_bench: RedisBench) -> None:
    async with redis.asyncio.from_url(redis_bench.url, protocol=2) as client:
        now_ms = 1000 * (await client.time())[0]
        await client.zadd("workers", {"gone": now_ms + HOUR_MS, "here": now_ms + 2000, "w1": now_ms + HOUR_MS})
        assert sorted(await client.eval(BEAT, 1, "workers", "w1", 5000)) == [b"here", b"w1"]
        assert sorted(await client.zrange("workers", 0, -1)) == [b"here", b"w1"]


async def test_what_was_queued_after_the_clock_was_set_back_is_helped_with(redis_bench: RedisBench) -> None:
    async with redis.asyncio.from_url(redis_bench.url, protocol=2) as client:
        assert await client.eval(WAITED_MS, 1, "frames") == -1
        now_ms = 1000 * (await client.time())[0]
        for ahead_ms, waited_ms in ((-9000, 9000), (900, 0), (HOUR_MS, 60_000)):
            entry = await client.xadd("frames", {"packet": "x"}, id=f"{now_ms + ahead_ms}-0")
            assert waited_ms <= await client.eval(WAITED_MS, 1, "frames") <= waited_ms + 3000
            await client.xdel("frames", entry)


async def test_an_order_is_forgotten_after_the_time_that_is_given(redis_bench: RedisBench) -> None:
    async with redis.asyncio.from_url(redis_bench.url, protocol=2) as client:
        await client.eval(TAKE_TURN, 1, "order", 7, 1, "1-0", "a", 0, 5000)
        assert 4 <= await client.ttl("order") <= 5


async def test_stored_keys_are_the_newest_first_each_once_and_expire(redis_bench: RedisBench) -> None:
    async with redis.asyncio.from_url(redis_bench.url, protocol=2) as client:
        for key in (b"a", b"bb", b"bb", b"c"):
            await client.eval(STORE_KEYS, 1, "keys", 5000, 2, 1000, 3, 7, key)
        assert await client.hgetall("keys") == {b"7": b"\0\0\0\1c\0\0\0\2bb"}
        for key in (b"d", b"bb", b"e"):
            await client.eval(STORE_KEYS, 1, "keys", 5000, 64, 1000, 3, 7, key)
        assert await client.hgetall("keys") == {b"7": b"\0\0\0\1e\0\0\0\2bb\0\0\0\1d"}
        assert 4 <= await client.ttl("keys") <= 5


async def test_those_of_a_recording_lie_in_lists_too_as_many_as_are_asked_for(redis_bench: RedisBench) -> None:
    async with redis.asyncio.from_url(redis_bench.url, protocol=2) as client:
        for key in (b"a", b"d", b"bb", b"bb", b"d", b"e"):
            await client.eval(STORE_KEYS, 3, "keys", "l7", "l8", 5000, 4, 10**6, 3, 7, key, 8, b"other " + key)
        assert await client.lrange("l7", 0, -1) == [b"e", b"d", b"bb", b"a"]
        assert await client.lrange("l8", 0, -1) == [b"other e", b"other d", b"other bb", b"other a"]
        assert await client.hget("keys", "8") == b"\0\0\0\7other e\0\0\0\7other d\0\0\0\10other bb"
        assert {await client.ttl(name) in (4, 5) for name in ("keys", "l7", "l8")} == {True}
        for number in range(8):
            await client.eval(STORE_KEYS, 2, "keys", "l7", 5000, 64, 5000, 3, 7, b"%01000d" % number)
        assert 3 <= await client.llen("l7") < 6


async def test_keys_that_were_not_written_by_this_are_passed_over(redis_bench: RedisBench) -> None:
    async with redis.asyncio.from_url(redis_bench.url, protocol=2) as client:
        for held in (b"\0", b"\0\0\0\x09short", b"\xff\xff\xff\xffM", b"\0\0\0\1aM\2\0\0"):
            await client.hset("keys", "7", held)
            await client.eval(STORE_KEYS, 1, "keys", 5000, 2, 1000, 3, 7, b"new")
            assert (await client.hget("keys", "7")).startswith(b"\0\0\0\3new")


async def test_a_full_redis_refuses_keys(own_redis: Server) -> None:
    async with redis.asyncio.from_url(f"redis://127.0.0.1:{own_redis.port}", protocol=2) as client:
        await client.eval(STORE_KEYS, 2, "keys", "l7", 5000, 64, 1000, 3, 7, b"a")
        await client.config_set("maxmemory", 1)
        for key in (b"a", b"b"):
            with pytest.raises(ResponseError, match="maxmemory"):
                await client.eval(STORE_KEYS, 2, "keys", "l7", 5000, 64, 1000, 3, 7, key)
        assert await client.lrange("l7", 0, -1) == [b"a"]
        assert await client.hgetall("keys") == {b"7": b"\0\0\0\1a"}


async def test_a_key_of_a_recording_does_not_hold_redis_up(own_redis: Server) -> None:
    async with redis.asyncio.from_url(f"redis://127.0.0.1:{own_redis.port}", protocol=2) as client:
        for number in range(80):
            if number == 64:
                await client.config_resetstat()
            await client.eval(STORE_KEYS, 2, "keys", "l7", 5000, 64, 10**7, 3, 7, b"%060000d" % number)
        assert await client.llen("l7") == 64
        assert (await client.info("commandstats"))["cmdstat_eval"]["usec_per_call"] < 20_000  # it was 79 000


@pytest.mark.parametrize("seed", range(4))
async def test_positions_on_redis_are_those_of_the_order_in_memory(redis_bench: RedisBench, seed: int) -> None:
    rng, order, moved = random.Random(seed), MaskOrder(), 0
    async with redis.asyncio.from_url(redis_bench.url, protocol=2) as client:
        for number in range(200):
            sequence = (2**32 - 100 + rng.randrange(max(0, number - 6), number + 1)) % 2**32
            frame, before = FrameId(1 + number // 80 - rng.randrange(2), sequence), order.position(now_s=0.0)
            order.advance(frame, now_s=0.0)
            await client.eval(ADVANCE, 1, "order", frame.epoch, frame.sequence, FOREVER_MS, FOREVER_MS)
            position, fields = order.position(now_s=0.0), await client.hgetall("order")
            assert position is not None
            moved += position != before
            assert (int(fields[b"epoch"]), int(fields[b"sequence"])) == (position.frame.epoch, position.frame.sequence)
            assert {int(each[5:]) for each in fields if each.startswith(b"over:")} == position.over
    assert 20 < moved < 180
