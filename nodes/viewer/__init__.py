"""The viewer node: masks, stats and states from the broker, on a page."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial

import structlog
from aiohttp import web

from nodes.service import now_ms, until_connected
from nodes.viewer.access import Access
from nodes.viewer.feed import Feed
from nodes.viewer.server import Site
from nodes.viewer.state import FILTERS, NODE_FILTERS, Wall
from pipeline.config import ViewerSection, ViewerSettings
from pipeline.errors import ConfigError
from pipeline.metrics import drop
from pipeline.transport import Channel, Message, open_channel

_log = structlog.get_logger()
_PULSE_S = 1.0  # the page takes a feed that is silent for some of these as lost
_SAID_AGAIN_S = 5.0  # after which a broker has told what it keeps, and cameras are back that were not away for long
_LOOK_S = 0.025  # shorter than any pause between two connections to a broker
_SHUTDOWN_TIMEOUT_S = 2.0


async def main(settings: ViewerSettings) -> None:
    """Serve the page until cancelled; raises ConfigError."""
    channel = open_channel(settings.mqtt_url, root=settings.mqtt.root, on_drop=partial(drop, "viewer", "behind"))
    async with channel, page_of(settings.viewer, channel) as address:
        _log.info("the page is up", address=address)
        await asyncio.Event().wait()


def page_of(settings: ViewerSection, channel: Channel) -> AbstractAsyncContextManager[str]:
    """The page that the settings ask for; gives its address."""
    return serve(
        channel,
        host=settings.host,
        port=settings.port,
        browser_limit=settings.browsers,
        origins=settings.origins,
    )


@asynccontextmanager
async def serve(
    channel: Channel,
    *,
    host: str,
    port: int,
    browser_limit: int = 32,
    camera_limit: int = 256,
    origins: Sequence[str] = (),
    now_ms: Callable[[], int] = now_ms,
) -> AsyncIterator[str]:
    """Serve what the channel brings, until the context is left; gives the page's address.

    Port 0 takes a free one. Raises ConfigError when the address cannot be listened on.
    """
    wall, feed = Wall(camera_limit=camera_limit, now_ms=now_ms), Feed(limit=browser_limit)
    site = Site(wall, feed, channel=channel, access=Access(origins, host=host), now_ms=now_ms)
    runner = web.AppRunner(site.application(), access_log=None, shutdown_timeout=_SHUTDOWN_TIMEOUT_S)
    await runner.setup()
    try:
        address = await _listen(runner, host=host, port=port)
        async with asyncio.TaskGroup() as tasks:
            running = [
                tasks.create_task(_receive(channel.subscribe(*FILTERS), wall, feed)),
                tasks.create_task(_follow_nodes(channel, wall, feed, site=site)),
                tasks.create_task(_pulse(feed, site)),
            ]
            try:
                yield address
            finally:
                for task in running:
                    task.cancel()
    finally:
        await runner.cleanup()


async def _listen(runner: web.AppRunner, *, host: str, port: int) -> str:
    """Listen, and return the address to open in a browser."""
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        raise ConfigError(
            f"viewer: cannot listen on {host}:{port} ({error.strerror}); give another address or port"
        ) from error
    shown = "localhost" if host in ("", "0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    return f"http://{shown}:{runner.addresses[0][1]}"


async def _receive(messages: AsyncIterator[Message], wall: Wall, feed: Feed) -> None:
    async for message in messages:
        feed.send(wall.take(message))


async def _follow_nodes(channel: Channel, wall: Wall, feed: Feed, *, site: Site) -> None:
    """Hear of all nodes anew with each connection: a broker that was away may have forgotten some."""
    while True:
        await until_connected(channel)
        feed.send([site.about_viewer()])
        async with asyncio.TaskGroup() as connection:
            hearing = connection.create_task(_receive(channel.subscribe(*NODE_FILTERS), wall, feed))
            forgetting = connection.create_task(_forget_doubtful(wall, feed))
            await _until_lost(channel)
            hearing.cancel()
            forgetting.cancel()
        feed.send([site.about_viewer(), *wall.lose_touch()])


async def _forget_doubtful(wall: Wall, feed: Feed) -> None:
    await asyncio.sleep(_SAID_AGAIN_S)
    feed.send(wall.forget_doubtful())


async def _until_lost(channel: Channel) -> None:
    while channel.connected:  # noqa: ASYNC110 - a channel that loses its connection sends no signal
        await asyncio.sleep(_LOOK_S)


async def _pulse(feed: Feed, site: Site) -> None:
    while True:
        feed.send([site.about_viewer()])
        await asyncio.sleep(_PULSE_S)
