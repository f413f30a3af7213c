"""What a camera sends: no packet whose keys did not leave, the newest where there is no room, all of a recording."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from prometheus_client import REGISTRY
from standins import packet_of

from nodes.buffer import Losses
from nodes.uplink import Encoded, Uplink
from pipeline.bitstream import pack, unpack
from pipeline.errors import TransportError
from pipeline.messages import FrameId, Kind, Packet, Region
from pipeline.transport import LIVE, Delivery
from pipeline.transport.memory import MemoryBroker, MemoryChannel

LIMIT_S = 10
K, W = Kind.KEY, Kind.WARP


class Link(MemoryChannel):
    """A memory channel that does not take some of the messages, by their number, and that can be held up or away."""

    def __init__(self, broker: MemoryBroker, *, refused: Sequence[int] = ()) -> None:
        super().__init__(broker)
        self._refused, self._number = refused, -1
        self.free, self.here = asyncio.Event(), True
        self.free.set()

    @property
    def connected(self) -> bool:
        return super().connected and self.here

    async def publish(self, topic: str, payload: bytes, delivery: Delivery = LIVE) -> None:
        await self.free.wait()
        self._number += 1
        if self._number in self._refused:
            raise TransportError("not now")
        await super().publish(topic, payload, delivery)


class Asked:
    """Counts how often keys were asked for."""

    def __init__(self) -> None:
        self.times = 0

    async def __call__(self) -> None:
        self.times += 1


def encoded(kind: Kind, sequence: int, *, age: int = 1, preview: bytes | None = None) -> Encoded:
    packet = packet_of(1, sequence=sequence)
    if kind is W:
        packet = Packet(packet.id, 0, packet.bundle, 0, 1, 1, (Region(W, 0, age, b"moved"),))
    return Encoded("cam-1", packet, pack(packet), preview)


def between(sequence: int, *, last: int, since: int) -> Encoded:
    """A frame after the KEY of `since`: up to `last`, whose KEY comes with the first of them, or that one itself."""
    warp, back = Region(W, 0, sequence - since, b"moved"), Region(Kind.BACK, 0, last - sequence, b"moved")
    ahead = Region(K, 0, last - sequence, b"x")
    regions = (replace(back, body=b""),) if sequence == last else (warp, back)
    packet = replace(packet_of(1, sequence=sequence), regions=(ahead, warp, back) if warp.age == 1 else regions)
    return Encoded("cam-1", packet, pack(packet), None)


def partial(sequence: int, *, keys: Sequence[int]) -> Encoded:
    """A packet of a frame of three regions, of which these are KEY."""
    regions = tuple(Region(K if index in keys else W, index, index not in keys, b"x") for index in range(3))
    packet = Packet(FrameId(7, sequence), 0, b"abcd", 0, 1, 3, regions)
    return Encoded("cam-1", packet, pack(packet), None)


@asynccontextmanager
async def sending(
    link: Link, asked: Asked, *, fast: bool = False, buffer_packets: int = 4
) -> AsyncIterator[tuple[Uplink, Losses]]:
    """An uplink that runs, and that has sent all it will when it is left."""
    losses = Losses("camera")
    uplink = Uplink(link, losses=losses, ask_keys=asked, buffer_packets=buffer_packets, fast=fast)
    async with asyncio.timeout(LIMIT_S), link, asyncio.TaskGroup() as tasks:
        running = tasks.create_task(uplink.run())
        yield uplink, losses
        uplink.close()
        await running


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker()


@pytest.fixture
def arrived(broker: MemoryBroker) -> Iterator[list[int]]:
    """Sequences of the packets that arrived."""
    sequences: list[int] = []

    class Reader(MemoryChannel):
        def receive(self, topic: str, payload: bytes) -> None:
            if topic.endswith("/latent"):
                sequences.append(unpack(payload).id.sequence)

    reader = Reader(broker)
    broker.join(reader)
    yield sequences
    broker.leave(reader)


async def test_a_key_that_does_not_leave_takes_its_warps_with_it_and_a_key_is_asked_for(
    broker: MemoryBroker, arrived: list[int]
) -> None:
    asked = Asked()
    async with sending(Link(broker, refused=[2]), asked) as (uplink, losses):
        for number, kind in enumerate((K, W, K, W, W, K, W)):
            await uplink.put(encoded(kind, number))
            await settle()
    assert arrived == [0, 1, 5, 6]
    assert (asked.times, losses.total) == (1, {"uplink": 3})


async def test_where_a_key_ahead_does_not_leave_the_next_that_comes_with_its_frame_ends_the_gap(
    broker: MemoryBroker, arrived: list[int]
) -> None:
    asked = Asked()
    async with sending(Link(broker, refused=[1]), asked) as (uplink, losses):
        for one in (
            encoded(K, 0),
            *(between(number, last=4, since=0) for number in (1, 2, 3, 4)),
            *(between(number, last=7, since=4) for number in (5, 6, 7)),
            encoded(W, 8),
        ):
            await uplink.put(one)
            await settle()
    assert arrived == [0, 5, 6, 7, 8]
    assert (asked.times, losses.total) == (1, {"uplink": 4})


async def test_of_frames_between_two_keys_one_that_a_slow_link_does_not_take_is_lost_alone(
    broker: MemoryBroker, arrived: list[int]
) -> None:
    asked = Asked()
    async with sending(Link(broker, refused=[2, 4]), asked) as (uplink, losses):
        for one in (encoded(K, 0), *(between(number, last=4, since=0) for number in (1, 2, 3, 4)), encoded(W, 5)):
            await uplink.put(one)
            await settle()
    assert arrived == [0, 1, 3, 5]
    assert (asked.times, losses.total) == (0, {"uplink": 2})


def test_what_stands_alone_and_what_keys_it_brings() -> None:
    packets = [encoded(K, 0), encoded(W, 1), *(between(number, last=4, since=1) for number in (2, 3, 4))]
    assert [one.stands_alone for one in packets] == [True, False, True, False, False]
    assert [one.keys for one in packets] == [{0}, set(), {0}, set(), set()]


async def test_a_warp_that_a_slow_link_does_not_take_is_lost_alone(broker: MemoryBroker, arrived: list[int]) -> None:
    asked = Asked()
    async with sending(Link(broker, refused=[1]), asked) as (uplink, losses):
        for number, kind in enumerate((K, W, W)):
            await uplink.put(encoded(kind, number, age=max(1, number)))
            await settle()
    assert arrived == [0, 2]
    assert (asked.times, losses.total) == (0, {"uplink": 1})


async def test_a_packet_lost_with_the_connection_means_that_keys_may_be_lost_too(
    broker: MemoryBroker, arrived: list[int]
) -> None:
    asked, link = Asked(), Link(broker, refused=[1])
    async with sending(link, asked) as (uplink, _):
        await uplink.put(encoded(K, 0))
        await settle()
        link.here = False
        await uplink.put(encoded(W, 1))
        await settle()
        link.here = True
        for number, kind in enumerate((W, K, W), start=2):
            await uplink.put(encoded(kind, number))
            await settle()
    assert arrived == [0, 3, 4]
    assert asked.times == 1


async def test_a_full_buffer_sends_the_key_of_the_warps_it_still_has(broker: MemoryBroker, arrived: list[int]) -> None:
    asked, link = Asked(), Link(broker)
    link.free.clear()
    async with sending(link, asked, buffer_packets=2) as (uplink, losses):
        await uplink.put(encoded(W, 0))  # is on the link, which does not move
        await settle()
        for number, kind in enumerate((K, W, W, W), start=1):
            await uplink.put(encoded(kind, number))
        link.free.set()
        await settle()
    assert arrived == [0, 1, 4]
    assert (asked.times, losses.total) == (0, {"uplink": 2})


async def test_a_key_dropped_while_it_was_the_newest_of_a_region_is_asked_for_and_nothing_else_leaves_before(
    broker: MemoryBroker, arrived: list[int]
) -> None:
    asked, link = Asked(), Link(broker)
    link.free.clear()
    async with sending(link, asked, buffer_packets=2) as (uplink, _):
        await uplink.put(partial(0, keys=[0, 1, 2]))
        await settle()
        for number, keys in enumerate(([0, 1], [0], [1], [2], [0, 1, 2]), start=1):
            await uplink.put(partial(number, keys=keys))
            assert asked.times == (1 if number > 3 else 0)
            if number == 4:
                link.free.set()
            await settle()
    assert arrived == [0, 5]


async def test_a_key_dropped_for_a_newer_one_is_not_asked_for(broker: MemoryBroker, arrived: list[int]) -> None:
    asked, link = Asked(), Link(broker)
    link.free.clear()
    async with sending(link, asked, buffer_packets=1) as (uplink, losses):
        for number in range(5):
            await uplink.put(encoded(K, number))
            await settle()
        link.free.set()
    assert arrived == [0, 4]
    assert (asked.times, losses.total) == (0, {"uplink": 3})


async def test_a_recording_is_sent_whole_and_in_order_whatever_the_link_refuses(
    broker: MemoryBroker, arrived: list[int]
) -> None:
    asked = Asked()
    async with sending(Link(broker, refused=[0, 3, 4]), asked, fast=True, buffer_packets=2) as (uplink, losses):
        for number in range(9):
            await uplink.put(encoded(W if number % 3 else K, number))
    assert arrived == list(range(9))
    assert not losses.total


async def test_a_preview_that_is_lost_is_no_lost_packet(broker: MemoryBroker, arrived: list[int]) -> None:
    asked = Asked()
    async with sending(Link(broker, refused=[1]), asked) as (uplink, losses):
        await uplink.put(encoded(K, 0, preview=b"jpeg"))
    assert arrived == [0]
    assert (asked.times, losses.total) == (0, {})


async def test_regions_and_their_bytes_are_counted_by_kind(broker: MemoryBroker) -> None:
    def counted() -> list[float]:
        names = ("maskcast_regions_total", "maskcast_region_bytes_total")
        return [REGISTRY.get_sample_value(name, {"kind": kind}) or 0 for kind in ("KEY", "WARP") for name in names]

    before = counted()
    async with sending(Link(broker), Asked()) as (uplink, _):
        for number, kind in enumerate((K, W, W)):
            await uplink.put(encoded(kind, number))
    assert [now - then for now, then in zip(counted(), before, strict=True)] == [1, 1, 2, 10]
