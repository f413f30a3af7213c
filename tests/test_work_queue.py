"""What every work queue promises, and which shards are whose."""

import asyncio
import zlib
from contextlib import AsyncExitStack
from dataclasses import replace
from itertools import pairwise

import pytest
from peers import drops
from queues import LIMIT_S, RECLAIM_S, Bench, MemoryBench, RedisBench, are_alone, claim, is_empty, until

from pipeline.errors import ConfigError
from pipeline.mask_order import TURN_S, Turn
from pipeline.messages import FrameId
from pipeline.work_queue import Job, Place, WorkQueue, preferred_shards, shard_of


@pytest.fixture(params=["memory", "redis"])
async def bench(request: pytest.FixtureRequest, redis_bench: RedisBench) -> Bench:
    return MemoryBench() if request.param == "memory" else redis_bench


async def test_job_carries_camera_and_bytes(bench: Bench) -> None:
    async with bench.queue() as gateway, bench.queue("w1") as worker:
        await gateway.put("cam-1", b"\x00\xff")
        [job] = await claim(worker, 1)
        assert (job.camera, job.packet, job.deliveries) == ("cam-1", b"\x00\xff", 1)
        assert job.shard == zlib.crc32(b"cam-1") % 16


async def test_sixteen_jobs_come_in_one_claim(bench: Bench) -> None:
    async with bench.queue() as gateway, bench.queue("w1") as worker:
        for number in range(40):
            await gateway.put(f"cam-{number % 5}", bytes([number]))
        sizes = [len(await worker.claim(batch=16, wait_s=1)) for _ in range(3)]
        assert sizes == [16, 16, 8]


async def test_no_more_is_claimed_than_can_be_worked_on_at_once(bench: Bench) -> None:
    async with bench.queue() as gateway, bench.queue("w1") as first:
        for number in range(96):
            await gateway.put(f"cam-{number % 32}", bytes([number]))
        assert len(await first.claim(batch=8, wait_s=1)) == 8
        async with bench.queue("w2", steal_after_s=0.0) as second:
            assert len(await claim(second, 88)) == 88


async def test_who_does_not_steal_gets_only_jobs_of_its_own_shards(bench: Bench) -> None:
    async with bench.queue() as gateway, bench.queue("w1") as first, bench.queue("w2") as second:
        for worker in (first, second, first):
            await worker.claim(batch=1, wait_s=0)  # both say that they are there
        await asyncio.sleep(RECLAIM_S)  # and hear it of each other
        for number in range(64):
            await gateway.put(f"cam-{number}", b"")
        await asyncio.sleep(0.2)
        jobs = await second.claim(batch=64, wait_s=0, steal=False)
        jobs += await second.claim(batch=64, wait_s=0, steal=False)
        assert {job.shard for job in jobs} <= set(preferred_shards("w2", ["w1", "w2"], 16))
        assert jobs
        assert await second.claim(batch=64, wait_s=0)


async def test_jobs_of_a_camera_keep_their_order(bench: Bench) -> None:
    async with bench.queue() as gateway, bench.queue("w1") as worker:
        for number in range(60):
            await gateway.put(f"cam-{number % 3}", bytes([number]))
        jobs = await claim(worker, 60, batch=7)
        for camera in ("cam-0", "cam-1", "cam-2"):
            numbers = [job.packet[0] for job in jobs if job.camera == camera]
            assert len(numbers) == 20
            assert all(before < after for before, after in pairwise(numbers))


async def test_each_claim_is_oldest_first(bench: Bench) -> None:
    async with bench.queue() as gateway, bench.queue("w1") as worker:
        for number in range(10):
            await gateway.put(f"cam-{number}", bytes([number]))
            await asyncio.sleep(0.002)  # Redis tells the age in ms
        assert [job.packet[0] for job in await claim(worker, 10)] == list(range(10))


