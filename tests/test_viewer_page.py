"""The page as a browser shows it: chromium, driven over its DevTools socket, looks at two cameras."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import numpy as np
import pytest
from aiohttp import web
from browser import COLOURED, DESKTOP, PHONE, Page, chromium
from viewing import CLASSES, HASH, NAMES, ROAD, SIZE, Clock, StreetCamera, now_ms, part, running, shown

from nodes.preview import Preview
from nodes.viewer import serve
from nodes.viewer.access import Access
from nodes.viewer.feed import Feed
from nodes.viewer.server import Site
from nodes.viewer.state import Wall
from pipeline.messages import Frame, FrameId
from pipeline.transport import STATE, Message
from pipeline.transport.memory import MemoryBroker, MemoryChannel

PIXEL = """(() => {
  const copy = new OffscreenCanvas(1, 1).getContext('2d', { willReadFrequently: true });
  copy.drawImage(document.querySelector('canvas'), -COLUMN, -ROW);
  return [...copy.getImageData(0, 0, 1, 1).data];
})()"""
NO_SIDEWAYS = "document.documentElement.scrollWidth <= innerWidth"


async def test_two_cameras_are_shown_with_their_masks_and_numbers(tmp_path: Path, screenshots: Path) -> None:
    clock = Clock()
    async with shown(tmp_path, clock) as (page, channel):
        one, two = StreetCamera(channel, "high-street", 2), StreetCamera(channel, "station-road", 3)
        await one.tell_the_past(clock)
        await two.tell_the_past(clock)
        async with running(one, two):
            await page.resize(DESKTOP)
            await page.open()
            await page.until(f"{COLOURED} === 2")
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
            await page.screenshot(screenshots / "desktop-dark.png")
        assert page.complaints == []


@pytest.mark.parametrize("size", [(360, 740), PHONE])
async def test_phone_shows_everything_without_sideways_scrolling(
    tmp_path: Path, screenshots: Path, size: tuple[int, int]
) -> None:
    clock = Clock()
    async with shown(tmp_path, clock) as (page, channel):
        one, two = StreetCamera(channel, "high-street", 2), StreetCamera(channel, "station-road", 3)
        await one.tell_the_past(clock)
        await two.tell_the_past(clock)
        async with running(one, two):
            await page.resize(size)
            await page.open()
            await page.until(f"{COLOURED} === 2")
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
    clock = Clock()
    async with shown(tmp_path, clock) as (page, channel):
        one, two = StreetCamera(channel, "high-street", 2), StreetCamera(channel, "station-road", 3)
        await one.tell_the_past(clock)
        await two.tell_the_past(clock)
        async with running(one, two):
            await page.resize(DESKTOP)
            await page.open()
            await page.until(f"{COLOURED} === 2")
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


async def test_pictures_have_the_shape_of_the_source_and_one_that_is_lost_is_said(
    tmp_path: Path, screenshots: Path
) -> None:
    async with shown(tmp_path) as (page, channel):
        camera = StreetCamera(channel, "high-street", 2)
        canvas, badge = part("high-street", "canvas"), part("high-street", ".badge")
        shape = f"{canvas}.getBoundingClientRect().width / {canvas}.getBoundingClientRect().height"
        await page.resize(DESKTOP)
        await page.open()
        async with running(camera):
            await page.until(f"{COLOURED} === 1")
            await page.until(f"Math.abs({shape} - 4 / 3) < 0.02")
            await camera.state("online", source="ok", source_width=960, source_height=540)
            await page.until(f"Math.abs({shape} - 16 / 9) < 0.02")
            await camera.state("online", source="lost", source_width=960, source_height=540)
            await page.until(f"{badge}.textContent === 'source lost'")
            await page.until(f"getComputedStyle({canvas}).opacity < 0.5")
            await page.screenshot(screenshots / "source-lost.png")
            await camera.state("online", source="ok", source_width=960, source_height=540)
            await page.until(f"{badge}.textContent === 'online'")
        assert page.complaints == []


async def test_a_preview_waits_for_the_mask_of_its_frame_but_not_for_ever(tmp_path: Path) -> None:
    async with shown(tmp_path) as (page, channel):
        camera, preview = StreetCamera(channel, "high-street", 2), Preview(max_fps=1e6, max_width=480, jpeg_quality=90)

        async def see(sequence: int, shade: int) -> None:
            image = np.full((360, 480, 3), shade, np.uint8)
            made = preview.picture(Frame(FrameId(7, sequence), 0, image))
            assert made is not None
            await channel.publish("high-street/preview", made)

        canvas = part("high-street", "canvas")
        shade = f"""(() => {{
          const copy = new OffscreenCanvas(1, 1).getContext('2d', {{ willReadFrequently: true }});
          copy.drawImage({canvas}, 240, 180, 1, 1, 0, 0, 1, 1);
          return copy.getImageData(0, 0, 1, 1).data[0];
        }})()"""
        await page.open()
        await page.value("document.querySelector('[value=preview]').click()")
        await camera.state("online")
        await page.until(canvas)
        await see(0, 40)
        await page.until(f"Math.abs({shade} - 40) < 8")  # no mask yet, nothing to wait for
        await camera.picture(preview=False)  # frame 1
        await see(1, 80)
        await page.until(f"Math.abs({shade} - 80) < 8")
        await see(2, 160)
        await asyncio.sleep(0.5)
        assert abs(await page.value(shade) - 80) < 8
        await camera.picture(preview=False)
        await page.until(f"Math.abs({shade} - 160) < 8")
        for sequence in range(3, 12):  # as many as a mask of a second's age has before it
            await see(sequence, 200)
            await asyncio.sleep(0.1)
        assert abs(await page.value(shade) - 160) < 8
        await page.until(f"Math.abs({shade} - 200) < 8")  # no masks come any more
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


async def test_cameras_without_a_gateway_or_worker_are_said_to_have_none(tmp_path: Path, screenshots: Path) -> None:
    banner = "document.getElementById('banner').innerText"
    async with shown(tmp_path) as (page, channel):
        await page.resize(DESKTOP)
        await page.open()
        await StreetCamera(channel, "high-street", 2).state("online", source="ok")
        await page.until(f"{banner}.startsWith('No gateway is online')")
        await channel.publish("gateway/hut-1/state", b'{"state": "online"}', STATE)
        await page.until(f"{banner}.startsWith('No worker is online')")
        await page.screenshot(screenshots / "no-worker.png")
        await channel.publish("worker/hut-1/state", b'{"state": "online"}', STATE)
        await page.until(f"{banner} === ''")
        await page.until("document.getElementById('count').textContent === '1 camera · 1 worker'")
        await page.until(f"{banner}.startsWith('Cameras send, and no masks come')", timeout_s=25)
        await channel.publish("worker/hut-1/state", b'{"state": "offline"}', STATE)
        await page.until(f"{banner} !== ''")
        await StreetCamera(channel, "high-street", 2).state("online", source="lost")
        await page.until(f"{banner} === ''")
        assert page.complaints == []


async def test_a_camera_that_was_told_to_pause_is_said_to(tmp_path: Path) -> None:
    async with shown(tmp_path) as (page, channel):
        camera = StreetCamera(channel, "high-street", 2)
        await page.open()
        await camera.state("online", source="ok", control={"quality": 4, "pause": True})
        await page.until(f"{part('high-street', '.badge')}?.textContent === 'paused'")
        await camera.state("online", source="ok", control={"quality": 4, "pause": False})
        await page.until(f"{part('high-street', '.badge')}.textContent === 'online'")
        assert page.complaints == []


async def test_the_page_may_lie_below_a_folder(tmp_path: Path) -> None:
    async with MemoryChannel(MemoryBroker()) as channel:
        wall, feed = Wall(), Feed(limit=4)
        site = Site(wall, feed, channel=channel, access=Access(), now_ms=now_ms)
        feed.send(wall.take(Message("high-street/state", b'{"state": "online"}')))
        async with below_a_folder(site) as address, chromium(tmp_path / "profile", address) as page:
            await page.open()
            await page.until("document.getElementById('count').textContent === '1 camera'")
            assert await page.value("getComputedStyle(document.querySelector('.bar')).position") == "sticky"
            assert page.complaints == []


@asynccontextmanager
async def below_a_folder(site: Site) -> AsyncIterator[str]:
    """The site at /masks/ of a server, as behind a proxy."""
    app = web.Application()
    app.add_subapp("/masks", site.application())
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/masks"
    finally:
        await runner.cleanup()


async def test_a_feed_that_a_proxy_does_not_pass_is_said(tmp_path: Path) -> None:
    async with MemoryChannel(MemoryBroker()) as channel:
        site = Site(Wall(), Feed(limit=4), channel=channel, access=Refusing(), now_ms=now_ms)
        async with below_a_folder(site) as address, chromium(tmp_path / "profile", address) as page:
            await page.open()
            await page.until("document.getElementById('link').textContent === 'refused'")
            assert "a proxy in front" in await page.value("document.getElementById('banner').innerText")


class Refusing(Access):
    """As where a proxy puts its own name into each request."""

    def admits(self, request: web.Request) -> bool:
        return request.headers.get("Upgrade") is None


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
