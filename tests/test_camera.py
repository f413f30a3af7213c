"""The camera node: every frame a packet, the uplink's absence survived, commands obeyed, its state told."""

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from itertools import dropwhile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import structlog
from channels import quiet, until
from clips import RtspServer, number_of, picture, write_clip, write_scratched_clip
from processes import site, wait_until
from servers import accepts, free_port
from standins import BUNDLE, HASH, LEVELS, MANIFEST, BulkyEncoder

from nodes import camera as node
from nodes.camera import Camera, stream
from nodes.camera_setup import room_for, source_missing
from nodes.camera_state import presence_of
from nodes.preview import Preview
from nodes.service import Lane
from nodes.window import Window
from pipeline.bidirectional import BidirectionalEncoder
from pipeline.bitstream import unpack
from pipeline.config import CameraSection, CameraSettings, EncoderSection, load_settings
from pipeline.errors import ConfigError, SourceError, TransportError
from pipeline.key_policies import at_interval
from pipeline.mask_image import pack_mask
from pipeline.messages import Frame, FrameId, Kind, Mask, Packet
from pipeline.scene import SceneGate
from pipeline.transport import CONTROL, LIVE, Channel, Delivery, Message
from pipeline.transport.memory import MemoryBroker, MemoryChannel
from pipeline.video import Video
from pipeline.video_encoder import VideoEncoder

LIMIT_S = 20


@pytest.fixture
async def lane() -> AsyncIterator[Lane]:
    async with Lane("encoder") as lane:
        yield lane


def open_clip(folder: Path, *, frames: int = 10, fps: int = 25, fast: bool = True, loop: bool = False) -> Video:
    clip = write_clip(folder / "clip.mp4", frames=frames, fps=fps)
    return Video(str(clip), width=MANIFEST.width, height=MANIFEST.height, fast=fast, loop=loop)


def encoder_of(interval: int) -> VideoEncoder:
    """One KEY in so many frames."""
    return VideoEncoder(BulkyEncoder(), BUNDLE, policy=at_interval(interval))  # type: ignore[arg-type]


def waiting_encoder(interval: int, lookahead: int) -> BidirectionalEncoder:
    """The same, with frames that wait for the KEY after them."""
    policy = at_interval(interval)
    return BidirectionalEncoder(BulkyEncoder(), BUNDLE, policy=policy, lookahead=lookahead)  # type: ignore[arg-type]


def kinds(packets: Sequence[Packet]) -> str:
    return "".join(packet.regions[0].kind.name[0] for packet in packets)


def all_kinds(packets: Sequence[Packet]) -> list[str]:
    return ["".join(region.kind.name[0] for region in packet.regions) for packet in packets]


def camera_of(video: Video, channel: Channel, lane: Lane, **options: object) -> Camera:
    options = {"encoder": encoder_of(1), "levels": LEVELS, "fast": True, **options}
    return Camera("cam-1", video=video, lane=lane, channel=channel, **options)  # type: ignore[arg-type]


async def packets_of(messages: AsyncIterator[Message], count: int) -> list[Packet]:
    async with asyncio.timeout(LIMIT_S):
        return [unpack((await anext(messages)).payload) for _ in range(count)]


async def test_a_file_played_fast_becomes_one_packet_per_frame(tmp_path: Path, lane: Lane) -> None:
    broker = MemoryBroker()
    async with MemoryChannel(broker) as uplink, MemoryChannel(broker) as other, open_clip(tmp_path) as video:
        arriving = other.subscribe("cam-1/latent")
        camera = camera_of(video, uplink, lane)
        async with asyncio.timeout(LIMIT_S):
            await camera.run()
        packets = await packets_of(arriving, 10)
    assert [packet.regions[0].body[0] for packet in packets] == list(range(10))
    assert [packet.id.sequence for packet in packets] == list(range(10))
    assert not camera.losses.total


async def test_of_a_recording_a_frame_is_taken_when_the_masks_of_those_before_came(tmp_path: Path, lane: Lane) -> None:
    broker = MemoryBroker()
    async with MemoryChannel(broker) as uplink, MemoryChannel(broker) as other, open_clip(tmp_path) as video:
        arriving = other.subscribe("cam-1/latent")
        window = Window("cam-1", uplink, packets=3)
        running = asyncio.create_task(camera_of(video, uplink, lane, window=window).run())
        packets = await packets_of(arriving, 3)
        for answered in range(10):
            await asyncio.sleep(0.05)
            assert window.answered == answered and not running.done()
            classes = np.zeros((4, 4), np.uint8)
            mask = Mask(packets[answered].id, 0, bytes(4), classes)
            await other.publish("cam-1/mask", pack_mask(mask, "cam-1", np.zeros((1, 3), np.uint8)))
            packets += await packets_of(arriving, 1) if answered < 7 else []
        async with asyncio.timeout(LIMIT_S):
            await running
    assert [packet.id.sequence for packet in packets] == list(range(10))
    assert all(packet.recorded for packet in packets)


BETWEEN = ["K", "KWB", "WB", "WB", "B", "KWB", "WB", "WB", "B", "W"]


