"""The bounded buffer between stages, and the count of what is lost."""

import asyncio
from dataclasses import dataclass

import pytest
from structlog.testing import capture_logs

from nodes.buffer import Losses, PacketBuffer


@dataclass(frozen=True)
class Waiting:
    number: int
    keys: tuple[int, ...] = ()
    camera: str = "cam-1"


def buffer(limit: int, drops: list[int] | None = None) -> PacketBuffer[Waiting]:
    return PacketBuffer(limit, on_drop=lambda: drops.append(1) if drops is not None else None)


async def drain(packets: PacketBuffer[Waiting]) -> list[int]:
    packets.close()
    numbers = []
    while (packet := await packets.take()) is not None:
        numbers.append(packet.number)
    return numbers


async def test_packets_leave_in_the_order_in_which_they_came() -> None:
    packets = buffer(3)
    for number in range(3):
        packets.put(Waiting(number))
    assert await drain(packets) == [0, 1, 2]


async def test_a_full_buffer_drops_the_oldest_and_counts_it() -> None:
    drops: list[int] = []
    packets = buffer(3, drops)
    for number in range(5):
        packets.put(Waiting(number))
    assert await drain(packets) == [2, 3, 4]
    assert len(drops) == 2


K, W = (0,), ()


@pytest.mark.parametrize(
    ("keys", "left"),
    [
        ([K, W, W, W, W], [0, 3, 4]),
        ([W, W, K, W], [1, 2, 3]),
        ([K, W, K, W], [0, 2, 3]),
        ([K, W, W, K, K], [0, 3, 4]),
        ([K, W, K, W, W], [2, 3, 4]),
        ([K, K, K, K], [1, 2, 3]),
    ],
)
async def test_a_key_is_not_dropped_before_the_warps_behind_it_nor_kept_once_there_is_a_newer_one(
    keys: list[tuple[int, ...]], left: list[int]
) -> None:
    packets = buffer(3)
    for number, key in enumerate(keys):
        packets.put(Waiting(number, key))
    assert await drain(packets) == left


async def test_a_newer_key_of_another_region_or_of_another_camera_takes_no_ones_place() -> None:
    packets = buffer(3)
    for waiting in (Waiting(0, (0, 1)), Waiting(1, (0, 1), "cam-2"), Waiting(2, (1,)), Waiting(3, (1,))):
        packets.put(waiting)
    assert await drain(packets) == [0, 1, 3]


async def test_what_had_to_go_is_returned_and_where_all_may_be_needed_that_is_the_oldest() -> None:
    packets = buffer(2)
    waiting = [Waiting(0, (0, 1)), Waiting(1, (0,)), Waiting(2, (1,))]
    assert [packets.put(each) for each in waiting] == [None, None, waiting[0]]


async def test_a_packet_given_back_is_first_and_goes_first_when_there_is_no_room() -> None:
    packets = buffer(2)
    packets.put(Waiting(1))
    packets.give_back(Waiting(0))
    packets.give_back(Waiting(-1))
    assert await drain(packets) == [0, 1]


async def test_taking_waits_for_a_packet_and_ends_when_the_buffer_is_closed() -> None:
    packets = buffer(2)
    async with asyncio.TaskGroup() as tasks, asyncio.timeout(5):
        first, second = tasks.create_task(packets.take()), tasks.create_task(packets.take())
        await asyncio.sleep(0)
        packets.put(Waiting(7))
        await asyncio.sleep(0.01)
        packets.close()
    assert {first.result(), second.result()} == {Waiting(7), None}


async def test_back_pressure_loses_nothing() -> None:
    drops: list[int] = []
    packets, taken = buffer(2, drops), []

    async def fill() -> None:
        for number in range(20):
            await packets.put_when_free(Waiting(number))
        packets.close()

    async with asyncio.TaskGroup() as tasks, asyncio.timeout(5):
        tasks.create_task(fill())
        while (packet := await packets.take()) is not None:
            taken.append(packet.number)
            assert len(packets) <= 2
            await asyncio.sleep(0)
    assert taken == list(range(20))
    assert not drops


async def test_losses_are_told_once_per_interval_with_how_many() -> None:
    losses = Losses("camera", camera="cam-1")
    with capture_logs() as lines, pytest.raises(TimeoutError):
        for _ in range(3):
            losses.add("uplink")
        losses.add("busy", 2)
        losses.add("busy", 0)
        async with asyncio.timeout(0.1):
            await losses.report(every_s=0.02)
    assert lines == [
        {"event": "lost", "log_level": "warning", "node": "camera", "camera": "cam-1", "uplink": 3, "busy": 2}
    ]
    assert losses.total == {"uplink": 3, "busy": 2}
