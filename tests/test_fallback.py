"""A channel that falls back to a second one: when it does, what it takes along, and how it returns."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Self

import pytest
import structlog
from channels import LIMIT_S, quiet, take, until

from pipeline.errors import ConfigError, PipelineError, TransportError
from pipeline.transport import CONTROL, STATE, Channel, Delivery, open_channel
from pipeline.transport.fallback import FallbackChannel
from pipeline.transport.memory import MemoryBroker, MemoryChannel

SOON_S = 0.3


class Link:
    """A first channel whose connection a test cuts and mends; it keeps retained messages for its connections."""

    def __init__(self, broker: MemoryBroker) -> None:
        self.up = True
        self._inner = MemoryChannel(broker)
        self._kept: dict[str, tuple[bytes, Delivery]] = {}
        self.dropped = 0

    async def __aenter__(self) -> "Link":
        await self._inner.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._inner.__aexit__(None, None, None)

    @property
    def connected(self) -> bool:
        return self.up

    async def wait_connected(self, timeout_s: float) -> None:
        if not self.up:
            raise TransportError("cut")

    async def publish(self, topic: str, payload: bytes, delivery: Delivery = CONTROL) -> None:
        if self.up:
            await self._inner.publish(topic, payload, delivery)
        elif delivery.retain:
            self._kept[topic] = (payload, delivery)
        else:
            raise TransportError("cut")

    def subscribe(self, *filters: str) -> AsyncIterator[object]:
        return self._inner.subscribe(*filters)

    async def mend(self) -> None:
        self.up = True
        for topic, (payload, delivery) in self._kept.items():
            await self._inner.publish(topic, payload, delivery)


class Site:
    """A gateway's broker and the other one, and who listens at each."""

    def __init__(self) -> None:
        self.gateway, self.broker = MemoryBroker(), MemoryBroker()
        self.link = Link(self.gateway)
        self.opened: list[MemoryChannel] = []
        self.refusal: PipelineError | None = None  # of the second channel to be entered
        self.refused = 0

    def open_second(self) -> Channel:
        self.opened.append(Second(self))
        return self.opened[-1]


class Second(MemoryChannel):
    """A channel to the other broker that cannot be entered while its site says so."""

    def __init__(self, site: Site) -> None:
        super().__init__(site.broker)
        self._site = site

    async def __aenter__(self) -> Self:
        if self._site.refusal is not None:
            self._site.refused += 1
            raise self._site.refusal
        return await super().__aenter__()


@asynccontextmanager
async def opened(site: Site, *, again_s: float = 60.0) -> AsyncIterator[FallbackChannel]:
    channel = FallbackChannel(site.link, site.open_second, after_s=SOON_S, back_s=SOON_S, again_s=again_s)
    async with channel:
        yield channel


def text_of(messages: list[object]) -> list[bytes]:
    return [message.payload for message in messages]  # type: ignore[attr-defined]


async def test_while_the_first_is_there_the_second_is_not_opened() -> None:
    site = Site()
    async with opened(site) as channel, MemoryChannel(site.gateway) as reader, MemoryChannel(site.broker) as other:
        arriving, elsewhere = reader.subscribe("#"), other.subscribe("#")
        await asyncio.sleep(3 * SOON_S)
        assert channel.connected
        await channel.publish("cam-1/latent", b"packet")
        assert text_of(await take(arriving)) == [b"packet"]
        assert await quiet(elsewhere, 0.05)
        assert not any(each.connected for each in site.opened)


async def test_a_short_cut_loses_the_connection_and_nothing_falls_back() -> None:
    site = Site()
    async with opened(site) as channel:
        site.link.up = False
        assert not channel.connected
        with pytest.raises(TransportError):
            await channel.publish("cam-1/latent", b"packet")
        with pytest.raises(TransportError, match="neither"):
            await channel.wait_connected(0.05)
        site.link.up = True
        await asyncio.sleep(2 * SOON_S)
        assert not any(each.connected for each in site.opened)


async def test_after_a_while_without_the_first_the_second_carries_all_and_what_is_retained_too() -> None:
    site = Site()
    site.link.up = False
    async with opened(site) as channel, MemoryChannel(site.broker) as reader:
        arriving, commands = reader.subscribe("#"), channel.subscribe("cam-1/control")
        await channel.publish("cam-1/state", b"online", STATE)
        await channel.wait_connected(LIMIT_S)
        await channel.publish("cam-1/latent", b"packet")
        assert text_of(await take(arriving, 2)) == [b"online", b"packet"]
        later = channel.subscribe("cam-1/mask")
        await reader.publish("cam-1/control", b"key")
        await reader.publish("cam-1/mask", b"mask")
        assert text_of(await take(commands)) == [b"key"]
        assert text_of(await take(later)) == [b"mask"]