async def test_frames_that_wait_for_a_key_are_sent_once_and_in_order_the_last_ones_at_the_end(
    tmp_path: Path, lane: Lane
) -> None:
    broker = MemoryBroker()
    async with MemoryChannel(broker) as uplink, MemoryChannel(broker) as other, open_clip(tmp_path) as video:
        arriving = other.subscribe("cam-1/latent")
        camera = camera_of(video, uplink, lane, encoder=waiting_encoder(4, 3))
        async with asyncio.timeout(LIMIT_S):
            await camera.run()
        packets = await packets_of(arriving, 10)
        assert await quiet(arriving, 0.05)
    assert [packet.id.sequence for packet in packets] == list(range(10))
    assert all_kinds(packets) == BETWEEN
    assert [packet.captured_ms for packet in packets] == sorted(packet.captured_ms for packet in packets)
    assert [packet.regions[0].body[0] for packet in packets if packet.regions[0].kind is Kind.KEY] == [0, 4, 8]
    assert not camera.losses.total


async def test_live_frames_that_wait_have_room_when_they_leave_at_once(tmp_path: Path, lane: Lane) -> None:
    broker = MemoryBroker()
    settings = EncoderSection(lookahead=8)
    async with (
        MemoryChannel(broker) as uplink,
        MemoryChannel(broker) as other,
        open_clip(tmp_path, fps=50, fast=False) as video,
    ):
        arriving = other.subscribe("cam-1/latent")
        room = room_for(CameraSection(buffer_packets=2), settings)
        encoder = waiting_encoder(9, settings.lookahead)
        camera = camera_of(video, uplink, lane, encoder=encoder, buffer_packets=room, fast=False)
        async with asyncio.timeout(LIMIT_S):
            await camera.run()
        count = 10 - camera.losses.total["busy"]
        packets = await packets_of(arriving, count)
    assert [packet.id.sequence for packet in packets] == sorted({packet.id.sequence for packet in packets})
    assert not camera.losses.total["uplink"]


async def test_the_preview_of_a_frame_that_waited_comes_with_its_own_packet(tmp_path: Path, lane: Lane) -> None:
    broker = MemoryBroker()
    preview = Preview(max_fps=1e6, max_width=64, jpeg_quality=90)
    async with MemoryChannel(broker) as uplink, MemoryChannel(broker) as other, open_clip(tmp_path) as video:
        arriving = other.subscribe("cam-1/latent", "cam-1/preview")
        camera = camera_of(video, uplink, lane, encoder=waiting_encoder(4, 3), preview=preview)
        async with asyncio.timeout(LIMIT_S):
            await camera.run()
            messages = [await anext(arriving) for _ in range(20)]
    assert [message.topic for message in messages] == ["cam-1/latent", "cam-1/preview"] * 10
    shown = [cv2.imdecode(np.frombuffer(one.payload, np.uint8), cv2.IMREAD_COLOR) for one in messages[1::2]]
    assert [number_of(np.asarray(image, np.uint8)) for image in shown] == list(range(10))
    assert not camera._previews


async def test_of_a_recording_frames_that_wait_do_not_hold_up_those_that_they_wait_for(
    tmp_path: Path, lane: Lane
) -> None:
    broker = MemoryBroker()
    async with MemoryChannel(broker) as uplink, MemoryChannel(broker) as other, open_clip(tmp_path) as video:
        arriving = other.subscribe("cam-1/latent")
        window = Window("cam-1", uplink, packets=2)  # fewer than leave at once
        camera = camera_of(video, uplink, lane, encoder=waiting_encoder(4, 3), window=window)
        running = asyncio.create_task(camera.run())
        packets: list[Packet] = []
        while len(packets) < 10:
            packets += await packets_of(arriving, 1)
            mask = Mask(packets[-1].id, 0, bytes(4), np.zeros((4, 4), np.uint8))
            await other.publish("cam-1/mask", pack_mask(mask, "cam-1", np.zeros((1, 3), np.uint8)))
        async with asyncio.timeout(LIMIT_S):
            await running
    assert [packet.id.sequence for packet in packets] == list(range(10))
    assert all_kinds(packets) == BETWEEN
    assert all(packet.recorded for packet in packets)
    assert (window.answered, window.resent) == (10, 0)


async def test_a_damaged_recording_is_told_when_all_that_could_be_read_has_its_mask(tmp_path: Path, lane: Lane) -> None:
    broker, clip = MemoryBroker(), write_scratched_clip(tmp_path / "clip.mp4")
    async with (
        MemoryChannel(broker) as uplink,
        MemoryChannel(broker) as other,
        Video(str(clip), width=64, height=48, fast=True) as video,
    ):
        arriving = other.subscribe("cam-1/latent")
        window = Window("cam-1", uplink, packets=3)
        running = asyncio.create_task(camera_of(video, uplink, lane, window=window).run())
        while not running.done():
            with suppress(TimeoutError):
                async with asyncio.timeout(0.5):
                    packet = unpack((await anext(arriving)).payload)
                    mask = Mask(packet.id, 0, bytes(4), np.zeros((4, 4), np.uint8))
                    await other.publish("cam-1/mask", pack_mask(mask, "cam-1", np.zeros((1, 3), np.uint8)))
        with pytest.raises(SourceError, match="is damaged"):
            await running
    assert 20 <= window.answered < 30


