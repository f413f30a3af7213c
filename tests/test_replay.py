"""A recording over real servers: every frame its mask, in order and once, whoever dies on the way."""

import asyncio
import itertools
import os
import shutil
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import numpy as np
import paho.mqtt.client as paho
import pytest
from numpy.typing import NDArray
from processes import Node, Site, site
from servers import Server, accepts, find_program, free_port
from street import EPOCH, StreetCamera, bundle, classes_of, moved, packets

from nodes.camera import Camera
from nodes.service import Lane
from nodes.window import Window
from pipeline.bitstream import pack
from pipeline.key_policies import at_interval
from pipeline.mask_image import unpack_mask
from pipeline.messages import Frame, FrameId, Packet
from pipeline.transport import open_channel
from pipeline.video_encoder import open_video_encoder

LIMIT_S = 60.0
FRAMES = 200
INTERVAL = 2  # so that more keys are under way than workers keep of a live camera
ANSWER_S = 1.0
BATCH = 8  # packets a worker decodes at once at most, unless told otherwise


@cache
def recording() -> Sequence[Packet]:
    """The packets of a recording, every second one a KEY."""
    street = StreetCamera(open_video_encoder(bundle(), engine="onnxruntime", threads=1, policy=at_interval(INTERVAL)))
    return [street.next() for _ in range(FRAMES)]


@cache
def expected() -> dict[int, NDArray[np.uint8]]:
    """The masks of the recording as one decoder makes them that nothing happens to."""
    return classes_of(recording())


class Frames:
    """Stands in for a video, and counts what was taken from it."""

    skipped = 0
    damage = None

    def __init__(self) -> None:
        self.taken = 0

    async def __aiter__(self) -> AsyncIterator[Frame]:
        for number in range(FRAMES):
            self.taken += 1
            yield Frame(FrameId(EPOCH, number), time.time_ns() // 1_000_000, np.zeros((1, 1, 3), np.uint8))


class Encoded:
    """Stands in for an encoder: the packets were made before."""

    quality = 0

    def packets(self, frame: Frame) -> tuple[Packet, ...]:
        return (replace(recording()[frame.id.sequence], captured_ms=frame.captured_ms),)

    def flush(self) -> tuple[Packet, ...]:
        return ()

    def request_key(self, *_: object) -> None: ...


@dataclass(slots=True, eq=False)
class Subscriber:
    """Takes masks at QoS 1, in a session that outlasts its connections, on a thread of its own."""

    port: int
    masks: dict[str, list[tuple[int, NDArray[np.uint8], float]]] = field(default_factory=dict)
    client: paho.Client | None = None

    def __enter__(self) -> "Subscriber":
        ready = threading.Event()
        self.client = paho.Client(paho.CallbackAPIVersion.VERSION2, client_id="watcher", clean_session=False)
        self.client.reconnect_delay_set(1, 1)
        self.client.on_message = lambda *given: self._take(given[2])
        self.client.on_subscribe = lambda *_: ready.set()
        self.client.connect("127.0.0.1", self.port)
        self.client.subscribe("maskcast/+/mask", 1)
        self.client.loop_start()
        assert ready.wait(5)
        return self

    def __exit__(self, *_: object) -> None:
        assert self.client is not None
        self.client.disconnect()
        self.client.loop_stop()

    def _take(self, message: paho.MQTTMessage) -> None:
        mask, camera = unpack_mask(message.payload)
        late_s = time.time() - mask.captured_ms / 1000
        self.masks.setdefault(camera, []).append((mask.id.sequence, mask.classes, late_s))

    def sequences(self, camera: str) -> list[int]:
        return [sequence for sequence, *_ in self.masks.get(camera, [])]

    def check(self, *, repeated: int, camera: str = "cam-1") -> int:
        """Every frame has its mask, in order, at most so many of them again; returns how many are."""
        found = self.sequences(camera)
        first = list(dict.fromkeys(found))
        assert first == list(range(FRAMES))
        for sequence, classes, _ in self.masks[camera]:
            np.testing.assert_array_equal(classes, expected()[sequence], f"frame {sequence}")
        assert len(found) - len(first) <= repeated, found
        return len(found) - len(first)


def lasting_mosquitto(folder: Path) -> Server:
    """A mosquitto that keeps sessions, and what waits for them, when it is stopped in order."""
    port, settings = free_port(), folder / "lasting.conf"
    lines = [f"listener {port} 127.0.0.1", "allow_anonymous true", "set_tcp_nodelay true"]
    lines += ["persistence true", f"persistence_location {folder}/"]
    lines += ["user root"] if os.geteuid() == 0 else []
    settings.write_text("\n".join(lines) + "\n")
    return Server([find_program("mosquitto", "mosquitto"), "-c", str(settings)], port, folder / "lasting.log", accepts)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Server]:
    with lasting_mosquitto(tmp_path) as server:
        yield server


@pytest.fixture
def here(tmp_path: Path, own_redis: Server, broker: Server) -> Iterator[Site]:
    recording(), expected()
    mqtt_url, redis_url = f"mqtt://127.0.0.1:{broker.port}", f"redis://127.0.0.1:{own_redis.port}"
    with site(tmp_path, mqtt_url=mqtt_url, redis_url=redis_url) as running_here:
        yield running_here


@pytest.fixture
def subscriber(broker: Server) -> Iterator[Subscriber]:
    with Subscriber(broker.port) as listening:
        yield listening


def start_worker(here: Site, name: str) -> Node:
    return here.start("worker", WORKER__ID=name, DECODER__ENGINE="onnxruntime", DECODER__THREADS="1")


