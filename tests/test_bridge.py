"""The bridge: what a camera over WebRTC says reaches the broker, and it hears there what it asked for."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import pytest
from channels import LIMIT_S, quiet, take, until
from servers import free_port

from nodes import bridge as module
from nodes.bridge import Bridge
from nodes.buffer import Losses
from nodes.offers import taking_offers
from nodes.presence import Presence
from pipeline.config import WebRtcGatewaySection
from pipeline.errors import TransportError
from pipeline.transport import CONTROL, LIVE, STATE, Channel, Delivery, Message, open_channel
from pipeline.transport.memory import MemoryBroker, MemoryChannel
from pipeline.transport.webrtc_server import WebRtcServer

HASH = "5eed" * 16
MANIFEST = {"name": "streets", "hash": HASH, "classes": [{"name": "road", "colour": [1, 2, 3]}], "width": 480}
PRESENCE = Presence(topic="cam-1/state", bundle=HASH, width=480, height=360, transport="webrtc", since=1)


@dataclass(frozen=True, slots=True)
class Site:
    """A gateway's bridge, the broker as others see it, and how cameras get to the gateway."""

    bridge: asyncio.Task[None]
    server: WebRtcServer
    losses: Losses
    broker: MemoryBroker
    others: MemoryChannel
    url: str

    def camera(self, name: str = "cam-1", *, will: tuple[str, bytes] | None = None) -> Channel:
        return open_channel(self.url, camera=name, will=will)


@asynccontextmanager
async def site(*, manifests: bool = True) -> AsyncIterator[Site]:
    broker, changed, losses, port = MemoryBroker(), asyncio.Event(), Losses("gateway"), free_port()
    async with (
        MemoryChannel(broker) as channel,
        MemoryChannel(broker) as others,
        taking_offers(WebRtcGatewaySection(port=port), packet_bytes=65_536, changed=changed.set) as server,
        asyncio.TaskGroup() as tasks,
    ):
        bridge = Bridge(server, channel, changed=changed, losses=losses, manifests=manifests)
        task = tasks.create_task(bridge.run())
        yield Site(task, server, losses, broker, others, f"webrtc+http://127.0.0.1:{port}")
        task.cancel()


def retained(site: Site, topic: str) -> dict[str, object]:
    return json.loads(site.broker.retained.get(f"maskcast/{topic}", b"{}"))  # type: ignore[no-any-return]


async def test_a_cameras_state_is_retained_at_the_broker_with_its_path() -> None:
    async with site() as here, here.camera() as camera:
        await camera.publish(PRESENCE.topic, PRESENCE.payload("online"), STATE)
        await until(lambda: bool(retained(here, "cam-1/state").get("path")))
        state = retained(here, "cam-1/state")
        assert str(state.pop("path")).startswith("host ")
        assert state == json.loads(PRESENCE.payload("online"))
        await camera.publish(PRESENCE.topic, PRESENCE.payload("stopped"), STATE)
        await until(lambda: retained(here, "cam-1/state")["state"] == "stopped")
        assert retained(here, "cam-1/state")["path"] is None


async def test_a_state_that_names_another_transport_is_put_right() -> None:
    presence = Presence(topic="cam-1/state", bundle=HASH, width=480, height=360, transport="mqtts", since=1)
    async with site() as here, here.camera() as camera:
        await camera.publish("cam-1/state", presence.payload("online"), STATE)
        await until(lambda: retained(here, "cam-1/state").get("transport") == "webrtc")


async def test_pictures_and_manifests_are_carried_and_others_refused() -> None:
    async with site() as here, here.camera() as camera:
        pictures = here.others.subscribe("+/preview")
        await camera.wait_connected(LIMIT_S)
        await camera.publish("cam-1/preview", b"jpeg")
        assert await take(pictures) == [Message("cam-1/preview", b"jpeg")]
        await camera.publish(f"bundle/{HASH}", json.dumps(MANIFEST).encode(), STATE)
        await until(lambda: retained(here, f"bundle/{HASH}") == MANIFEST)
        for payload in (b"", b"{", b"[]", json.dumps({**MANIFEST, "classes": "all"}).encode()):
            await camera.publish(f"bundle/{HASH}", payload, STATE)
        await camera.publish(f"bundle/{'ab' * 32}", json.dumps(MANIFEST).encode(), STATE)
        await until(lambda: here.losses.total["bundle"] == 5)
        assert retained(here, f"bundle/{HASH}") == MANIFEST
        assert retained(here, f"bundle/{'ab' * 32}") == {}
        long = json.dumps({"state": "online", "more": "x" * 17_000}).encode()
        for payload in (b"", b"online", b'{"state": "dancing"}', b'{"state": "online", "path": 5}', long):
            await camera.publish("cam-1/state", payload, STATE)
        await until(lambda: here.losses.total["state"] == 5)
        assert retained(here, "cam-1/state") == {}


