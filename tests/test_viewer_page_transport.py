"""How each camera is connected, as the page shows it."""

import json
from pathlib import Path

from browser import COLOURED, DESKTOP
from viewing import HASH, StreetCamera, now_ms, part, running, shown

from pipeline.transport import STATE
from pipeline.transport.memory import MemoryChannel

PATH = "host 10.0.0.2 <-> srflx 192.0.2.7"
LABEL = part("high-street", ".transport")


async def say(channel: MemoryChannel, name: str, **facts: object) -> None:
    state = {"state": "online", "bundle": HASH, "since": now_ms() - 60_000, "width": 480, "height": 360, **facts}
    await channel.publish(f"{name}/state", json.dumps(state).encode(), STATE)


async def test_transport_and_candidate_pair_are_shown_and_its_addresses_on_a_closer_look(
    tmp_path: Path, screenshots: Path
) -> None:
    async with shown(tmp_path) as (page, channel):
        one, two = StreetCamera(channel, "high-street", 2), StreetCamera(channel, "station-road", 3)
        async with running(one, two):
            await say(channel, "high-street", transport="webrtc", path=PATH)
            await say(channel, "station-road", transport="mqtt", path=None)
            await page.resize(DESKTOP)
            await page.open()
            await page.until(f"{COLOURED} === 2")
            assert await page.value(f"{LABEL}.textContent") == "webrtc host ↔ srflx"
            assert await page.value(f"{LABEL}.title") == f"gateway and camera: {PATH}"
            assert await page.value(f"{part('station-road', '.transport')}.textContent") == "mqtt"
            await page.screenshot(screenshots / "transport.png")
            await page.value(f"{part('high-street', '.picture')}.click()")
            await page.screenshot(screenshots / "transport-full.png")
            await page.resize((360, 740))
            assert await page.value("document.documentElement.scrollWidth <= innerWidth")
            await page.screenshot(screenshots / "transport-phone.png")
        assert page.complaints == []


async def test_of_a_camera_that_is_away_or_does_not_say_it_no_transport_is_shown(tmp_path: Path) -> None:
    async with shown(tmp_path) as (page, channel):
        await page.open()
        await say(channel, "high-street", transport="webrtc", path="what is <b>this</b>")
        await page.until(f"{LABEL}?.textContent === 'webrtc'")
        await say(channel, "high-street", transport="webrtc", path=PATH, state="offline")
        await page.until(f"{LABEL}.hidden")
        await say(channel, "high-street")
        await page.until(f"{part('high-street', '.badge')}.textContent === 'online'")
        assert await page.value(f"{LABEL}.hidden")
        assert page.complaints == []
