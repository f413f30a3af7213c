"""The work queue on Redis: what it does when Redis is away, silent, emptied, or says no."""

import asyncio
import sys
import time
from collections.abc import Sequence
from functools import partial, partialmethod

import pytest
import redis.asyncio
import structlog
from queues import LIMIT_S, RECLAIM_S, RedisBench, are_connected, claim, is_empty, until, until_raises
from servers import Server, free_port

from pipeline.errors import TransportError
from pipeline.mask_order import Turn
from pipeline.messages import FrameId
from pipeline.redis_queue import RedisWorkQueue
from pipeline.redis_streams import RedisStreams
from pipeline.work_queue import Job, Place, WorkQueue, preferred_shards, shard_of


async def test_redis_that_was_emptied_is_set_up_again(redis_bench: RedisBench) -> None:
    async with redis_bench.queue() as gateway, redis_bench.queue("w1") as worker:
        await gateway.put("cam-1", b"x")
        await worker.done(await claim(worker, 1))
        claiming = asyncio.create_task(claim(worker, 1))
        await asyncio.sleep(0.05)
        async with redis.asyncio.from_url(redis_bench.url) as client:
            await client.flushdb()
        await gateway.put("cam-1", b"y")
        [job] = await claiming
        assert job.packet == b"y"
        await worker.done([job])
        assert await gateway.depth() == 0


async def test_redis_killed_midway_is_a_transport_error_and_nothing_acknowledged_is_lost(
    own_redis: Server,
) -> None:
    """With `appendonly yes, appendfsync always`; without it a Redis that is killed loses what was queued."""
    bench = RedisBench(f"redis://127.0.0.1:{own_redis.port}")
    with structlog.testing.capture_logs() as logs:
        async with bench.queue() as gateway, bench.queue("w1") as worker:
            for number in range(10):
                await gateway.put("cam-1", bytes([number]))
            jobs = await claim(worker, 10)
            await worker.done(jobs[:4])
            own_redis.kill()
            await until_raises(lambda: gateway.put("cam-1", b"lost"))
            await until_raises(lambda: worker.claim(batch=16, wait_s=0.1))
            await until_raises(lambda: worker.done(jobs[4:6]))
            await until(lambda: are_connected(False, gateway, worker))
            own_redis.start()
            await gateway.put("cam-1", bytes([10]))
            assert [job.packet[0] for job in await claim(worker, 1)] == [10]
            await until(lambda: are_connected(True, gateway, worker))
            assert await gateway.depth() == 5  # what was answered while Redis was away is answered now
        async with bench.queue("w2") as other:
            left = await claim(other, 5)
            assert sorted(job.packet[0] for job in left) == [6, 7, 8, 9, 10]
    events = [line["event"] for line in logs]
    assert events.count("waiting for redis") == 2
    assert events.count("connected to redis") == 2


async def test_masks_of_a_recording_that_went_out_while_redis_was_away_are_told_it_later(own_redis: Server) -> None:
    bench = RedisBench(f"redis://127.0.0.1:{own_redis.port}")
    async with bench.queue() as gateway, bench.queue("w1") as worker:
        for number in range(3):
            await gateway.put("cam-1", bytes([number]))
        jobs = await claim(worker, 3)
        own_redis.kill()
        places = [Place(job, FrameId(7, number)) for number, job in enumerate(jobs)]
        for place in places:
            await until_raises(partial(worker.published, [place]))
        await until_raises(lambda: worker.positions(["cam-1"]))
        own_redis.start()
        await until(lambda: is_empty(gateway))
        assert (await gateway.positions(["cam-1"]))["cam-1"].frame == FrameId(7, 2)


async def test_jobs_of_a_killed_process_go_on_within_three_seconds(redis_bench: RedisBench) -> None:
    program = f"""
import asyncio
from pipeline.messages import FrameId
from pipeline.redis_queue import RedisWorkQueue
async def main():
    async with RedisWorkQueue({redis_bench.url!r}, "w1") as queue:
        while True:
            jobs = await queue.claim(batch=16, wait_s=1)
            if jobs: print(len(jobs), flush=True)
asyncio.run(main())
"""
    async with RedisWorkQueue(redis_bench.url) as gateway, RedisWorkQueue(redis_bench.url, "w2") as other:
        await gateway.put("cam-1", b"x")
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE)
        assert process.stdout is not None
        async with asyncio.timeout(3 * LIMIT_S):
            assert await process.stdout.readline() == b"1\n"
        process.kill()
        await process.wait()
        async with asyncio.timeout(3.0):
            [job] = await other.claim(batch=16, wait_s=LIMIT_S)
        assert (job.packet, job.deliveries) == (b"x", 2)