async def test_claim_of_nothing_ends_in_time(bench: Bench) -> None:
    async with bench.queue("w1") as worker:
        clock = asyncio.get_running_loop().time
        begun = clock()
        assert await worker.claim(batch=16, wait_s=0) == []
        assert await worker.claim(batch=16, wait_s=0.25) == []
        assert 0.2 < clock() - begun < 2


async def test_waiting_claim_gets_what_is_put(bench: Bench) -> None:
    async with bench.queue() as gateway, bench.queue("w1") as worker:
        claiming = asyncio.create_task(worker.claim(batch=16, wait_s=LIMIT_S))
        await asyncio.sleep(0.3)
        await gateway.put("cam-1", b"x")
        async with asyncio.timeout(LIMIT_S):
            assert [job.packet for job in await claiming] == [b"x"]


async def test_claim_can_be_cancelled_and_the_queue_goes_on(bench: Bench) -> None:
    async with bench.queue() as gateway, bench.queue("w1") as worker:
        claiming = asyncio.create_task(worker.claim(batch=16, wait_s=LIMIT_S))
        await asyncio.sleep(0.15)
        claiming.cancel()
        with pytest.raises(asyncio.CancelledError):
            await claiming
        await gateway.put("cam-1", b"x")
        assert len(await claim(worker, 1)) == 1


async def test_done_job_is_gone_and_a_claimed_one_is_not(bench: Bench) -> None:
    async with bench.queue() as gateway, bench.queue("w1") as worker:
        for packet in (b"a", b"b", b"c"):
            await gateway.put("cam-1", packet)
        assert await gateway.depth() == 3
        jobs = await claim(worker, 3)
        assert await gateway.depth() == 3
        await worker.done(jobs[:2])
        assert await gateway.depth() == 1
        await worker.done(jobs)
        await worker.done([])
        assert await gateway.depth() == 0


async def test_buried_job_is_among_the_dead_letters(bench: Bench) -> None:
    async with bench.queue() as gateway, bench.queue("w1") as worker:
        await gateway.put("cam-1", b"bad")
        [job] = await claim(worker, 1)
        await worker.bury(job, "checksum is wrong")
        assert await gateway.depth() == 0
        assert await bench.dead() == [("cam-1", b"bad", "checksum is wrong", "w1")]


async def test_only_the_beginning_of_a_packet_is_kept_as_a_dead_letter(bench: Bench) -> None:
    async with bench.queue() as gateway, bench.queue("w1") as worker:
        await gateway.put("cam-1", bytes(65_536))
        [job] = await claim(worker, 1)
        await worker.bury(job, "noise")
        [(_, packet, _, _)] = await bench.dead()
        assert packet == bytes(4096)


async def test_put_is_bounded_and_what_is_cut_is_counted(bench: Bench) -> None:
    async with bench.queue() as gateway, bench.queue("w1") as worker:
        for number in range(1000):
            await gateway.put("cam-1", number.to_bytes(2, "big"))
        depth = await gateway.depth()
        assert 100 <= depth <= 200
        assert gateway.dropped == 1000 - depth
        jobs = await claim(worker, depth)
        assert [int.from_bytes(job.packet, "big") for job in jobs] == list(range(1000 - depth, 1000))


async def test_jobs_of_a_worker_that_vanished_go_to_another_in_order(bench: Bench) -> None:
    async with bench.queue() as gateway, bench.queue("w2") as other:
        async with bench.queue("w1") as lost:
            for number in range(5):
                await gateway.put("cam-1", bytes([number]))
            assert len(await claim(lost, 5)) == 5
        jobs = await claim(other, 5)
        assert [(job.packet[0], job.deliveries) for job in jobs] == [(n, 2) for n in range(5)]
        await other.done(jobs)
        assert await gateway.depth() == 0


async def test_jobs_of_a_slow_but_living_worker_stay_its_own(bench: Bench) -> None:
    async with bench.queue() as gateway, bench.queue("w1") as slow, bench.queue("w2") as other:
        await gateway.put("cam-1", b"x")
        jobs = await claim(slow, 1)
        assert await other.claim(batch=16, wait_s=3 * RECLAIM_S) == []
        await slow.done(jobs)
        assert await gateway.depth() == 0