def test_a_recording_that_nobody_answers_ends_the_camera_with_a_sentence(tmp_path: Path, mqtt_url: str) -> None:
    clip = write_clip(tmp_path / "clip.mp4", frames=5)
    with site(tmp_path, mqtt_url=mqtt_url, redis_url="redis://127.0.0.1:9") as here:
        options = {"CAMERA__ANSWER_S": "0.1", "CAMERA__TRIES": "2", "ENCODER__ENGINE": "onnxruntime"}
        camera = here.start("camera", "--source", str(clip), "--fast", "--name", "alone", **options)
        wait_until(lambda: camera.process.poll() is not None, limit_s=60, message=here.logs())
        assert camera.process.returncode == 1
        last = here.logs().splitlines()[-1]
        assert "maskcast: alone: 5 frames have no mask although they were sent 2 times more" in last


@pytest.mark.parametrize(("fast", "code"), [(True, 1), (False, 0)])
def test_only_a_recording_is_not_done_where_it_is_stopped(tmp_path: Path, mqtt_url: str, fast: bool, code: int) -> None:
    clip = write_clip(tmp_path / "clip.mp4", frames=5)
    with site(tmp_path, mqtt_url=mqtt_url, redis_url="redis://127.0.0.1:9") as here:
        words = ["--source", str(clip), "--name", "alone", *(["--fast"] if fast else [])]
        camera = here.start("camera", *words, SOURCE__LOOP=str(not fast), ENCODER__ENGINE="onnxruntime")
        wait_until(lambda: "camera started" in here.logs(), limit_s=60, message=here.logs())
        camera.process.send_signal(signal.SIGTERM)
        wait_until(lambda: camera.process.poll() is not None, limit_s=60, message=here.logs())
        assert camera.process.returncode == code
        assert ("alone: stopped before each frame of" in here.logs().splitlines()[-1]) is fast


async def test_state_and_manifest_are_published_and_the_end_is_told(tmp_path: Path, lane: Lane) -> None:
    broker = MemoryBroker()
    async with open_clip(tmp_path, fast=False) as video:
        presence = presence_of("cam-1", bundle=BUNDLE, video=video, transport="memory")
        async with MemoryChannel(broker, will=presence.will) as channel:
            camera = camera_of(video, channel, lane, fast=False)
            running = asyncio.create_task(stream(camera, bundle=BUNDLE, channel=channel, presence=presence))
            await asyncio.sleep(0.1)
            state = json.loads(broker.retained["maskcast/cam-1/state"])
            async with asyncio.timeout(LIMIT_S):
                await running
    assert json.loads(broker.retained[f"maskcast/bundle/{HASH}"]) == MANIFEST.model_dump(mode="json")
    assert json.loads(broker.retained["maskcast/cam-1/state"])["state"] == "stopped"
    assert state.pop("since") > 0
    assert state == {
        "state": "online",
        "bundle": HASH,
        "width": 64,
        "height": 48,
        "fps": 25.0,
        "transport": "memory",
        "source_width": 64,
        "source_height": 48,
        "source": "ok",
        "control": {"quality": 0, "pause": False, "max_fps": None, "max_kbit_s": None},
        "refused": None,
        "zones": None,
    }


async def test_a_camera_that_dies_is_said_to_be_offline(tmp_path: Path, lane: Lane) -> None:
    broker = MemoryBroker()
    async with open_clip(tmp_path, loop=True) as video:
        presence = presence_of("cam-1", bundle=BUNDLE, video=video, transport="memory")
        async with MemoryChannel(broker, will=presence.will) as channel:
            camera = camera_of(video, channel, lane)
            running = asyncio.create_task(stream(camera, bundle=BUNDLE, channel=channel, presence=presence))
            await asyncio.sleep(0.1)
            channel.abort()
            assert json.loads(broker.retained["maskcast/cam-1/state"])["state"] == "offline"
            running.cancel()
            await asyncio.wait({running}, timeout=LIMIT_S)


async def test_a_source_that_comes_late_is_said_in_the_state(lane: Lane) -> None:
    broker = MemoryBroker()

    def state() -> dict[str, object]:
        facts: dict[str, object] = json.loads(broker.retained["maskcast/cam-1/state"])
        return facts

    async with RtspServer(frames=200) as server, Video(server.url, width=64, height=48) as video:
        presence = presence_of("cam-1", bundle=BUNDLE, video=video, transport="memory")
        assert presence.source_width is None
        async with MemoryChannel(broker) as channel:
            camera = camera_of(video, channel, lane, fast=False)
            running = asyncio.create_task(stream(camera, bundle=BUNDLE, channel=channel, presence=presence))
            await until(lambda: "maskcast/cam-1/state" in broker.retained and state()["source"] == "ok", LIMIT_S)
            assert (state()["state"], state()["source_width"], state()["source_height"]) == ("online", 64, 48)
            await until(lambda: state()["fps"] is not None, LIMIT_S)
            running.cancel()
            await asyncio.wait({running}, timeout=LIMIT_S)


