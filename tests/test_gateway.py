"""The gateway node: good packets reach the queue in order, bad ones are counted, and Redis may go away."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest
import redis.asyncio
from channels import quiet
from servers import Server, free_port
from standins import packet_of
from structlog.testing import capture_logs

from nodes import gateway as node
from nodes.gateway import Gateway, admit, presence_of, warn_of_others
from nodes.presence import announced, node_name
from pipeline.bitstream import MAX_PACKET_BYTES, pack, unpack
from pipeline.config import GatewaySettings, load_settings
from pipeline.errors import BitstreamError, ConfigError
from pipeline.keys import key_sequence
from pipeline.memory_queue import MemoryQueueState, MemoryWorkQueue
from pipeline.messages import FrameId, Kind, Region
from pipeline.receipts import unpack_receipt
from pipeline.redis_queue import RedisWorkQueue
from pipeline.transport import STATE, Message, open_channel
from pipeline.transport.memory import MemoryBroker, MemoryChannel
from pipeline.work_queue import WorkQueue

LIMIT_S = 20
ROOT = Path(__file__).parent.parent
KEY = packet_of(3, sequence=5)
WARP = replace(KEY, regions=(Region(Kind.WARP, 0, 2, b"flow"),))


def sent(camera: str, packet: bytes) -> Message:
    return Message(f"{camera}/latent", packet)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while True:
            if condition():
                return
            await asyncio.sleep(0.01)


async def claimed(queue: WorkQueue, count: int) -> list[tuple[str, int]]:
    found: list[tuple[str, int]] = []
    async with asyncio.timeout(LIMIT_S):
        while len(found) < count:
            jobs = await queue.claim(batch=16, wait_s=1)
            found += [(job.camera, unpack(job.packet).id.sequence) for job in jobs]
            await queue.done(jobs)
    return found


@asynccontextmanager
async def running(gateway: Gateway) -> AsyncIterator[None]:
    task = asyncio.create_task(gateway.run())
    await asyncio.sleep(0)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task}, timeout=LIMIT_S)


def test_a_good_packet_is_admitted_with_its_keys() -> None:
    data = pack(KEY)
    arrived = admit(sent("cam-1", data))
    assert (arrived.camera, arrived.data, arrived.key) == ("cam-1", data, True)
    assert arrived.keys == {0: data}


def test_each_key_is_kept_as_a_packet_that_says_which_frame_it_is_of() -> None:
    regions = (Region(Kind.KEY, 0, 0, b"a"), Region(Kind.WARP, 1, 2, b"b"), Region(Kind.KEY, 3, 0, b"c"))
    arrived = admit(sent("cam-1", pack(replace(KEY, rows=2, columns=2, regions=regions))))
    assert set(arrived.keys) == {0, 3}
    key = unpack(arrived.keys[3])
    assert (key.id, key.bundle, key.regions) == (KEY.id, KEY.bundle, (regions[2],))


BACK, OWN = Region(Kind.BACK, 0, 3, b"flow"), Region(Kind.BACK, 0, 0, b"")
AHEAD = replace(KEY, regions=(Region(Kind.KEY, 0, 3, b"latents"), *WARP.regions, BACK))


def test_a_key_that_comes_ahead_is_kept_by_itself_and_says_which_frame_it_is_of() -> None:
    arrived = admit(sent("cam-1", pack(AHEAD)))
    assert (arrived.frame, arrived.key, set(arrived.keys)) == (KEY.id, True, {0})
    kept = unpack(arrived.keys[0])
    assert kept == replace(AHEAD, regions=AHEAD.regions[:1])
    assert [key_sequence(kept, region) for region in kept.regions] == [8]
    alone = pack(kept)
    assert admit(sent("cam-1", alone)).keys == {0: alone}


def test_of_keys_that_come_ahead_one_more_is_kept() -> None:
    regions = AHEAD.regions, AHEAD.regions[:1], KEY.regions, WARP.regions
    arrived = [admit(sent("cam-1", pack(replace(KEY, regions=these)))) for these in regions]
    assert [one.generations for one in arrived] == [3, 3, 2, 2]


@pytest.mark.parametrize("regions", [(*WARP.regions, BACK), (BACK,), (OWN,)], ids=["both", "back", "own"])
def test_frames_that_refer_to_a_key_ahead_bring_none(regions: tuple[Region, ...]) -> None:
    arrived = admit(sent("cam-1", pack(replace(KEY, regions=regions))))
    assert (arrived.key, dict(arrived.keys)) == (False, {})


def test_a_packet_without_a_key_is_the_first_to_be_dropped() -> None:
    assert not admit(sent("cam-1", pack(WARP))).key


@pytest.mark.parametrize("data", [b"", pack(KEY)[:-1], bytes(MAX_PACKET_BYTES + 1), os.urandom(64)])
def test_what_is_no_packet_is_refused(data: bytes) -> None:
    with pytest.raises(BitstreamError):
        admit(sent("cam-1", data))


@pytest.mark.parametrize("name", ["Cam", "a b", "-", "", "é"])
def test_a_camera_without_a_proper_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigError):
        admit(sent(name, pack(KEY)))


async def test_packets_reach_the_queue_and_bad_ones_are_counted_by_reason() -> None:
    broker, state = MemoryBroker(), MemoryQueueState()
    async with (
        MemoryChannel(broker) as channel,
        MemoryChannel(broker) as camera,
        MemoryWorkQueue(state) as queue,
        MemoryWorkQueue(state, "w") as worker,
    ):
        gateway = Gateway(channel, queue)
        async with running(gateway):
            await camera.publish("cam-1/latent", b"noise")
            await camera.publish("cam-1/latent", bytes(MAX_PACKET_BYTES + 1))
            await camera.publish("Cam/latent", pack(KEY))
            for sequence in range(30):
                await camera.publish("cam-1/latent", pack(packet_of(1, sequence=sequence)))
                await camera.publish("cam-2/latent", pack(packet_of(2, sequence=sequence)))
            found = await claimed(worker, 60)
            await until(lambda: gateway.reason() is None)
        keys = await worker.fetch_keys("cam-2", [0])
    assert gateway.losses.total == {"packet": 1, "size": 1, "camera_name": 1}
    for name in ("cam-1", "cam-2"):
        assert [sequence for camera_name, sequence in found if camera_name == name] == list(range(30))
    assert [unpack(key).id.sequence for key in keys[0]] == [29, 28]


async def test_of_a_recording_more_keys_are_kept() -> None:
    broker, state = MemoryBroker(), MemoryQueueState()
    async with (
        MemoryChannel(broker) as channel,
        MemoryChannel(broker) as camera,
        MemoryWorkQueue(state) as queue,
        MemoryWorkQueue(state, "w") as worker,
        running(Gateway(channel, queue)),
    ):
        for sequence in range(40):
            packet = replace(packet_of(1, sequence=sequence), recorded=True)
            await camera.publish("cam-1/latent", pack(packet))
        await claimed(worker, 40)
        keys = await worker.fetch_keys("cam-1", [0])
    assert [unpack(key).id.sequence for key in keys[0]] == list(range(39, -1, -1))


async def test_three_keys_that_came_ahead_are_found_newest_first() -> None:
    broker, state = MemoryBroker(), MemoryQueueState()
    async with (
        MemoryChannel(broker) as channel,
        MemoryChannel(broker) as camera,
        MemoryWorkQueue(state) as queue,
        MemoryWorkQueue(state, "w") as worker,
        running(Gateway(channel, queue)),
    ):
        for sequence in range(5, 25):
            regions = AHEAD.regions if sequence % 4 == 1 else (*WARP.regions, BACK) if sequence % 4 else (OWN,)
            await camera.publish("cam-1/latent", pack(replace(AHEAD, id=FrameId(7, sequence), regions=regions)))
        await claimed(worker, 20)
        keys = await worker.fetch_keys("cam-1", [0])
    assert [unpack(key).id.sequence for key in keys[0]] == [21, 17, 13]
    assert {len(unpack(key).regions) for key in keys[0]} == {1}


async def test_packets_come_over_several_channels_and_are_answered_where_they_came_from() -> None:
    brokers, state = (MemoryBroker(), MemoryBroker()), MemoryQueueState()
    wanted = replace(packet_of(1, sequence=3), receipt=True)
    async with (
        MemoryChannel(brokers[0]) as first,
        MemoryChannel(brokers[1]) as second,
        MemoryChannel(brokers[0]) as camera,
        MemoryChannel(brokers[1]) as other,
        MemoryWorkQueue(state) as queue,
        MemoryWorkQueue(state, "w") as worker,
    ):
        gateway = Gateway(first, queue, others=(second,))
        answers, answered = camera.subscribe("+/receipt"), other.subscribe("+/receipt")
        async with running(gateway):
            await camera.publish("cam-1/latent", pack(KEY))
            await other.publish("cam-2/latent", pack(wanted))
            await other.publish("cam-2/latent", b"noise")
            assert sorted(await claimed(worker, 2)) == [("cam-1", 5), ("cam-2", 3)]
            async with asyncio.timeout(LIMIT_S):
                message = await anext(answered)
            receipt = unpack_receipt(message.payload)
            assert (message.topic, receipt.newest, receipt.size_bytes) == (
                "cam-2/receipt",
                wanted.id,
                len(pack(wanted)),
            )
            assert await quiet(answers, 0.1)
    assert gateway.losses.total == {"packet": 1}


async def test_a_packet_larger_than_the_setting_is_refused_and_counted() -> None:
    broker, state = MemoryBroker(), MemoryQueueState()
    large = replace(KEY, regions=(Region(Kind.KEY, 0, 0, bytes(65_536)),))
    async with MemoryChannel(broker) as channel, MemoryChannel(broker) as camera, MemoryWorkQueue(state) as queue:
        gateway = Gateway(channel, queue)
        async with running(gateway):
            await camera.publish("cam-1/latent", pack(large))
            await until(lambda: gateway.losses.total == {"size": 1})
            assert await queue.depth() == 0


async def test_a_redis_that_answers_but_takes_nothing_is_away(
    own_redis: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node, "_PROBE_S", 0.02)
    broker, url = MemoryBroker(), f"redis://127.0.0.1:{own_redis.port}"
    async with (
        MemoryChannel(broker) as channel,
        MemoryChannel(broker) as camera,
        RedisWorkQueue(url) as queue,
        redis.asyncio.from_url(url) as client,
    ):
        gateway = Gateway(channel, queue)
        async with running(gateway):
            await until(lambda: gateway.reason() is None)
            await client.config_set("maxmemory", 1)
            await camera.publish("cam-1/latent", pack(KEY))
            await until(lambda: gateway.reason() is not None)
            for _ in range(20):
                await asyncio.sleep(0.02)
                assert gateway.reason() is not None
            await client.config_set("maxmemory", 0)
            await until(lambda: gateway.reason() is None)
            assert await queue.depth() == 1


async def test_while_redis_is_away_the_newest_are_held_and_go_on_when_it_is_back(own_redis: Server) -> None:
    broker, url = MemoryBroker(), f"redis://127.0.0.1:{own_redis.port}"
    async with (
        MemoryChannel(broker) as channel,
        MemoryChannel(broker) as camera,
        RedisWorkQueue(url) as queue,
        RedisWorkQueue(url, "w") as worker,
    ):
        gateway = Gateway(channel, queue, buffer_packets=4, senders=1)
        async with running(gateway):
            await camera.publish("cam-1/latent", pack(packet_of(1, sequence=0)))
            assert await claimed(worker, 1) == [("cam-1", 0)]
            own_redis.kill()
            for sequence in range(1, 21):
                await camera.publish("cam-1/latent", pack(packet_of(1, sequence=sequence)))
            await until(lambda: gateway.reason() is not None)
            await asyncio.to_thread(own_redis.start)
            found = await claimed(worker, 4)
            await until(lambda: gateway.reason() is None)
    assert [sequence for _, sequence in found] == [17, 18, 19, 20]
    assert gateway.losses.total["queue"] == 16


async def test_the_node_carries_packets_from_mqtt_to_redis(mqtt_url: str, own_redis: Server) -> None:
    redis_url = f"redis://127.0.0.1:{own_redis.port}"  # its own: a job another test left would be claimed first
    root, port = f"test-{os.urandom(4).hex()}", free_port()
    overrides = {"mqtt_url": mqtt_url, "redis_url": redis_url, "mqtt.root": root, "health.port": port}
    task = asyncio.create_task(node.main(load_settings(GatewaySettings, None, overrides)))
    try:
        async with (
            open_channel(mqtt_url, root=root) as camera,
            RedisWorkQueue(redis_url, f"w-{root}") as worker,
            aiohttp.ClientSession() as client,
            asyncio.timeout(LIMIT_S),
        ):
            await camera.wait_connected(LIMIT_S)
            await _until_ready(client, port)
            name = root.replace("test", "cam")
            await camera.publish(f"{name}/latent", pack(KEY))
            assert await claimed(worker, 1) == [(name, 5)]
    finally:
        task.cancel()
        await asyncio.wait({task}, timeout=LIMIT_S)
    assert task.cancelled()


async def test_two_gateways_at_a_broker_warn_of_each_other_once() -> None:
    broker = MemoryBroker()
    async with MemoryChannel(broker) as one, MemoryChannel(broker) as two:
        mine, theirs = (presence_of(name, transport="memory") for name in ("mine", "theirs"))
        with capture_logs() as lines:
            warning = asyncio.create_task(warn_of_others(one.subscribe("gateway/+/state"), mine.topic))
            async with announced(one, mine):
                await two.publish("gateway/odd/state", b"{", STATE)
                async with announced(two, theirs) as renew:
                    await renew(theirs)
                    await asyncio.sleep(0.05)
                async with announced(two, theirs):
                    await asyncio.sleep(0.05)
            warning.cancel()
            await asyncio.wait({warning}, timeout=LIMIT_S)
    told = {"other": "gateway/theirs/state", "log_level": "warning"}
    assert [{name: line[name] for name in told} for line in lines] == [told, told]  # it went and came back
    assert json.loads(broker.retained["maskcast/gateway/mine/state"])["state"] == "stopped"


@pytest.mark.parametrize(("name", "said"), [("", node_name()), ("front", "front")])
async def test_the_node_says_that_it_is_there_and_when_it_goes(
    mqtt_url: str, own_redis: Server, name: str, said: str
) -> None:
    redis_url, root = f"redis://127.0.0.1:{own_redis.port}", f"test-{os.urandom(4).hex()}"
    given = {"mqtt_url": mqtt_url, "redis_url": redis_url, "mqtt.root": root, "gateway.id": name}
    async with open_channel(mqtt_url, root=root) as channel, asyncio.timeout(LIMIT_S):
        await channel.wait_connected(LIMIT_S)
        states = channel.subscribe("gateway/+/state")
        task = asyncio.create_task(node.main(load_settings(GatewaySettings, None, given)))
        first = await anext(states)
        assert (first.topic, json.loads(first.payload)["state"]) == (f"gateway/{said}/state", "online")
        task.cancel()
        await asyncio.wait({task}, timeout=LIMIT_S)
        assert json.loads((await anext(states)).payload)["state"] == "stopped"


async def test_the_node_takes_packets_over_webrtc_and_answers_them(mqtt_url: str, own_redis: Server) -> None:
    redis_url, root, port = f"redis://127.0.0.1:{own_redis.port}", f"test-{os.urandom(4).hex()}", free_port()
    overrides = {"mqtt_url": mqtt_url, "redis_url": redis_url, "mqtt.root": root, "health.port": 0, "webrtc.port": port}
    task = asyncio.create_task(node.main(load_settings(GatewaySettings, None, overrides)))
    try:
        async with (
            open_channel(f"webrtc+http://127.0.0.1:{port}", camera="cam-1") as camera,
            RedisWorkQueue(redis_url, "w") as worker,
            asyncio.timeout(LIMIT_S),
        ):
            receipts = camera.subscribe("cam-1/receipt")
            await camera.wait_connected(LIMIT_S)
            for sequence in range(5):
                packet = pack(replace(packet_of(3, sequence=sequence), receipt=True))
                await camera.publish("cam-1/latent", packet)
            assert await claimed(worker, 5) == [("cam-1", sequence) for sequence in range(5)]
            received = 0
            while received < 5:
                receipt = unpack_receipt((await anext(receipts)).payload)
                received = receipt.packets
            assert (receipt.newest.sequence, receipt.size_bytes) == (4, 5 * len(packet))
    finally:
        task.cancel()
        await asyncio.wait({task}, timeout=LIMIT_S)
    assert task.cancelled()


async def _until_ready(client: aiohttp.ClientSession, port: int) -> None:
    while True:
        try:
            async with client.get(f"http://127.0.0.1:{port}/readyz") as answer:
                if answer.status == 200:
                    return
        except aiohttp.ClientError:
            pass
        await asyncio.sleep(0.05)


def test_a_gateway_needs_less_than_150_mb() -> None:
    script = """
import json, sys
import nodes.gateway
from nodes.service import Health
sizes = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps({"rss_kb": int(sizes["VmRSS"].split()[0]), "modules": sorted(sys.modules)}))
"""
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    facts = json.loads(result.stdout)
    assert facts["rss_kb"] < 110_000  # idle; connections and buffers come on top
    heavy = {"torch", "numba", "onnxruntime", "openvino", "cv2", "av", "pipeline.codec", "pipeline.bundle"}
    assert not heavy & set(facts["modules"])
