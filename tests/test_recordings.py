"""Which frames of a recording may go on at a worker: each after the one before it, whoever had that, and once."""

import asyncio
import itertools
import random
import time
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field, replace

import pytest
from queues import MemoryBench, RedisBench
from standins import NAMES, PALETTE, StandinDecoder, packet_of

from nodes.answers import Answers
from nodes.key_fetching import KeyRequests
from nodes.publisher import FramePublisher, Looks
from nodes.recordings import Recording, Recordings, Ticket
from nodes.service import Lane
from nodes.stats import Cameras
from nodes.uplink import Encoded
from nodes.window import Window
from nodes.worker import Worker
from pipeline.bitstream import pack
from pipeline.errors import TransportError
from pipeline.mask_image import frame_of
from pipeline.mask_order import Position, Turn
from pipeline.memory_queue import MemoryQueueState, MemoryWorkQueue
from pipeline.messages import FrameId, Packet
from pipeline.transport.memory import MemoryBroker, MemoryChannel
from pipeline.work_queue import Job, Place, WorkQueue

LIMIT_S = 20.0


def recorded(sequence: int, *, epoch: int = 7) -> Packet:
    return replace(packet_of(1, sequence=sequence, epoch=epoch), recorded=True)


class Bench:
    """The recordings of one worker, on a queue in memory whose clock and theirs is `now_s`."""

    def __init__(self) -> None:
        self.now_s = 1.0
        self.queue = MemoryWorkQueue(MemoryQueueState(clock=lambda: self.now_s), "w")
        self.answers = Answers("w", queue=self.queue, cameras=Cameras(NAMES, deadline_ms=2000))
        self.recordings = Recordings(queue=self.queue, answers=self.answers, clock=lambda: self.now_s)

    async def ticket(self, sequence: int, *, epoch: int = 7, camera: str = "cam-1") -> Ticket:
        packet = recorded(sequence, epoch=epoch)
        await self.queue.put(camera, pack(packet))
        [job] = await self.queue.claim(batch=1, wait_s=0)
        return Ticket(job, packet)

    async def hold(self, *sequences: int, epoch: int = 7, camera: str = "cam-1") -> None:
        self.recordings.hold([await self.ticket(each, epoch=epoch, camera=camera) for each in sequences])

    async def next(self, room: int = 8) -> list[int]:
        return [ticket.packet.id.sequence for ticket in await self.recordings.next(room)]

    async def out_elsewhere(self, *sequences: int, epoch: int = 7) -> None:
        """Another worker published the masks of these."""
        for sequence in sequences:
            ticket = await self.ticket(sequence, epoch=epoch)
            await self.queue.published([Place(ticket.job, ticket.packet.id)])


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    async with made.queue:
        yield made


async def test_a_recording_begins_with_its_first_frame_and_goes_on_in_order(bench: Bench) -> None:
    await bench.hold(2, 1)
    assert await bench.next() == []
    await bench.hold(0, 4)
    assert await bench.next(2) == [0, 1]
    assert bench.recordings.waiting
    assert await bench.next(2) == [2]
    assert await bench.next(2) == []


async def test_frames_that_others_have_are_waited_for(bench: Bench) -> None:
    await bench.hold(3, 4)
    await bench.out_elsewhere(0, 1)
    assert await bench.next() == []
    await bench.out_elsewhere(2)
    assert await bench.next() == [3, 4]


async def test_each_recording_waits_for_its_own_frames_only(bench: Bench) -> None:
    await bench.hold(1)
    await bench.hold(0, 1, camera="cam-2")
    assert await bench.next() == [0, 1]


async def test_recordings_have_room_in_turns(bench: Bench) -> None:
    await bench.hold(*range(6))
    await bench.hold(*range(6), camera="cam-2")
    cameras = [[ticket.job.camera for ticket in await bench.recordings.next(2)] for _ in range(4)]
    assert cameras == [["cam-1"] * 2, ["cam-2"] * 2, ["cam-1"] * 2, ["cam-2"] * 2]