async def test_a_source_from_which_nothing_comes_any_more_is_said_to_be_lost(lane: Lane) -> None:
    broker = MemoryBroker()

    def source() -> object:
        return json.loads(broker.retained.get("maskcast/cam-1/state", b"{}")).get("source")

    async with AsyncExitStack() as stack:
        async with RtspServer() as server:
            video = await stack.enter_async_context(
                Video(server.url, width=64, height=48, timeout_s=1.0, retry_max_s=0.2)
            )
            presence = presence_of("cam-1", bundle=BUNDLE, video=video, transport="memory")
            assert presence.source == "waiting"
            channel = await stack.enter_async_context(MemoryChannel(broker))
            camera = camera_of(video, channel, lane, fast=False)
            running = asyncio.create_task(stream(camera, bundle=BUNDLE, channel=channel, presence=presence))
            await until(lambda: source() == "ok", LIMIT_S)
        await until(lambda: source() == "lost", LIMIT_S)
        await until(lambda: video.lost is not None and "rtsp://127.0.0.1" in video.lost, LIMIT_S)
        assert source_missing(video) == f"waiting for the source: {video.lost}"
        async with RtspServer(frames=400, port=server.port):
            await until(lambda: source() == "ok", LIMIT_S)
            assert source_missing(video) is None
        running.cancel()
        await asyncio.wait({running}, timeout=LIMIT_S)


@pytest.mark.parametrize(("fps", "said"), [(2, [2.0]), (25, [])])
async def test_frames_that_wait_longer_than_a_second_are_told_of(
    tmp_path: Path, lane: Lane, fps: int, said: list[float]
) -> None:
    async with open_clip(tmp_path, frames=2, fps=fps, fast=False) as video:
        presence = presence_of("cam-1", bundle=BUNDLE, video=video, transport="memory")
        async with MemoryChannel(MemoryBroker()) as channel, asyncio.timeout(LIMIT_S):
            camera = camera_of(video, channel, lane, fast=False)
            with structlog.testing.capture_logs() as logs:
                await stream(camera, bundle=BUNDLE, channel=channel, presence=presence, lag_frames=4)
    assert [line["up_to_s"] for line in logs if line["event"].startswith("masks come late")] == said


class Stalled(MemoryChannel):
    """A memory channel over which what a broker must acknowledge does not go, as on a link that stalls."""

    async def publish(self, topic: str, payload: bytes, delivery: Delivery = LIVE) -> None:
        if delivery.qos:
            raise TransportError("no answer")
        await super().publish(topic, payload, delivery)


async def test_a_broker_that_stalls_at_the_start_does_not_end_the_camera(tmp_path: Path, lane: Lane) -> None:
    broker = MemoryBroker()
    async with Stalled(broker) as channel, MemoryChannel(broker) as other, open_clip(tmp_path) as video:
        arriving = other.subscribe("cam-1/latent")
        presence = presence_of("cam-1", bundle=BUNDLE, video=video, transport="memory")
        camera = camera_of(video, channel, lane)
        async with asyncio.timeout(LIMIT_S):
            await stream(camera, bundle=BUNDLE, channel=channel, presence=presence)
        assert len(await packets_of(arriving, 10)) == 10


async def test_two_cameras_of_one_name_are_told_so(tmp_path: Path, mqtt_url: str) -> None:
    overrides = {
        "source.url": str(write_clip(tmp_path / "clip.mp4")),
        "source.loop": True,
        "camera.name": "twin",
        "mqtt_url": mqtt_url,
        "mqtt.root": "twins",
        "encoder.engine": "onnxruntime",
        "health.port": 0,
    }
    settings = load_settings(CameraSettings, None, overrides)
    with structlog.testing.capture_logs() as logs:

        def told(word: str) -> list[Any]:
            return [line for line in logs if word in line["event"]]

        first = asyncio.create_task(node.main(settings))
        await until(lambda: bool(told("connected to the broker")), LIMIT_S)
        second = asyncio.create_task(node.main(settings))
        await until(lambda: bool(told("same name")), LIMIT_S)
        for task in (first, second):
            task.cancel()
            await asyncio.wait({task}, timeout=LIMIT_S)
    assert {(line["log_level"], line["client"]) for line in told("same name")} == {("error", "twins.twin")}


def test_a_camera_that_waits_for_its_source_ends_when_told_to(tmp_path: Path) -> None:
    pipe, port = tmp_path / "pipe.ts", free_port()
    os.mkfifo(pipe)
    with site(tmp_path, mqtt_url="mqtt://127.0.0.1:9", redis_url="redis://127.0.0.1:9") as here:
        camera = here.start("camera", "--source", str(pipe), HEALTH__PORT=str(port), SOURCE__TIMEOUT_S="60")
        wait_until(lambda: accepts(port), limit_s=LIMIT_S, message="no health page")
        time.sleep(0.3)
        began_s = time.monotonic()
        assert camera.stop() == 0, here.logs()
        assert time.monotonic() - began_s < 4


