"""Camera to mask over real servers, each node a process of its own."""

import io
import json
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import paho.mqtt.client as paho
import pytest
from numpy.typing import NDArray
from PIL import Image
from processes import Node, Site, site, wait_until
from servers import Server, find_program

from pipeline.bitstream import unpack
from pipeline.bundle import default_bundle, load_bundle
from pipeline.codec import Encoder, open_encoder
from pipeline.mask_image import unpack_mask
from pipeline.messages import Packet

FPS = 25.0
USUAL_ENCODE_MS = 18.0  # 95 % take less, on two cores of the kind that the limits are for, both busy


@dataclass(frozen=True, slots=True)
class Arrival:
    """One mask, as a subscriber sees it."""

    camera: str
    epoch: int
    sequence: int
    latency_ms: float  # wall clock at arrival less that at capture
    at_s: float  # monotonic


@dataclass(slots=True)
class Subscriber:
    """Takes masks and statistics from the broker on a thread of its own."""

    url: str
    arrivals: list[Arrival] = field(default_factory=list)
    stats: dict[str, object] = field(default_factory=dict)
    states: dict[str, dict[str, object]] = field(default_factory=dict)
    client: paho.Client | None = None

    def __enter__(self) -> "Subscriber":
        address = urlsplit(self.url)
        ready = threading.Event()
        self.client = paho.Client(paho.CallbackAPIVersion.VERSION2)
        self.client.on_message = self._take
        self.client.on_subscribe = lambda *_: ready.set()
        self.client.connect(address.hostname or "", address.port or 1883)
        self.client.subscribe([("maskcast/+/mask", 0), ("maskcast/+/stats", 0), ("maskcast/+/+/state", 0)])
        self.client.subscribe("maskcast/+/state")
        self.client.loop_start()
        assert ready.wait(5), "the broker did not answer"
        return self

    def __exit__(self, *_: object) -> None:
        assert self.client is not None
        self.client.disconnect()
        self.client.loop_stop()

    def _take(self, _client: object, _data: object, message: paho.MQTTMessage) -> None:
        if message.topic.endswith("/mask"):
            now_ms, at_s = time.time() * 1000, time.monotonic()
            mask, camera = unpack_mask(message.payload)
            self.arrivals.append(Arrival(camera, mask.id.epoch, mask.id.sequence, now_ms - mask.captured_ms, at_s))
        elif message.topic.endswith("/stats"):
            self.stats = json.loads(message.payload)
        else:
            self.states[message.topic] = json.loads(message.payload)

    def wait_for(self, count: int, *, limit_s: float, here: Site) -> None:
        """Wait until `count` masks have come in all."""
        deadline = time.monotonic() + limit_s
        while len(self.arrivals) < count:
            assert time.monotonic() < deadline, f"{len(self.arrivals)} of {count} masks came\n{here.logs()}"
            time.sleep(0.02)


@pytest.fixture
def here(tmp_path: Path, own_redis: Server, own_mosquitto: Server) -> Iterator[Site]:
    mqtt_url, redis_url = f"mqtt://127.0.0.1:{own_mosquitto.port}", f"redis://127.0.0.1:{own_redis.port}"
    with site(tmp_path, mqtt_url=mqtt_url, redis_url=redis_url) as running:
        yield running


@pytest.fixture
def subscriber(own_mosquitto: Server) -> Iterator[Subscriber]:
    with Subscriber(f"mqtt://127.0.0.1:{own_mosquitto.port}") as listening:
        yield listening


def start_camera(here: Site, name: str = "cam-1") -> Node:
    return here.start("camera", "--name", name, "--loop")


@dataclass(frozen=True, slots=True)
class Window:
    """Ten seconds of one camera: what came, how fast."""

    missing: int
    fps: float
    p95_ms: float
    drops: int

    def faults(self, slowness: float) -> list[str]:
        """What falls short of 25 fps, nothing lost, and 60 ms from capture to mask.

        On a machine that is slower than the limits are for, by this factor, frames come in the camera's own time and
        wait for one another, but no backlog grows, since newer ones take the places of older ones: four are under way
        at most, and each that is missing is counted.
        """
        usual = slowness < 1.1
        holds = {
            "missing": self.missing <= (0 if usual else self.drops),
            "drops": self.drops == 0 or not usual,
            "fps": 0.96 / (1 if usual else slowness) < self.fps / FPS < 1.04,
            "p95": self.p95_ms < (60 if usual else 4 * 1000 / self.fps),
        }
        return [name for name, held in holds.items() if not held]


