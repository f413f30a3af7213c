"""Zones on the page: outlines over the picture, what is in them below it, and a switch that takes them away."""

import json
from pathlib import Path

from browser import COLOURED, DESKTOP, PHONE, Page
from viewing import StreetCamera, part, running, shown

from nodes.viewer.state import Wall
from pipeline.transport import Message

ZONES = {"crossing": [[0.1, 0.62], [0.9, 0.62], [1, 0.8], [0, 0.8]], "kerb": [[0.7, 0.45], [1, 0.5], [1, 0.6]]}
SHARES = {"crossing": {"road": 0.9, "car": 0.08, "person": 0.02, "sky": 0.0}, "kerb": {"pavement": 1.0}}
ROWS = f"[...{part('high-street', '.zonings')}.children].map(row => row.textContent).join(', ')"
DRAWN = "[...document.querySelectorAll('[data-camera=high-street] .zones .line')]"
SHOWN = f"getComputedStyle({part('high-street', '.zones')}).display"
SWITCH = "document.getElementById('zoning')"
NAMES = "[...document.querySelectorAll('[data-camera=high-street] .zone')].map(zone => zone.textContent).join()"


async def opened(page: Page, camera: StreetCamera, size: tuple[int, int]) -> None:
    """The page with a camera whose zones are known."""
    await page.resize(size)
    await page.open()
    await page.until(f"{COLOURED} === 1")
    await camera.state("online", zones=ZONES)
    await page.until(f"{DRAWN}.length === 2")


async def test_zones_are_drawn_where_they_are_and_told_of(tmp_path: Path, screenshots: Path) -> None:
    async with shown(tmp_path) as (page, channel):
        camera = StreetCamera(channel, "high-street", 2)
        async with running(camera):
            await opened(page, camera, DESKTOP)
            camera.zones = SHARES
            await page.until(f"{ROWS} === 'crossing road 90 % car 8.0 % person 2.0 %, kerb pavement 100 %'")
            await page.screenshot(screenshots / "zones.png")
            assert await page.value(NAMES) == "crossing,kerb"
            box, picture = [
                await page.value(f"{each}.getBoundingClientRect().toJSON()")
                for each in (f"{DRAWN}[0]", part("high-street", "canvas"))
            ]
            assert abs(box["top"] - picture["top"] - 0.62 * picture["height"]) < 2
            assert abs(box["width"] - picture["width"]) < 4
        assert page.complaints == []


async def test_the_switch_is_there_with_the_zones_and_takes_them_away(tmp_path: Path) -> None:
    async with shown(tmp_path) as (page, channel):
        camera = StreetCamera(channel, "high-street", 2)
        async with running(camera):
            await page.open()
            await page.until(f"{COLOURED} === 1")
            assert await page.value(f"{SWITCH}.hidden")
            await camera.state("online", zones=ZONES)
            await page.until(f"!{SWITCH}.hidden")
            assert await page.value(SHOWN) == "block"
            await page.value(f"{SWITCH}.querySelector('input').click()")
            assert await page.value(SHOWN) == "none"
            await page.open()  # it is kept
            await page.until(f"{DRAWN}.length === 2")
            assert await page.value(SHOWN) == "none"
            await camera.state("online")
            await page.until(f"{SWITCH}.hidden")
            assert await page.value(f"{DRAWN}.length") == 0
        assert page.complaints == []


async def test_on_a_phone_zones_make_nothing_wider(tmp_path: Path, screenshots: Path) -> None:
    async with shown(tmp_path) as (page, channel):
        camera = StreetCamera(channel, "high-street", 2)
        async with running(camera):
            await opened(page, camera, PHONE)
            camera.zones = SHARES
            await page.until(f"{ROWS}.startsWith('crossing')")
            await page.screenshot(screenshots / "zones-phone.png")
            assert await page.value("document.documentElement.scrollWidth <= innerWidth")
        assert page.complaints == []


def test_zones_reach_browsers_with_states_and_statistics_and_wrong_ones_do_not() -> None:
    wall = Wall()
    state = {"state": "online", "zones": ZONES}
    [update] = wall.take(Message("high-street/state", json.dumps(state).encode()))
    assert json.loads(update.payload)["state"]["zones"] == ZONES
    [update] = wall.take(Message("high-street/stats", json.dumps({"zones": SHARES}).encode()))
    assert json.loads(update.payload)["stats"]["zones"] == SHARES
    wrong = {"state": "online", "zones": {"<b>": ZONES["kerb"]}}
    assert wall.take(Message("high-street/state", json.dumps(wrong).encode())) == []