async def test_commands_are_obeyed_and_malformed_ones_counted(tmp_path: Path, lane: Lane) -> None:
    broker = MemoryBroker()
    async with (
        MemoryChannel(broker) as uplink,
        MemoryChannel(broker) as other,
        open_clip(tmp_path, fps=100, fast=False, loop=True) as video,
    ):
        arriving = other.subscribe("cam-1/latent")
        camera = camera_of(video, uplink, lane, fast=False)
        running = asyncio.create_task(camera.run())
        assert (await packets_of(arriving, 2))[-1].quality == 0
        for payload in (b'{"quality": 1}', b'{"quality": 9}', b"\xff", b'{"key": [0]}', b"{}"):
            await other.publish("cam-1/control", payload, CONTROL)
        async with asyncio.timeout(LIMIT_S):
            while (await packets_of(arriving, 1))[0].quality != 1:
                pass
        assert camera.losses.total["control"] == 2
        running.cancel()
        await asyncio.wait({running}, timeout=LIMIT_S)


async def test_what_a_camera_was_told_is_said_in_its_state_and_why_if_it_was_refused(
    tmp_path: Path, lane: Lane
) -> None:
    broker = MemoryBroker()

    def said() -> tuple[object, object, object]:
        state = json.loads(broker.retained["maskcast/cam-1/state"])
        return state["control"], state["refused"], state["fps"]

    async def follows(payload: bytes, control: Mapping[str, object], refused: str | None, fps: float) -> None:
        await other.publish("cam-1/control", payload, CONTROL)
        await until(lambda: said() == (before | control, refused, fps), LIMIT_S)

    async with (
        MemoryChannel(broker) as uplink,
        MemoryChannel(broker) as other,
        open_clip(tmp_path, fps=100, fast=False, loop=True) as video,
    ):
        camera = camera_of(video, uplink, lane, fast=False)
        presence = presence_of("cam-1", bundle=BUNDLE, video=video, transport="memory")
        running = asyncio.create_task(stream(camera, bundle=BUNDLE, channel=uplink, presence=presence))
        before = {"quality": 0, "pause": False, "max_fps": None, "max_kbit_s": None}
        await until(lambda: "maskcast/cam-1/state" in broker.retained and said() == (before, None, 100.0), LIMIT_S)
        await follows(b'{"quality": 1, "max_fps": 20}', {"quality": 1, "max_fps": 20.0}, None, 20.0)
        level = "control: quality 9 is not a level of the bundle, which has 0, 1"
        await follows(b'{"quality": 9}', {"quality": 1, "max_fps": 20.0}, level, 20.0)
        await follows(b'{"key": [0]}', {"quality": 1, "max_fps": 20.0}, level, 20.0)
        await other.publish("cam-1/control", b"", CONTROL)
        rate = "control: max_kbit_s is for a camera that is set to control its rate (rate.*)"
        await follows(b'{"max_kbit_s": 50}', {"quality": 1, "max_fps": 20.0}, rate, 20.0)
        await follows(b'{"pause": true, "max_fps": null}', {"quality": 1, "pause": True}, None, 100.0)
        running.cancel()
        await asyncio.wait({running}, timeout=LIMIT_S)


async def test_of_refused_messages_each_reason_is_logged_once_until_one_is_obeyed(tmp_path: Path, lane: Lane) -> None:
    broker = MemoryBroker()
    first, second = b'{"quality": 8}', b'{"quality": 9}'
    async with (
        MemoryChannel(broker) as uplink,
        MemoryChannel(broker) as other,
        open_clip(tmp_path, fps=25, fast=False, loop=True) as video,
    ):
        camera = camera_of(video, uplink, lane, fast=False)
        with structlog.testing.capture_logs() as logs:
            running = asyncio.create_task(camera.run())
            await asyncio.sleep(0.1)
            for payload in (first, second, first, second, b'{"quality": 1}', second):
                await other.publish("cam-1/control", payload, CONTROL)
            for number in range(100):
                await other.publish("cam-1/control", b'{"strange%d": 1}' % number, CONTROL)
            await until(lambda: camera.losses.total.get("control") == 105, LIMIT_S)
            running.cancel()
            await asyncio.wait({running}, timeout=LIMIT_S)
    told = [line["reason"].split()[2] for line in logs if line["event"] == "control message refused"]
    assert told[:3] == ["8", "9", "9"]
    assert len(told) == 2 + 32


async def test_fewer_frames_are_taken_as_soon_as_a_camera_is_told(tmp_path: Path, lane: Lane) -> None:
    broker = MemoryBroker()
    async with (
        MemoryChannel(broker) as uplink,
        MemoryChannel(broker) as other,
        open_clip(tmp_path, fps=50, fast=False, loop=True) as video,
    ):
        arriving = other.subscribe("cam-1/latent")
        camera = camera_of(video, uplink, lane, fast=False)
        running = asyncio.create_task(camera.run())
        await packets_of(arriving, 5)
        await other.publish("cam-1/control", b'{"max_fps": 5}', CONTROL)
        await until(lambda: video.max_fps == 5, LIMIT_S)
        packets = (await packets_of(arriving, 7))[2:]
        running.cancel()
        await asyncio.wait({running}, timeout=LIMIT_S)
    assert packets[-1].captured_ms - packets[0].captured_ms == pytest.approx(800, abs=120)
    assert [packet.id.sequence - packets[0].id.sequence for packet in packets] == list(range(5))
    assert not camera.losses.total


