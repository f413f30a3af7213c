"""The scripts do on Redis what the queue in memory does; what they are used for is in test_work_queue."""

import random

import pytest
import redis.asyncio
from queues import RedisBench

from pipeline.mask_order import MaskOrder, Turn
from pipeline.messages import FrameId
from pipeline.redis_scripts import END_TURN, STORE_KEYS, TAKE_TURN

FOREVER_MS = 10**7


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


async def test_an_order_is_forgotten_after_the_time_that_is_given(redis_bench: RedisBench) -> None:
    async with redis.asyncio.from_url(redis_bench.url, protocol=2) as client:
        await client.eval(TAKE_TURN, 1, "order", 7, 1, "1-0", "a", 0, 5000)
        assert 4 <= await client.ttl("order") <= 5


async def test_stored_keys_are_the_newest_and_the_one_before_and_expire(redis_bench: RedisBench) -> None:
    async with redis.asyncio.from_url(redis_bench.url, protocol=2) as client:
        for key in (b"a", b"bb", b"bb", b"c"):
            await client.eval(STORE_KEYS, 1, "keys", 5000, 3, key)
        assert await client.hgetall("keys") == {b"3": b"\x00\x00\x00\x01cbb"}
        assert 4 <= await client.ttl("keys") <= 5