async def test_cameras_with_tokens_do_not_speak_for_bundles() -> None:
    async with site(manifests=False) as here, here.camera() as camera:
        await camera.publish(f"bundle/{HASH}", json.dumps(MANIFEST).encode(), STATE)
        await camera.publish(PRESENCE.topic, PRESENCE.payload("online"), STATE)
        await until(lambda: bool(retained(here, "cam-1/state")))
        assert list(here.broker.retained) == ["maskcast/cam-1/state"]


async def test_a_camera_hears_of_the_broker_what_it_subscribed_to_and_that_is_all_that_is_read_there() -> None:
    async with site() as here, here.camera() as camera, here.camera("cam-2") as other:
        commands = camera.subscribe("cam-1/control")
        masks = camera.subscribe("cam-1/mask")
        theirs = other.subscribe("cam-2/control")
        await until(lambda: {session.filters for session in here.server.sessions()} == {
            frozenset({"cam-1/control", "cam-1/mask"}), frozenset({"cam-2/control"})
        })  # fmt: skip
        await asyncio.sleep(0.05)
        await here.others.publish("cam-2/mask", b"not wanted")
        await here.others.publish("cam-1/control", b"one", CONTROL)
        await here.others.publish("cam-1/mask", b"a mask")
        await here.others.publish("cam-2/control", b"two", CONTROL)
        assert await take(commands) == [Message("cam-1/control", b"one")]
        assert await take(masks) == [Message("cam-1/mask", b"a mask")]
        assert await take(theirs) == [Message("cam-2/control", b"two")]
        del commands
        assert await quiet(masks, 0.1)


async def test_a_camera_that_goes_is_read_for_no_more_and_one_that_comes_again_is() -> None:
    async with site() as here:
        await asyncio.sleep(0.05)
        before = len(asyncio.all_tasks())
        for word in (b"first", b"second"):
            async with here.camera() as camera:
                commands = camera.subscribe("cam-1/control")
                await camera.wait_connected(LIMIT_S)
                while await quiet(commands, 0.05):
                    await here.others.publish("cam-1/control", word, CONTROL)
            await until(lambda: not here.server.sessions())
            await until(lambda: len(asyncio.all_tasks()) <= before)
        assert here.losses.total["downlink"] == 0


async def test_when_the_bridge_ends_its_cameras_are_offline_and_those_that_stopped_stay_so() -> None:
    other = Presence(topic="cam-2/state", bundle=HASH, width=480, height=360, transport="webrtc", since=1)
    async with site() as here, here.camera() as camera:
        async with here.camera("cam-2") as stopping:
            await stopping.publish(other.topic, other.payload("stopped"), STATE)
            await until(lambda: bool(retained(here, "cam-2/state")))
        await camera.publish(PRESENCE.topic, PRESENCE.payload("online"), STATE)
        await until(lambda: bool(retained(here, "cam-1/state")) and len(here.server.sessions()) == 1)
        here.bridge.cancel()
        await until(lambda: retained(here, "cam-1/state")["state"] == "offline")
        assert retained(here, "cam-2/state")["state"] == "stopped"


async def test_a_camera_that_has_stopped_is_not_said_to_be_offline_while_its_connection_lingers() -> None:
    async with site() as here, here.camera() as camera:
        await camera.publish(PRESENCE.topic, PRESENCE.payload("stopped"), STATE)
        await until(lambda: bool(retained(here, "cam-1/state")))
        here.bridge.cancel()
        await asyncio.wait({here.bridge})
        assert retained(here, "cam-1/state")["state"] == "stopped"


async def test_what_a_camera_said_before_is_not_said_again_because_another_comes() -> None:
    async with site() as here, here.camera() as camera:
        await camera.publish(PRESENCE.topic, PRESENCE.payload("stopped"), STATE)
        await until(lambda: bool(retained(here, "cam-1/state")))
        said = here.others.subscribe("cam-1/state")
        await take(said)
        async with here.camera("cam-2") as other:
            await other.wait_connected(LIMIT_S)
            assert await quiet(said)


@asynccontextmanager
async def online(here: Site, *, count: int) -> AsyncIterator[list[str]]:
    """The names of cameras that have said that they are online, and stay connected inside."""
    names = [f"cam-{number}" for number in range(count)]
    async with AsyncExitStack() as cameras:
        for name in names:
            camera = await cameras.enter_async_context(here.camera(name))
            await camera.publish(f"{name}/state", PRESENCE.payload("online"), STATE)
        await until(lambda: all(retained(here, f"{name}/state").get("path") for name in names))
        yield names


async def all_go_offline(here: Site, names: list[str]) -> None:
    here.bridge.cancel()
    await asyncio.wait({here.bridge})
    assert {retained(here, f"{name}/state")["state"] for name in names} == {"offline"}


