"""Which packets are worth decoding; what a running worker makes of them is in test_worker."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import pytest
from standins import NAMES, PALETTE, packet_of

from nodes.answers import Answers
from nodes.intake import Intake, has_key
from nodes.publisher import FramePublisher, Looks
from nodes.recordings import Recordings
from nodes.service import Lane
from nodes.stats import Cameras
from pipeline.bitstream import pack
from pipeline.keys import is_whole, stands_alone
from pipeline.memory_queue import MemoryQueueState, MemoryWorkQueue
from pipeline.messages import Kind, Packet, Region
from pipeline.transport.memory import MemoryBroker, MemoryChannel

LIMIT_S = 10.0


class Bench:
    """An intake over a queue in memory."""

    def __init__(self, queue: MemoryWorkQueue, channel: MemoryChannel, lane: Lane) -> None:
        self.queue, self._channel, self._lane = queue, channel, lane
        self.cameras = Cameras(NAMES, deadline_ms=2000)

    def intake(self, *, batch: int = 8, deadline_ms: int = 2000) -> Intake:
        self.answers = Answers("w", queue=self.queue, cameras=self.cameras)
        frames = FramePublisher(self._channel, self._lane, looks=Looks(PALETTE, NAMES), live=True)
        return Intake(
            queue=self.queue,
            answers=self.answers,
            recordings=Recordings(queue=self.queue, answers=self.answers),
            cameras=self.cameras,
            frames=frames,
            batch=batch,
            wait_s=0.1,
            deadline_ms=deadline_ms,
        )

    async def put(self, *packets: Packet, camera: str = "cam-1") -> None:
        for packet in packets:
            await self.queue.put(camera, pack(packet))


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async with (
        MemoryWorkQueue(MemoryQueueState(), "w") as queue,
        MemoryChannel(MemoryBroker()) as channel,
        Lane("png") as lane,
    ):
        yield Bench(queue, channel, lane)


def aged(ages: Sequence[int], *, newest_ms: int, columns: int = 1) -> list[Packet]:
    """Packets of a camera, 40 ms apart, the last one so old; those of age 0 are KEYs, the others WARPs of that age."""
    last_ms = time.time_ns() // 1_000_000 - newest_ms
    made = []
    for sequence, age in enumerate(ages):
        region = Region(Kind.WARP if age else Kind.KEY, 0, age, b"\x01")
        packet = packet_of(1, sequence=sequence, captured_ms=last_ms - 40 * (len(ages) - 1 - sequence))
        made.append(replace(packet, columns=columns, regions=(region,)))
    return made


def between(*, newest_ms: int, step_ms: int = 100) -> list[Packet]:
    """A KEY, three frames that waited for the KEY after them, and that one's own, which is so old."""
    warps, own = [Region(Kind.WARP, 0, age, b"") for age in (1, 2, 3)], Region(Kind.BACK, 0, 0, b"")
    backs = [Region(Kind.BACK, 0, age, b"") for age in (3, 2, 1)]
    told = [(Region(Kind.KEY, 0, 3, b"\x01"), warps[0], backs[0]), (warps[1], backs[1]), (warps[2], backs[2]), (own,)]
    every = [(Region(Kind.KEY, 0, 0, b"\x01"),), *told]
    last_ms = time.time_ns() // 1_000_000 - newest_ms
    heads = [packet_of(1, sequence=at, captured_ms=last_ms - step_ms * (4 - at)) for at in range(5)]
    return [replace(head, regions=regions) for head, regions in zip(heads, every, strict=True)]


async def sequences(intake: Intake) -> list[int]:
    async with asyncio.timeout(LIMIT_S):
        return [ticket.packet.id.sequence for ticket in await intake.next()]


async def test_a_worker_that_is_behind_decodes_the_newest_warp_and_the_keys_it_may_need(bench: Bench) -> None:
    await bench.put(*aged([0, 1, 2, 0, 1, 2, 3], newest_ms=300))
    assert await sequences(bench.intake()) == [3, 6]
    assert bench.answers.losses.total == {"superseded": 5}
    assert await bench.queue.depth() == 2


