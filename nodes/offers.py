"""Where cameras' WebRTC offers are taken: the HTTP server of the gateway, and who may come."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import structlog
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from nodes.tokens import Tokens
from pipeline import metrics
from pipeline.config import WebRtcGatewaySection
from pipeline.errors import ConfigError
from pipeline.transport.address import is_loopback

if TYPE_CHECKING:
    from pipeline.transport.webrtc_server import WebRtcServer

_SHUTDOWN_S = 1.0
_CONNECTIONS = 128  # open at once: a process may usually have 1024 files, and sessions need some of them
_BACKLOG = 64  # so many more may be taken before the first of them is closed
_REQUEST_S = 5.0  # for the head of a request to arrive
_LINGER_S = 2.0  # for the rest of a request that was refused, without which the refusal is not read

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


class _Entrance:
    """The open connections: a bounded number, each for one request, and none for long over which none comes.

    Where there are too many the one goes over which none came for longest: who has an offer brings it at once.
    """

    def __init__(self) -> None:
        self._open: set[web.RequestHandler] = set()
        self._silent: dict[web.RequestHandler, asyncio.TimerHandle] = {}  # where nothing is answered, the oldest first

    def came(self, connection: web.RequestHandler) -> None:
        """Let a connection in, at the cost of another where there is no room."""
        self._open.add(connection)
        self._wait(connection)
        if len(self._open) > _CONNECTIONS:
            self._close(next(iter(self._silent)), "too_many_connections")

    def went(self, connection: web.RequestHandler) -> None:
        """Forget a connection."""
        self._open.discard(connection)
        self._wait_no_more(connection)

    @web.middleware
    async def answer(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Keep a connection while its request is answered; with the answer it ends."""
        connection = request.protocol
        self._wait_no_more(connection)
        try:
            response = await handler(request)
        except web.HTTPException as refusal:
            refusal.force_close()
            raise
        finally:
            if connection in self._open:
                self._wait(connection)
        response.force_close()
        return response

    def _wait(self, connection: web.RequestHandler) -> None:
        loop = asyncio.get_running_loop()
        self._silent[connection] = loop.call_later(_REQUEST_S, self._close, connection, "request_slow")

    def _wait_no_more(self, connection: web.RequestHandler) -> None:
        if (timer := self._silent.pop(connection, None)) is not None:
            timer.cancel()

    def _close(self, connection: web.RequestHandler, reason: str) -> None:
        metrics.drop("webrtc", reason)
        self.went(connection)
        connection.force_close()


class _Connection(asyncio.Protocol):
    """One connection: hands all on to aiohttp, which tells nobody when one comes or goes."""

    def __init__(self, inner: web.RequestHandler, entrance: _Entrance) -> None:
        self._inner, self._entrance = inner, entrance

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._inner.connection_made(transport)
        self._entrance.came(self._inner)

    def connection_lost(self, error: Exception | None) -> None:
        self._entrance.went(self._inner)
        self._inner.connection_lost(error)

    def data_received(self, data: bytes) -> None:
        self._inner.data_received(data)

    def eof_received(self) -> None:
        self._inner.eof_received()

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()


@asynccontextmanager
async def _listening(server: "WebRtcServer", *, host: str, port: int) -> AsyncIterator[None]:
    entrance = _Entrance()
    app = web.Application(middlewares=[entrance.answer])
    app.add_routes(server.routes())
    # Offers are short: whoever sends one packed wants to fill our memory, or our log.
    runner = web.AppRunner(
        app,
        access_log=None,
        logger=_faults(),
        shutdown_timeout=_SHUTDOWN_S,
        lingering_time=_LINGER_S,
        auto_decompress=False,
    )
    await runner.setup()
    try:
        async with _bound(runner, entrance, host=host, port=port):
            log.info("cameras are taken over WebRTC", address=f"{host}:{port}")
            yield
    finally:
        await runner.cleanup()


@asynccontextmanager
async def _bound(runner: web.AppRunner, entrance: _Entrance, *, host: str, port: int) -> AsyncIterator[None]:
    """Take connections; raises ConfigError where the address cannot be used."""
    handlers = runner.server
    if handlers is None:
        raise RuntimeError("the runner is not set up")
    loop = asyncio.get_running_loop()
    try:
        listening = await loop.create_server(lambda: _Connection(handlers(), entrance), host, port, backlog=_BACKLOG)
    except OSError as error:
        raise ConfigError(
            f"gateway: cannot listen on {host}:{port} for WebRTC ({error.strerror}); give another webrtc.host or "
            "webrtc.port"
        ) from error
    try:
        yield
    finally:
        listening.close()


def _faults() -> logging.Logger:
    """Where aiohttp writes what goes wrong here."""
    faults = logging.getLogger("aiohttp.server.offers")
    faults.setLevel(logging.DEBUG)  # where aiohttp tells of some of it
    faults.addFilter(_is_ours)
    return faults


def _is_ours(record: logging.LogRecord) -> bool:
    """Whether something is wrong here; it is not where others send what is no HTTP, and they may send much of it."""
    error = record.exc_info[1] if record.exc_info else None
    if not isinstance(error, HttpProcessingError):
        return True
    metrics.drop("webrtc", "request")
    return False
