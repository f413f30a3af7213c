"""The window of a recording: no more on the way than it has room for, and what is not answered is sent again."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import numpy as np
import pytest
from channels import until
from standins import PALETTE, packet_of

from nodes.uplink import Encoded
from nodes.window import Window
from pipeline.bitstream import pack
from pipeline.errors import TransportError
from pipeline.mask_image import pack_mask
from pipeline.messages import FrameId, Kind, Mask, Region
from pipeline.transport.memory import MemoryBroker, MemoryChannel

LIMIT_S = 10.0
ANSWER_S = 0.05


def encoded(sequence: int, *, age: int = 0) -> Encoded:
    """A KEY, or a WARP of the key so many frames before."""
    packet = packet_of(1, sequence=sequence)
    if age:
        packet = replace(packet, regions=(Region(Kind.WARP, 0, age, b"moved"),))
    return Encoded("cam-1", packet, pack(packet), None)


def between(last: int) -> list[Encoded]:
    """Those after a KEY of frame 0 up to frame `last`, whose KEY comes ahead, in the first of them."""
    told = [(Region(Kind.WARP, 0, age, b"moved"), Region(Kind.BACK, 0, last - age, b"")) for age in range(1, last)]
    ahead, own = Region(Kind.KEY, 0, last - 1, b"\1"), Region(Kind.BACK, 0, 0, b"")
    regions = [(ahead, *told[0]), *told[1:], (own,)]
    packets = [replace(packet_of(1, sequence=at), regions=these) for at, these in enumerate(regions, 1)]
    return [Encoded("cam-1", packet, pack(packet), None) for packet in packets]


def mask(sequence: int, *, epoch: int = 7) -> bytes:
    made = Mask(FrameId(epoch, sequence), 0, b"abcd", np.zeros((4, 4), np.uint8))
    return pack_mask(made, "cam-1", PALETTE)


class Place:
    """A window that runs, what it sends again, and who answers."""

    def __init__(self, window: Window, answering: MemoryChannel) -> None:
        self.window, self.answering = window, answering
        self.again: list[int] = []

    async def send(self, one: Encoded) -> None:
        self.again.append(one.packet.id.sequence)

    def add(self, *sent: Encoded) -> None:
        for one in sent:
            self.window.add(one)

    async def answer(self, *sequences: int) -> None:
        for sequence in sequences:
            await self.answering.publish("cam-1/mask", mask(sequence))

    async def is_free(self) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(0.02):
                await self.window.until_free()
                return True
        return False


@asynccontextmanager
async def running(**options: float | bool) -> AsyncIterator[Place]:
    broker = MemoryBroker()
    async with asyncio.timeout(LIMIT_S), MemoryChannel(broker) as own, MemoryChannel(broker) as other:
        settings = {"answer_s": LIMIT_S, **options}
        place = Place(Window("cam-1", own, **settings), other)  # type: ignore[arg-type]
        task = asyncio.create_task(place.window.run(place.send))
        await asyncio.sleep(0.01)  # until it listens
        try:
            yield place
        finally:
            task.cancel()
            await asyncio.wait({task})


async def test_there_is_room_for_so_many_frames_after_the_oldest_without_a_mask() -> None:
    async with running(packets=3) as place:
        place.add(encoded(0), encoded(1))
        assert await place.is_free()
        place.add(encoded(2))
        assert not await place.is_free()
        await place.answer(1, 2)
        assert not await place.is_free()
        await place.answer(0)
        assert await place.is_free()
        await place.window.until_answered()
        assert (place.window.answered, place.window.resent) == (3, 0)


async def test_a_mask_that_comes_twice_or_of_another_run_counts_once_or_not() -> None:
    async with running() as place:
        place.add(encoded(0), encoded(1))
        await place.answering.publish("cam-1/mask", mask(0, epoch=8))
        await place.answer(1, 1)
        await place.answering.publish("cam-1/mask", b"no picture")
        await until(lambda: place.window.answered == 1)
        await place.answer(0)
        await place.window.until_answered()
        assert place.window.answered == 2


async def test_what_lacks_its_mask_is_sent_again_in_order_at_first_alone_then_from_its_key_on() -> None:
    async with running(answer_s=ANSWER_S) as place:
        place.add(encoded(0), encoded(1, age=1), encoded(2, age=2), encoded(3), encoded(4, age=1))
        await place.answer(0, 1, 3)
        await until(lambda: len(place.again) >= 6)
        assert place.again[:6] == [2, 4, 0, 3, 2, 4]
        assert (place.window.resent, place.window.resent_keys) == (6, 2)  # 0 and 3 had their masks
        await place.answer(2, 4)
        await place.window.until_answered()


async def test_a_key_that_a_worker_lacks_goes_again_at_once() -> None:
    async with running(answer_s=ANSWER_S) as place:
        place.add(encoded(0), encoded(1, age=1))
        await place.answer(0)
        place.window.want_keys()
        await until(lambda: len(place.again) >= 2)
        assert place.again[:2] == [0, 1]


async def test_each_mask_that_comes_gives_the_others_time() -> None:
    async with running(answer_s=10 * ANSWER_S) as place:
        place.add(*(encoded(sequence) for sequence in range(8)))
        for sequence in range(8):
            await asyncio.sleep(3 * ANSWER_S)
            await place.answer(sequence)
        await place.window.until_answered()
        assert not place.again


async def test_keys_that_nothing_can_refer_to_are_not_kept() -> None:
    async with running(packets=60) as place:
        for sequence in range(50):
            place.add(encoded(sequence, age=sequence % 5))
            await place.answer(sequence)
        await until(lambda: place.window.answered == 50)
        assert [id.sequence for id in place.window._keys] == [45]


async def test_a_key_that_came_ahead_and_is_lost_goes_again_with_the_packet_that_brings_it() -> None:
    async with running(answer_s=ANSWER_S) as place:
        place.add(encoded(0), *between(4))
        await place.answer(0, 1, 3)
        await until(lambda: len(place.again) >= 6)
        assert place.again[:6] == [2, 4, 0, 1, 2, 4]
        await place.answer(2)
        await until(lambda: place.again[-2:] == [1, 4])  # nothing refers to the KEY before any more
        await place.answer(4)
        await place.window.until_answered()


async def test_a_key_ahead_without_an_answer_goes_again_in_its_place_and_once() -> None:
    async with running(answer_s=ANSWER_S) as place:
        place.add(encoded(0), *between(3))
        await place.answer(0)
        place.window.want_keys()
        await until(lambda: len(place.again) >= 4)
        assert place.again[:4] == [0, 1, 2, 3]


async def test_a_key_that_came_ahead_is_kept_for_those_behind_its_frame() -> None:
    async with running(answer_s=ANSWER_S) as place:
        place.add(encoded(0), *between(4), encoded(5, age=1), encoded(6, age=2))
        await place.answer(0, 1, 2, 3, 4, 5)
        await until(lambda: place.window.answered == 6)
        assert [id.sequence for id in place.window._keys] == [4]
        await until(lambda: len(place.again) >= 3)
        assert place.again[:3] == [6, 1, 6]


class Away(MemoryChannel):
    """A channel without a connection."""

    here = False

    @property
    def connected(self) -> bool:
        return super().connected and self.here

    async def wait_connected(self, timeout_s: float) -> None:
        raise TransportError("away")


async def test_while_the_uplink_is_away_nothing_is_given_up() -> None:
    async with asyncio.timeout(LIMIT_S), Away(MemoryBroker()) as channel:
        place = Place(Window("cam-1", channel, answer_s=0.01, tries=1), channel)
        task = asyncio.create_task(place.window.run(place.send))
        place.add(encoded(0))
        await asyncio.sleep(0.3)
        assert not task.done() and not place.again
        channel.here = True
        await until(lambda: place.again == [0])
        with pytest.RaisesGroup(TransportError):
            await task


async def test_a_frame_that_never_has_a_mask_ends_it_with_one_sentence() -> None:
    async with asyncio.timeout(LIMIT_S), MemoryChannel(MemoryBroker()) as channel:
        place = Place(Window("cam-1", channel, answer_s=0.01, tries=3), channel)
        task = asyncio.create_task(place.window.run(place.send))
        place.add(encoded(4), encoded(5, age=1))
        with pytest.RaisesGroup(
            pytest.RaisesExc(TransportError, match=r"2 frames have no mask .* 3 times .* frame 4;")
        ):
            await task
    assert place.again == [4, 5] * 3


def labels(sequence: int) -> bytes:
    return json.dumps({"epoch": 7, "sequence": sequence, "captured_ms": 0, "labels": []}).encode()


async def test_where_a_bundle_makes_no_masks_labels_are_the_answer() -> None:
    async with running(masks=False) as place:
        place.add(encoded(0))
        await place.answer(0)
        await asyncio.sleep(0.02)
        assert place.window.answered == 0
        await place.answering.publish("cam-1/labels", labels(0))
        await place.window.until_answered()
