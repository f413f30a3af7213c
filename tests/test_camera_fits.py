"""A camera that fits its link and its scene: frames are left out without a gap, receipts are asked for and heard."""

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import cv2
import pytest
from channels import until
from clips import picture
from standins import BUNDLE, LEVELS, MANIFEST, BulkyEncoder
from test_camera import kinds, packets_of
from test_rate_control import Fixed

from nodes.arrivals import Receipts
from nodes.camera import Camera
from nodes.rate_control import RateControl
from nodes.service import Lane
from pipeline import metrics
from pipeline.bitstream import unpack
from pipeline.choosing import Chooser
from pipeline.key_policies import at_threshold
from pipeline.messages import Packet
from pipeline.operating_points import OperatingPoint
from pipeline.rate_rule import DelayRule
from pipeline.scene import SceneGate, SimpleScenes
from pipeline.transport import CONTROL, Message
from pipeline.transport.memory import MemoryBroker, MemoryChannel
from pipeline.video import Video
from pipeline.video_encoder import VideoEncoder

FPS = 50.0


class Bench:
    """A camera that plays pictures over and over, and a channel beside it."""

    def __init__(self, camera: Camera, other: MemoryChannel, arriving: AsyncIterator[Message]) -> None:
        self.camera, self.other, self.arriving = camera, other, arriving

    async def packets(self, count: int) -> list[Packet]:
        return await packets_of(self.arriving, count)

    async def tell(self, payload: bytes) -> None:
        await self.other.publish("cam-1/control", payload, CONTROL)


@asynccontextmanager
async def bench(folder: Path, *, moving: bool = True, **options: object) -> AsyncIterator[Bench]:
    for at in range(10):
        cv2.imwrite(str(folder / f"{at:02}.png"), picture(at if moving else 3)[:, :, ::-1])
    broker = MemoryBroker()
    encoder = VideoEncoder(BulkyEncoder(), BUNDLE, policy=at_threshold(50, predict=lambda _: 90.0))  # type: ignore[arg-type]
    async with (
        MemoryChannel(broker) as uplink,
        MemoryChannel(broker) as other,
        Lane("encoder") as lane,
        Video(str(folder), width=MANIFEST.width, height=MANIFEST.height, fps=FPS, loop=True) as video,
    ):
        arriving = other.subscribe("cam-1/latent")
        camera = Camera(
            "cam-1", video=video, encoder=encoder, lane=lane, channel=uplink, levels=LEVELS, **options  # type: ignore[arg-type]
        )  # fmt: skip
        running = asyncio.create_task(camera.run())
        yield Bench(camera, other, arriving)
        running.cancel()
        await asyncio.wait({running}, timeout=20)


def fitting(chooser: Chooser, *, rule: DelayRule | None = None, kbit_s: float | None = 1e5) -> RateControl:
    return RateControl(
        lambda quality, fps: chooser, quality=1, rule=rule, max_kbit_s=kbit_s, source_fps=lambda: FPS, header_bytes=0
    )


def drops(reason: str) -> float:
    return metrics.DROPS.labels("camera", reason)._value.get()


async def test_frames_that_the_link_does_not_take_leave_no_gap_in_the_sequence(tmp_path: Path) -> None:
    before = drops("rate")
    async with bench(tmp_path, rate=fitting(Fixed(OperatingPoint(0, 50, 10)))) as here:
        packets = await here.packets(6)
        assert not here.camera.losses.total["rate"]  # nothing was lost: the last mask stands
    assert [packet.id.sequence for packet in packets] == list(range(6))
    assert drops("rate") - before >= 12
    assert not any(packet.receipt for packet in packets)
    assert packets[-1].captured_ms - packets[0].captured_ms >= 400


async def test_level_and_threshold_follow_the_point(tmp_path: Path) -> None:
    chooser = Fixed(OperatingPoint(0, 50, FPS))
    async with bench(tmp_path, rate=fitting(chooser)) as here:
        calm = await here.packets(6)
        chooser.point = OperatingPoint(1, 95, FPS)
        await until_packet(here, lambda packet: packet.quality == 1)
        strict = await here.packets(6)
    assert kinds(calm)[0] == "K"
    assert "W" in kinds(calm)
    assert kinds(strict) == "KKKKKK"


async def until_packet(here: Bench, wanted: Callable[[Packet], bool]) -> Packet:
    async with asyncio.timeout(20):
        while True:
            (packet,) = await here.packets(1)
            if wanted(packet):
                return packet