async def test_a_frame_that_is_under_way_here_is_not_taken_twice_and_answered_when_it_is_out(bench: Bench) -> None:
    first = await bench.ticket(0)
    bench.recordings.hold([first])
    assert await bench.next() == [0]
    await bench.hold(0)
    assert await bench.next() == []
    bench.now_s += 1
    await bench.queue.published([Place(first.job, first.packet.id)])
    bench.recordings.advance(first)
    assert await bench.next() == []
    assert bench.answers.losses.total == {"repeated": 1}
    assert await bench.queue.depth() == 0


async def test_a_frame_whose_mask_its_camera_did_not_see_is_published_again_and_nothing_else_changes(
    bench: Bench,
) -> None:
    await bench.out_elsewhere(0, 1, 2)
    bench.now_s += 1
    await bench.hold(1, 3)
    [again, following] = await bench.recordings.next(8)
    assert [again.packet.id.sequence, following.packet.id.sequence] == [1, 3]
    assert bench.recordings.turn(again) is Turn.MINE
    bench.recordings.advance(again)
    assert bench.recordings.turn(following) is Turn.MINE


async def test_after_a_frame_that_comes_to_nothing_those_behind_it_wait_for_its_next_coming(bench: Bench) -> None:
    await bench.hold(0, 1, 2)
    first, second, third = await bench.recordings.next(8)
    bench.recordings.advance(first)
    bench.recordings.stop(second)
    assert bench.recordings.turn(third) is Turn.WAIT
    bench.recordings.hold([third])
    assert await bench.next() == []
    await bench.hold(1)
    assert await bench.next() == [1, 2]


async def test_a_frame_whose_key_was_not_found_is_tried_again_but_not_for_ever(bench: Bench) -> None:
    await bench.hold(0, 1)
    for tried in range(3):
        ticket, *_ = await bench.recordings.next(8)
        assert ticket.packet.id.sequence == 0
        assert bench.recordings.try_again(ticket) is (tried < 2)


async def test_what_waits_for_too_long_is_left_to_its_camera(bench: Bench) -> None:
    await bench.out_elsewhere(0)
    await bench.hold(2, 3)
    bench.now_s += 9.0
    assert await bench.next() == []
    assert bench.answers.losses.total == {"early": 2}
    assert await bench.queue.depth() == 0


async def test_where_the_queue_lost_all_it_knew_the_first_frame_that_waits_is_next(bench: Bench) -> None:
    await bench.hold(6, 5)
    bench.now_s += 5.0
    assert await bench.next() == []
    bench.now_s += 1.5
    await bench.hold(4)
    assert await bench.next() == [4, 5, 6]


async def test_a_stranger_cannot_have_packets_held_without_end(bench: Bench) -> None:
    ticket = await bench.ticket(5)
    bench.recordings.hold(Ticket(ticket.job, recorded(number)) for number in range(2, 1202))
    assert await bench.next() == []
    assert bench.answers.losses.total == {"early": 176}