async def test_job_that_a_living_worker_forgot_comes_back_after_the_hold(bench: Bench) -> None:
    async with bench.queue() as gateway, bench.queue("w1", hold_s=0.3) as forgetful:
        await gateway.put("cam-1", b"x")
        await claim(forgetful, 1)
        [job] = await claim(forgetful, 1, wait_s=0.1)
        assert job.deliveries == 2


async def test_job_that_two_workers_left_is_buried(bench: Bench) -> None:
    async with bench.queue() as gateway:
        await gateway.put("cam-1", b"poison")
        for deliveries, name in enumerate(("w1", "w2"), start=1):
            async with bench.queue(name) as crashing:
                [job] = await claim(crashing, 1)
                assert job.deliveries == deliveries
        before = drops("given_up", node="queue")
        async with bench.queue("w3") as worker:
            assert await worker.claim(batch=16, wait_s=3 * RECLAIM_S) == []
            assert drops("given_up", node="queue") == before + 1
            [(camera, packet, reason, by)] = await bench.dead()
            assert (camera, packet, by) == ("cam-1", b"poison", "w3")
            assert "2 workers" in reason
            assert await gateway.depth() == 0


async def test_idle_worker_takes_from_one_that_is_behind(bench: Bench) -> None:
    async with bench.queue() as gateway, bench.queue("w1") as first, bench.queue("w2") as second:
        for worker in (first, second):
            await worker.claim(batch=1, wait_s=0)  # both say that they are there
        for number in range(64):
            await gateway.put(f"cam-{number}", b"")
        jobs = await claim(second, 64)
        assert len({job.camera for job in jobs}) == 64
        owned = set(preferred_shards("w2", ["w1", "w2"], 16))
        assert {job.shard for job in jobs} - owned


async def test_the_shards_of_a_worker_that_rests_go_to_others_until_it_claims_again(bench: Bench) -> None:
    async def shards_of(worker: WorkQueue) -> set[int]:
        await asyncio.sleep(RECLAIM_S)  # until it heard of the other
        for number in range(64):
            await gateway.put(f"cam-{number}", b"")
        jobs = await worker.claim(batch=64, wait_s=0, steal=False)
        async with bench.queue("w0") as rest:
            await worker.done([*jobs, *await claim(rest, 64 - len(jobs), wait_s=0.1)])
        return {job.shard for job in jobs}

    async with bench.queue() as gateway, bench.queue("w1") as first, bench.queue("w2") as second:
        for worker in (first, second):
            await worker.claim(batch=1, wait_s=0)
        await first.rest()
        assert await shards_of(second) == set(range(16))
        await first.claim(batch=1, wait_s=0)
        assert await shards_of(second) < set(range(16))


async def test_a_worker_that_has_not_claimed_yet_has_no_shards(bench: Bench) -> None:
    async with bench.queue() as gateway, bench.queue("w1") as worker, bench.queue("w2"):
        await worker.claim(batch=1, wait_s=0)
        await asyncio.sleep(RECLAIM_S)  # until it would have heard of the other
        for number in range(64):
            await gateway.put(f"cam-{number}", b"")
        assert {job.shard for job in await worker.claim(batch=64, wait_s=0, steal=False)} == set(range(16))


async def test_a_worker_knows_whether_it_is_alone(bench: Bench) -> None:
    async with bench.queue("w1") as first, bench.queue("w2") as second:
        await first.claim(batch=1, wait_s=0)
        assert first.alone
        await second.claim(batch=1, wait_s=0)
        await until(lambda: are_alone(False, first, second))
        await second.rest()
        await until(lambda: are_alone(True, first))


