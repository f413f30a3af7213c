"""Cameras that send WARPs, over gateway, queue and workers: under loss, and when the worker with the keys dies."""

import asyncio
import itertools
import random
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import paho.mqtt.client as paho
import pytest
from channels import ready, until
from numpy.typing import NDArray
from processes import Site, site, wait_until
from queues import MemoryBench, RedisBench
from servers import Server, free_port
from street import StreetCamera, bundle, camera, classes_of, decoder, moved, packets

from nodes.control import read_control
from nodes.gateway import Gateway
from nodes.service import Health, Lane
from nodes.worker import work
from pipeline import metrics
from pipeline.bitstream import pack
from pipeline.config import WorkerSection
from pipeline.mask_image import unpack_mask
from pipeline.messages import Kind, Packet
from pipeline.transport import Channel, open_channel
from pipeline.work_queue import SHARDS, preferred_shards, shard_of

LIMIT_S = 20.0
LOSS = 0.1
FRAMES = 120
ROUND, FPS = 20, 25.0


@dataclass(slots=True, eq=False)
class Place:
    """Everything between a camera and its viewer, in this process, on some channel and queue."""

    channels: AsyncExitStack
    address: str
    queues: MemoryBench | RedisBench
    masks: dict[int, NDArray[np.uint8]] = field(default_factory=dict)
    order: list[int] = field(default_factory=list)

    async def channel(self) -> Channel:
        opened = await self.channels.enter_async_context(open_channel(self.address, root="keys-online"))
        await ready(opened)
        return opened


@pytest.fixture(params=["memory", "servers"])
async def place(request: pytest.FixtureRequest, mqtt_url: str, redis_bench: RedisBench) -> AsyncIterator[Place]:
    in_memory = request.param == "memory"
    async with AsyncExitStack() as channels:
        address = f"memory://{time.monotonic_ns()}" if in_memory else mqtt_url
        yield Place(channels, address, MemoryBench() if in_memory else redis_bench)


@asynccontextmanager
async def running(place: Place, *workers: str, **options: float) -> AsyncIterator[None]:
    """A gateway and these workers, and what takes their masks."""
    async with AsyncExitStack() as stack:
        tasks = [asyncio.create_task(take_masks(place, await place.channel()))]
        putting = await stack.enter_async_context(place.queues.queue())
        tasks.append(asyncio.create_task(Gateway(await place.channel(), putting).run()))
        for name in workers:
            claiming = await stack.enter_async_context(place.queues.queue(name, **options))
            lane = await stack.enter_async_context(Lane(name))
            working = work(
                name,
                WorkerSection(batch=1, wait_s=0.1),
                bundle=bundle(),
                decoder=decoder(),
                lane=lane,
                queue=claiming,
                channel=await place.channel(),
                health=Health(),
            )
            tasks.append(asyncio.create_task(working))
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=LIMIT_S)


async def take_masks(place: Place, channel: Channel) -> None:
    async for message in channel.subscribe("cam-1/mask"):
        mask, _ = unpack_mask(message.payload)
        place.masks[mask.id.sequence] = mask.classes
        place.order.append(mask.id.sequence)


