"""The worker node: every good packet a mask, in order and in time, and nothing a packet can do stops it."""

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from channels import ready
from queues import RedisBench
from servers import Server
from standins import BUNDLE, NAMES, PALETTE, StandinDecoder, packet_of

from nodes import worker as node
from nodes.key_fetching import KeyRequests
from nodes.presence import node_name
from nodes.publisher import Due, FramePublisher, Looks, Rendered, always
from nodes.reports import Labels, read_report
from nodes.service import Health, Lane
from nodes.stats import Cameras
from nodes.worker import Worker, opening, work
from pipeline.bitstream import pack
from pipeline.config import DecoderSection, WorkerSection, WorkerSettings, load_settings
from pipeline.errors import ConfigError, PipelineError, TransportError
from pipeline.mask_image import unpack_mask, unpack_mask_rle
from pipeline.mask_order import TURN_S, Turn
from pipeline.memory_queue import MemoryQueueState, MemoryWorkQueue
from pipeline.messages import Decoded, FrameId, Kind, Packet, Region
from pipeline.redis_queue import RedisWorkQueue
from pipeline.transport import Message, open_channel
from pipeline.transport.memory import MemoryBroker, MemoryChannel
from pipeline.work_queue import Job, Place, WorkQueue, preferred_shards, shard_of

LIMIT_S = 20
LOOKS = Looks(PALETTE, NAMES)


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def live(number: int, sequence: int, **options: int) -> Packet:
    """A packet that was captured just now."""
    return replace(packet_of(number, sequence=sequence, **options), captured_ms=now_ms())


class Bench:
    """A worker over a channel and queue in memory, what arrives from it, and what stands in for its decoder."""

    def __init__(self, broker: MemoryBroker, state: MemoryQueueState, **options: object) -> None:
        self.broker, self.state, self.options = broker, state, options
        self.decoder = StandinDecoder()
        self.cameras = Cameras([each.name for each in BUNDLE.manifest.classes], deadline_ms=2000)
        self.worker: Worker

    async def put(self, camera: str, *packets: Packet | bytes) -> None:
        async with MemoryWorkQueue(self.state) as queue:
            for packet in packets:
                await queue.put(camera, packet if isinstance(packet, bytes) else pack(packet))

    async def empty(self) -> None:
        """Wait until every packet was answered."""
        async with asyncio.timeout(LIMIT_S), MemoryWorkQueue(self.state) as queue:
            while True:
                if await queue.depth() == 0:
                    return
                await asyncio.sleep(0.005)

    @asynccontextmanager
    async def running(self, queue: WorkQueue | None = None) -> AsyncIterator[AsyncIterator[Message]]:
        """Gives the masks that are published from now on."""
        async with (
            MemoryChannel(self.broker) as channel,
            MemoryChannel(self.broker) as other,
            MemoryWorkQueue(self.state, "w") as own,
            Lane("decoder") as lane,
            Lane("png") as png,
        ):
            masks = other.subscribe("+/mask")
            options = {"batch": 8, "wait_s": 0.1, "deadline_ms": 2000, **self.options}
            self.worker = Worker(
                "w",
                queue=queue or own,
                decoder=self.decoder,  # type: ignore[arg-type]
                lane=lane,
                requests=KeyRequests(channel),
                cameras=self.cameras,
                frames=FramePublisher(channel, png, looks=LOOKS, live=True),
                **options,  # type: ignore[arg-type]
            )
            task = asyncio.create_task(self.worker.run())
            try:
                yield masks
            finally:
                task.cancel()
                await asyncio.wait({task}, timeout=LIMIT_S)


@pytest.fixture
def bench() -> Bench:
    return Bench(MemoryBroker(), MemoryQueueState())


async def take(masks: AsyncIterator[Message], count: int) -> list[tuple[str, FrameId, int]]:
    """Camera, frame and class of so many masks."""
    found = []
    async with asyncio.timeout(LIMIT_S):
        for _ in range(count):
            mask, camera = unpack_mask((await anext(masks)).payload)
            found.append((camera, mask.id, int(mask.classes[0, 0])))
    return found


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while True:
            if condition():
                return
            await asyncio.sleep(0.01)