async def test_a_worker_with_room_takes_from_one_that_is_behind(bench: Bench) -> None:
    async with bench.queue() as gateway, bench.queue("w1") as silent, bench.queue("w2") as worker:
        for each in (silent, worker, silent):
            await each.claim(batch=1, wait_s=0)  # both say that they are there
        await asyncio.sleep(RECLAIM_S)  # and hear it of each other
        own = set(preferred_shards("w2", ["w1", "w2"], 16))
        mine = next(name for name in map("cam-{}".format, range(99)) if shard_of(name, 16) in own)
        other = next(name for name in map("cam-{}".format, range(99)) if shard_of(name, 16) not in own)
        await gateway.put(other, b"late")
        found: list[str] = []
        async with asyncio.timeout(LIMIT_S):
            while other not in found:  # though there is always work of its own
                await gateway.put(mine, b"x")
                found += [job.camera for job in await worker.claim(batch=8, wait_s=1)]
                await asyncio.sleep(0.02)
        assert mine in found


async def test_each_camera_has_one_worker_while_all_keep_up(bench: Bench) -> None:
    workers_of: dict[str, set[str]] = {}
    beats = {"reclaim_after_s": 4 * RECLAIM_S, "steal_after_s": LIMIT_S}  # none is late, however busy the machine

    async def work(name: str) -> None:
        async with bench.queue(name, **beats) as queue:
            while True:
                jobs = await queue.claim(batch=16, wait_s=0.5)
                for job in jobs:
                    workers_of.setdefault(job.camera, set()).add(name)
                await queue.done(jobs)

    async with bench.queue() as gateway, asyncio.TaskGroup() as group:
        workers = [group.create_task(work(name)) for name in ("w1", "w2", "w3")]
        await asyncio.sleep(2 * beats["reclaim_after_s"])  # until each knows of all
        workers_of.clear()
        for _ in range(10):
            for number in range(12):
                await gateway.put(f"cam-{number}", b"")
            await asyncio.sleep(0.01)
        await until(lambda: is_empty(gateway))
        for worker in workers:
            worker.cancel()
    assert len(workers_of) == 12
    assert all(len(names) == 1 for names in workers_of.values())
    assert len(set.union(*workers_of.values())) > 1


async def test_nothing_is_lost_while_workers_come_and_go(bench: Bench) -> None:
    finished: set[bytes] = set()

    async def work(name: str, *, crashes: bool) -> None:
        async with bench.queue(name) as queue:
            while True:
                jobs = await queue.claim(batch=4, wait_s=0.2)
                if crashes and jobs:
                    return
                finished.update(job.packet for job in jobs)
                await queue.done(jobs)

    async with bench.queue() as gateway, AsyncExitStack() as stack:
        group = await stack.enter_async_context(asyncio.TaskGroup())
        for number in range(60):
            await gateway.put(f"cam-{number % 7}", bytes([number]))
        await work("crashing", crashes=True)
        workers = [group.create_task(work(f"w{number}", crashes=False)) for number in range(2)]
        await until(lambda: is_empty(gateway))
        for worker in workers:
            worker.cancel()
    assert finished == {bytes([number]) for number in range(60)}


def places(jobs: list[Job], *, epoch: int = 7) -> list[Place]:
    """The places of jobs whose packet is the number of a frame."""
    return [Place(job, FrameId(epoch, job.packet[0])) for job in jobs]


async def claimed(worker: WorkQueue, gateway: WorkQueue, *numbers: int) -> list[Job]:
    for number in numbers:
        await gateway.put("cam-1", bytes([number]))
    return await claim(worker, len(numbers))


async def test_frames_of_a_camera_have_their_turns_in_order_and_once(bench: Bench) -> None:
    async with bench.queue() as gateway, bench.queue("w1") as worker:
        jobs = await claimed(worker, gateway, 3, 4, 4, 2, 6)
        mine, over = Turn.MINE, Turn.OVER
        assert await worker.take_turns(places(jobs)) == [mine, mine, over, over, mine]
        assert await worker.take_turns([Place(replace(jobs[0], camera="cam-2"), FrameId(7, 1))]) == [mine]
        assert await worker.take_turns([]) == []