class LossyCamera:
    """A camera whose packets get lost on the way, KEYs too, and which sends a KEY when it is asked to."""

    def __init__(self, street: StreetCamera, channel: Channel, rng: random.Random) -> None:
        self._street, self._channel, self._rng = street, channel, rng
        self._controls = channel.subscribe("cam-1/control")
        self.asked = 0
        self.lost: set[int] = set()

    async def listen(self) -> None:
        async for message in self._controls:
            assert read_control(message.payload, levels=frozenset(), unfit={}).key == (0,)
            self._street.encoder.request_key()
            self.asked += 1

    async def send(self) -> Packet:
        packet = await asyncio.to_thread(self._street.next, time.time_ns() // 1_000_000)
        if self._rng.random() < LOSS:
            self.lost.add(packet.id.sequence)
        else:
            await self._channel.publish("cam-1/latent", pack(packet))
        return packet


def drops() -> float:
    """Packets that workers of this process lost."""
    samples = [sample for family in metrics.DROPS.collect() for sample in family.samples]
    return sum(each.value for each in samples if each.name.endswith("_total") and each.labels["node"] == "worker")


def frames_without_mask(made: list[Packet], lost: set[int], masks: dict[int, NDArray[np.uint8]]) -> list[int]:
    """How many frames pass, after each lost KEY, from the next packet that arrives to the next mask."""
    waits, since, waiting = [], 0, False
    for packet in made:
        sequence, is_key = packet.id.sequence, packet.regions[0].kind is Kind.KEY
        if sequence in lost:
            waiting, since = (False, 0) if is_key else (waiting, since + waiting)
        elif sequence in masks:
            waits += [since] if waiting else []
            waiting, since = False, 0
        else:
            waiting, since = True, since + 1
    return waits


async def test_with_every_tenth_packet_lost_no_mask_is_of_a_wrong_key_and_each_camera_recovers(place: Place) -> None:
    rng = random.Random(5)
    async with running(place, "left", "right"):
        sender = LossyCamera(camera(), await place.channel(), rng)
        listening = asyncio.create_task(sender.listen())
        await asyncio.sleep(0.5)  # until the workers know of each other
        made, dropped = [], drops()
        for _ in range(FRAMES):
            made.append(await sender.send())
            await until(lambda: len(place.order) + drops() - dropped == len(made) - len(sender.lost))
        listening.cancel()

    keys = {packet.id.sequence for packet in made if packet.regions[0].kind is Kind.KEY}
    assert keys & sender.lost
    assert sender.asked
    expected = classes_of(made)
    for sequence, classes in place.masks.items():
        np.testing.assert_array_equal(classes, expected[sequence])
    assert place.order == sorted(set(place.order))
    waits = frames_without_mask(made, sender.lost, place.masks)
    assert waits and max(waits) <= 3
    assert len(place.masks) > 0.8 * FRAMES


async def test_masks_are_right_and_in_order_while_workers_take_the_jobs_of_each_other(place: Place) -> None:
    made = [moved(packet, by=by) for by in range(0, FRAMES, ROUND) for packet in packets(ROUND)]
    async with running(place, "left", "right", "third", steal_after_s=0.0):
        channel, before, dropped = await place.channel(), fetched(), drops()
        await asyncio.sleep(0.5)  # until the workers know of each other
        for packet in made:
            now_ms = time.time_ns() // 1_000_000
            await channel.publish("cam-1/latent", pack(replace(packet, captured_ms=now_ms)))
            await asyncio.sleep(0.01)
        await until(lambda: len(place.order) + drops() - dropped >= len(made))
    assert place.order == sorted(set(place.order))
    expected = classes_of(packets(ROUND))
    for sequence, classes in place.masks.items():
        np.testing.assert_array_equal(classes, expected[sequence % ROUND])
    assert fetched() > before
    assert len(place.masks) > 0.2 * FRAMES


def fetched() -> float:
    """Keys that workers of this process fetched from the queue's server."""
    samples = [sample for family in metrics.KEY_LOOKUPS.collect() for sample in family.samples]
    return sum(each.value for each in samples if each.name.endswith("_total") and each.labels["where"] == "fetched")


@dataclass(slots=True, eq=False)
class LiveCamera:
    """Publishes packets that were made before at 25 fps, as if captured now, from a thread of its own."""

    name: str
    url: str
    masks: list[tuple[float, int]] = field(default_factory=list)  # when, and the sequence

    @contextmanager
    def playing(self) -> Iterator[None]:
        stop = threading.Event()
        address = urlsplit(self.url)
        client = paho.Client(paho.CallbackAPIVersion.VERSION2)
        client.on_message = lambda *given: self._take(given[2].payload)
        client.connect(address.hostname or "", address.port or 1883)
        client.subscribe(f"maskcast/{self.name}/mask")
        client.loop_start()
        playing = threading.Thread(target=self._play, args=(client, stop))
        playing.start()
        try:
            yield
        finally:
            stop.set()
            playing.join(LIMIT_S)
            client.disconnect()
            client.loop_stop()

    def _play(self, client: paho.Client, stop: threading.Event) -> None:
        made, began_s = packets(ROUND), time.monotonic()
        for number in itertools.count():
            if stop.wait(max(0.0, began_s + number / FPS - time.monotonic())):
                return
            by = number - number % ROUND
            packet = moved(made[number % ROUND], by=by, captured_ms=time.time_ns() // 1_000_000)
            client.publish(f"maskcast/{self.name}/latent", pack(packet))

    def _take(self, payload: bytes) -> None:
        mask, _ = unpack_mask(payload)
        self.masks.append((time.monotonic(), mask.id.sequence))


@pytest.fixture
def here(tmp_path: Path, own_redis: Server, own_mosquitto: Server) -> Iterator[Site]:
    mqtt_url, redis_url = f"mqtt://127.0.0.1:{own_mosquitto.port}", f"redis://127.0.0.1:{own_redis.port}"
    with site(tmp_path, mqtt_url=mqtt_url, redis_url=redis_url) as running_here:
        yield running_here


def test_a_worker_that_is_killed_takes_its_keys_along_and_a_second_of_masks_at_most(
    here: Site, own_mosquitto: Server
) -> None:
    here.start("gateway")
    names = ("left", "right")
    workers = {name: here.start("worker", WORKER__ID=name, HEALTH__PORT=str(free_port())) for name in names}
    cameras = [LiveCamera(f"cam-{number}", f"mqtt://127.0.0.1:{own_mosquitto.port}") for number in range(1, 4)]
    owned = {name: owner(name, names) for name in (each.name for each in cameras)}
    assert set(owned.values()) == set(names)
    with ExitStack() as playing:
        for each in cameras:
            playing.enter_context(each.playing())
        wait_until(lambda: all(len(each.masks) > 50 for each in cameras), limit_s=60, message=here.logs())
        workers["left"].kill()
        killed_s = time.monotonic()
        time.sleep(2.5)
    for each in cameras:
        sequences = [sequence for _, sequence in each.masks]
        assert sequences == sorted(set(sequences)), here.logs()
        times = [at_s - killed_s for at_s, _ in each.masks if at_s > killed_s]
        assert np.diff([0.0, *times]).max() <= 1.0, f"{each.name} of {owned[each.name]}: {times}\n{here.logs()}"


def owner(camera: str, workers: Sequence[str]) -> str:
    """The worker that holds the keys of a camera."""
    return next(name for name in workers if shard_of(camera, SHARDS) in preferred_shards(name, workers, SHARDS))