async def test_every_packet_becomes_a_mask_on_its_cameras_topic_in_order(bench: Bench) -> None:
    async with bench.running() as masks:
        for sequence in range(10):
            await bench.put("cam-1", live(1, sequence))
            await bench.put("cam-2", live(2, sequence))
        found = await take(masks, 20)
        await bench.empty()
    for camera, number in (("cam-1", 1), ("cam-2", 2)):
        assert [each[1:] for each in found if each[0] == camera] == [(FrameId(7, n), number) for n in range(10)]
    assert not bench.worker.losses.total


async def test_packets_of_several_cameras_are_decoded_in_one_batch(bench: Bench) -> None:
    for camera in range(12):
        await bench.put(f"cam-{camera}", live(1, 0))
    async with bench.running() as masks:
        await take(masks, 12)
    assert bench.decoder.batches == [8, 4]


async def test_a_packet_past_its_deadline_is_answered_and_counted(bench: Bench) -> None:
    late = replace(live(1, 0), captured_ms=now_ms() - 5000)
    await bench.put("cam-1", late, live(2, 1))
    async with bench.running() as masks:
        assert [each[1].sequence for each in await take(masks, 1)] == [1]
        await bench.empty()
    assert bench.worker.losses.total == {"late": 1}
    assert bench.cameras.of("cam-1").stats.drops == {"late": 1}


def aged(count: int, *, newest_ms: int) -> list[Packet]:
    """Packets of one camera, 40 ms apart, the last one captured so long ago."""
    last = now_ms() - newest_ms
    return [replace(live(1, n), captured_ms=last - 40 * (count - 1 - n)) for n in range(count)]


async def test_a_worker_that_is_behind_goes_to_the_newest_frame(bench: Bench) -> None:
    await bench.put("cam-1", *aged(6, newest_ms=400))
    await bench.put("cam-2", *aged(1, newest_ms=600))
    async with bench.running() as masks:
        found = await take(masks, 2)
        await bench.empty()
    assert {(camera, id.sequence) for camera, id, _ in found} == {("cam-1", 5), ("cam-2", 0)}
    assert bench.cameras.of("cam-1").stats.drops == {"superseded": 5}
    assert not bench.cameras.of("cam-2").stats.drops


async def test_a_worker_with_a_backlog_decodes_each_cameras_newest_frame_first(bench: Bench) -> None:
    for number in range(16):
        await bench.put(f"cam-{number}", *aged(30, newest_ms=10))
    async with bench.running() as masks:
        found = await take(masks, 16)
        await bench.put("cam-1", live(1, 30))
        assert [each[1].sequence for each in await take(masks, 1)] == [30]
        await bench.empty()
    assert {(camera, id.sequence) for camera, id, _ in found} == {(f"cam-{n}", 29) for n in range(16)}
    assert bench.worker.losses.total == {"superseded": 16 * 29}
    assert bench.decoder.batches == [8, 8, 1]


async def test_a_worker_that_catches_up_leaves_the_work_of_others_alone(bench: Bench) -> None:
    async with MemoryWorkQueue(bench.state, "other") as other:
        await other.claim(batch=1, wait_s=0)
        for number in range(64):
            await bench.put(f"cam-{number}", *aged(2, newest_ms=300))
        await asyncio.sleep(0.15)
        own = set(preferred_shards("w", ["w", "other"], 16))
        async with bench.running() as masks:
            found = await take(masks, sum(shard_of(f"cam-{number}", 16) in own for number in range(64)))
    assert {shard_of(camera, 16) for camera, *_ in found} <= own


async def test_at_normal_load_nothing_is_dropped(bench: Bench) -> None:
    async with bench.running() as masks:
        for sequence in range(40):
            for number in range(3):
                await bench.put(f"cam-{number}", live(1, sequence))
            await asyncio.sleep(0.01)
        assert len(await take(masks, 120)) == 120
    assert not bench.worker.losses.total


async def test_a_worker_without_a_broker_leaves_the_packets_to_others(bench: Bench) -> None:
    async with bench.running() as masks:
        await until(lambda: "w" in bench.state.workers)
        bench.worker._intake._frames = FramePublisher(
            MemoryChannel(bench.broker), Lane("never"), looks=Looks(PALETTE, NAMES), live=True
        )
        await until(lambda: "w" not in bench.state.workers)  # the claim that was under way is over
        await bench.put("cam-1", *(live(1, sequence) for sequence in range(5)))
        await asyncio.sleep(0.25)
        assert "w" not in bench.state.workers
        assert not any(entry.worker for shard in bench.state.entries for entry in shard.values())
        assert not bench.worker.losses.total
        bench.options["deadline_ms"] = 0  # however long a busy machine takes for it
        async with bench.running() as others:
            assert len(await take(others, 5)) == 5
        del masks