async def test_receipts_are_asked_for_and_heard_and_what_is_none_is_counted(tmp_path: Path) -> None:
    rate, before = fitting(Fixed(OperatingPoint(0, 50, FPS)), rule=DelayRule(start_kbit_s=1e5)), drops("receipt")
    async with bench(tmp_path, rate=rate) as here, asyncio.TaskGroup() as tasks:
        receipts = Receipts(here.other, on_loss=lambda: None)
        answering = tasks.create_task(receipts.run())
        async with asyncio.timeout(20):
            async for message in here.arriving:
                packet = unpack(message.payload)
                assert packet.receipt
                receipts.note("cam-1", packet.id, size_bytes=len(message.payload))
                state = rate._meter.state(rate._clock())
                if state is not None and state.delivered_kbit_s > 0:
                    break
        await here.other.publish("cam-1/receipt", b"none")
        await until(lambda: drops("receipt") == before + 1)
        answering.cancel()


async def test_a_level_and_a_rate_that_are_told_over_the_control_topic_hold(tmp_path: Path) -> None:
    made: list[int] = []
    chooser = Fixed(OperatingPoint(0, 50, FPS))

    def choose(quality: int, fps: float) -> Chooser:
        made.append(quality)
        return chooser

    rate = RateControl(choose, quality=1, rule=None, max_kbit_s=1e5, source_fps=lambda: FPS, header_bytes=0)
    async with bench(tmp_path, rate=rate) as here:
        await here.packets(2)
        await here.tell(b'{"quality": 0, "max_kbit_s": 500}')
        async with asyncio.timeout(20):
            while made != [1, 0] or chooser.targets[-1] != 500:
                await here.packets(1)
        await here.tell(b'{"max_kbit_s": null}')
        async with asyncio.timeout(20):
            while chooser.targets[-1] == 500:
                await here.packets(1)


async def test_what_chooses_stays_on_the_event_loop(tmp_path: Path) -> None:
    threads: set[int] = set()

    class Watched(Fixed):
        def __getattribute__(self, name: str) -> object:
            threads.add(threading.get_ident())
            return super().__getattribute__(name)

    async with bench(tmp_path, rate=fitting(Watched(OperatingPoint(0, 50, FPS)))) as here:
        await here.packets(5)
    assert threads == {threading.get_ident()}


async def test_while_nothing_changes_a_frame_a_second_is_sent(tmp_path: Path) -> None:
    before = drops("unchanged")
    async with bench(tmp_path, moving=False, gate=SceneGate(longest_s=0.4)) as here:
        packets = await here.packets(4)
    assert [packet.id.sequence for packet in packets] == list(range(4))
    times = [packet.captured_ms for packet in packets]
    assert all(after - earlier >= 350 for earlier, after in itertools.pairwise(times))
    assert drops("unchanged") - before >= 30


async def test_a_key_that_is_asked_for_is_sent_although_nothing_changes(tmp_path: Path) -> None:
    async with bench(tmp_path, moving=False, gate=SceneGate(longest_s=60)) as here:
        assert kinds(await here.packets(1)) == "K"
        await here.tell(b'{"key": [0]}')
        assert kinds(await here.packets(1)) == "K"


@pytest.mark.parametrize("moving", [True, False])
async def test_a_moving_scene_passes_the_gate_frame_by_frame(moving: bool, tmp_path: Path) -> None:
    async with bench(tmp_path, moving=moving, gate=SceneGate(longest_s=0.5)) as here:
        packets = await here.packets(3)
    assert (packets[-1].captured_ms - packets[0].captured_ms < 500) is moving


async def test_while_the_scene_is_simple_keys_are_of_a_lower_level_than_is_asked_for(tmp_path: Path) -> None:
    simple = SimpleScenes({0: 1e6, 1: 1e6}, quality=0)  # so many bytes no KEY takes
    async with bench(tmp_path, simple=simple) as here:
        await here.packets(1)
        await here.tell(b'{"quality": 1}')
        await until(lambda: here.camera._quality == 1)
        while not simple.simple:
            await here.tell(b'{"key": [0]}')
            await here.packets(1)
        await here.tell(b'{"key": [0]}')
        await until_packet(here, lambda packet: packet.quality == 0)
        simple.simple, simple.share = False, 1.0
        await here.tell(b'{"key": [0]}')
        await until_packet(here, lambda packet: packet.quality == 1)
