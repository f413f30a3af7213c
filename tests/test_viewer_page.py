"""The page as a browser shows it: chromium, driven over its DevTools socket, looks at two cameras."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path

import aiohttp
import cv2
import numpy as np
import pytest
from browser import COLOURED, DESKTOP, PHONE, Page, chromium

from nodes.viewer import serve
from pipeline.mask_image import pack_mask
from pipeline.messages import FrameId, Mask
from pipeline.streets import render_street
from pipeline.transport import STATE
from pipeline.transport.memory import MemoryBroker, MemoryChannel

CLASSES = {
    "sky": (128, 128, 128),
    "building": (128, 0, 0),
    "pole": (192, 192, 128),
    "road": (128, 64, 128),
    "pavement": (60, 40, 222),
    "tree": (128, 128, 0),
    "sign": (192, 128, 128),
    "fence": (64, 64, 128),
    "car": (64, 0, 128),
    "pedestrian": (64, 64, 0),
    "bicyclist": (0, 128, 192),
}
NAMES = list(CLASSES)
PALETTE = np.array(list(CLASSES.values()), np.uint8)
HASH = "5eed" * 16
ROAD = NAMES.index("road")
SIZE = (480, 360)


class StreetCamera:
    """What a camera and a worker would publish of one street."""

    def __init__(self, channel: MemoryChannel, name: str, seed: int) -> None:
        self.name, self.channel = name, channel
        self.rng = np.random.default_rng(seed)
        self.sequence = 0
        image, self.classes = street(seed)
        self.preview = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes()

    async def state(self, state: str) -> None:
        facts = {"state": state, "bundle": HASH, "since": now_ms() - 60_000, "width": 480, "height": 360}
        await self.channel.publish(f"{self.name}/state", json.dumps(facts).encode(), STATE)

    async def stats(self) -> None:
        counts = np.bincount(self.classes.ravel(), minlength=len(NAMES)) / self.classes.size
        facts = {
            "fps": 25 + self.rng.normal(0, 0.1),
            "kbit_s": 168 + 30 * np.sin(self.sequence / 9) + self.rng.normal(0, 6),
            "latency_p50_ms": 21.4,
            "latency_p95_ms": 38.2,
            "drops": {"late": 3, "uplink": 1} if self.name == "station-road" else {},
            "share": dict(zip(NAMES, counts.tolist(), strict=True)),
            "key_share": 1.0,
        }
        await self.channel.publish(f"{self.name}/stats", json.dumps(facts).encode())

    async def picture(self, *, preview: bool = True) -> None:
        self.sequence += 1
        mask = Mask(FrameId(7, self.sequence), now_ms() - 40, bytes.fromhex(HASH[:8]), self.classes)
        if preview:
            await self.channel.publish(f"{self.name}/preview", self.preview)
        await self.channel.publish(f"{self.name}/mask", pack_mask(mask, self.name, PALETTE))

    async def warm_up(self, seconds: int = 90) -> None:
        """The statistics of some time, at once, so that the curve has something to show."""
        for _ in range(seconds):
            self.sequence += 1
            await self.stats()
            await asyncio.sleep(0.004)

    async def run(self) -> None:
        while True:
            await self.picture()
            await self.stats()
            await asyncio.sleep(0.15)


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@cache
def street(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """One picture (H, W, 3) of a street, and its classes (H, W)."""
    frame = next(render_street(seed, width=SIZE[0], height=SIZE[1], frames=1))
    return frame.image, frame.labels


@asynccontextmanager
async def shown(tmp_path: Path) -> AsyncIterator[tuple[Page, MemoryChannel]]:
    """A viewer on a broker of its own, and a browser beside it."""
    broker = MemoryBroker()
    async with (
        MemoryChannel(broker) as cameras,
        MemoryChannel(broker) as channel,
        serve(channel, host="127.0.0.1", port=0) as address,
        chromium(tmp_path / "profile", address) as page,
    ):
        yield page, cameras


@asynccontextmanager
async def running(*cameras: StreetCamera) -> AsyncIterator[None]:
    manifest = {
        "name": "streets", "hash": HASH,
        "classes": [{"name": name, "colour": colour} for name, colour in CLASSES.items()],
    }  # fmt: skip
    await cameras[0].channel.publish(f"bundle/{HASH}", json.dumps(manifest).encode(), STATE)
    async with asyncio.TaskGroup() as tasks:
        tasks_running = []
        for camera in cameras:
            await camera.state("online")
            tasks_running.append(tasks.create_task(camera.run()))
        yield
        for task in tasks_running:
            task.cancel()


PIXEL = """(() => {
  const copy = new OffscreenCanvas(1, 1).getContext('2d', { willReadFrequently: true });
  copy.drawImage(document.querySelector('canvas'), -COLUMN, -ROW);
  return [...copy.getImageData(0, 0, 1, 1).data];
})()"""
NO_SIDEWAYS = "document.documentElement.scrollWidth <= innerWidth"


def part(camera: str, selector: str) -> str:
    return f"document.querySelector('[data-camera={camera}] {selector}')"


async def test_two_cameras_are_shown_with_their_masks_and_numbers(tmp_path: Path, screenshots: Path) -> None:
    async with shown(tmp_path) as (page, channel):
        one, two = StreetCamera(channel, "high-street", 2), StreetCamera(channel, "station-road", 3)
        async with running(one, two):
            await page.resize(DESKTOP)
            await page.open()
            await page.until(f"{COLOURED} === 2")
            await one.warm_up()
            await two.warm_up()
            assert await page.value("document.getElementById('count').textContent") == "2 cameras"
            assert await page.value("document.getElementById('link').textContent") == "live"
            assert await page.value(f"{part('high-street', '.badge')}.textContent") == "online"
            assert await page.value(f"{part('high-street', '.p95')}.textContent") == "38"
            assert await page.value(f"{part('station-road', '.drops b')}.textContent") == "4"
            assert await page.value(f"{part('high-street', '.age')}.dataset.stale") == "fresh"
            shares = await page.value(
                "[...document.querySelectorAll('[data-camera=high-street] .percent')]"
                ".map(shown => parseFloat(shown.textContent))"
            )
            assert len(shares) == 6
            assert shares == sorted(shares, reverse=True)
            assert await page.value(NO_SIDEWAYS)
            await page.screenshot(screenshots / "desktop-light.png")
            await page.open(scheme="dark")
            await page.until(f"{COLOURED} === 2")
            await one.warm_up()
            await two.warm_up()
            await page.screenshot(screenshots / "desktop-dark.png")
        assert page.complaints == []


@pytest.mark.parametrize("size", [(360, 740), PHONE])
async def test_phone_shows_everything_without_sideways_scrolling(
    tmp_path: Path, screenshots: Path, size: tuple[int, int]
) -> None:
    async with shown(tmp_path) as (page, channel):
        one, two = StreetCamera(channel, "high-street", 2), StreetCamera(channel, "station-road", 3)
        async with running(one, two):
            await page.resize(size)
            await page.open()
            await page.until(f"{COLOURED} === 2")
            await one.warm_up()
            assert await page.value(NO_SIDEWAYS)
            await page.screenshot(screenshots / f"phone-{size[0]}.png")
        assert page.complaints == []


async def test_class_under_the_pointer_is_named(tmp_path: Path, screenshots: Path) -> None:
    async with shown(tmp_path) as (page, channel):
        camera = StreetCamera(channel, "high-street", 2)
        rows, columns = np.nonzero(camera.classes == ROAD)
        middle = len(rows) // 2
        async with running(camera):
            await page.resize(DESKTOP)
            await page.open()
            await page.until(f"{COLOURED} === 1")
            box = await page.value(f"{part('high-street', 'canvas')}.getBoundingClientRect().toJSON()")
            await page.move_pointer(
                box["x"] + (columns[middle] + 0.5) / SIZE[0] * box["width"],
                box["y"] + (rows[middle] + 0.5) / SIZE[1] * box["height"],
            )
            await page.until(f"{part('high-street', '.pointed span')}.textContent === 'road'")
            await page.screenshot(screenshots / "pointed.png")
        assert page.complaints == []


async def test_what_is_in_the_picture_is_listed_in_the_order_of_the_classes(tmp_path: Path, screenshots: Path) -> None:
    chips = f"[...{part('high-street', '.labels')}.children].map(chip => chip.textContent).join(', ')"
    scores = dict.fromkeys(NAMES, 0.1) | {"car": 0.82, "road": 0.994, "tree": 0.5}
    labels = [{"name": name, "score": score} for name, score in scores.items()]
    identity = {"epoch": 7, "sequence": 1, "captured_ms": now_ms(), "bundle": HASH[:8]}
    async with shown(tmp_path) as (page, channel):
        camera = StreetCamera(channel, "high-street", 2)
        async with running(camera):
            await page.resize(DESKTOP)
            await page.open()
            await page.until(f"{COLOURED} === 1")
            assert await page.value(f"{part('high-street', '.labels')}.hidden")
            await channel.publish("high-street/labels", json.dumps({**identity, "labels": labels}).encode())
            await page.until(f"!{part('high-street', '.labels')}.hidden")
            assert await page.value(chips) == "road 99 %, tree 50 %, car 82 %"
            await page.screenshot(screenshots / "labels.png")
        assert page.complaints == []


async def test_labels_are_shown_where_there_is_no_mask(tmp_path: Path) -> None:
    labels = [{"name": "road", "score": 1.0}]
    identity = {"epoch": 7, "sequence": 1, "captured_ms": now_ms(), "bundle": HASH[:8]}
    async with shown(tmp_path) as (page, channel):
        await page.open()
        await channel.publish("quiet-lane/labels", json.dumps({**identity, "labels": labels}).encode())
        await page.until("document.querySelector('[data-camera=quiet-lane] .label')?.textContent === 'road 100 %'")
        await page.until(f"{part('quiet-lane', '.age')}.textContent.endsWith('ago')")
        assert page.complaints == []


async def test_camera_opens_full_size_by_keyboard_and_escape_returns(tmp_path: Path, screenshots: Path) -> None:
    async with shown(tmp_path) as (page, channel):
        one, two = StreetCamera(channel, "high-street", 2), StreetCamera(channel, "station-road", 3)
        async with running(one, two):
            await page.resize(DESKTOP)
            await page.open()
            await page.until(f"{COLOURED} === 2")
            await one.warm_up()
            await page.value(f"{part('high-street', '.picture')}.focus()")
            await press(page, "Enter", "\r")
            await page.until(f"{part('high-street', '.picture')}.getAttribute('aria-pressed') === 'true'")
            assert await page.value(f"{part('high-street', 'canvas')}.getBoundingClientRect().width > 800")
            assert await page.value(f"{part('high-street', 'canvas')}.getBoundingClientRect().bottom <= innerHeight")
            await page.screenshot(screenshots / "full.png")
            await press(page, "Escape")
            await page.until(f"{part('high-street', '.picture')}.getAttribute('aria-pressed') === 'false'")
        assert page.complaints == []


async def press(page: Page, key: str, text: str = "") -> None:
    code = {"Enter": 13, "Escape": 27}[key]
    await page.call("Input.dispatchKeyEvent", type="keyDown", key=key, code=key, text=text, windowsVirtualKeyCode=code)
    await page.call("Input.dispatchKeyEvent", type="keyUp", key=key, code=key, windowsVirtualKeyCode=code)


async def test_offline_camera_is_said_plainly_over_a_dimmed_picture(tmp_path: Path, screenshots: Path) -> None:
    async with shown(tmp_path) as (page, channel):
        one, two = StreetCamera(channel, "high-street", 2), StreetCamera(channel, "station-road", 3)
        await page.resize(DESKTOP)
        await page.open()
        async with running(one, two):
            await page.until(f"{COLOURED} === 2")
        await two.state("offline")
        await page.until(f"{part('station-road', '.note')}.innerText.startsWith('Offline since ')")
        await page.until(f"getComputedStyle({part('station-road', 'canvas')}).opacity < 0.5")
        await page.until("document.getElementById('count').textContent === '2 cameras, 1 online'")
        await page.until(f"{part('high-street', '.age')}.dataset.stale === 'late'")
        await page.screenshot(screenshots / "offline.png")
        assert page.complaints == []


async def test_view_and_opacity_change_what_is_drawn(tmp_path: Path) -> None:
    async with shown(tmp_path) as (page, channel):
        camera = StreetCamera(channel, "high-street", 2)
        row, column = np.argwhere(camera.classes == ROAD)[1000]
        pixel = PIXEL.replace("COLUMN", str(column)).replace("ROW", str(row))
        async with running(camera):
            await page.open()
            await page.until(f"{COLOURED} === 1")
            mixed = await page.value(pixel)
            await page.value("document.querySelector('[value=mask]').click()")
            assert await page.value(pixel) == [*CLASSES["road"], 255]
            await page.value("document.querySelector('[value=preview]').click()")
            alone = await page.value(pixel)
            expected = np.array(CLASSES["road"]) * 0.6 + np.array(alone[:3]) * 0.4
            assert np.abs(np.array(mixed[:3]) - expected).max() <= 3
        assert page.complaints == []


async def test_mask_alone_is_drawn_when_there_is_no_preview(tmp_path: Path) -> None:
    async with shown(tmp_path) as (page, channel):
        camera = StreetCamera(channel, "high-street", 2)
        row, column = np.argwhere(camera.classes == ROAD)[1000]
        await camera.picture(preview=False)
        await page.open()
        await page.until(f"{COLOURED} === 1")
        pixel = PIXEL.replace("COLUMN", str(column)).replace("ROW", str(row))
        assert await page.value(pixel) == [*CLASSES["road"], 255]
        assert page.complaints == []


async def test_page_without_cameras_says_how_to_start_one(tmp_path: Path, screenshots: Path) -> None:
    async with shown(tmp_path) as (page, _):
        await page.resize(DESKTOP)
        await page.open()
        await page.until("!document.getElementById('empty').hidden")
        assert "maskcast camera" in await page.value("document.body.innerText")
        await page.screenshot(screenshots / "empty.png")
        assert page.complaints == []


async def test_lost_broker_is_said(tmp_path: Path) -> None:
    broker = MemoryBroker()
    channel = MemoryChannel(broker)
    async with channel, chromium_beside(channel, tmp_path) as (page, _):
        await page.until("document.getElementById('link').textContent === 'live'")
        channel.abort()
        await page.until("document.getElementById('link').textContent === 'no broker'")
        await page.until("document.getElementById('banner').innerText.includes('has lost its broker')")
        assert page.complaints == []


@pytest.mark.parametrize(
    "storage",
    [
        "localStorage.setItem('view', 'null')",
        "localStorage.setItem('view', '{')",
        "localStorage.setItem('view', '{\"view\": \"none\"}')",
        "Object.defineProperty(window, 'localStorage', { get() { throw new DOMException('no', 'SecurityError'); } })",
    ],
)
async def test_storage_that_is_forbidden_or_spoilt_does_not_stop_the_page(tmp_path: Path, storage: str) -> None:
    async with shown(tmp_path) as (page, _):
        await page.call("Page.addScriptToEvaluateOnNewDocument", source=f"if (location.host) {storage}")
        await page.open()
        await page.until("document.getElementById('link').textContent === 'live'")
        await page.value("document.querySelector('[value=mask]').click()")
        assert page.complaints == []


async def test_numbers_of_a_camera_that_sends_no_more_are_not_shown_as_of_now(tmp_path: Path) -> None:
    async with shown(tmp_path) as (page, channel):
        camera = StreetCamera(channel, "high-street", 2)
        await page.open()
        await page.until("document.getElementById('link').textContent === 'live'")
        await camera.stats()
        await page.until(f"{part('high-street', '.p95')}?.textContent === '38'")
        for number in (".fps", ".p50", ".p95"):
            await page.until(f"{part('high-street', number)}.textContent === '\u2013'")
        assert page.complaints == []


async def test_one_browser_too_many_is_told_so(tmp_path: Path) -> None:
    async with (
        MemoryChannel(MemoryBroker()) as channel,
        serve(channel, host="127.0.0.1", port=0, browser_limit=1) as address,
        aiohttp.ClientSession() as web,
        web.ws_connect(address + "/ws"),
        chromium(tmp_path / "profile", address) as page,
    ):
        await page.open()
        await page.until("document.getElementById('banner').innerText.startsWith('As many browsers as')")


async def test_drops_open_to_their_reasons(tmp_path: Path) -> None:
    async with shown(tmp_path) as (page, channel):
        camera = StreetCamera(channel, "station-road", 3)
        async with running(camera):
            await page.open()
            await page.until(f"{part('station-road', '.drops b')}?.textContent === '4'")
            await page.value(f"{part('station-road', '.drops summary')}.click()")
            await page.until(f"{part('station-road', '.drops')}.innerText.includes('late 3')")
            assert await page.value(f"{part('station-road', '.drops')}.title") == "late: 3\nuplink: 1"
        assert page.complaints == []


async def test_lost_connection_is_said_and_made_again(tmp_path: Path, screenshots: Path) -> None:
    broker = MemoryBroker()
    async with MemoryChannel(broker) as cameras:
        camera = StreetCamera(cameras, "high-street", 2)
        await camera.state("online")
        async with MemoryChannel(broker) as channel, chromium_beside(channel, tmp_path) as (page, stop):
            await camera.picture()
            await page.until(f"{COLOURED} === 1")
            await stop()
            await page.until("document.getElementById('banner').innerText === 'Connection lost, trying again.'")
            await page.screenshot(screenshots / "lost.png")
            port = int(page.address.rpartition(":")[2])
            async with serve(channel, host="127.0.0.1", port=port):
                await page.until("document.getElementById('link').textContent === 'live'")
                assert await page.value("document.getElementById('banner').hidden")


@asynccontextmanager
async def chromium_beside(
    channel: MemoryChannel, tmp_path: Path
) -> AsyncIterator[tuple[Page, Callable[[], Awaitable[None]]]]:
    """A browser on a viewer that can be stopped before it."""
    async with contextlib.AsyncExitStack() as viewer:
        address = await viewer.enter_async_context(serve(channel, host="127.0.0.1", port=0))
        async with chromium(tmp_path / "profile", address) as page:
            await page.resize(DESKTOP)
            await page.open()
            yield page, viewer.aclose