@asynccontextmanager
async def playing(broker: Server, name: str = "cam-1") -> AsyncIterator[tuple["asyncio.Task[None]", Window, Frames]]:
    """A camera that plays the recording."""
    async with (
        Lane(name) as lane,
        open_channel(f"mqtt://127.0.0.1:{broker.port}", client_id=name) as channel,
    ):
        await channel.wait_connected(LIMIT_S)
        window, frames = Window(name, channel, answer_s=ANSWER_S, tries=20), Frames()
        camera = Camera(
            name,
            video=frames,  # type: ignore[arg-type]
            encoder=Encoded(),  # type: ignore[arg-type]
            lane=lane,
            channel=channel,
            levels=frozenset(),
            fast=True,
            window=window,
        )
        task = asyncio.create_task(camera.run())
        try:
            yield task, window, frames
        finally:
            task.cancel()
            await asyncio.wait({task})


async def until(holds: Callable[[], bool], here: Site) -> None:
    deadline_s = time.monotonic() + LIMIT_S
    while not holds():
        assert time.monotonic() < deadline_s, here.logs()
        await asyncio.sleep(0.01)


async def ended(task: "asyncio.Task[None]", here: Site) -> None:
    await until(task.done, here)
    await task


async def test_a_worker_that_is_killed_costs_a_recording_nothing(
    here: Site, broker: Server, subscriber: Subscriber
) -> None:
    here.start("gateway")
    workers = [start_worker(here, name) for name in ("left", "right")]
    async with playing(broker) as (task, window, _):
        await until(lambda: len(subscriber.sequences("cam-1")) >= 40, here)
        for number, worker in enumerate(workers, start=1):
            worker.kill()
            start_worker(here, f"next-{number}")
            await until(lambda number=number: len(subscriber.sequences("cam-1")) >= 40 + 50 * number, here)
        await ended(task, here)
    assert window.answered == FRAMES
    await until(lambda: len(set(subscriber.sequences("cam-1"))) == FRAMES, here)
    subscriber.check(repeated=len(workers) * BATCH)  # masks of a batch are answered for together, after the last one


async def test_a_gateway_that_is_killed_costs_a_recording_time_only(
    here: Site, broker: Server, subscriber: Subscriber
) -> None:
    gateway = here.start("gateway")
    start_worker(here, "only")
    async with playing(broker) as (task, window, _):
        await until(lambda: len(subscriber.sequences("cam-1")) >= 60, here)
        gateway.kill()
        await asyncio.sleep(0.2)
        here.start("gateway")
        await ended(task, here)
    assert window.resent
    await until(lambda: len(set(subscriber.sequences("cam-1"))) == FRAMES, here)
    subscriber.check(repeated=window.resent_keys)  # none where the gateway was back before a second try


async def test_a_broker_that_starts_again_costs_a_recording_time_only(
    here: Site, broker: Server, subscriber: Subscriber
) -> None:
    here.start("gateway")
    for name in ("left", "right"):
        start_worker(here, name)
    async with playing(broker) as (task, window, _):
        await until(lambda: len(subscriber.sequences("cam-1")) >= 60, here)
        broker.stop()
        await asyncio.sleep(0.5)
        broker.start()
        await ended(task, here)
    await until(lambda: len(set(subscriber.sequences("cam-1"))) == FRAMES, here)
    # The masks that the broker took while the camera was not there yet come again.
    subscriber.check(repeated=window.resent + 2)


async def test_a_queue_that_starts_again_empty_costs_a_recording_time_only(
    here: Site, broker: Server, subscriber: Subscriber, own_redis: Server, tmp_path: Path
) -> None:
    here.start("gateway")
    start_worker(here, "only")
    async with playing(broker) as (task, window, _):
        await until(lambda: len(subscriber.sequences("cam-1")) >= 60, here)
        own_redis.kill()
        shutil.rmtree(tmp_path / "appendonlydir")
        own_redis.start()
        await ended(task, here)
    assert window.resent
    await until(lambda: len(set(subscriber.sequences("cam-1"))) == FRAMES, here)
    subscriber.check(repeated=window.resent)


async def live(broker: Server, sent: list[int]) -> None:
    """A live camera at 25 fps, until cancelled."""
    made = packets(20)
    async with open_channel(f"mqtt://127.0.0.1:{broker.port}") as channel:
        await channel.wait_connected(LIMIT_S)
        began_s = time.monotonic()
        for number in itertools.count():
            await asyncio.sleep(max(0.0, began_s + number / 25 - time.monotonic()))
            packet = moved(made[number % 20], by=number - number % 20, captured_ms=time.time_ns() // 1_000_000)
            await channel.publish("cam-2/latent", pack(packet))
            sent.append(number)


async def test_a_live_camera_beside_a_recording_stays_live(here: Site, broker: Server, subscriber: Subscriber) -> None:
    packets(20)
    here.start("gateway")
    start_worker(here, "only")
    sent: list[int] = []
    beside = asyncio.create_task(live(broker, sent))
    await until(lambda: len(subscriber.sequences("cam-2")) >= 25, here)
    began = len(subscriber.sequences("cam-2"))
    async with playing(broker) as (task, window, _):
        await ended(task, here)
    beside.cancel()
    masks = subscriber.masks["cam-2"][began:]
    missed = sent[-1] - masks[0][0] + 1 - len(masks)
    assert missed < 0.3 * len(masks), (missed, len(masks))
    assert np.percentile([late_s for *_, late_s in masks], 95) < 1.0  # of the 2 s that it has
    assert window.resent == 0
    await until(lambda: len(set(subscriber.sequences("cam-1"))) == FRAMES, here)
    subscriber.check(repeated=0)
