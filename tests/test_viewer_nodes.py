"""Which gateways and workers the viewer lists while its broker goes away and comes back."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
from browser import chromium
from channels import LIMIT_S, ready
from servers import Server
from viewing import StreetCamera, part, shown

from nodes import viewer
from nodes.viewer import serve
from nodes.viewer.state import Wall
from pipeline.transport import STATE, Message
from pipeline.transport.memory import MemoryBroker, MemoryChannel
from pipeline.transport.mqtt import MqttChannel

ONLINE = b'{"state": "online"}'


@dataclass
class Told:
    """What a viewer says: in its list of workers, and to a browser."""

    address: str
    web: aiohttp.ClientSession
    browser: aiohttp.ClientWebSocketResponse

    async def workers(self) -> list[str] | int:
        """The names in the list, or the status where there is none."""
        async with self.web.get(f"{self.address}/api/workers") as answer:
            return [each["worker"] for each in await answer.json()] if answer.status == 200 else answer.status

    async def until_workers_are(self, expected: list[str] | int) -> None:
        async with asyncio.timeout(LIMIT_S):
            while await self.workers() != expected:  # noqa: ASYNC110 - it is asked, and does not tell
                await asyncio.sleep(0.01)

    async def until_cameras_are(self, expected: dict[str, str | None]) -> None:
        async with asyncio.timeout(LIMIT_S):
            while True:
                async with self.web.get(f"{self.address}/api/cameras") as answer:
                    if {each["camera"]: each["state"] for each in await answer.json()} == expected:
                        return
                await asyncio.sleep(0.01)

    async def next_of(self, kind: str) -> dict[str, object]:
        async with asyncio.timeout(LIMIT_S):
            while True:
                message = json.loads((await self.browser.receive()).data)
                if message["type"] == kind:
                    return message


@asynccontextmanager
async def viewer_of(url: str) -> AsyncIterator[Told]:
    async with (
        MqttChannel(url) as channel,
        serve(channel, host="127.0.0.1", port=0) as address,
        aiohttp.ClientSession() as web,
    ):
        await channel.wait_connected(LIMIT_S)
        async with web.ws_connect(address + "/ws") as browser:
            yield Told(address, web, browser)


async def leave_behind(url: str, worker: str) -> None:
    """The retained word of a worker that nobody takes back."""
    async with MqttChannel(url) as channel:
        await ready(channel)
        await channel.publish(f"worker/{worker}/state", ONLINE, STATE)


async def test_a_worker_that_died_with_its_broker_is_not_listed_when_that_is_back(own_mosquitto: Server) -> None:
    url = f"mqtt://127.0.0.1:{own_mosquitto.port}"
    async with MqttChannel(url) as worker, viewer_of(url) as told:
        await worker.publish("worker/b/state", ONLINE, STATE)
        await leave_behind(url, "a")
        await told.until_workers_are(["a", "b"])
        own_mosquitto.kill()
        await told.until_workers_are(503)
        while (await told.next_of("nodes"))["worker"]:
            pass
        own_mosquitto.start()
        await told.until_workers_are(["b"])
        assert (await told.next_of("nodes"))["worker"] == ["b"]


async def test_a_broker_that_is_back_in_no_time_has_forgotten_as_much(own_mosquitto: Server) -> None:
    url = f"mqtt://127.0.0.1:{own_mosquitto.port}"
    async with MqttChannel(url) as worker, viewer_of(url) as told:
        await worker.publish("worker/b/state", ONLINE, STATE)
        await leave_behind(url, "a")
        await told.until_workers_are(["a", "b"])
        own_mosquitto.kill()
        own_mosquitto.start()  # nothing else runs meanwhile
        await told.until_workers_are(["b"])


async def test_what_the_broker_has_kept_is_listed_again(own_mosquitto: Server) -> None:
    straight = f"mqtt://127.0.0.1:{own_mosquitto.port}"
    await leave_behind(straight, "a")
    async with relay(own_mosquitto.port) as (port, cut), viewer_of(f"mqtt://127.0.0.1:{port}") as told:
        for _ in range(3):
            await told.until_workers_are(["a"])
            while not (await told.next_of("viewer"))["connected"]:
                pass
            cut()
            while (await told.next_of("viewer"))["connected"]:
                pass
            assert (await told.next_of("nodes"))["worker"] == []
            assert (await told.next_of("nodes"))["worker"] == ["a"]


@asynccontextmanager
async def relay(port: int) -> AsyncIterator[tuple[int, Callable[[], None]]]:
    """A way to that port of this machine: its own port, and what cuts the connections that go through it."""
    under_way: set[asyncio.StreamWriter] = set()

    def cut() -> None:
        for writer in under_way:
            writer.transport.abort()
        under_way.clear()

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        under_way.add(writer)
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65_536):
                writer.write(data)
        writer.close()

    async def join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(carry(reader, far_writer), carry(far_reader, writer))

    async with await asyncio.start_server(join, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1], cut
        cut()


def test_nodes_that_are_forgotten_are_told_of_once() -> None:
    wall = Wall()
    assert wall.lose_touch() == []
    wall.take(Message("worker/a/state", ONLINE))
    assert [json.loads(update.payload)["worker"] for update in wall.lose_touch()] == [[]]
    assert wall.lose_touch() == []
    assert wall.take(Message("worker/a/state", ONLINE))


def test_states_that_a_broker_does_not_say_again_are_forgotten() -> None:
    wall = Wall()
    for camera in ("high-street", "station-road"):
        wall.take(Message(f"{camera}/state", ONLINE))
    assert wall.forget_doubtful() == []
    wall.lose_touch()
    assert all(camera.state is not None for camera in wall.cameras.values())
    wall.take(Message("station-road/state", ONLINE))
    [update] = wall.forget_doubtful()
    assert json.loads(update.payload) == {"type": "state", "camera": "high-street", "state": None, "since_ms": None}
    assert wall.cameras["station-road"].state is not None
    assert wall.forget_doubtful() == []


async def test_a_camera_that_died_with_its_broker_is_not_said_to_be_online(
    own_mosquitto: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(viewer, "_SAID_AGAIN_S", 1.0)
    url = f"mqtt://127.0.0.1:{own_mosquitto.port}"
    async with MqttChannel(url) as camera, viewer_of(url) as told:
        await camera.publish("cam-2/state", ONLINE, STATE)
        async with MqttChannel(url) as other:
            await ready(other)
            await other.publish("cam-1/state", ONLINE, STATE)
        await told.until_cameras_are({"cam-1": "online", "cam-2": "online"})
        own_mosquitto.kill()
        own_mosquitto.start()
        await told.until_cameras_are({"cam-1": None, "cam-2": "online"})


async def test_a_camera_of_unknown_state_is_online_while_its_masks_come(tmp_path: Path) -> None:
    badge, count = f"{part('high-street', '.badge')}?.textContent", "document.getElementById('count').textContent"
    async with shown(tmp_path) as (page, channel):
        camera = StreetCamera(channel, "high-street", 2)
        await page.open()
        await camera.stats()
        await page.until(f"{badge} === 'no word yet' && {count} === '1 camera, 0 online'")
        await camera.picture()
        await page.until(f"{badge} === 'online' && {count} === '1 camera'")
        assert page.complaints == []


async def test_the_page_counts_nobody_as_online_while_the_viewer_has_no_broker(tmp_path: Path) -> None:
    count, link = (f"document.getElementById('{name}').textContent" for name in ("count", "link"))
    broker = MemoryBroker()
    channel = MemoryChannel(broker)
    async with (
        MemoryChannel(broker) as cameras,
        channel,
        serve(channel, host="127.0.0.1", port=0) as address,
        chromium(tmp_path / "profile", address) as page,
    ):
        await StreetCamera(cameras, "high-street", 2).state("online")
        await StreetCamera(cameras, "station-road", 3).state("offline")
        await cameras.publish("worker/hut-1/state", ONLINE, STATE)
        await page.open()
        await page.until(f"{count} === '2 cameras, 1 online · 1 worker'")
        channel.abort()
        await page.until(f"{link} === 'no broker'")
        assert await page.value(count) == "2 cameras"
        assert await page.value("document.getElementById('count').title") == ""
        assert page.complaints == []