async def test_a_burial_that_fails_does_not_lose_the_jobs_reclaimed_with_it(
    redis_bench: RedisBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def no_room(job: Job, reason: str) -> None:
        raise TransportError("no room")

    async with redis_bench.queue() as gateway:
        await gateway.put("cam-1", b"poison")
        async with redis_bench.queue("w1") as crashing:
            await claim(crashing, 1)
        async with redis_bench.queue("w2") as crashing:
            await claim(crashing, 1)
            await gateway.put("cam-1", b"good")
            await claim(crashing, 1)
        async with redis_bench.queue("w3") as worker:
            monkeypatch.setattr(worker._streams, "bury", no_room)  # type: ignore[attr-defined]
            await asyncio.sleep(RECLAIM_S)
            await until_raises(lambda: worker.claim(batch=16, wait_s=0))
            [job] = await worker.claim(batch=16, wait_s=0)
            assert job.packet == b"good"


async def test_a_full_redis_takes_no_packets_and_gives_out_those_it_has(own_redis: Server) -> None:
    bench = RedisBench(f"redis://127.0.0.1:{own_redis.port}")
    async with bench.queue() as gateway, redis.asyncio.from_url(bench.url) as client:
        for number in range(6):
            await gateway.put("cam-1", bytes([number]))
        async with bench.queue("w0") as first:
            await claim(first, 1, batch=1)
        await client.config_set("maxmemory", 1)
        await until_raises(lambda: gateway.put("cam-1", b"more"))
        async with bench.queue("w1") as worker:
            jobs = await claim(worker, 6)
            await until(lambda: are_connected(True, worker))
            frames = [FrameId(epoch, number) for epoch in (1, 2) for number in range(2)]
            for place in map(Place, jobs, frames):
                assert await worker.take_turns([place]) == [Turn.MINE]
                await worker.done([place.job])
            await worker.published([Place(jobs[4], FrameId(3, 0))])
            assert (await worker.positions(["cam-1"]))["cam-1"].frame == FrameId(3, 0)
            await worker.bury(jobs[5], "poison")
            assert await gateway.depth() == 0
        assert await client.exists("maskcast:dead") == 0


async def consumers(url: str, camera: str) -> set[bytes]:
    """The workers that Redis knows of in the camera's shard."""
    async with redis.asyncio.from_url(url, protocol=2) as client:
        found = await client.xinfo_consumers(f"maskcast:{{{shard_of(camera, 16)}}}:frames", "workers")
    return {each["name"] for each in found}


async def are_consumers(expected: set[bytes], url: str, camera: str) -> bool:
    return await consumers(url, camera) == expected


async def test_a_worker_that_goes_leaves_its_name_only_where_it_holds_packets(redis_bench: RedisBench) -> None:
    async with redis_bench.queue() as gateway:
        async with redis_bench.queue("w1") as worker:
            for camera in ("cam-1", "cam-2"):
                await gateway.put(camera, b"x")
            jobs = await claim(worker, 2)
            await worker.done([job for job in jobs if job.camera == "cam-1"])
            assert await consumers(redis_bench.url, "cam-1") == {b"w1"}
        assert await consumers(redis_bench.url, "cam-1") == set()
        assert await consumers(redis_bench.url, "cam-2") == {b"w1"}
        async with redis_bench.queue("w2") as other:
            [job] = await claim(other, 1)
            assert (job.camera, job.deliveries) == ("cam-2", 2)


async def test_names_of_workers_that_were_killed_are_deleted_when_another_comes(
    redis_bench: RedisBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with redis_bench.queue() as gateway, redis.asyncio.from_url(redis_bench.url) as client:
        await gateway.put("cam-1", b"x")
        frames = f"maskcast:{{{shard_of('cam-1', 16)}}}:frames"
        await client.xgroup_create(frames, "workers", id="0")
        await client.xgroup_createconsumer(frames, "workers", "killed")
        await client.xreadgroup("workers", "holds", {frames: ">"})
        async with redis_bench.queue("w1"):
            await asyncio.sleep(RECLAIM_S)
            assert await consumers(redis_bench.url, "cam-1") == {b"killed", b"holds"}
        monkeypatch.setattr(RedisStreams, "forget_idle", partialmethod(RedisStreams.forget_idle, 0.0))
        async with redis_bench.queue("w2"):
            await until(lambda: are_consumers({b"holds"}, redis_bench.url, "cam-1"))


async def test_another_number_of_shards_is_warned_of_once(redis_bench: RedisBench) -> None:
    with structlog.testing.capture_logs() as logs:
        async with redis_bench.queue() as gateway, redis.asyncio.from_url(redis_bench.url) as client:
            await until(lambda: are_connected(True, gateway))
            async with redis_bench.queue("w1"), redis_bench.queue("w2", shards=4):
                await until(lambda: _is(bool(logs)))
                await asyncio.sleep(1.5)
            assert await client.get("maskcast:shards") == b"16"
            assert 0 < await client.pttl("maskcast:shards") <= 5000
    assert [(line["log_level"], line["queue_shards"], line["theirs"]) for line in logs] == [("warning", 4, 16)]


async def test_absent_redis_is_a_transport_error_that_names_it() -> None:
    port = free_port()
    async with RedisWorkQueue(f"redis://127.0.0.1:{port}", "w1") as worker:
        assert not worker.connected
        with pytest.raises(TransportError, match=f"127.0.0.1:{port}"):
            await worker.put("cam-1", b"x")
        with pytest.raises(TransportError, match=f"127.0.0.1:{port}"):
            await worker.claim(batch=1, wait_s=0)


async def test_redis_that_is_silent_does_not_hold_anyone_for_long() -> None:
    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(-1)
        writer.close()

    async with await asyncio.start_server(accept, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with asyncio.timeout(LIMIT_S), RedisWorkQueue(f"redis://127.0.0.1:{port}") as gateway:
            with pytest.raises(TransportError, match="does not answer"):
                await gateway.put("cam-1", b"x")


async def test_wrong_password_is_named_and_not_shown(own_redis: Server) -> None:
    async with redis.asyncio.from_url(f"redis://127.0.0.1:{own_redis.port}") as client:
        await client.config_set("requirepass", "s3cr/t")
    async with RedisWorkQueue(f"redis://:wr0ng@127.0.0.1:{own_redis.port}") as gateway:
        with pytest.raises(TransportError, match="refuses the login") as caught:
            await gateway.put("cam-1", b"x")
        assert "wr0ng" not in str(caught.value)
    async with RedisWorkQueue(f"redis://127.0.0.1:{own_redis.port}") as gateway:
        with pytest.raises(TransportError, match="refuses the login"):
            await gateway.put("cam-1", b"x")
    async with RedisWorkQueue(f"redis://:s3cr%2Ft@127.0.0.1:{own_redis.port}") as gateway:
        await gateway.put("cam-1", b"x")


async def test_what_a_worker_works_on_is_not_given_to_it_again_after_it_stood_still(redis_bench: RedisBench) -> None:
    async with redis_bench.queue() as gateway, redis_bench.queue("w1") as worker:
        await gateway.put("cam-1", b"0")
        await claim(worker, 1)
        for _ in range(3):
            time.sleep(2 * RECLAIM_S)  # noqa: ASYNC251 - it stands still, heartbeats and all
            assert await worker.claim(batch=1, wait_s=0) == []
    async with redis_bench.queue("w2") as other:
        [job] = await claim(other, 1)
        assert job.deliveries == 2  # given to each of them once


async def late_camera(gateway: WorkQueue, first: WorkQueue, second: WorkQueue) -> str:
    """A camera of w1's, one packet of which w2 would help with; both have heard of each other."""
    for worker in (first, second, first):
        await worker.claim(batch=1, wait_s=0)
    await asyncio.sleep(RECLAIM_S)
    own = preferred_shards("w1", ["w1", "w2"], 16)
    camera = next(name for name in map("cam-{}".format, range(99)) if shard_of(name, 16) in own)
    await gateway.put(camera, b"late")
    return camera


async def gets_the_next(gateway: WorkQueue, worker: WorkQueue, camera: str) -> bool:
    """Whether a packet of the camera comes to this worker as its own."""
    await gateway.put(camera, b"next")
    jobs = await worker.claim(batch=1, wait_s=0, steal=False)
    await worker.done(jobs)
    return bool(jobs)


async def test_shards_of_a_worker_that_died_before_the_clock_was_set_back_are_served(redis_bench: RedisBench) -> None:
    own = preferred_shards("gone", ["gone", "w1"], 16)
    camera = next(name for name in map("cam-{}".format, range(99)) if shard_of(name, 16) in own)
    async with redis.asyncio.from_url(redis_bench.url) as client:
        ahead_ms = 1000 * (await client.time())[0] + 3_600_000
        entry = await client.xadd(f"maskcast:{{{shard_of(camera, 16)}}}:frames", {"camera": "x"}, id=f"{ahead_ms}-0")
        await client.xdel(f"maskcast:{{{shard_of(camera, 16)}}}:frames", entry)
        await client.zadd("maskcast:workers", {"gone": ahead_ms})
    async with redis_bench.queue() as gateway, redis_bench.queue("w1") as worker:
        await gateway.put(camera, b"x")
        [job] = await worker.claim(batch=1, wait_s=LIMIT_S, steal=False)
        assert job.packet == b"x"


async def test_a_shard_that_was_taken_over_goes_back_where_redis_forgets_it(redis_bench: RedisBench) -> None:
    async with redis_bench.queue() as gateway, redis_bench.queue("w1") as first, redis_bench.queue("w2") as second:
        camera = await late_camera(gateway, first, second)
        await second.done(await claim(second, 1))
        async with redis.asyncio.from_url(redis_bench.url) as client:
            await client.delete(f"maskcast:{{{shard_of(camera, 16)}}}:taken")
        await asyncio.sleep(RECLAIM_S)
        assert not await gets_the_next(gateway, second, camera)
        assert await gets_the_next(gateway, first, camera)


async def test_a_shard_in_which_nothing_was_left_is_not_taken_over(redis_bench: RedisBench) -> None:
    async with redis_bench.queue() as gateway, redis_bench.queue("w1") as first, redis_bench.queue("w2") as second:
        camera, streams = await late_camera(gateway, first, second), second._streams
        looked = streams.waited_ms

        async def looks_and_is_overtaken(shards: Sequence[int]) -> tuple[int, list[int]]:
            found = await looked(shards)
            await first.done(await first.claim(batch=1, wait_s=0, steal=False))
            return found

        await asyncio.sleep(0.2)
        streams.waited_ms = looks_and_is_overtaken
        assert await second.claim(batch=1, wait_s=0) == []
        assert await redis_bench.holder(shard_of(camera, 16)) is None


async def test_a_shard_that_is_taken_over_during_a_heartbeat_is_kept(redis_bench: RedisBench) -> None:
    async with redis_bench.queue() as gateway, redis_bench.queue("w1") as first, redis_bench.queue("w2") as second:
        camera, streams = await late_camera(gateway, first, second), second._streams
        beaten, during = streams.beat, list[Job]()

        async def beats_for_long(*said: object) -> object:
            answer = await beaten(*said)
            if not during:
                during.extend(await claim(second, 1))
            return answer

        streams.beat = beats_for_long
        await until(lambda: _is(bool(during)))
        await second.done(during)
        await asyncio.sleep(2 * RECLAIM_S)
        assert not await gets_the_next(gateway, first, camera)
        assert await gets_the_next(gateway, second, camera)


async def test_workers_go_on_where_the_note_of_a_take_over_cannot_be_read(redis_bench: RedisBench) -> None:
    async with redis_bench.queue() as gateway, redis_bench.queue("w1") as first, redis_bench.queue("w2") as second:
        camera = await late_camera(gateway, first, second)
        async with redis.asyncio.from_url(redis_bench.url) as client:
            await client.lpush(f"maskcast:{{{shard_of(camera, 16)}}}:taken", "x")
        [job] = await claim(second, 1)
        assert job.packet == b"late"
        await second.done([job])
        await asyncio.sleep(RECLAIM_S)
        assert first.connected and second.connected
        assert await gets_the_next(gateway, first, camera)


async def _is(holds: bool) -> bool:
    return holds