async def test_strangers_of_many_names_cannot_have_more_held(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    answered: list[int] = []

    async def count(jobs: Sequence[Job]) -> None:
        answered.append(len(jobs))

    monkeypatch.setattr(bench.answers, "acknowledge", count)
    for name in ("cam-1", *(f"other-{number}" for number in range(2500))):
        packets = [recorded(number) for number in ((1, 2, 3) if name == "cam-1" else (5,))]
        bench.recordings.hold(Ticket(Job(0, f"1-{each.id.sequence}", name, b"", 1), each) for each in packets)
    assert await bench.next() == []
    assert sum(len(each.held) for each in bench.recordings._known.values()) == 1024
    assert [each.packet.id.sequence for each in bench.recordings._known["cam-1"].in_order()] == [1]
    assert [count for count in answered if count] == [2503 - 1024]


async def test_of_many_recordings_some_are_asked_about_each_time_and_all_in_the_end(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Collection[str]] = []
    positions = bench.queue.positions

    async def ask(cameras: Collection[str]) -> dict[str, Position]:
        asked.append(cameras)
        return await positions(cameras)

    monkeypatch.setattr(bench.queue, "positions", ask)
    for number in range(300):
        bench.recordings.hold([Ticket(Job(0, f"{number}-0", f"cam-{number}", b"", 1), recorded(5))])
    bench.now_s += 6.5
    assert sum([len(await bench.next(300)) for _ in range(5)]) == 300
    assert max(map(len, asked)) == 64
    assert {camera for each in asked for camera in each} == {f"cam-{number}" for number in range(300)}


def test_what_is_held_of_many_epochs_is_in_order_at_little_cost() -> None:
    recording, packets = Recording(0.0), [recorded(number, epoch=1 + number // 2) for number in range(40_000)]
    tickets = [Ticket(Job(0, str(number), "cam-1", b"", 1), packet) for number, packet in enumerate(packets)]
    recording.held = dict.fromkeys(tickets, 0.0)
    began_s = time.process_time()
    assert recording.in_order() == tickets
    assert time.process_time() - began_s < 1.0  # in proportion to the square of their number some 5 s


async def test_a_camera_that_starts_again_is_served_at_once_and_its_old_frames_are_over(bench: Bench) -> None:
    await bench.out_elsewhere(0, 1)
    await bench.hold(2)
    await bench.hold(0, 1, epoch=8)
    assert await bench.next(1) == [2]
    await bench.out_elsewhere(0, epoch=8)
    await bench.hold(3)
    assert await bench.next() == [1]
    assert bench.answers.losses.total == {"repeated": 2}


async def test_where_a_recording_steps_back_its_keys_are_held_under_another_name(bench: Bench) -> None:
    names = [bench.recordings.keys_under(await bench.ticket(sequence)) for sequence in (8, 9, 3, 4, 10, 3)]
    assert names == ["cam-1", "cam-1", "cam-1/1", "cam-1/1", "cam-1/1", "cam-1/2"]


class Gone(MemoryWorkQueue):
    """Does not say how far anything is."""

    async def positions(self, cameras: object) -> dict[str, Position]:
        raise TransportError("redis is gone")


def test_a_worker_that_missed_epochs_learns_of_the_present_one() -> None:
    recording = Recording(0.0, Position(FrameId(1, 9), 5))
    recording.learn(Position(FrameId(3, 0), 50))  # 2 came and went, and that 1 is over was forgotten
    assert recording.position == Position(FrameId(3, 0), 50)
    ahead = Recording(0.0, Position(FrameId(2, 0), 5, frozenset({1})))
    ahead.learn(Position(FrameId(1, 9), 4))
    assert ahead.position is not None and ahead.position.frame == FrameId(2, 0)


def test_where_the_queue_lost_the_order_what_is_sent_again_is_published_again() -> None:
    recording, packet = Recording(0.0), recorded(0)
    recording.advance(packet.id)
    again = Ticket(Job(0, "9-0", "cam-1", pack(packet), 1, queued_ms=100), packet)
    assert recording.turn(again) is Turn.OVER
    recording.forgotten()
    assert recording.turn(again) is Turn.MINE


async def test_recordings_may_come_while_others_are_answered(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    acknowledge = bench.answers.acknowledge

    async def meanwhile(jobs: Sequence[Job]) -> None:
        await bench.hold(0, camera=f"other-{len(bench.recordings._known)}")
        await acknowledge(jobs)

    await bench.hold(0, 1)
    monkeypatch.setattr(bench.answers, "acknowledge", meanwhile)
    assert await bench.next() == [0, 1]
    assert len(bench.recordings._known) > 1


def test_of_made_up_names_no_more_than_so_many_are_known(bench: Bench) -> None:
    packet = recorded(5)
    for number in range(3000):
        bench.recordings.stop(Ticket(Job(0, f"{number}-0", f"cam-{number}", b"", 1), packet))
    assert len(bench.recordings._known) <= 1024


async def test_without_a_queue_to_ask_what_is_known_here_must_do(bench: Bench) -> None:
    async with Gone(MemoryQueueState(), "w") as queue:
        recordings = Recordings(queue=queue, answers=bench.answers, clock=lambda: bench.now_s)
        recordings.hold([Ticket(Job(0, str(n), "cam-1", b"", 1), recorded(n)) for n in (0, 1, 5)])
        assert [each.packet.id.sequence for each in await recordings.next(8)] == [0, 1]
        bench.now_s += 7.0
        assert await recordings.next(8) == []


@dataclass(slots=True, eq=False)
class Crew:
    """Workers that die at random, and others that take their place, over one queue and one broker in memory."""

    queues: MemoryBench | RedisBench
    broker: MemoryBroker = field(default_factory=MemoryBroker)
    seen: dict[str, list[int]] = field(default_factory=dict)
    died: int = 0

    async def listen(self) -> None:
        async with MemoryChannel(self.broker) as channel:
            async for message in channel.subscribe("+/mask"):
                self.seen.setdefault(message.topic, []).append(frame_of(message.payload).sequence)

    async def work(self, name: str, rng: random.Random, end: asyncio.Event) -> None:
        """One worker after another; each lives for a moment."""
        for number in itertools.count():
            last = end.is_set()
            async with AsyncExitStack() as stack:
                queue = await stack.enter_async_context(self.queues.queue(f"{name}-{number}", steal_after_s=0.02))
                working = asyncio.create_task(self._worker(f"{name}-{number}", queue))
                with suppress(TimeoutError):
                    await asyncio.wait_for(asyncio.shield(working), LIMIT_S if last else rng.uniform(0.05, 0.4))
                working.cancel()
                await asyncio.wait({working})
            self.died += 1

    async def _worker(self, name: str, queue: WorkQueue) -> None:
        async with MemoryChannel(self.broker) as channel, Lane("decoder") as lane, Lane("png") as png:
            await Worker(
                name,
                queue=queue,
                decoder=StandinDecoder(),  # type: ignore[arg-type]
                lane=lane,
                requests=KeyRequests(channel),
                cameras=Cameras(NAMES, deadline_ms=2000),
                frames=FramePublisher(channel, png, looks=Looks(PALETTE, NAMES), live=True),
                batch=3,
                wait_s=0.05,
            ).run()


@pytest.fixture(params=["memory", "redis"])
def queues(request: pytest.FixtureRequest) -> MemoryBench | RedisBench:
    return MemoryBench() if request.param == "memory" else request.getfixturevalue("redis_bench")


async def play(camera: str, broker: MemoryBroker, gateway: WorkQueue, frames: int) -> Window:
    """A camera plays a recording, straight into the queue."""

    async def send(encoded: Encoded) -> None:
        await gateway.put(camera, encoded.data)

    async with MemoryChannel(broker) as channel:
        window = Window(camera, channel, packets=16, answer_s=1.0, tries=9)
        running = asyncio.create_task(window.run(send))
        for sequence in range(frames):
            await window.until_free()
            packet = recorded(sequence)
            window.add(encoded := Encoded(camera, packet, pack(packet), None))
            await send(encoded)
            await asyncio.sleep(0.002)
        await window.until_answered()
        running.cancel()
        await asyncio.wait({running})
    return window


async def test_whoever_dies_every_frame_has_its_mask_in_order_and_few_come_twice(
    queues: MemoryBench | RedisBench,
) -> None:
    cameras, count, crew, rng, end = ("cam-1", "cam-2", "cam-3"), 90, Crew(queues), random.Random(4), asyncio.Event()
    async with asyncio.timeout(LIMIT_S), queues.queue() as gateway:
        tasks = [asyncio.create_task(crew.listen())]
        tasks += [asyncio.create_task(crew.work(name, rng, end)) for name in ("left", "right", "third")]
        asyncio.get_running_loop().call_later(3.0, end.set)
        await asyncio.gather(*(play(camera, crew.broker, gateway, count) for camera in cameras))
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    for camera in cameras:
        assert list(dict.fromkeys(crew.seen[f"{camera}/mask"])) == list(range(count))
    assert sum(map(len, crew.seen.values())) <= len(cameras) * count + crew.died
    assert crew.died > 3