async def test_frames_that_came_together_after_a_hiccup_are_all_shown(bench: Bench) -> None:
    await bench.put("cam-1", *aged(4, newest_ms=10))
    async with bench.running() as masks:
        assert [each[1].sequence for each in await take(masks, 4)] == [0, 1, 2, 3]


async def test_a_packet_that_others_may_refer_to_is_not_passed_over_for_one_that_refers(bench: Bench) -> None:
    key, follower = aged(2, newest_ms=400)
    warp = replace(follower, regions=(Region(Kind.WARP, 0, 1, b"flow"),))
    await bench.put("cam-1", key, warp)
    async with bench.running() as masks:
        assert [each[1].sequence for each in await take(masks, 1)] == [0]


async def test_without_a_deadline_old_packets_are_decoded(bench: Bench) -> None:
    bench.options["deadline_ms"] = 0
    await bench.put("cam-1", packet_of(1, sequence=0), packet_of(1, sequence=1, captured_ms=40))
    async with bench.running() as masks:
        assert len(await take(masks, 2)) == 2


async def test_a_camera_whose_clock_is_ahead_is_served(bench: Bench) -> None:
    async with bench.running() as masks:
        await bench.put("cam-1", replace(live(1, 0), captured_ms=now_ms() + 3_600_000))
        assert len(await take(masks, 1)) == 1


async def test_duplicates_and_older_frames_are_answered_and_counted(bench: Bench) -> None:
    async with bench.running() as masks:
        await bench.put("cam-1", live(1, 0), live(1, 2))
        await take(masks, 2)
        await bench.put("cam-1", live(1, 2), live(1, 1), live(1, 3))
        assert [each[1].sequence for each in await take(masks, 1)] == [3]
        await bench.empty()
    assert bench.worker.losses.total == {"stale": 2}


async def test_a_camera_that_starts_again_is_served_from_its_first_frame(bench: Bench) -> None:
    async with bench.running() as masks:
        await bench.put("cam-1", live(1, 500), live(1, 0, epoch=8), live(1, 1, epoch=8))
        found = [each[1] for each in await take(masks, 3)]
    assert found == [FrameId(7, 500), FrameId(8, 0), FrameId(8, 1)]


async def test_a_claim_out_of_order_is_put_in_order(bench: Bench) -> None:
    first, second = live(1, 1), live(1, 2)
    await bench.put("cam-1", replace(second, captured_ms=first.captured_ms + 40), first)
    async with bench.running() as masks:
        assert [each[1].sequence for each in await take(masks, 2)] == [1, 2]


async def test_bad_packets_are_buried_and_do_not_spoil_their_batch(bench: Bench) -> None:
    noise, truncated = os.urandom(80), pack(live(1, 0))[:-3]
    await bench.put("cam-1", noise, truncated, live(99, 1), live(3, 2))
    await bench.put("../etc", live(1, 0))
    async with bench.running() as masks:
        assert [each[2] for each in await take(masks, 1)] == [3]
        await bench.empty()
        await bench.put("cam-1", live(4, 3))
        assert [each[2] for each in await take(masks, 1)] == [4]
    assert sorted(each.camera for each in bench.state.dead) == ["../etc", "cam-1", "cam-1", "cam-1"]
    assert "there is no class 99" in {each.reason for each in bench.state.dead}
    assert bench.worker.losses.total == {"packet": 4}