async def test_a_recording_is_not_told_to_leave_frames_out(tmp_path: Path, lane: Lane) -> None:
    broker = MemoryBroker()
    async with MemoryChannel(broker) as uplink, MemoryChannel(broker) as other, open_clip(tmp_path) as video:
        arriving = other.subscribe("cam-1/latent")
        window = Window("cam-1", uplink, packets=3)
        camera = camera_of(video, uplink, lane, window=window)
        running = asyncio.create_task(camera.run())
        await packets_of(arriving, 3)
        await other.publish("cam-1/control", b'{"max_fps": 5}', CONTROL)
        await until(lambda: camera.refused is not None, LIMIT_S)
        running.cancel()
        await asyncio.wait({running}, timeout=LIMIT_S)
    assert camera.refused == "control: max_fps is not for a recording, of which every frame is sent"
    assert video.max_fps is None


async def test_between_keys_the_packets_are_warps(tmp_path: Path, lane: Lane) -> None:
    broker = MemoryBroker()
    async with MemoryChannel(broker) as uplink, MemoryChannel(broker) as other, open_clip(tmp_path) as video:
        arriving = other.subscribe("cam-1/latent")
        async with asyncio.timeout(LIMIT_S):
            await camera_of(video, uplink, lane, encoder=encoder_of(4)).run()
        packets = await packets_of(arriving, 10)
    assert kinds(packets) == "KWWWKWWWKW"
    assert [packet.regions[0].age for packet in packets] == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]


async def test_of_a_recording_frames_that_wait_outlast_a_loss_of_the_uplink(tmp_path: Path, lane: Lane) -> None:
    broker = MemoryBroker()
    async with Uplink(broker) as uplink, MemoryChannel(broker) as other, open_clip(tmp_path) as video:
        arriving = other.subscribe("cam-1/latent")
        encoder = waiting_encoder(100, 4)
        encode = encoder.packets

        def packets(frame: Frame) -> tuple[Packet, ...]:
            if frame.id.sequence == 3:
                uplink.back.clear()
            return encode(frame)

        encoder.packets = packets  # type: ignore[method-assign]
        camera = camera_of(video, uplink, lane, encoder=encoder, window=Window("cam-1", uplink, packets=50))
        running = asyncio.create_task(camera.run())
        assert all_kinds(await packets_of(arriving, 1)) == ["K"]
        await until(lambda: not uplink.back.is_set())
        await asyncio.sleep(0.1)
        uplink.back.set()
        found = await packets_of(arriving, 9)
        running.cancel()
        await asyncio.wait({running}, timeout=LIMIT_S)
    assert [packet.id.sequence for packet in found] == list(range(1, 10))
    assert not camera.losses.total


async def test_a_key_asked_for_ends_the_wait(tmp_path: Path, lane: Lane) -> None:
    broker = MemoryBroker()
    async with (
        MemoryChannel(broker) as uplink,
        MemoryChannel(broker) as other,
        open_clip(tmp_path, fps=100, fast=False, loop=True) as video,
    ):
        arriving = other.subscribe("cam-1/latent")
        camera = camera_of(video, uplink, lane, encoder=waiting_encoder(256, 30), fast=False, buffer_packets=34)
        running = asyncio.create_task(camera.run())
        assert all_kinds(await packets_of(arriving, 1)) == ["K"]
        await asyncio.sleep(0.1)
        await other.publish("cam-1/control", b'{"key": [0]}', CONTROL)
        packets = await packets_of(arriving, 2)
        while all_kinds(packets)[-1] != "B":
            packets += await packets_of(arriving, 1)
        running.cancel()
        await asyncio.wait({running}, timeout=LIMIT_S)
    told = list(
        dropwhile(lambda packet: all_kinds([packet]) == ["W"], packets)
    )  # a slow machine lets more than 30 wait
    assert all_kinds(told) == ["KWB", *["WB"] * (len(told) - 2), "B"]
    assert told[0].regions[0].age == len(told) - 1


@pytest.mark.parametrize("command", [b'{"key": [0]}', b'{"quality": 1}'])
async def test_a_key_asked_for_is_sent_and_another_level_begins_with_one(
    command: bytes, tmp_path: Path, lane: Lane
) -> None:
    broker = MemoryBroker()
    async with (
        MemoryChannel(broker) as uplink,
        MemoryChannel(broker) as other,
        open_clip(tmp_path, fps=100, fast=False, loop=True) as video,
    ):
        arriving = other.subscribe("cam-1/latent")
        camera = camera_of(video, uplink, lane, encoder=encoder_of(256), fast=False)
        running = asyncio.create_task(camera.run())
        assert kinds(await packets_of(arriving, 3)) == "KWW"
        for payload in (b'{"key": [3]}', b'{"key": []}', command):  # this frame has one region
            await other.publish("cam-1/control", payload, CONTROL)
        packets = await packets_of(arriving, 20)
        running.cancel()
        await asyncio.wait({running}, timeout=LIMIT_S)
    assert kinds(packets).count("K") == 1
    first = kinds(packets).index("K")
    quality = 1 if b"quality" in command else 0
    assert [packet.quality for packet in packets] == [0] * first + [quality] * (20 - first)