def slowness_of_this_machine() -> float:
    """How many times as long as on two usual cores a frame takes to encode while both are busy; 1 at least.

    A camera and a worker of nothing else keep the pace for four seconds; what 95 % of the frames take is compared, for
    cores that a neighbour shares now and then are slow now and then.
    """
    bundle = load_bundle(default_bundle())
    image = np.full((bundle.manifest.height, bundle.manifest.width, 3), 128, np.uint8)
    encoders = [open_encoder(bundle, threads=2) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        times = [pool.submit(paced_encode_ms, encoder, image) for encoder in encoders]
    return max(1.0, float(np.percentile([each for one in times for each in one.result()], 95)) / USUAL_ENCODE_MS)


def paced_encode_ms(encoder: Encoder, image: NDArray[np.uint8]) -> list[float]:
    """How long each of a hundred frames takes that come at 25 a second."""
    encoder.latents(image)
    times, begin_s = [], time.perf_counter()
    for number in range(100):
        time.sleep(max(0.0, begin_s + number / FPS - time.perf_counter()))
        start_s = time.perf_counter()
        encoder.latents(image)
        times.append(1000 * (time.perf_counter() - start_s))
    return times


def window(subscriber: Subscriber, here: Site) -> Window:
    before, dropped = len(subscriber.arrivals), drops(subscriber)
    subscriber.wait_for(before + 250, limit_s=30, here=here)
    seen = subscriber.arrivals[before : before + 250]
    missing = int((np.diff([mask.sequence for mask in seen]) - 1).sum())
    told_s = time.monotonic() + 2.5  # what was dropped is told once a second
    while drops(subscriber) - dropped < missing and time.monotonic() < told_s:
        time.sleep(0.1)
    return Window(
        missing=missing,
        fps=(len(seen) - 1) / (seen[-1].at_s - seen[0].at_s),
        p95_ms=float(np.percentile([mask.latency_ms for mask in seen], 95)),
        drops=drops(subscriber) - dropped,
    )


def drops(subscriber: Subscriber) -> int:
    counts = subscriber.stats.get("drops", {})
    assert isinstance(counts, dict)
    return sum(counts.values())


def test_one_camera_at_25_fps_loses_nothing_and_is_fast(here: Site, subscriber: Subscriber) -> None:
    gateway, worker = here.start("gateway"), here.start("worker")
    wait_until(lambda: "online" in json.dumps(subscriber.states), limit_s=60, message=here.logs())
    slowness, seen = [slowness_of_this_machine()], []
    while True:  # a neighbour on the machine may spoil ten seconds, not four times ten
        camera = start_camera(here)
        subscriber.wait_for(len(subscriber.arrivals) + 50, limit_s=60, here=here)  # caches are warm now
        seen.append(window(subscriber, here))
        if not seen[-1].faults(slowness[-1]):
            break
        assert camera.stop() == 0, here.logs()
        slowness.append(slowness_of_this_machine())
        if not seen[-1].faults(max(slowness[-2:])):
            camera = start_camera(here)
            subscriber.wait_for(len(subscriber.arrivals) + 50, limit_s=60, here=here)  # one that starts cannot stop
            break
        assert len(seen) < 4, f"{slowness} times as slow: {seen}\n{here.logs()}"

    assert camera.resident_mb < 400
    assert gateway.resident_mb < 150
    for node in (camera, gateway, worker):
        assert "torch" not in node.mapped
    assert [node.stop() for node in (camera, gateway, worker)] == [0, 0, 0], here.logs()
    assert subscriber.states["maskcast/cam-1/state"]["state"] == "stopped"


def test_masks_go_on_when_a_worker_of_two_is_killed(here: Site, subscriber: Subscriber) -> None:
    here.start("gateway")
    workers = {name: here.start("worker", WORKER__ID=name) for name in ("left", "right")}
    wait_until(lambda: len(subscriber.states) >= 2, limit_s=60, message=here.logs())
    cameras = ("cam-1", "cam-2", "cam-3")  # so that each worker is the preferred one of some camera
    for name in cameras:
        start_camera(here, name)
    subscriber.wait_for(100, limit_s=60, here=here)

    for name in ("left", "right"):
        workers[name].kill()
        killed_s = time.monotonic()
        time.sleep(3.5)
        for camera in cameras:
            since = [m.at_s - killed_s for m in subscriber.arrivals if m.at_s > killed_s and m.camera == camera]
            gap_s = np.diff([0.0, *since, 3.5]).max()
            assert gap_s < 3, f"no mask of {camera} for {gap_s:.1f} s after {name} was killed\n{here.logs()}"
        assert subscriber.states[f"maskcast/worker/{name}/state"]["state"] == "offline"
        workers[name] = here.start("worker", WORKER__ID=name)
        wait_until(
            lambda name=name: subscriber.states[f"maskcast/worker/{name}/state"]["state"] == "online",
            limit_s=30,
            message=here.logs(),
        )
    cameras_and_gateway = [node for node in here.nodes if node.process.args[3] != "worker"]
    assert all(node.process.poll() is None for node in cameras_and_gateway)


def test_mosquitto_sub_takes_a_mask_that_opens(here: Site, own_mosquitto: Server) -> None:
    here.start("gateway")
    here.start("worker")
    start_camera(here, "front-door")
    words = ["-p", str(own_mosquitto.port), "-t", "maskcast/+/mask", "-C", "1", "-W", "60"]
    taken = subprocess.run(
        [find_program("mosquitto_sub", "mosquitto-clients"), *words], capture_output=True, timeout=90, check=True
    )
    bundle = load_bundle(default_bundle())
    with Image.open(io.BytesIO(taken.stdout)) as picture:
        assert picture.mode == "P"
        assert picture.size == (bundle.manifest.width, bundle.manifest.height)
        palette = np.array(picture.getpalette()).reshape(-1, 3)[: len(bundle.palette)]
        np.testing.assert_array_equal(palette, bundle.palette)
        assert np.asarray(picture).max() < len(bundle.palette)
        assert picture.text["camera"] == "front-door"
        assert picture.text["bundle"] == bundle.id.hex()
        assert abs(int(picture.text["captured_ms"]) - time.time() * 1000) < 60_000
        assert int(picture.text["sequence"]) >= 0


def test_nodes_wait_for_servers_that_are_not_there_yet(
    tmp_path: Path, own_redis: Server, own_mosquitto: Server
) -> None:
    own_redis.kill()
    own_mosquitto.kill()
    mqtt_url, redis_url = f"mqtt://127.0.0.1:{own_mosquitto.port}", f"redis://127.0.0.1:{own_redis.port}"
    with site(tmp_path, mqtt_url=mqtt_url, redis_url=redis_url) as here:
        here.start("gateway")
        here.start("worker")
        start_camera(here)
        wait_until(lambda: "waiting for the broker" in here.logs(), limit_s=30, message=here.logs())
        own_redis.start()
        own_mosquitto.start()
        with Subscriber(mqtt_url) as subscriber:
            subscriber.wait_for(25, limit_s=60, here=here)
            own_mosquitto.kill()
            own_redis.kill()
            time.sleep(1)
            own_redis.start()
            own_mosquitto.start()
        with Subscriber(mqtt_url) as subscriber:
            subscriber.wait_for(25, limit_s=60, here=here)
        assert all(node.process.poll() is None for node in here.nodes), here.logs()


def test_a_camera_that_is_told_another_level_sends_it_and_masks_go_on(here: Site, subscriber: Subscriber) -> None:
    here.start("gateway")
    here.start("worker")
    start_camera(here)
    assert subscriber.client is not None
    seen: list[Packet] = []
    subscriber.client.message_callback_add(
        "maskcast/cam-1/latent", lambda *given: seen.append(unpack(given[2].payload))
    )
    subscriber.client.subscribe("maskcast/cam-1/latent")
    subscriber.wait_for(10, limit_s=60, here=here)
    manifest = load_bundle(default_bundle()).manifest
    assert {packet.quality for packet in seen} == {manifest.default_quality}
    other = next(level.index for level in reversed(manifest.quality_levels) if not level.default)
    subscriber.client.publish("maskcast/cam-1/control", json.dumps({"quality": other}), qos=1)
    wait_until(lambda: seen[-1].quality == other, limit_s=20, message=here.logs())
    first = next(packet.id.sequence for packet in seen if packet.quality == other)
    wait_until(lambda: subscriber.arrivals[-1].sequence >= first + 25, limit_s=20, message=here.logs())
    assert all(packet.quality == other for packet in seen if packet.id.sequence >= first)
    assert all(node.process.poll() is None for node in here.nodes), here.logs()


def test_hostile_packets_stop_nobody(here: Site, subscriber: Subscriber, own_mosquitto: Server) -> None:
    here.start("gateway")
    here.start("worker")
    start_camera(here)
    subscriber.wait_for(10, limit_s=60, here=here)
    assert subscriber.client is not None
    rng = np.random.default_rng(0)
    for payload in (b"", b"M", rng.bytes(300), rng.bytes(2 << 20), bytes(500)):
        for camera in ("cam-1", "evil", "Not A Name"):
            subscriber.client.publish(f"maskcast/{camera}/latent", payload)
        subscriber.client.publish("maskcast/cam-1/control", payload[:1000])
    before = len(subscriber.arrivals)
    subscriber.wait_for(before + 50, limit_s=20, here=here)
    assert all(node.process.poll() is None for node in here.nodes), here.logs()