async def test_a_frame_waits_while_another_worker_publishes_the_one_before(bench: Bench) -> None:
    async with bench.queue() as gateway, bench.queue("w1") as first, bench.queue("w2") as second:
        [five] = await claimed(first, gateway, 5)
        [six] = await claimed(second, gateway, 6)
        assert await first.take_turns(places([five])) == [Turn.MINE]
        assert await second.take_turns(places([six])) == [Turn.WAIT]
        await first.done([five])
        assert await second.take_turns(places([six])) == [Turn.MINE]
        assert await first.take_turns(places([five])) == [Turn.OVER]


async def test_the_turn_of_a_worker_that_died_ends_by_itself(bench: Bench) -> None:
    async with bench.queue() as gateway, bench.queue("w2") as second:
        async with bench.queue("w1") as first:
            await first.take_turns(places(await claimed(first, gateway, 5)))
        jobs = await claimed(second, gateway, 6)
        await asyncio.sleep(TURN_S)
        assert await second.take_turns(places(jobs)) == [Turn.MINE]


async def test_the_turn_of_a_dead_worker_goes_to_who_gets_its_job(bench: Bench) -> None:
    async with bench.queue() as gateway, bench.queue("w2") as second:
        async with bench.queue("w1") as first:
            await first.take_turns(places(await claimed(first, gateway, 4, 5)))
        jobs = await claim(second, 2)
        await asyncio.sleep(TURN_S - RECLAIM_S)
        assert await second.take_turns(places(jobs)) == [Turn.OVER, Turn.MINE]
        await second.done(jobs)
        assert await second.take_turns(places(jobs)) == [Turn.OVER, Turn.OVER]


async def test_a_camera_that_starts_again_gets_its_turns_at_once_and_its_old_frames_none(bench: Bench) -> None:
    async with bench.queue() as gateway, bench.queue("w1") as worker:
        jobs = await claimed(worker, gateway, 200, 0, 201, 1, 0)
        epochs = [7, 8, 7, 8, 9]
        asked = [Place(job, FrameId(epoch, job.packet[0])) for job, epoch in zip(jobs, epochs, strict=True)]
        assert [turn is Turn.MINE for turn in await worker.take_turns(asked)] == [True, True, False, True, True]


async def test_turns_go_on_when_sequences_wrap(bench: Bench) -> None:
    async with bench.queue() as gateway, bench.queue("w1") as worker:
        jobs = await claimed(worker, gateway, 0, 1, 2)
        sequences = [(1 << 32) - 1, 0, (1 << 32) - 2]
        asked = [Place(job, FrameId(7, sequence)) for job, sequence in zip(jobs, sequences, strict=True)]
        assert await worker.take_turns(asked) == [Turn.MINE, Turn.MINE, Turn.OVER]


async def test_a_worker_that_helps_takes_all_that_waits_in_one_shard_before_another(bench: Bench) -> None:
    async with bench.queue() as gateway, bench.queue("w1") as silent, bench.queue("w2") as worker:
        for each in (silent, worker, silent):
            await each.claim(batch=1, wait_s=0)  # both say that they are there
        await asyncio.sleep(RECLAIM_S)  # and hear it of each other
        own = set(preferred_shards("w2", ["w1", "w2"], 16))
        late = [name for name in map("cam-{}".format, range(40)) if shard_of(name, 16) not in own][:3]
        assert len({shard_of(name, 16) for name in late}) > 1
        for number in range(5):
            for name in late:
                await gateway.put(name, bytes([number]))
            await asyncio.sleep(0.002)  # Redis tells the age in ms
        jobs = await claim(worker, 4, batch=4)
        assert len({job.shard for job in jobs}) == 1
        await asyncio.sleep(0.3)
        again = await claim(worker, 1, batch=1)
        assert again[0].shard == jobs[0].shard  # its keys are here