async def test_when_the_first_is_back_it_is_used_again_and_the_second_closed() -> None:
    site = Site()
    site.link.up = False
    async with opened(site) as channel, MemoryChannel(site.gateway) as reader:
        arriving, commands = reader.subscribe("#"), channel.subscribe("cam-1/control")
        await channel.wait_connected(LIMIT_S)
        await channel.publish("cam-1/state", b"online", STATE)
        await site.link.mend()
        assert text_of(await take(arriving)) == [b"online"]
        assert channel.connected
        await until(lambda: not channel.connected)  # so that the camera begins anew
        await until(lambda: channel.connected)
        await until(lambda: not any(each.connected for each in site.opened))
        await channel.publish("cam-1/latent", b"packet")
        assert text_of(await take(arriving, 2)) == [b"online", b"packet"]  # the broker was told last that it is there
        await reader.publish("cam-1/control", b"key")
        assert text_of(await take(commands)) == [b"key"]
        site.link.up = False
        await channel.wait_connected(LIMIT_S)
        assert [each.connected for each in site.opened] == [False, True]


async def test_a_word_of_the_gateway_that_comes_late_does_not_stand() -> None:
    site = Site()
    site.link.up = False
    async with opened(site, again_s=0.05) as channel, MemoryChannel(site.broker) as other:
        await channel.wait_connected(LIMIT_S)
        await channel.publish("cam-1/state", b"online", STATE)
        await other.publish("cam-1/state", b"offline", STATE)
        await until(lambda: site.broker.retained["maskcast/cam-1/state"] == b"online")


async def test_a_word_of_the_broker_that_comes_after_the_return_does_not_stand() -> None:
    site = Site()
    site.link.up = False
    async with opened(site, again_s=0.05) as channel, MemoryChannel(site.gateway) as other:
        await channel.publish("cam-1/state", b"online", STATE)
        await channel.wait_connected(LIMIT_S)
        await site.link.mend()
        await until(lambda: len(site.opened) == 2)
        await other.publish("cam-1/state", b"offline", STATE)
        await until(lambda: site.gateway.retained["maskcast/cam-1/state"] == b"online")


async def test_closing_ends_subscriptions_and_both_channels() -> None:
    site = Site()
    site.link.up = False
    async with opened(site) as channel:
        reader = channel.subscribe("#")
        await channel.wait_connected(LIMIT_S)
    with pytest.raises(StopAsyncIteration):
        await anext(reader)
    assert not any(each.connected for each in site.opened)
    assert len(asyncio.all_tasks()) == 1


async def test_a_subscription_that_is_forgotten_is_read_no_more() -> None:
    site = Site()
    async with opened(site) as channel, MemoryChannel(site.gateway) as sender:
        before = len(asyncio.all_tasks())
        for _ in range(20):
            channel.subscribe("#")
        await sender.publish("cam-1/control", b"x")
        await until(lambda: len(asyncio.all_tasks()) == before)


def test_a_wrong_second_address_is_known_at_the_start() -> None:
    def refuse() -> Channel:
        raise ConfigError("no such address")

    with pytest.raises(ConfigError):
        FallbackChannel(MemoryChannel(MemoryBroker()), refuse)


async def test_a_certificate_file_of_the_second_that_is_missing_is_known_on_entering(tmp_path: Path) -> None:
    site = Site()
    opening = partial(open_channel, f"mqtts://127.0.0.1:1?ca={tmp_path}/none.pem")
    with pytest.raises(ConfigError, match=r"none\.pem"):
        async with FallbackChannel(site.link, opening):
            raise AssertionError("entered")
    assert len(asyncio.all_tasks()) == 1


@pytest.mark.parametrize("error", [ConfigError("no certificates"), TransportError("no network")])
async def test_a_second_that_cannot_be_entered_is_not_there_and_tried_again_later(error: PipelineError) -> None:
    site = Site()
    site.link.up, site.refusal = False, error
    with structlog.testing.capture_logs() as logs:
        async with opened(site, again_s=0.05) as channel, MemoryChannel(site.broker) as reader:
            arriving = reader.subscribe("#")
            await until(lambda: site.refused > 2)
            assert not channel.connected
            site.refusal = None
            await channel.wait_connected(LIMIT_S)
            await channel.publish("cam-1/latent", b"packet")
            assert text_of(await take(arriving)) == [b"packet"]
    reasons = [line.get("reason") for line in logs if line["log_level"] == "warning"]
    assert reasons == [str(error), None]  # said once, and when it is used at last


async def test_while_a_second_cannot_be_entered_the_first_is_used_as_soon_as_it_is_back() -> None:
    site = Site()
    site.link.up, site.refusal = False, ConfigError("no certificates")
    async with opened(site) as channel, MemoryChannel(site.gateway) as reader:
        arriving = reader.subscribe("#")
        await until(lambda: site.refused == 1)
        site.link.up = True
        await channel.publish("cam-1/latent", b"packet")
        assert text_of(await take(arriving)) == [b"packet"]


async def test_the_bodys_own_error_goes_up_as_it_is() -> None:
    with pytest.raises(ZeroDivisionError):
        async with opened(Site()):
            raise ZeroDivisionError