async def test_a_key_is_passed_over_for_nothing_but_a_newer_key(bench: Bench) -> None:
    await bench.put(*aged([0, 1, 2], newest_ms=300))
    assert await sequences(bench.intake()) == [0, 2]


async def test_a_packet_that_shows_a_part_only_passes_over_nothing(bench: Bench) -> None:
    await bench.put(*aged([0, 1, 2], newest_ms=300, columns=2))
    assert await sequences(bench.intake()) == [0, 1, 2]


async def test_a_worker_that_keeps_up_decodes_every_warp(bench: Bench) -> None:
    await bench.put(*aged([0, 1, 2, 3], newest_ms=10))
    assert await sequences(bench.intake()) == [0, 1, 2, 3]


async def test_of_a_recording_nothing_is_too_old(bench: Bench) -> None:
    await bench.put(*aged([0, 1, 2, 3], newest_ms=60_000))
    assert await sequences(bench.intake(deadline_ms=0)) == [0, 1, 2, 3]


async def test_what_a_backlog_leaves_comes_in_the_next_batches(bench: Bench) -> None:
    for number in range(5):
        await bench.put(*aged([0, 1], newest_ms=300), camera=f"cam-{number}")
    intake = bench.intake(batch=4)
    assert [len(await sequences(intake)) for _ in range(3)] == [4, 4, 2]


async def test_frames_that_waited_for_a_key_are_not_taken_for_a_backlog(bench: Bench) -> None:
    await bench.put(*between(newest_ms=10)[1:])  # the oldest of which is 310 ms old
    assert await sequences(bench.intake()) == [1, 2, 3, 4]
    assert not bench.answers.losses.total


async def test_of_frames_that_waited_those_too_old_are_late(bench: Bench) -> None:
    await bench.put(*between(newest_ms=10, step_ms=800)[1:])
    assert await sequences(bench.intake()) == [2, 3, 4]
    assert bench.answers.losses.total == {"late": 1}


async def test_a_worker_that_is_behind_keeps_the_keys_that_came_ahead(bench: Bench) -> None:
    await bench.put(*between(newest_ms=300))
    assert await sequences(bench.intake()) == [1, 4]
    assert bench.answers.losses.total == {"superseded": 3}


async def test_frames_that_waited_beside_another_cameras_backlog_are_all_decoded(bench: Bench) -> None:
    await bench.put(*aged([0, 1, 2], newest_ms=300), camera="cam-2")
    await bench.put(*between(newest_ms=10)[1:])
    async with asyncio.timeout(LIMIT_S):
        tickets = await bench.intake().next()
    found = [(ticket.job.camera, ticket.packet.id.sequence) for ticket in tickets]
    assert sorted(found) == [*(("cam-1", at) for at in range(1, 5)), ("cam-2", 0), ("cam-2", 2)]


async def test_a_frame_that_waited_in_vain_is_not_taken_for_a_backlog_either(bench: Bench) -> None:
    """It leaves as a plain WARP, as old as those that refer to the KEY after them."""
    packets = between(newest_ms=10)
    waited = replace(packets[1], captured_ms=packets[4].captured_ms - 400, regions=(Region(Kind.WARP, 0, 1, b""),))
    burst = [replace(packet, id=replace(packet.id, sequence=packet.id.sequence + 1)) for packet in packets[1:]]
    await bench.put(waited, *burst)
    assert await sequences(bench.intake()) == [1, 2, 3, 4, 5]


def test_a_key_that_comes_ahead_is_one_that_later_packets_refer_to() -> None:
    assert [has_key(packet) for packet in between(newest_ms=0)] == [True, True, False, False, False]


def test_what_a_packet_shows_and_what_it_needs() -> None:
    key, warp = Region(Kind.KEY, 0, 0, b""), Region(Kind.WARP, 1, 1, b"")
    both = replace(packet_of(1, sequence=5), columns=2, regions=(key, warp))
    only_key, only_warp = replace(both, regions=(key,)), replace(both, regions=(warp,))
    assert [is_whole(each) for each in (both, only_key, only_warp)] == [True, False, False]
    assert [has_key(each) for each in (both, only_key, only_warp)] == [True, True, False]
    assert [stands_alone(each) for each in (both, only_key, packet_of(1, sequence=5))] == [False, False, True]
