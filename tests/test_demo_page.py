"""What a new user sees: `maskcast demo`, and its page in a browser."""

import asyncio
import os
import sys
from pathlib import Path

import aiohttp
from browser import COLOURED, DESKTOP, chromium
from processes import ROOT
from servers import free_port

STOP_LIMIT_S = 20


async def test_the_demo_shows_two_cameras_live(tmp_path: Path, screenshots: Path) -> None:
    port, log = free_port(), tmp_path / "demo.log"
    with log.open("wb") as output:
        demo = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "pipeline.cli", "demo", "--port", str(port), "--no-open"),
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            cwd=tmp_path,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        address = f"http://127.0.0.1:{port}"
        async with chromium(tmp_path / "profile", address) as page:
            await page.resize(DESKTOP)
            await until_it_answers(address, demo, log)
            await page.open()
            await page.until("document.querySelectorAll('[data-camera]').length === 2", timeout_s=60)
            await page.until(f"{COLOURED} === 2", timeout_s=60)
            # Long enough for statistics to be on the page.
            await page.until("document.body.innerText.match(/[0-9]+\\s*p95/g)?.length === 2", timeout_s=60)
            await asyncio.sleep(3)
            await page.screenshot(screenshots / "demo.png")
            assert not page.complaints
    finally:
        if demo.returncode is None:
            demo.terminate()
        async with asyncio.timeout(STOP_LIMIT_S):
            await demo.wait()
    assert demo.returncode == 0, log.read_text()
    assert "Traceback" not in log.read_text()


async def until_it_answers(address: str, demo: asyncio.subprocess.Process, log: Path) -> None:
    """Wait until the page is served, so that the browser does not open on an error page."""
    async with asyncio.timeout(60), aiohttp.ClientSession() as client:
        while True:
            if demo.returncode is not None:
                raise AssertionError(await asyncio.to_thread(log.read_text))
            try:
                async with client.get(f"{address}/healthz"):
                    return
            except aiohttp.ClientError:
                await asyncio.sleep(0.1)
