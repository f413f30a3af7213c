"""Receipts: what they count, how often they come, and that the last packet of a burst is always answered."""

import asyncio
from collections.abc import Iterable

import pytest
from channels import LIMIT_S, take
from standins import packet_of

from nodes.arrivals import EVERY_S, FORGET_S, Arrivals, Receipts
from pipeline.messages import FrameId
from pipeline.receipts import MAX_HELD_MS, Receipt, unpack_receipt
from pipeline.transport.memory import MemoryBroker, MemoryChannel

EPOCH, WALL_MS = 7, 1_700_000_000_000


def noted(
    sequences: Iterable[int], *, arrivals: Arrivals, from_s: float = 0.0, step_s: float = 0.0, epoch: int = EPOCH
) -> None:
    """Packets of 100 bytes, one each `step_s`."""
    for place, sequence in enumerate(sequences):
        at_s = from_s + place * step_s
        frame = FrameId(epoch, sequence)
        arrivals.note("cam-1", frame, size_bytes=100, now_s=at_s, now_ms=WALL_MS + round(1000 * at_s))


def told(arrivals: Arrivals, now_s: float) -> Receipt | None:
    due = arrivals.take(now_s)
    return None if due is None else due[1]


def test_a_packet_is_answered_at_once_with_what_arrived_and_when() -> None:
    arrivals = Arrivals()
    noted([5], arrivals=arrivals, from_s=2.0)
    assert arrivals.take(2.0) == ("cam-1", Receipt(FrameId(EPOCH, 5), 1, 100, WALL_MS + 2000, 0))
    assert arrivals.take(100.0) is None


def test_a_burst_gets_two_receipts_and_the_second_speaks_for_all_of_it() -> None:
    arrivals = Arrivals()
    noted([0], arrivals=arrivals)
    assert told(arrivals, 0.0) is not None
    noted(range(1, 10), arrivals=arrivals, from_s=0.001, step_s=0.001)
    assert told(arrivals, EVERY_S - 0.001) is None
    assert arrivals.next_s == EVERY_S
    assert told(arrivals, EVERY_S) == Receipt(FrameId(EPOCH, 9), 10, 1000, WALL_MS + 9, 41)


def test_a_stream_gets_one_receipt_in_50_ms_at_most() -> None:
    arrivals, receipts = Arrivals(), 0
    for sequence in range(200):
        now_s = sequence / 200
        noted([sequence], arrivals=arrivals, from_s=now_s)
        receipts += told(arrivals, now_s) is not None
    assert receipts == 20


def test_a_packet_that_comes_twice_or_late_is_counted_once_and_is_not_the_newest() -> None:
    arrivals = Arrivals()
    noted([3, 5, 4, 5, 3, 3], arrivals=arrivals, step_s=0.01)
    assert told(arrivals, 0.05) == Receipt(FrameId(EPOCH, 5), 3, 300, WALL_MS + 10, 40)


def test_sequences_wrap() -> None:
    arrivals = Arrivals()
    noted([0xFFFFFFFE, 0xFFFFFFFF, 1, 0], arrivals=arrivals)
    receipt = told(arrivals, 0.0)
    assert receipt is not None
    assert (receipt.newest.sequence, receipt.packets) == (1, 4)


def test_a_new_epoch_begins_a_new_count_and_what_is_left_of_the_old_one_is_passed_over() -> None:
    arrivals = Arrivals()
    noted(range(900, 910), arrivals=arrivals)
    noted([0], arrivals=arrivals, epoch=8)
    noted([910], arrivals=arrivals)
    noted([1], arrivals=arrivals, epoch=8)
    receipt = told(arrivals, 0.0)
    assert receipt is not None
    assert (receipt.newest, receipt.packets, receipt.size_bytes) == (FrameId(8, 1), 2, 200)


def test_an_epoch_that_is_drawn_again_begins_anew() -> None:
    arrivals = Arrivals()
    noted([50_000], arrivals=arrivals)
    noted([0, 1], arrivals=arrivals, from_s=1.0)
    receipt = told(arrivals, 1.0)
    assert receipt is not None
    assert (receipt.newest.sequence, receipt.packets) == (1, 2)


def test_a_gap_longer_than_what_is_remembered_loses_no_count() -> None:
    arrivals = Arrivals()
    noted([0, 5000, 4999], arrivals=arrivals)
    receipt = told(arrivals, 0.0)
    assert receipt is not None
    assert (receipt.newest.sequence, receipt.packets) == (5000, 3)


def test_held_time_has_a_ceiling() -> None:
    arrivals = Arrivals()
    noted([0], arrivals=arrivals)
    receipt = told(arrivals, 1000.0)
    assert receipt is not None
    assert receipt.held_ms == MAX_HELD_MS


def test_a_camera_that_is_silent_for_a_minute_is_forgotten() -> None:
    arrivals = Arrivals()
    noted(range(3), arrivals=arrivals)
    arrivals.note("cam-2", FrameId(1, 0), size_bytes=1, now_s=FORGET_S + 1, now_ms=0)
    assert len(arrivals) == 1
    noted([3], arrivals=arrivals, from_s=FORGET_S + 1)
    due = [arrivals.take(FORGET_S + 1), arrivals.take(FORGET_S + 1)]
    assert sorted((camera, receipt.packets) for camera, receipt in filter(None, due)) == [("cam-1", 1), ("cam-2", 1)]
    assert arrivals.take(FORGET_S + 2) is None


def test_made_up_names_take_no_more_room_than_there_is() -> None:
    arrivals = Arrivals(cameras=10)
    for number in range(1000):
        arrivals.note(f"c{number}", FrameId(0, 0), size_bytes=1, now_s=0.0, now_ms=0)
    assert len(arrivals) == 10


async def test_receipts_go_to_the_cameras_topic_and_the_last_one_comes_though_nothing_follows() -> None:
    broker = MemoryBroker()
    async with MemoryChannel(broker) as channel, MemoryChannel(broker) as camera, asyncio.TaskGroup() as tasks:
        answers = camera.subscribe("cam-1/receipt")
        receipts = Receipts(channel, on_loss=lambda: pytest.fail("a receipt was lost"))
        running = tasks.create_task(receipts.run())
        for sequence in range(20):
            receipts.note("cam-1", packet_of(1, sequence=sequence).id, size_bytes=50)
        found = Receipt(FrameId(0, 0), 0, 0, 0, 0)
        async with asyncio.timeout(LIMIT_S):
            while found.packets < 20:
                found = unpack_receipt((await take(answers))[0].payload)
        assert (found.newest.sequence, found.size_bytes) == (19, 1000)
        running.cancel()


async def test_a_receipt_that_cannot_be_sent_is_counted_and_the_next_one_goes() -> None:
    broker, lost = MemoryBroker(), asyncio.Event()
    channel = MemoryChannel(broker)
    async with MemoryChannel(broker) as camera, asyncio.TaskGroup() as tasks:
        answers = camera.subscribe("cam-1/receipt")
        receipts = Receipts(channel, on_loss=lost.set)
        running = tasks.create_task(receipts.run())
        receipts.note("cam-1", FrameId(1, 0), size_bytes=50)
        async with asyncio.timeout(LIMIT_S):
            await lost.wait()
        async with channel:
            receipts.note("cam-1", FrameId(1, 1), size_bytes=50)
            assert unpack_receipt((await take(answers))[0].payload).packets == 2
        running.cancel()