async def test_who_helps_takes_the_shard_over_and_keeps_it(bench: Bench) -> None:
    async with bench.queue() as gateway, bench.queue("w1") as first, bench.queue("w2") as second:
        camera = await taken_over(gateway, first, second)
        await asyncio.sleep(RECLAIM_S)  # until the other heard of it
        await gateway.put(camera, b"next")
        assert await first.claim(batch=1, wait_s=0, steal=False) == []
        [job] = await second.claim(batch=1, wait_s=0, steal=False)
        assert job.packet == b"next"


async def test_a_shard_that_was_taken_over_is_not_taken_back_at_once(bench: Bench) -> None:
    options = {"steal_after_s": 0.05, "keep_s": 30.0}
    async with (
        bench.queue() as gateway,
        bench.queue("w1", **options) as first,
        bench.queue("w2", **options) as second,
        bench.queue("w3", **options) as third,
    ):
        camera = await met(first, second, third)
        for worker, owner in ((second, second), (third, second), (first, second)):
            await gateway.put(camera, b"late")
            await asyncio.sleep(0.06)
            await claim(worker, 1)  # it helps, whoever has the shard
            await asyncio.sleep(RECLAIM_S)
            await gateway.put(camera, b"")
            assert [len(await one.claim(batch=1, wait_s=0, steal=False)) for one in (first, second, third)] == [
                one is owner for one in (first, second, third)
            ]


async def test_a_shard_that_is_too_much_for_any_worker_moves_less_and_less_often(bench: Bench) -> None:
    options = {"steal_after_s": 0.0, "keep_s": 0.1}
    async with (
        bench.queue() as gateway,
        bench.queue("w1", **options) as first,
        bench.queue("w2", **options) as second,
    ):
        camera, holders, clock = await met(first, second), list[str | None](), asyncio.get_running_loop().time
        ends = clock() + 3.0
        while clock() < ends:
            for worker in (first, second):
                await gateway.put(camera, b"")
                await worker.done(await worker.claim(batch=1, wait_s=0))  # each helps the other
                holders.append(await bench.holder(shard_of(camera, 16)))
            await asyncio.sleep(0.01)
    moves = sum(before != after for before, after in pairwise(holders))
    assert 2 <= moves <= 5  # once at first, then after 0.1, 0.3, 0.7, 1.5 and 3.1 s


async def test_what_was_taken_over_goes_back_when_a_worker_comes(bench: Bench) -> None:
    async with bench.queue() as gateway, bench.queue("w1") as first, bench.queue("w2") as second:
        camera = await taken_over(gateway, first, second)
        async with bench.queue("w3") as third:
            for each in (third, first, second):
                await each.claim(batch=1, wait_s=0)
            await asyncio.sleep(3 * RECLAIM_S)
            names = ["w1", "w2", "w3"]
            owner = next(name for name in names if shard_of(camera, 16) in preferred_shards(name, names, 16))
            await gateway.put(camera, b"next")
            workers = dict(zip(names, (first, second, third), strict=True))
            [job] = await workers[owner].claim(batch=1, wait_s=0, steal=False)
            assert job.packet == b"next"


async def test_what_was_taken_over_goes_back_when_the_worker_rests(bench: Bench) -> None:
    async with bench.queue() as gateway, bench.queue("w1") as first, bench.queue("w2") as second:
        camera = await taken_over(gateway, first, second)
        await second.rest()
        await asyncio.sleep(RECLAIM_S)
        await gateway.put(camera, b"next")
        [job] = await first.claim(batch=1, wait_s=0, steal=False)
        assert job.packet == b"next"


async def test_who_is_as_far_behind_does_not_help(bench: Bench) -> None:
    async with (
        bench.queue() as gateway,
        bench.queue("w1") as first,
        bench.queue("w2", steal_after_s=0.05) as second,
    ):
        camera = await met(first, second)
        own = set(preferred_shards("w2", ["w1", "w2"], 16))
        mine = next(name for name in map("cam-{}".format, range(99)) if shard_of(name, 16) in own)
        await gateway.put(camera, b"")
        await gateway.put(mine, b"")
        await asyncio.sleep(1.0)
        assert [job.camera for job in await second.claim(batch=8, wait_s=0)] == [mine]
        await gateway.put(mine, b"")
        await asyncio.sleep(0.06)
        jobs = await second.claim(batch=8, wait_s=0)  # its own has waited for a small part of that
        assert {job.camera for job in jobs} == {camera, mine}


