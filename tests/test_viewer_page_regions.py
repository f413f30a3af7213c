"""The page says how each region was coded and how the data rate went, in a real browser."""

import asyncio
from pathlib import Path

import pytest
from browser import COLOURED, DESKTOP, Page
from viewing import Clock, StreetCamera, part, running, shown

from pipeline.messages import Kind
from pipeline.transport.memory import MemoryChannel

KEY, WARP = Kind.KEY, Kind.WARP
TOGGLE = "document.querySelector('[name=regions]').click()"
CHECKED = "document.querySelector('[name=regions]').checked"

COUNT_FLASHES = """{
  window.flashes = 0;
  const animate = Element.prototype.animate;
  Element.prototype.animate = function (...how) {
    window.flashes += 1;
    return animate.apply(this, how);
  };
}"""
FLASHES = "window.flashes"


def kinds_of(camera: str) -> str:
    """How the regions over a camera's picture say they were coded."""
    return f"[...{part(camera, '.regions')}.children].map(cell => cell.dataset.kind).join(' ')"


async def test_regions_say_how_they_were_coded_while_the_toggle_is_on(tmp_path: Path, screenshots: Path) -> None:
    async with shown(tmp_path) as (page, channel):
        one, two = StreetCamera(channel, "high-street", 2), StreetCamera(channel, "station-road", 3)
        one.kinds, two.kinds = (KEY, WARP, WARP, None), (WARP,) * 4
        async with running(one, two):
            await page.resize(DESKTOP)
            await page.open()
            await page.until(f"{COLOURED} === 2")
            assert await page.value(f"getComputedStyle({part('high-street', '.regions')}).display") == "none"
            await page.value(TOGGLE)
            await page.until(f"{kinds_of('high-street')} === 'key flow flow unchanged'")
            await page.until(f"{kinds_of('station-road')} === 'flow flow flow flow'")
            two.kinds = (WARP, WARP, WARP, KEY)
            await page.until(f"{kinds_of('station-road')} === 'flow flow flow key'")
            await page.screenshot(screenshots / "regions.png")
            cells = await page.value(
                f"[...{part('high-street', '.regions')}.children].map(cell => cell.getBoundingClientRect().toJSON())"
            )
            box = await page.value(f"{part('high-street', 'canvas')}.getBoundingClientRect().toJSON()")
            assert [cell["x"] - box["x"] for cell in cells] == pytest.approx([0, box["width"] / 2] * 2, abs=1)
            assert [cell["y"] - box["y"] for cell in cells] == pytest.approx(
                [0, 0, box["height"] / 2, box["height"] / 2], abs=1
            )
            await page.value(TOGGLE)
            assert await page.value(f"getComputedStyle({part('high-street', '.regions')}).display") == "none"
        assert page.complaints == []


async def toggled(page: Page, channel: MemoryChannel, kinds: tuple[Kind, ...]) -> StreetCamera:
    """A camera of a 2x2 grid whose first picture is on the page, with the toggle on."""
    camera = StreetCamera(channel, "high-street", 2)
    camera.kinds = kinds
    await camera.picture()
    await page.open()
    await page.until(f"{COLOURED} === 1")
    await page.value(TOGGLE)
    return camera


async def test_a_region_flashes_when_a_key_comes_but_not_all_the_time(tmp_path: Path) -> None:
    async with shown(tmp_path) as (page, channel):
        camera = await toggled(page, channel, (WARP, WARP, WARP, WARP))
        await page.until(f"{kinds_of('high-street')} === 'flow flow flow flow'")
        await page.value(COUNT_FLASHES)
        camera.kinds = (WARP, KEY, WARP, KEY)
        await camera.picture()
        await page.until(f"{FLASHES} === 2")
        camera.kinds = (None, KEY, WARP, KEY)  # a KEY after a KEY is no news
        await camera.picture()
        await page.until(f"{kinds_of('high-street')} === 'unchanged key flow key'")
        assert await page.value(FLASHES) == 2
        assert page.complaints == []


async def test_a_key_that_is_over_before_it_can_be_read_flashes_too(tmp_path: Path) -> None:
    async with shown(tmp_path) as (page, channel):
        camera = await toggled(page, channel, (WARP, WARP, WARP, WARP))
        await page.until(f"{kinds_of('high-street')} === 'flow flow flow flow'")
        await page.value(COUNT_FLASHES)
        for kinds in ((WARP, WARP, KEY, WARP), (WARP, WARP, WARP, WARP), (None, WARP, WARP, WARP)):
            camera.kinds = kinds
            await camera.picture(preview=False)
        await page.until(f"{kinds_of('high-street')} === 'unchanged flow flow flow'")
        assert await page.value(FLASHES) == 1
        assert page.complaints == []


async def test_a_camera_that_tells_no_regions_has_none_drawn(tmp_path: Path) -> None:
    async with shown(tmp_path) as (page, channel):
        camera = await toggled(page, channel, (KEY, KEY, KEY, KEY))
        await page.until(f"{kinds_of('high-street')} === 'key key key key'")
        camera.kinds = ()
        await camera.picture()
        await page.until(f"{kinds_of('high-street')} === ''")
        assert page.complaints == []


async def test_the_toggle_is_kept_for_the_next_time(tmp_path: Path) -> None:
    async with shown(tmp_path) as (page, _):
        await page.open()
        assert await page.value(CHECKED) is False
        await page.value(TOGGLE)
        await page.open()
        assert await page.value(CHECKED) is True
        assert await page.value("document.body.classList.contains('coded')")
        assert page.complaints == []


async def test_data_rate_of_the_last_minute_is_drawn_with_its_scale_also_for_who_comes_late(tmp_path: Path) -> None:
    clock = Clock()
    async with shown(tmp_path, clock) as (page, channel):
        camera = StreetCamera(channel, "high-street", 2)
        await camera.tell_the_past(clock)
        await page.open()
        await page.until(f"({part('high-street', '.line')}?.getAttribute('d') ?? '').length > 300")
        points = await page.value(f"{part('high-street', '.line')}.getAttribute('d').slice(1).split('L')")
        columns = [float(point.split()[0]) for point in points]
        assert 57 <= len(columns) <= 60
        assert columns == sorted(columns)
        assert 0 <= columns[0] < 10
        assert 230 < columns[-1] <= 240
        assert float(await page.value(f"{part('high-street', '.top')}.textContent")) in (200, 300)
        words = await page.value(f"{part('high-street', '.curve svg')}.getAttribute('aria-label')")
        assert words.startswith("Data rate over the last 60 seconds: 1")
        assert float(await page.value(f"{part('high-street', '.kbit')}.textContent")) == float(words.split()[-1])
        assert await page.value(f"{part('high-street', '.keys')}.parentElement.textContent") == "13 %"
        assert page.complaints == []


async def test_data_rate_is_not_drawn_where_nothing_was_reported(tmp_path: Path) -> None:
    clock = Clock()
    async with shown(tmp_path, clock) as (page, channel):
        camera = StreetCamera(channel, "high-street", 2)
        for clock.behind_ms in (40_000, 39_000, 38_000, 12_000, 11_000):
            await camera.stats()
        await asyncio.sleep(0.02)
        clock.behind_ms = 0
        await page.open()
        await page.until(f"({part('high-street', '.line')}?.getAttribute('d') ?? '').split('M').length === 3")
        await page.until(f"{part('high-street', '.line')}.getAttribute('d').split('L').length === 4")
        assert page.complaints == []
