"""How a camera leaves its gateway: of itself, though its last words come late or not at all, or thrown out."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from channels import LIMIT_S, quiet, take, until
from peers import Air, Site, serving
from structlog.testing import capture_logs

from pipeline.transport import STATE
from pipeline.transport.reconnecting import Retry


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with serving() as site:
        yield site


@pytest.fixture
def air(monkeypatch: pytest.MonkeyPatch) -> Air:
    return Air(monkeypatch)


async def retained(site: Site) -> list[bytes]:
    """What a late reader is told of all cameras' states."""
    return [message.payload for message in await take(site.server.subscribe("+/state"))]


async def test_leaving_is_quick_though_nobody_answers(site: Site, air: Air) -> None:
    async with site.channel() as camera:
        await camera.wait_connected(LIMIT_S)
        air.cut()
        begun = time.monotonic()
    assert time.monotonic() - begun < 4.0


async def test_last_word_that_is_on_its_way_over_a_slow_link_is_waited_for(site: Site, air: Air) -> None:
    states = site.server.subscribe("+/state")
    async with site.channel(will=("street/state", b"offline")) as camera:
        await camera.publish("street/state", b"online", STATE)
        await camera.wait_connected(LIMIT_S)
        await take(states)
        air.delay_s = 1.3  # longer than a camera waits for the answer to its bye
        await camera.publish("street/state", b"stopped", STATE)
    assert [message.payload for message in await take(states)] == [b"stopped"]
    await until(lambda: not site.server.has("street"))
    assert await quiet(states)
    assert await retained(site) == [b"stopped"]


async def test_camera_that_left_and_whose_last_word_was_lost_is_offline(site: Site, air: Air) -> None:
    states = site.server.subscribe("+/state")
    async with site.channel(will=("street/state", b"offline")) as camera:
        await camera.publish("street/state", b"online", STATE)
        await camera.wait_connected(LIMIT_S)
        await take(states)
        air.cut()
        await camera.publish("street/state", b"stopped", STATE)
    assert [message.payload for message in await take(states)] == [b"offline"]
    await until(lambda: not site.server.has("street"))
    assert await retained(site) == [b"offline"]


async def test_last_word_behind_a_long_packet_comes_before_the_bye(site: Site) -> None:
    states = site.server.subscribe("+/state")
    async with site.channel(will=("street/state", b"offline")) as camera:
        await camera.wait_connected(LIMIT_S)
        await camera.publish("street/latent", bytes(400_000))
        await camera.publish("street/state", b"stopped", STATE)
    assert [message.payload for message in await take(states)] == [b"stopped"]
    await until(lambda: not site.server.has("street"))
    assert await quiet(states)


async def test_being_thrown_out_again_and_again_is_told_once_until_no_other_came_for_long(site: Site) -> None:
    now_s = 0.0
    with capture_logs() as lines:
        async with site.channel(retry=Retry(refused_s=0.02), clock=lambda: now_s) as camera:
            for held_s, told in [(0.0, 1), (0.0, 1), (0.03, 1), (0.06, 2), (0.0, 2)]:
                await camera.wait_connected(LIMIT_S)
                await until(lambda: site.server.has("street"))
                now_s += held_s
                site.server._sessions["street"].make_way()  # as for another camera of its name
                await until(lambda: not camera.connected and not site.server.has("street"))
                await asyncio.sleep(0)
                rivals = [line for line in lines if "another camera of this name" in line["event"]]
                assert [line["log_level"] for line in rivals] == ["error"] * told
