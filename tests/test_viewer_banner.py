"""When the page says that masks do not come: by what arrives there, whatever the clocks of the cameras say."""

import asyncio
from pathlib import Path

from browser import COLOURED, DESKTOP, Page
from viewing import HASH, PALETTE, StreetCamera, now_ms, shown

from pipeline.mask_image import pack_mask
from pipeline.messages import FrameId, Mask
from pipeline.transport import STATE
from pipeline.transport.memory import MemoryChannel

BEHIND_MS = 15_000
BANNER = "document.getElementById('banner').innerText"
# Every banner there was since, also those that were there for a moment.
WATCH = """(() => {
  window.seen = [];
  const banner = document.getElementById('banner');
  const see = () => banner.textContent && seen.push(banner.textContent);
  new MutationObserver(see).observe(banner, { childList: true });
  see();
})()"""
# The page's own clock, which a test may set forward.
CLOCK = """window.ahead = 0;
const begun = performance.now.bind(performance);
performance.now = () => begun() + window.ahead;"""


class LateCamera(StreetCamera):
    """A camera whose clock is behind."""

    async def picture(self, *, preview: bool = False) -> None:
        self.sequence += 1
        mask = Mask(FrameId(7, self.sequence), now_ms() - BEHIND_MS, bytes.fromhex(HASH[:8]), self.classes, 2, 2)
        await self.channel.publish(f"{self.name}/mask", pack_mask(mask, self.name, PALETTE))

    async def pictures(self, *, for_s: float) -> None:
        async with asyncio.timeout(for_s + 60):
            for _ in range(round(for_s / 0.25)):
                await self.picture()
                await asyncio.sleep(0.25)


async def everyone_online(channel: MemoryChannel) -> None:
    for kind in ("gateway", "worker"):
        await channel.publish(f"{kind}/hut-1/state", b'{"state": "online"}', STATE)


async def pass_on(page: Page, ms: int) -> None:
    """Set the page's clock forward, and wait until it was looked at."""
    await page.value(f"window.ahead += {ms}; new Promise(done => setTimeout(done, 500))")


async def test_masks_of_a_camera_whose_clock_is_behind_are_masks(tmp_path: Path) -> None:
    async with shown(tmp_path) as (page, channel):
        camera = LateCamera(channel, "high-street", 2)
        await everyone_online(channel)
        await camera.state("online", source="ok")
        await page.open()
        await page.value(WATCH)
        await camera.pictures(for_s=12)
        assert await page.value(f"{COLOURED} === 1")
        assert await page.value("seen") == []
        assert page.complaints == []


async def test_a_camera_that_goes_on_after_a_pause_has_time_to_send(tmp_path: Path, screenshots: Path) -> None:
    async with shown(tmp_path) as (page, channel):
        camera = LateCamera(channel, "high-street", 2)
        await everyone_online(channel)
        await page.call("Page.addScriptToEvaluateOnNewDocument", source=CLOCK)
        await page.resize(DESKTOP)
        await page.open()
        await camera.state("online", source="ok")
        await camera.pictures(for_s=0.5)
        await page.until(f"{COLOURED} === 1")
        await page.value(WATCH)
        for silent in ({"control": {"pause": True}}, {"source": "lost"}, {"source": "waiting"}):
            badge = await page.value("document.querySelector('.badge').textContent")
            await camera.state("online", **silent)
            await page.until(f"document.querySelector('.badge').textContent !== '{badge}'")
            await pass_on(page, 60_000)
            await camera.state("online", source="ok")
            await page.until("document.querySelector('.badge').textContent === 'online'")
            await pass_on(page, 6000)
            assert await page.value("seen") == []
        await pass_on(page, 4000)
        assert (await page.value(BANNER)).startswith("Cameras send, and no masks come")
        await page.screenshot(screenshots / "no-masks.png")
        await camera.picture()
        await page.until(f"{BANNER} === ''")
        assert page.complaints == []


async def test_a_page_that_is_opened_late_waits_as_long(tmp_path: Path) -> None:
    async with shown(tmp_path) as (page, channel):
        await everyone_online(channel)
        await StreetCamera(channel, "high-street", 2).state("online", source="ok")
        await channel.publish("worker/hut-1/state", b'{"state": "offline"}', STATE)
        await page.call("Page.addScriptToEvaluateOnNewDocument", source=CLOCK)
        await page.open()
        await page.until("document.getElementById('count').textContent === '1 camera'")
        await page.value(WATCH)
        await pass_on(page, 1500)
        assert await page.value("seen") == []
        await pass_on(page, 4000)
        assert (await page.value(BANNER)).startswith("No worker is online")
        assert page.complaints == []
