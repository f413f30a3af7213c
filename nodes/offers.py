"""Where cameras' WebRTC offers are taken: the HTTP server of the gateway, and who may come."""

import asyncio
import ipaddress
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import structlog
from aiohttp import web

from nodes.tokens import Tokens
from pipeline import metrics
from pipeline.config import WebRtcGatewaySection
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.transport.webrtc_server import WebRtcServer

_SHUTDOWN_S = 1.0

log = structlog.get_logger()


@asynccontextmanager
async def taking_offers(
    settings: WebRtcGatewaySection, *, packet_bytes: int, changed: Callable[[], None]
) -> AsyncIterator["WebRtcServer"]:
    """Take cameras until the context is left; `changed` is called when one came, went or wants something else.

    Raises ConfigError for tokens, addresses or ports that cannot be used.
    """
    # Only where it is used: WebRTC takes long to load, and memory.
    from pipeline.transport.webrtc_address import WebRtcOptions, parse_ice_servers
    from pipeline.transport.webrtc_server import WebRtcLimits, WebRtcServer

    tokens = None if settings.tokens_file is None else Tokens(settings.tokens_file)
    if tokens is not None:
        await tokens.read()
    elif not is_loopback(settings.host):
        log.warning("any camera may come over WebRTC: give webrtc.tokens_file", host=settings.host)
    options = WebRtcOptions(ice_servers=parse_ice_servers(settings.ice_servers), packet_bytes=packet_bytes)
    server = WebRtcServer(
        accepts=tokens.accepts if tokens else lambda camera, token: True,
        options=options,
        limits=WebRtcLimits(sessions=settings.sessions),
        on_drop=partial(metrics.drop, "gateway", "behind"),
        changed=changed,
    )
    async with server, _listening(server, host=settings.host, port=settings.port), asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(tokens.watch()) if tokens else None
        yield server
        if watching is not None:
            watching.cancel()


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@asynccontextmanager
async def _listening(server: "WebRtcServer", *, host: str, port: int) -> AsyncIterator[None]:
    app = web.Application()
    app.add_routes(server.routes())
    # Offers are short: whoever sends one packed wants to fill our memory, or our log.
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=_SHUTDOWN_S, auto_decompress=False)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            raise ConfigError(
                f"gateway: cannot listen on {host}:{port} for WebRTC ({error.strerror}); give another webrtc.host or "
                "webrtc.port"
            ) from error
        log.info("cameras are taken over WebRTC", address=f"{host}:{port}")
        yield
    finally:
        await runner.cleanup()