async def taken_over(gateway: WorkQueue, first: WorkQueue, second: WorkQueue) -> str:
    """Let w2 take a shard of w1's over; returns a camera of it."""
    camera = await met(first, second)
    await gateway.put(camera, b"late")
    await second.done(await claim(second, 1))
    return camera


async def met(*workers: WorkQueue) -> str:
    """Let workers w1, w2, ... hear of each other; returns a camera of the first one's."""
    for worker in (*workers, *workers):
        await worker.claim(batch=1, wait_s=0)
    await asyncio.sleep(RECLAIM_S)
    own = set(preferred_shards("w1", [f"w{number + 1}" for number in range(len(workers))], 16))
    return next(name for name in map("cam-{}".format, range(99)) if shard_of(name, 16) in own)


async def test_key_buffer_keeps_two_generations_of_each_region(bench: Bench) -> None:
    async with bench.queue() as gateway, bench.queue("w1") as worker:
        await gateway.store_keys("cam-1", {0: b"a0", 3: b"a3"})
        await gateway.store_keys("cam-1", {0: b"b0"})
        await gateway.store_keys("cam-1", {0: b"c0\x00"})
        await gateway.store_keys("cam-2", {0: b"other"})
        keys = await worker.fetch_keys("cam-1", [0, 3, 5])
        assert keys == {0: (b"c0\x00", b"b0"), 3: (b"a3",)}
        assert await worker.fetch_keys("cam-1", []) == {}
        assert await worker.fetch_keys("cam-9", [0]) == {}


async def test_key_stored_twice_does_not_push_out_the_one_before(bench: Bench) -> None:
    async with bench.queue() as gateway:
        for key in (b"a", b"b", b"b"):
            await gateway.store_keys("cam-1", {0: key})
        assert await gateway.fetch_keys("cam-1", [0]) == {0: (b"b", b"a")}


async def test_more_generations_are_kept_where_they_are_asked_for(bench: Bench) -> None:
    async with bench.queue() as gateway:
        for key in (b"a", b"b", b"c", b"b", b"d"):
            await gateway.store_keys("cam-1", {0: key, 2: key * 300}, generations=3)
        assert await gateway.fetch_keys("cam-1", [0]) == {0: (b"d", b"b", b"c")}
        await gateway.store_keys("cam-1", {0: b"e"})
        keys = await gateway.fetch_keys("cam-1", [0, 2])
        assert keys == {0: (b"e", b"d"), 2: (b"d" * 300, b"b" * 300, b"c" * 300)}


async def test_of_long_keys_fewer_are_kept_but_three_at_least(bench: Bench) -> None:
    async with bench.queue() as gateway:
        for number in range(20):
            await gateway.store_keys("cam-1", {0: b"%060000d" % number, 1: b"%0300000d" % number}, generations=64)
        keys = await gateway.fetch_keys("cam-1", [0, 1])
        assert [int(key[-2:]) for key in keys[0]] == list(range(19, 19 - len(keys[0]), -1))
        assert 7 <= len(keys[0]) <= 8
        assert [int(key[-2:]) for key in keys[1]] == [19, 18, 17]
        await gateway.store_keys("cam-1", {0: b"short"}, generations=64)
        assert len((await gateway.fetch_keys("cam-1", [0]))[0]) >= 8


async def test_how_far_a_recording_is_moves_on_with_its_masks_and_never_back(bench: Bench) -> None:
    async with bench.queue() as gateway, bench.queue("w1") as worker, bench.queue("w2") as other:
        assert await other.positions(["cam-1", "cam-2"]) == {}
        assert await other.positions([]) == {}
        for number in (5, 6, 4):
            [job] = await claimed(worker, gateway, number)
            await worker.published(places([job]))
        found = await other.positions(["cam-1", "cam-2"])
        assert list(found) == ["cam-1"]
        assert (found["cam-1"].frame, found["cam-1"].over) == (FrameId(7, 6), frozenset())
        assert await gateway.depth() == 0