class Frames:
    """Stands in for a video: frames made at once."""

    skipped = 0

    def __init__(self, ids: Sequence[FrameId], numbers: Sequence[int] | None = None) -> None:
        self._ids, self._numbers = ids, range(len(ids)) if numbers is None else numbers

    async def __aiter__(self) -> AsyncIterator[Frame]:
        for number, id in zip(self._numbers, self._ids, strict=True):
            yield Frame(id, 0, picture(number))


async def packets_from(frames: Frames, lane: Lane, **options: object) -> list[Packet]:
    """What a camera that would send no second KEY makes of them."""
    broker = MemoryBroker()
    async with MemoryChannel(broker) as uplink, MemoryChannel(broker) as other:
        arriving = other.subscribe("cam-1/latent")
        camera = camera_of(frames, uplink, lane, **{"encoder": encoder_of(256), **options})  # type: ignore[arg-type]
        async with asyncio.timeout(LIMIT_S):
            await camera.run()
        return await packets_of(arriving, len(frames._ids))


async def test_a_source_that_starts_again_lets_those_leave_that_waited(lane: Lane) -> None:
    ids = [FrameId(7, 0), FrameId(7, 1), FrameId(7, 2), FrameId(9, 0), FrameId(9, 1)]
    packets = await packets_from(Frames(ids), lane, encoder=waiting_encoder(9, 5))
    assert [packet.id for packet in packets] == ids
    assert all_kinds(packets) == ["K", "W", "W", "K", "W"]


async def test_what_waits_leaves_when_nothing_changes_any_more(lane: Lane) -> None:
    """The next KEY may be long in coming."""
    frames, broker, gone = (
        Frames([FrameId(7, at) for at in range(9)], [0, 3, 6, 6, 6, 6, 9, 12, 12]),
        MemoryBroker(),
        [],
    )
    frames.pass_over = lambda: gone.append(1)  # type: ignore[attr-defined]
    async with MemoryChannel(broker) as uplink, MemoryChannel(broker) as other:
        arriving = other.subscribe("cam-1/latent")
        options = {"encoder": waiting_encoder(99, 9), "gate": SceneGate(longest_s=60)}
        camera = camera_of(frames, uplink, lane, **options)  # type: ignore[arg-type]
        async with asyncio.timeout(LIMIT_S):
            await camera.run()
        packets = await packets_of(arriving, 5)
    assert [packet.id.sequence for packet in packets] == [0, 1, 2, 6, 7]
    assert all_kinds(packets) == ["K", "W", "W", "W", "W"]
    assert len(gone) == 4


async def test_keys_that_may_be_forgotten_soon_are_sent_anew_with_a_lookahead_too(lane: Lane) -> None:
    times_s = iter(range(0, 1000, 10))
    options = {"encoder": waiting_encoder(256, 9), "clock": lambda: next(times_s)}
    packets = await packets_from(Frames([FrameId(7, n) for n in range(9)]), lane, **options)
    assert all_kinds(packets) == ["K", "KWB", "WB", "WB", "B", "KWB", "WB", "WB", "B"]


async def test_a_source_that_starts_again_starts_with_a_key(lane: Lane) -> None:
    ids = [FrameId(7, 0), FrameId(7, 1), FrameId(9, 0), FrameId(9, 1), FrameId(9, 2)]
    assert kinds(await packets_from(Frames(ids), lane)) == "KWKWW"


async def test_frames_that_are_far_apart_refer_to_no_key_that_may_be_forgotten(lane: Lane) -> None:
    times_s = iter(range(0, 1000, 10))
    packets = await packets_from(Frames([FrameId(7, n) for n in range(10)]), lane, clock=lambda: next(times_s))
    assert kinds(packets) == "KWWWKWWWKW"


async def test_a_paused_camera_sends_nothing_and_goes_on_when_told(tmp_path: Path, lane: Lane) -> None:
    broker = MemoryBroker()
    async with (
        MemoryChannel(broker) as uplink,
        MemoryChannel(broker) as other,
        open_clip(tmp_path, fps=100, fast=False, loop=True) as video,
    ):
        arriving = other.subscribe("cam-1/latent")
        camera = camera_of(video, uplink, lane, encoder=encoder_of(256), fast=False)
        running = asyncio.create_task(camera.run())
        await packets_of(arriving, 2)
        await other.publish("cam-1/control", b'{"pause": true}', CONTROL)
        await asyncio.sleep(0.1)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                while True:
                    last = unpack((await anext(arriving)).payload)
        await other.publish("cam-1/control", b'{"pause": false}', CONTROL)
        (after,) = await packets_of(arriving, 1)
        await asyncio.sleep(0.05)
        running.cancel()
        await asyncio.wait({running}, timeout=LIMIT_S)
    assert after.id.sequence == last.id.sequence + 1
    assert (kinds([last]), kinds([after])) == ("W", "K")
    assert camera.losses.total["paused"] > 5