async def test_many_cameras_go_offline_in_the_time_that_the_broker_takes_for_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    at_once = MemoryChannel.publish

    async def slowly(self: MemoryChannel, topic: str, payload: bytes, delivery: Delivery = LIVE) -> None:
        await asyncio.sleep(0.4)
        await at_once(self, topic, payload, delivery)

    async with site() as here, online(here, count=4) as names:
        monkeypatch.setattr(MemoryChannel, "publish", slowly)
        await all_go_offline(here, names)


async def test_cameras_go_offline_some_at_a_time_since_a_channel_takes_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    at_once, waiting = MemoryChannel.publish, 0

    async def few(self: MemoryChannel, topic: str, payload: bytes, delivery: Delivery = LIVE) -> None:
        nonlocal waiting
        if waiting >= 2:
            raise TransportError("too slow")
        waiting += 1
        await asyncio.sleep(0.05)
        waiting -= 1
        await at_once(self, topic, payload, delivery)

    async with site() as here, online(here, count=6) as names:
        monkeypatch.setattr(MemoryChannel, "publish", few)
        monkeypatch.setattr(module, "_AT_ONCE", 2)
        await all_go_offline(here, names)


@pytest.mark.parametrize("filters", [("cam-1/#",), ("cam-1/+",)])
async def test_a_wide_filter_brings_commands_masks_and_labels_and_not_what_the_camera_says_itself(
    filters: tuple[str, ...],
) -> None:
    async with site() as here, here.camera() as camera:
        heard = camera.subscribe(*filters)
        await camera.publish(PRESENCE.topic, PRESENCE.payload("online"), STATE)
        await until(lambda: bool(retained(here, "cam-1/state").get("path")))
        await until(lambda: bool(here.server.sessions()[0].filters))
        await asyncio.sleep(0.05)
        for last in ("stats", "control", "mask", "labels"):
            await here.others.publish(f"cam-1/{last}", b"x")
        assert sorted(message.topic for message in await take(heard, 3)) == [
            "cam-1/control",
            "cam-1/labels",
            "cam-1/mask",
        ]
        assert await quiet(heard, 0.1)


async def say(site: Site, camera: Channel, name: str) -> None:
    """Let a camera say that it is online, and wait until the broker has it."""
    await camera.publish(f"{name}/state", PRESENCE.payload("online"), STATE)
    await until(lambda: bool(retained(site, f"{name}/state").get("path")))


async def test_for_another_cameras_name_the_oldest_goes_whose_camera_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CAMERAS", 3)
    async with site() as here, here.camera() as camera:
        await say(here, camera, "cam-1")
        for name in ("cam-2", "cam-3"):
            async with here.camera(name) as brief:
                await say(here, brief, name)
            await until(lambda: len(here.server.sessions()) == 1)
        for name, names in (("cam-4", {"cam-1", "cam-3", "cam-4"}), ("cam-5", {"cam-1", "cam-4", "cam-5"})):
            async with here.camera(name) as another:
                await say(here, another, name)
                assert set(here.broker.retained) == {f"maskcast/{each}/state" for each in names}
            await until(lambda: len(here.server.sessions()) == 1)
        assert here.losses.total["state"] == 0


async def test_where_all_names_are_those_of_connected_cameras_another_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_CAMERAS", 1)
    async with site() as here, here.camera() as camera, here.camera("cam-2") as other:
        await say(here, camera, "cam-1")
        await other.publish("cam-2/state", PRESENCE.payload("online"), STATE)
        await until(lambda: here.losses.total["state"] > 0)
        await say(here, camera, "cam-1")
        assert list(here.broker.retained) == ["maskcast/cam-1/state"]


async def test_bundles_are_bounded_and_none_is_cleared_that_others_may_have_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_BUNDLES", 2)
    hashes = [HASH, "ab" * 32, "cd" * 32]
    async with site() as here, here.camera() as camera:
        for each in hashes:
            await camera.publish(f"bundle/{each}", json.dumps({**MANIFEST, "hash": each}).encode(), STATE)
        await until(lambda: here.losses.total["bundle"] == 1)
        kept = {topic for topic in here.broker.retained if "/bundle/" in topic}
        assert kept == {f"maskcast/bundle/{each}" for each in hashes[:2]}


async def test_while_there_is_no_broker_no_name_makes_room_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CAMERAS", 1)
    async with site() as here:
        async with here.camera() as camera:
            await say(here, camera, "cam-1")
        await until(lambda: not here.server.sessions())
        monkeypatch.setattr(MemoryChannel, "connected", False)
        async with here.camera("cam-2") as other:
            await other.publish("cam-2/state", PRESENCE.payload("online"), STATE)
            await until(lambda: here.losses.total["state"] > 0)
        assert list(here.broker.retained) == ["maskcast/cam-1/state"]
