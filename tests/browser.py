"""A real browser for tests of the page: chromium, driven over its DevTools socket."""

import asyncio
import base64
import contextlib
import json
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--force-color-profile=srgb",
    "--remote-debugging-port=0",
)
DESKTOP, PHONE = (1280, 800), (390, 844)
# How many canvases have colour on more than a quarter of their area.
COLOURED = """[...document.querySelectorAll('canvas')].filter(canvas => {
  const { width, height } = canvas;
  const copy = new OffscreenCanvas(width, height).getContext('2d', { willReadFrequently: true });
  copy.drawImage(canvas, 0, 0);
  const pixels = copy.getImageData(0, 0, width, height).data;
  let coloured = 0;
  for (let i = 0; i < pixels.length; i += 4) {
    const [red, green, blue, alpha] = pixels.subarray(i, i + 4);
    coloured += alpha === 255 && Math.max(red, green, blue) - Math.min(red, green, blue) > 20;
  }
  return coloured > width * height / 4;
}).length"""


class Page:
    """One tab of chromium."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, address: str) -> None:
        self.address = address
        self.complaints: list[str] = []
        self._socket = socket
        self._calls = 0

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call one method of the DevTools protocol and return its result; keep what the page complains of."""
        self._calls += 1
        await self._socket.send_json({"id": self._calls, "method": method, "params": parameters})
        async with asyncio.timeout(20):
            while True:
                message = await self._socket.receive_json()
                if message.get("id") == self._calls:
                    assert "error" not in message, message
                    return message["result"]
                self._listen(message)

    def _listen(self, event: dict[str, Any]) -> None:
        about = event["params"]
        console = event["method"] == "Runtime.consoleAPICalled" and about["type"] in (
            "error",
            "warning",
            "assert",
        )
        log = event["method"] == "Log.entryAdded" and about["entry"]["level"] in ("error", "warning")
        if console or log or event["method"] == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(about))

    async def open(self, path: str = "/", *, scheme: str = "light") -> None:
        await self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        await self.call("Page.navigate", url=self.address + path)
        await self.until("document.readyState === 'complete'")

    async def resize(self, size: tuple[int, int]) -> None:
        width, height = size
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=2 if width < 500 else 1, mobile=width < 500,
        )  # fmt: skip

    async def value(self, expression: str) -> Any:
        answer = await self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def until(self, expression: str, timeout_s: float = 15) -> None:
        """Wait until the expression is true; fails saying which it was and what the page shows."""
        end = time.monotonic() + timeout_s
        while not await self.value(f"Boolean({expression})"):
            shown = await self.value("document.body?.innerText")
            assert time.monotonic() < end, f"never true: {expression}\n{shown}\n{self.complaints}"
            await asyncio.sleep(0.05)

    async def move_pointer(self, x: float, y: float) -> None:
        await self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    async def screenshot(self, path: Path, *, whole: bool = False) -> None:
        answer = await self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        await asyncio.to_thread(path.write_bytes, base64.b64decode(answer["data"]))


@asynccontextmanager
async def chromium(profile: Path, address: str) -> AsyncIterator[Page]:
    """A chromium of its own, with one empty tab."""
    program = shutil.which("chromium")
    assert program, "chromium is not on PATH: install Debian's package chromium to run the tests of the page"
    process = await asyncio.create_subprocess_exec(
        program, *FLAGS, f"--user-data-dir={profile}", "about:blank",
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        async with aiohttp.ClientSession() as web:
            async with web.get(f"http://127.0.0.1:{await devtools_port(profile)}/json/list") as answer:
                tab = next(target for target in await answer.json() if target["type"] == "page")
            async with web.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                page = Page(socket, address)
                for domain in ("Page", "Runtime", "Log"):
                    await page.call(f"{domain}.enable")
                yield page
    finally:
        process.terminate()
        await process.wait()


async def devtools_port(profile: Path, timeout_s: float = 30) -> int:
    """The port that chromium chose, which it writes to a file of its profile."""
    async with asyncio.timeout(timeout_s):
        while True:
            with contextlib.suppress(FileNotFoundError, IndexError):
                return int((profile / "DevToolsActivePort").read_text().splitlines()[0])
            await asyncio.sleep(0.05)