async def test_after_a_pause_frames_that_waited_before_it_are_not_sent_and_counted(tmp_path: Path, lane: Lane) -> None:
    broker = MemoryBroker()
    async with (
        MemoryChannel(broker) as uplink,
        MemoryChannel(broker) as other,
        open_clip(tmp_path, fps=100, fast=False, loop=True) as video,
    ):
        arriving = other.subscribe("cam-1/latent")
        preview = Preview(max_fps=1e6, max_width=32, jpeg_quality=50)
        encoder = waiting_encoder(256, 5)
        camera = camera_of(video, uplink, lane, encoder=encoder, fast=False, preview=preview, buffer_packets=9)
        running = asyncio.create_task(camera.run())
        assert all_kinds(await packets_of(arriving, 3)) == ["K", "W", "W"]
        await other.publish("cam-1/control", b'{"pause": true}', CONTROL)
        await asyncio.sleep(0.1)
        while not await quiet(arriving, 0.2):
            pass
        await other.publish("cam-1/control", b'{"pause": false}', CONTROL)
        packets = await packets_of(arriving, 4)
        running.cancel()
        await asyncio.wait({running}, timeout=LIMIT_S)
    assert all_kinds(packets) == ["K", "W", "W", "W"]
    assert [packet.id.sequence - packets[0].id.sequence for packet in packets] == [0, 1, 2, 3]
    assert camera.losses.total["paused"] > 5
    assert len(camera._previews) <= 6


class Uplink(MemoryChannel):
    """A memory channel that can be away for a while, as a broker can."""

    def __init__(self, broker: MemoryBroker) -> None:
        super().__init__(broker)
        self.back = asyncio.Event()
        self.back.set()

    @property
    def connected(self) -> bool:
        return super().connected and self.back.is_set()

    async def wait_connected(self, timeout_s: float) -> None:
        async with asyncio.timeout(timeout_s):
            await self.back.wait()


async def test_while_the_uplink_is_away_frames_are_dropped_and_counted(tmp_path: Path, lane: Lane) -> None:
    broker = MemoryBroker()
    async with (
        Uplink(broker) as uplink,
        MemoryChannel(broker) as other,
        open_clip(tmp_path, fps=100, fast=False, loop=True) as video,
    ):
        arriving = other.subscribe("cam-1/latent")
        camera = camera_of(video, uplink, lane, encoder=encoder_of(256), fast=False)
        running = asyncio.create_task(camera.run())
        before = await packets_of(arriving, 3)
        uplink.back.clear()
        await asyncio.sleep(0.3)
        uplink.back.set()
        after = await packets_of(arriving, 5)
        running.cancel()
        await asyncio.wait({running}, timeout=LIMIT_S)
    assert len({packet.id.epoch for packet in before + after}) == 1
    assert [packet.id.sequence for packet in before + after] == sorted({p.id.sequence for p in before + after})
    assert kinds(before) == "KWW"
    assert kinds(after).strip("W") == "K"  # a WARP that was under way may come before it
    assert camera.losses.total["uplink"] > 5


async def test_while_the_uplink_is_away_a_fast_file_waits(tmp_path: Path, lane: Lane) -> None:
    broker = MemoryBroker()
    async with Uplink(broker) as uplink, MemoryChannel(broker) as other, open_clip(tmp_path) as video:
        arriving = other.subscribe("cam-1/latent")
        uplink.back.clear()
        camera = camera_of(video, uplink, lane)
        running = asyncio.create_task(camera.run())
        await asyncio.sleep(0.1)
        uplink.back.set()
        packets = await packets_of(arriving, 10)
        async with asyncio.timeout(LIMIT_S):
            await running
    assert [packet.id.sequence for packet in packets] == list(range(10))


async def test_previews_are_sent_only_when_asked_for(tmp_path: Path, lane: Lane) -> None:
    broker = MemoryBroker()
    for preview in (None, Preview(max_fps=5, max_width=32, jpeg_quality=50)):
        async with (
            MemoryChannel(broker) as uplink,
            MemoryChannel(broker) as other,
            open_clip(tmp_path) as video,
        ):
            arriving = other.subscribe("cam-1/preview")
            await camera_of(video, uplink, lane, preview=preview).run()
        pictures = [message.payload async for message in arriving]
        assert bool(pictures) == (preview is not None)
        assert all(picture.startswith(b"\xff\xd8") for picture in pictures)


async def test_a_source_that_breaks_ends_the_camera_with_its_error(tmp_path: Path, lane: Lane) -> None:
    video = Video("clip", width=64, height=48, fast=True, start_s=60)
    video._url = str(write_clip(tmp_path / "clip.mp4"))
    async with MemoryChannel(MemoryBroker()) as uplink, video:
        with pytest.RaisesGroup(SourceError):
            await camera_of(video, uplink, lane).run()


async def test_a_bundle_that_is_not_there_is_named(tmp_path: Path) -> None:
    overrides = {"bundle": tmp_path / "none", "health.port": 0}
    with pytest.raises(ConfigError, match="none"):
        await node.main(load_settings(CameraSettings, None, overrides))
