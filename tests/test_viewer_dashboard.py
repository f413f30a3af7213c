"""Pages of other sites beside the viewer, in a browser: what they may show of it, and what not."""

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from browser import Page, chromium
from servers import free_port
from viewing import StreetCamera

from nodes.viewer import serve
from pipeline.transport.memory import MemoryBroker, MemoryChannel

PICTURES = ("mask.png", "preview.jpg")
LOADED = "[...document.images].map(picture => picture.complete && picture.naturalWidth > 0)"
READ = """(() => {
  const copy = new OffscreenCanvas(1, 1).getContext('2d');
  copy.drawImage(document.images[0], 0, 0);
  try { return copy.getImageData(0, 0, 1, 1).data[3]; } catch (error) { return error.name; }
})()"""
FEED = """new Promise(done => {
  const socket = new WebSocket('VIEWER/ws'.replace('http', 'ws'));
  socket.onmessage = () => done('heard');
  socket.onerror = () => done('refused');
})"""


@asynccontextmanager
async def site(port: int, text: str) -> AsyncIterator[str]:
    """A site of one page, which does not say whose it is, as Home Assistant's do not."""

    async def answer(request: web.Request) -> web.Response:
        return web.Response(text=text, content_type="text/html", headers={"Referrer-Policy": "no-referrer"})

    app = web.Application()
    app.router.add_get("/", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        yield f"http://127.0.0.1:{port}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def dashboard(tmp_path: Path, port: int, origins: Sequence[str]) -> AsyncIterator[tuple[Page, str]]:
    """A browser on a site that shows a camera's pictures and the viewer's page; gives the viewer's address too."""
    broker = MemoryBroker()
    async with (
        MemoryChannel(broker) as cameras,
        MemoryChannel(broker) as channel,
        serve(channel, host="127.0.0.1", port=0, origins=origins) as viewer,
    ):
        camera = StreetCamera(cameras, "high-street", 2)
        await camera.state("online")
        await camera.picture()
        pictures = "".join(f"<img src='{viewer}/api/cameras/high-street/{name}'>" for name in PICTURES)
        text = f"<!doctype html><title>home</title>{pictures}<iframe src='{viewer}/'></iframe>"
        async with site(port, text) as address, chromium(tmp_path / "profile", address) as page:
            await page.open()
            yield page, viewer


@pytest.mark.parametrize("named", [True, False])
async def test_pictures_are_shown_but_not_read_on_every_page_once_an_origin_is_named(
    tmp_path: Path, screenshots: Path, *, named: bool
) -> None:
    port = free_port()
    origin = f"http://127.0.0.1:{port}" if named else "https://home.example"
    async with dashboard(tmp_path, port, [origin]) as (page, viewer):
        assert await page.value(LOADED) == [True, True]
        assert await page.value(READ) == "SecurityError"
        await page.screenshot(screenshots / f"dashboard-{named}.png")
        assert await page.value(f"fetch('{viewer}/api/cameras').then(() => 'read', () => 'refused')") == "refused"
        assert await page.value(FEED.replace("VIEWER", viewer)) == ("heard" if named else "refused")
        assert named != any("frame-ancestors" in complaint for complaint in page.complaints)


async def test_without_origins_no_other_site_shows_pictures(tmp_path: Path) -> None:
    async with dashboard(tmp_path, free_port(), []) as (page, _):
        assert await page.value(LOADED) == [False, False]
        assert "ERR_BLOCKED_BY_RESPONSE.NotSameOrigin" in json.dumps(page.complaints)