async def test_a_recording_that_starts_again_moves_to_its_new_epoch_and_not_back(bench: Bench) -> None:
    async with bench.queue() as gateway, bench.queue("w1") as worker:
        for number, epoch in ((200, 7), (0, 8), (201, 7)):
            await worker.published(places(await claimed(worker, gateway, number), epoch=epoch))
        position = (await worker.positions(["cam-1"]))["cam-1"]
        assert (position.frame, position.over) == (FrameId(8, 0), frozenset({7}))


async def test_what_was_queued_before_or_after_a_mask_was_out_can_be_told(bench: Bench) -> None:
    async with bench.queue() as gateway, bench.queue("w1") as worker:
        [before] = await claimed(worker, gateway, 1)
        await asyncio.sleep(0.005)
        await worker.published(places([before]))
        at_ms = (await worker.positions(["cam-1"]))["cam-1"].at_ms
        await asyncio.sleep(0.005)
        [after] = await claimed(worker, gateway, 1)
        assert before.queued_ms < at_ms < after.queued_ms


async def test_a_live_camera_of_a_recordings_name_has_its_turns_after_it(bench: Bench) -> None:
    async with bench.queue() as gateway, bench.queue("w1") as worker:
        await worker.published(places(await claimed(worker, gateway, 5)))
        jobs = await claimed(worker, gateway, 6, 4, 0)
        turns = await worker.take_turns([*places(jobs[:2]), *places(jobs[2:], epoch=8)])
        assert turns == [Turn.MINE, Turn.OVER, Turn.MINE]


async def test_only_a_named_worker_claims(bench: Bench) -> None:
    async with bench.queue() as gateway:
        with pytest.raises(ValueError, match="worker"):
            await gateway.claim(batch=1, wait_s=0)


async def test_error_in_the_body_goes_up_as_it_is(bench: Bench) -> None:
    with pytest.raises(ConfigError, match="mine"):
        async with bench.queue("w1"):
            raise ConfigError("mine")


def test_shard_is_the_crc_of_the_name() -> None:
    assert shard_of("cam-1", 16) == zlib.crc32(b"cam-1") % 16


def test_every_shard_has_exactly_one_preferred_worker() -> None:
    workers = [f"worker-{number}" for number in range(5)]
    owned = [shard for worker in workers for shard in preferred_shards(worker, workers, 16)]
    assert sorted(owned) == list(range(16))


@pytest.mark.parametrize("count", range(1, 9))
def test_workers_have_even_shares_and_one_that_leaves_moves_little_more_than_its_own(count: int) -> None:
    names = [f"worker-{number}" for number in range(count)]
    before = {name: set(preferred_shards(name, names, 64)) for name in names}
    assert {len(shards) for shards in before.values()} <= {64 // count, -(-64 // count)}
    after = {name: set(preferred_shards(name, names[1:], 64)) for name in names[1:]}
    assert sum(len(before[name] - after[name]) for name in after) <= 8


def test_a_shard_that_was_taken_over_is_that_workers_while_it_lives() -> None:
    workers = ["w1", "w2"]
    before = {name: preferred_shards(name, workers, 16) for name in workers}
    shard = before["w1"][0]
    assert preferred_shards("w1", workers, 16, taken={shard: "w2", 99: "w2"}) == before["w1"][1:]
    assert preferred_shards("w2", workers, 16, taken={shard: "w2", 99: "w2"}) == sorted([shard, *before["w2"]])
    assert preferred_shards("w1", workers, 16, taken={shard: "gone"}) == before["w1"]


def test_more_workers_than_shards_leave_some_without() -> None:
    names = [f"worker-{number}" for number in range(5)]
    assert sorted(len(preferred_shards(name, names, 3)) for name in names) == [0, 0, 1, 1, 1]