async def test_packets_of_another_bundle_are_counted_and_told_once(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    async with bench.running() as masks:
        for sequence in range(3):
            await bench.put("cam-1", live(1, sequence, bundle=b"othr"))  # type: ignore[arg-type]
        await bench.put("cam-2", live(1, 0))
        await take(masks, 1)
        await bench.empty()
    assert bench.worker.losses.total == {"bundle": 3}
    assert not bench.state.dead
    assert capsys.readouterr().out.count("packets cannot be decoded") == 1


async def test_the_next_batch_is_decoded_while_the_last_is_published(bench: Bench) -> None:
    async with bench.running() as masks, asyncio.timeout(LIMIT_S):
        bench.worker._frames = SlowPublisher(bench.worker._frames)  # type: ignore[assignment]
        await bench.put("cam-1", live(1, 0))
        await bench.put("cam-1", live(1, 1))
        await until(lambda: sum(bench.decoder.batches) == 2)
        assert bench.worker.losses.total == {}
        await take(masks, 2)


async def test_no_more_is_claimed_than_can_be_worked_on_at_once(bench: Bench) -> None:
    bench.options.update(batch=1, deadline_ms=0)
    async with bench.running() as masks, asyncio.timeout(LIMIT_S):
        bench.worker._frames = SlowPublisher(bench.worker._frames)  # type: ignore[assignment]
        await bench.put("cam-1", *(live(1, sequence) for sequence in range(6)))
        await until(lambda: len(bench.decoder.batches) == 2)
        await asyncio.sleep(0.02)
        claimed = sum(entry.worker is not None for shard in bench.state.entries for entry in shard.values())
        assert claimed == len(bench.decoder.batches) == 2
        await take(masks, 6)


class SlowPublisher:
    """Publishes, each time a little later."""

    def __init__(self, frames: FramePublisher) -> None:
        self._frames = frames
        self.ready = True

    async def publish(self, *args: object, **options: bool) -> object:
        await asyncio.sleep(0.1)
        return await self._frames.publish(*args, **options)  # type: ignore[arg-type]


async def test_redis_may_go_away_and_come_back(bench: Bench, own_redis: Server) -> None:
    url = f"redis://127.0.0.1:{own_redis.port}"
    async with RedisWorkQueue(url, "w") as queue, RedisWorkQueue(url) as gateway, bench.running(queue) as masks:
        await gateway.put("cam-1", pack(live(1, 0)))
        await take(masks, 1)
        own_redis.kill()
        await until(lambda: bench.worker.reason() is not None)
        await asyncio.to_thread(own_redis.start)
        await until(lambda: bench.worker.reason() is None)
        await gateway.put("cam-1", pack(live(2, 1)))
        assert [each[2] for each in await take(masks, 1)] == [2]


async def test_a_worker_that_takes_over_goes_on_with_what_the_dead_one_held(bench: Bench) -> None:
    bench.options["deadline_ms"] = 0  # however long a busy machine takes for it
    await bench.put("cam-1", live(1, 0), live(1, 1))
    async with MemoryWorkQueue(bench.state, "dead") as dead:
        assert len(await dead.claim(batch=8, wait_s=1)) == 2
    async with bench.running() as masks:
        assert [each[1].sequence for each in await take(masks, 2)] == [0, 1]


async def place_of(bench: Bench, worker: str, sequence: int) -> tuple[MemoryWorkQueue, Place]:
    """A frame of cam-1 that another worker has claimed."""
    other = MemoryWorkQueue(bench.state, worker)
    await bench.put("cam-1", live(1, sequence))
    (job,) = await other.claim(batch=1, wait_s=1)
    return other, Place(job, FrameId(7, sequence))


async def test_a_mask_older_than_what_another_worker_published_is_stale(bench: Bench) -> None:
    other, place = await place_of(bench, "other", 5)
    await other.take_turns([place])
    await other.done([place.job])
    await other.rest()
    async with bench.running() as masks:
        await bench.put("cam-1", live(1, 4), live(2, 6))
        assert [each[1].sequence for each in await take(masks, 1)] == [6]
        await bench.empty()
    assert bench.worker.losses.total == {"stale": 1}


async def test_a_mask_waits_for_the_one_that_another_worker_is_publishing_and_others_do_not(bench: Bench) -> None:
    other, place = await place_of(bench, "other", 5)
    await other.take_turns([place])
    await other.rest()
    async with bench.running() as masks:
        await bench.put("cam-1", live(2, 6))
        await bench.put("cam-2", live(3, 0))
        assert [each[0] for each in await take(masks, 1)] == ["cam-2"]
        await other.done([place.job])
        assert [each[:2] for each in await take(masks, 1)] == [("cam-1", FrameId(7, 6))]
        await bench.empty()
    assert not bench.worker.losses.total


class Stuck(MemoryWorkQueue):
    """A queue where another worker's turns do not end, of some cameras."""

    stuck = frozenset({"cam-1"})

    async def take_turns(self, places: Sequence[Place]) -> list[Turn]:
        ours = iter(await super().take_turns([each for each in places if each.job.camera not in self.stuck]))
        return [Turn.WAIT if each.job.camera in self.stuck else next(ours) for each in places]


async def test_a_camera_whose_masks_wait_for_their_turns_holds_up_no_other_and_keeps_its_order(bench: Bench) -> None:
    bench.options |= {"batch": 2, "clock": lambda: 0.0, "wall_ms": lambda: 0}
    async with Stuck(bench.state, "w") as queue, bench.running(queue) as masks:
        for sequence in range(10):
            await bench.put("cam-1", packet_of(1, sequence=sequence))
            await bench.put("cam-2", packet_of(2, sequence=sequence))
        await bench.put("cam-3", *recording([3, 3]))
        found = await take(masks, 12)
        assert [each[1].sequence for each in found if each[0] == "cam-2"] == list(range(10))
        assert [each[1].sequence for each in found if each[0] == "cam-3"] == [0, 1]
        await until(lambda: sum(bench.decoder.batches) == 22)
        queue.stuck = frozenset()
        assert [each[:2] for each in await take(masks, 10)] == [("cam-1", FrameId(7, n)) for n in range(10)]
        await bench.empty()
    assert not bench.worker.losses.total


class Slow(MemoryWorkQueue):
    """A queue whose answers take time: another worker's turn ends between the first of them and the second."""

    ended = False

    async def take_turns(self, places: Sequence[Place]) -> list[Turn]:
        turns = []
        for place in places:
            turns.append(Turn.WAIT if not self.ended else (await super().take_turns([place]))[0])
            self.ended = self.ended or len(places) > 1
        return turns


async def test_a_turn_that_ends_while_it_is_asked_for_makes_no_mask_that_waited_too_old(bench: Bench) -> None:
    async with Slow(bench.state, "w") as queue, bench.running(queue) as masks:
        for sequence in range(6):
            await bench.put("cam-1", live(1, sequence))
            await until(lambda count=sequence + 1: sum(bench.decoder.batches) == count)
        await asyncio.sleep(0.05)
        queue.ended = True
        assert [each[1].sequence for each in await take(masks, 6)] == list(range(6))
        await bench.empty()
    assert not bench.worker.losses.total


async def test_masks_that_wait_for_their_turns_for_too_long_are_given_up(bench: Bench) -> None:
    passed = SimpleNamespace(s=0.0)
    bench.options |= {"clock": lambda: passed.s, "deadline_ms": 60_000}
    async with Stuck(bench.state, "w") as queue, bench.running(queue) as masks:
        await bench.put("cam-1", live(1, 0), live(1, 1))
        await bench.put("cam-2", live(2, 0))
        assert [each[0] for each in await take(masks, 1)] == ["cam-2"]
        await asyncio.sleep(0.05)
        assert not bench.worker.losses.total
        passed.s += 2 * TURN_S
        await bench.empty()
        queue.stuck = frozenset()
        await bench.put("cam-1", live(1, 2))
        assert [each[1].sequence for each in await take(masks, 1)] == [2]
    assert bench.cameras.of("cam-1").stats.drops == {"stale": 2}


async def test_of_masks_that_wait_for_their_turns_the_newest_are_kept(bench: Bench) -> None:
    bench.options |= {"clock": lambda: 0.0, "wall_ms": lambda: 0}
    async with Stuck(bench.state, "w") as queue, bench.running(queue) as masks:
        for sequence in range(100):
            await bench.put("cam-1", packet_of(1, sequence=sequence))
        await until(lambda: bench.worker.losses.total == {"stale": 100 - 64})
        queue.stuck = frozenset()
        assert [each[1].sequence for each in await take(masks, 64)] == list(range(36, 100))
        await bench.empty()


async def test_a_worker_that_died_before_its_last_mask_left_leaves_it_to_another(bench: Bench) -> None:
    other, place = await place_of(bench, "dead", 5)
    await other.take_turns([place])
    await other.rest()
    async with bench.running() as masks:
        assert [each[1].sequence for each in await take(masks, 1)] == [5]
        await bench.empty()


class Overtaken(FramePublisher):
    """Stalls between rendering and sending."""

    stall: Callable[[], Awaitable[None]]

    async def publish(
        self, camera: str, id: FrameId, decoded: Decoded, *, recorded: bool = False, due: Due = always
    ) -> Rendered | PipelineError | None:
        async def asked_late() -> bool:
            await self.stall()
            return await due()

        return await super().publish(camera, id, decoded, recorded=recorded, due=asked_late)


@pytest.mark.parametrize("overtaken", [True, False], ids=["overtaken", "not overtaken"])
async def test_a_worker_that_stalled_in_its_turn_asks_again_before_it_publishes(bench: Bench, overtaken: bool) -> None:
    """Of several frames in one batch all are published, or none."""
    stalled = SimpleNamespace(s=0.0)
    bench.state.clock = lambda: time.monotonic() + stalled.s
    bench.options |= {"clock": bench.state.clock, "deadline_ms": 60_000}
    other = MemoryWorkQueue(bench.state, "other")
    await bench.put("cam-1", live(1, 5), live(1, 6))
    newer = Place(Job(0, "99", "cam-1", b"", 1, 0), FrameId(7, 7))

    async def stall() -> None:
        stalled.s += TURN_S
        late.stall = always
        if overtaken:
            assert await other.take_turns([newer]) == [Turn.MINE]

    async with bench.running() as masks:
        late = Overtaken(bench.worker._frames._channel, bench.worker._frames._lane, looks=LOOKS, live=True)
        late.stall = stall
        bench.worker._frames = late
        await bench.empty()
        await bench.put("cam-2", live(2, 0))
        expected = [("cam-2", 0)] if overtaken else [("cam-1", 5), ("cam-1", 6), ("cam-2", 0)]
        assert [(each[0], each[1].sequence) for each in await take(masks, len(expected))] == expected
    assert bench.decoder.batches[0] == 2
    assert bench.worker.losses.total == ({"stale": 2} if overtaken else {})


async def test_a_worker_whose_job_went_to_another_while_it_stalled_leaves_it_to_that(bench: Bench) -> None:
    stalled = SimpleNamespace(s=0.0)
    bench.state.clock = lambda: time.monotonic() + stalled.s
    bench.options |= {"clock": bench.state.clock, "deadline_ms": 60_000}
    other = MemoryWorkQueue(bench.state, "other")
    await bench.put("cam-1", live(1, 5))

    async def stall() -> None:
        late.stall = always
        stalled.s += TURN_S
        ((number, entry),) = ((n, e) for shard in bench.state.entries for n, e in shard.items())
        own = Place(Job(entry.shard, str(number), "cam-1", b"", 2, 0), FrameId(7, 5))
        assert await other.take_turns([own]) == [Turn.MINE]

    async with bench.running() as masks:
        late = Overtaken(bench.worker._frames._channel, bench.worker._frames._lane, looks=LOOKS, live=True)
        late.stall = stall
        bench.worker._frames = late
        await until(lambda: late.stall is always)
        await asyncio.sleep(0.05)
        assert [entry.camera for shard in bench.state.entries for entry in shard.values()] == ["cam-1"]
        stalled.s += TURN_S  # the other one died
        assert [each[1].sequence for each in await take(masks, 1)] == [5]
        await bench.empty()
    assert not bench.worker.losses.total


@pytest.mark.parametrize("alone", [True, False])
async def test_a_turn_ends_when_the_broker_has_its_masks_if_others_may_have_the_next(bench: Bench, alone: bool) -> None:
    other = MemoryWorkQueue(bench.state, "other")
    bench.options["deadline_ms"] = 60_000
    if not alone:
        await other.claim(batch=1, wait_s=0)
    async with MemoryChannel(bench.broker) as channel, bench.running():
        told = channel.subscribe("cam-1/mask", "worker/#")
        await bench.put("cam-1", live(1, 0))
        await bench.empty()
    topics = [message.topic async for message in told]
    assert topics == (["cam-1/mask"] if alone else ["cam-1/mask", "worker/w/turn"])


class Orderless(MemoryWorkQueue):
    """A queue that knows of no turns: its server is away."""

    async def take_turns(self, places: Sequence[Place]) -> list[Turn]:
        raise TransportError("redis is gone")


async def test_without_a_queue_to_ask_for_turns_masks_leave_in_the_workers_own_order(bench: Bench) -> None:
    async with Orderless(bench.state, "w") as queue, bench.running(queue) as masks:
        await bench.put("cam-1", live(1, 0), live(1, 1))
        assert [each[1].sequence for each in await take(masks, 2)] == [0, 1]


async def test_of_a_recording_every_frame_is_published_whatever_the_order(bench: Bench) -> None:
    other, place = await place_of(bench, "other", 5)
    await other.take_turns([place])
    await other.done([place.job])
    await other.rest()
    bench.options["deadline_ms"] = 0
    async with bench.running() as masks:
        await bench.put("cam-1", live(1, 4))
        assert [each[1].sequence for each in await take(masks, 1)] == [4]


def recording(numbers: Sequence[int]) -> list[Packet]:
    """Packets of a recording, long ago, of pictures of these numbers."""
    return [replace(packet_of(number, sequence=at), recorded=True) for at, number in enumerate(numbers)]


async def test_of_a_recording_nothing_is_late_superseded_or_stale(bench: Bench) -> None:
    await bench.put("cam-1", *recording([1] * 20))
    async with bench.running() as masks:
        assert [each[1].sequence for each in await take(masks, 20)] == list(range(20))
        await bench.empty()
    assert not bench.worker.losses.total


async def test_a_recordings_packet_that_cannot_be_decoded_holds_up_those_behind_it_and_nobody_else(
    bench: Bench,
) -> None:
    await bench.put("cam-1", *recording([1, 1, 99, 1]))
    async with bench.running() as masks:
        assert [each[1].sequence for each in await take(masks, 2)] == [0, 1]
        await bench.put("cam-2", live(2, 0))
        assert [each[0] for each in await take(masks, 1)] == ["cam-2"]
        await until(lambda: len(bench.state.dead) == 1)
        await bench.put("cam-1", recording([1, 1, 1])[2])
        assert [each[1].sequence for each in await take(masks, 2)] == [2, 3]
        await bench.empty()
    assert bench.worker.losses.total == {"packet": 1}


async def test_while_a_live_camera_sends_recordings_have_a_share_of_each_batch(bench: Bench) -> None:
    await bench.put("cam-2", *(live(2, sequence) for sequence in range(2)))
    await bench.put("cam-1", *recording([1] * 9))
    await bench.put("cam-2", *(live(2, sequence) for sequence in range(2, 7)))
    async with bench.running() as masks:
        found = [each[0] for each in await take(masks, 16)]
        await bench.empty()
    assert bench.decoder.batches == [2 + 2, 5 + 2, 2, 2, 1]
    assert found[:11].count("cam-2") == 7


@pytest.mark.parametrize("cameras", [["cam-1"], ["cam-1", "cam-2"]])
async def test_a_worker_of_batches_of_one_serves_recordings_and_live_cameras(bench: Bench, cameras: list[str]) -> None:
    bench.options["batch"] = 1
    for sequence in range(6):
        await bench.put("cam-1", recording([1] * 6)[sequence])
        if "cam-2" in cameras:
            await bench.put("cam-2", live(2, sequence))
    async with bench.running() as masks:
        assert {each[0] for each in await take(masks, 6 * len(cameras))} == set(cameras)


class Refusing:
    """Refuses to publish at first."""

    def __init__(self, frames: FramePublisher) -> None:
        self._frames = frames
        self.ready, self.refused = True, 0

    async def until_ready(self) -> None:
        pass

    async def publish(self, *args: object, **options: bool) -> object:
        self.refused += 1
        if self.refused <= 2:
            return TransportError("the broker is away")
        return await self._frames.publish(*args, **options)  # type: ignore[arg-type]


async def test_a_recordings_mask_that_the_broker_does_not_take_is_published_later(bench: Bench) -> None:
    async with bench.running() as masks:
        bench.worker._frames = Refusing(bench.worker._frames)  # type: ignore[assignment]
        await bench.put("cam-1", *recording([1, 2, 3]))
        assert [each[1].sequence for each in await take(masks, 3)] == [0, 1, 2]
        await bench.empty()
    assert not bench.worker.losses.total


async def test_masks_statistics_and_the_compact_form_are_on_their_topics() -> None:
    broker, state = MemoryBroker(), MemoryQueueState()
    async with (
        MemoryChannel(broker) as channel,
        MemoryChannel(broker) as other,
        MemoryWorkQueue(state, "w") as queue,
        MemoryWorkQueue(state) as gateway,
        Lane("decoder") as lane,
    ):
        arriving = other.subscribe("cam-1/#")
        task = asyncio.create_task(
            work(
                "w",
                WorkerSection(stats_s=0.1, rle=True),
                bundle=BUNDLE,
                decoder=StandinDecoder(),  # type: ignore[arg-type]
                lane=lane,
                queue=queue,
                channel=channel,
                health=Health(),
            )
        )
        await gateway.put("cam-1", pack(live(2, 4)))
        found: dict[str, bytes] = {}
        async with asyncio.timeout(LIMIT_S):
            while len(found) < 3:
                message = await anext(arriving)
                found[message.topic] = message.payload
        task.cancel()
        await asyncio.wait({task}, timeout=LIMIT_S)
    assert unpack_mask(found["cam-1/mask"])[0].id == FrameId(7, 4)
    assert (unpack_mask_rle(found["cam-1/mask/rle"]).classes == 2).all()
    stats = json.loads(found["cam-1/stats"])
    assert stats["share"] == {f"class-{k}": float(k == 2) for k in range(5)}
    assert (stats["key_share"], stats["drops"], stats["worker"]) == (1.0, {}, "w")
    assert 0 <= stats["latency_p50_ms"] <= stats["latency_p95_ms"] < 5000


async def test_scores_go_to_the_labels_topic_beside_the_masks_or_alone(bench: Bench) -> None:
    async with MemoryChannel(bench.broker) as other:
        arriving = other.subscribe("cam-1/#")
        for sequence, masks in enumerate((True, False)):
            bench.decoder = StandinDecoder(masks=masks, scores=True)
            async with bench.running():
                await bench.put("cam-1", live(2, sequence))
                await bench.empty()
    found = [(message.topic, message.payload) async for message in arriving]
    assert [topic for topic, _ in found] == ["cam-1/mask", "cam-1/labels", "cam-1/labels"]
    said = json.loads(found[2][1])
    assert (said["epoch"], said["sequence"], said["bundle"]) == (7, 1, "abababab")
    assert said["labels"] == [{"name": f"class-{k}", "score": float(k == 2)} for k in range(5)]
    assert bench.cameras.of("cam-1").stats.masks == 2  # frames are counted, whatever was made of them
    assert not bench.worker.losses.total


async def test_labels_go_over_a_real_queue_and_broker(mqtt_url: str, redis_bench: RedisBench) -> None:
    root = "labels-test"
    async with (
        open_channel(mqtt_url, root=root) as channel,
        open_channel(mqtt_url, root=root) as other,
        RedisWorkQueue(redis_bench.url, "w") as queue,
        RedisWorkQueue(redis_bench.url) as gateway,
        Lane("decoder") as lane,
    ):
        arriving = other.subscribe("cam-1/labels")
        await ready(other)
        task = asyncio.create_task(
            work(
                "w",
                WorkerSection(),
                bundle=BUNDLE,
                decoder=StandinDecoder(scores=True),  # type: ignore[arg-type]
                lane=lane,
                queue=queue,
                channel=channel,
                health=Health(),
            )
        )
        await gateway.put("cam-1", pack(live(3, 4)))
        async with asyncio.timeout(LIMIT_S):
            labels = read_report(Labels, (await anext(arriving)).payload)
        task.cancel()
        await asyncio.wait({task}, timeout=LIMIT_S)
    assert (labels.epoch, labels.sequence) == (7, 4)
    assert [label.name for label in labels.present()] == ["class-3"]


def test_what_is_opened_is_what_the_settings_ask_for(tmp_path: Path) -> None:
    graphs = {"labels": "labels.onnx"}
    bundle = SimpleNamespace(path=tmp_path, has_graph=graphs.__contains__)
    with pytest.raises(ConfigError, match="labels are off"):
        opening(bundle, WorkerSection(labels="off"), DecoderSection())()  # type: ignore[arg-type]


def test_hysteresis_is_what_the_settings_say_and_none_by_default() -> None:
    bundle = SimpleNamespace(has_graph=lambda _: True)
    for settings, wanted in ((DecoderSection(), 0.0), (DecoderSection(hysteresis=0.7), 0.7)):
        opened = opening(bundle, WorkerSection(), settings)  # type: ignore[arg-type]
        assert isinstance(opened, partial)
        assert opened.keywords["hysteresis"] == wanted


def test_a_worker_without_a_given_name_makes_one_of_its_own() -> None:
    assert node_name("left") == "left"
    assert str(os.getpid()) in node_name("")
    assert WorkerSection(id=node_name("")).id == node_name("")


async def test_a_bundle_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match="none"):
        await node.main(load_settings(WorkerSettings, None, {"bundle": "none", "health.port": 0}))
