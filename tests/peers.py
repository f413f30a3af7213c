"""WebRTC in tests: a gateway on a free port that can be stopped and started, and the air between all peers."""

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aioice import ice, stun
from channels import until
from prometheus_client import REGISTRY
from servers import free_port

from pipeline.transport.webrtc import WebRtcChannel
from pipeline.transport.webrtc_address import WebRtcOptions, parse_webrtc_url
from pipeline.transport.webrtc_peer import Peer
from pipeline.transport.webrtc_server import WebRtcServer, token_check
from pipeline.transport.webrtc_signalling import Answered, post_offer

TOKEN = "token-of-street"
TOKENS = {"street": TOKEN, "yard": "token-of-yard"}
SWIFT = WebRtcOptions(open_s=5.0, silence_s=1.5)


class Site:
    """Where a server's routes are mounted."""

    def __init__(self, server: WebRtcServer, port: int) -> None:
        self.server, self.port = server, port

    def channel(self, camera: str = "street", *, token: str | None = None, **options: Any) -> WebRtcChannel:
        """A camera's channel to this site, to be entered; `options` as of WebRtcChannel."""
        token = TOKENS[camera] if token is None else token
        url = f"webrtc+http://{token}@127.0.0.1:{self.port}"
        return WebRtcChannel(url, camera=camera, **{"options": SWIFT} | options)

    def url(self, camera: str = "street") -> str:
        """Where an offer goes."""
        return f"http://127.0.0.1:{self.port}/webrtc/{camera}"


@asynccontextmanager
async def serving(port: int | None = None, **options: Any) -> AsyncIterator[Site]:
    """A server of its own for cameras `street` and `yard`; `options` as of WebRtcServer."""
    port = port or free_port()
    async with WebRtcServer(**{"accepts": token_check(TOKENS), "options": SWIFT} | options) as server:
        app = web.Application()
        app.add_routes(server.routes())
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", port).start()
            yield Site(server, port)
        finally:
            await runner.cleanup()


def drops(reason: str, *, node: str = "webrtc") -> float:
    """How many things the gateway's end, or the camera's (`transport`), threw away so far, for this reason."""
    return REGISTRY.get_sample_value("maskcast_drops_total", {"node": node, "reason": reason}) or 0.0


def ignore(data: bytes) -> None:
    """Whatever came."""


def new_peer(on_message: Callable[[bytes], None] = ignore) -> Peer:
    """A bare end of a connection, to be entered."""
    return Peer(SWIFT, on_latent=ignore, on_message=on_message)


async def offered(site: Site, peer: Peer, camera: str = "street") -> Answered:
    """What the site says to the peer's offer."""
    address = parse_webrtc_url(f"webrtc+http://127.0.0.1:{site.port}")
    return await post_offer(address, camera, await peer.offer(), token=TOKENS[camera], tls=None)


@asynccontextmanager
async def stranger(site: Site, on_message: Callable[[bytes], None] = ignore) -> AsyncIterator[Peer]:
    """A peer that got in as `street` and says what the test wants."""
    async with new_peer(on_message) as peer:
        await peer.accept((await offered(site, peer)).text)
        await peer.opened()
        await until(lambda: site.server.has("street"))
        yield peer


class Air:
    """The UDP of all peers in this process: `lost` says of the n-th datagram (from 0) whether it is lost."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.lost: Callable[[int], bool] = lambda number: False
        self.delay_s = 0.0
        self._sent = 0

        async def send_data(protocol: ice.StunProtocol, data: bytes, address: tuple[str, int]) -> None:
            self._send(protocol, data, address)

        def send_stun(protocol: ice.StunProtocol, message: stun.Message, address: tuple[str, int]) -> None:
            self._send(protocol, bytes(message), address)

        patch.setattr(ice.StunProtocol, "send_data", send_data)
        patch.setattr(ice.StunProtocol, "send_stun", send_stun)

    def cut(self) -> None:
        """From now on nothing arrives."""
        self.lost = lambda number: True

    def mend(self) -> None:
        """From now on all arrives."""
        self.lost = lambda number: False

    def _send(self, protocol: ice.StunProtocol, data: bytes, address: tuple[str, int]) -> None:
        self._sent += 1
        if self.lost(self._sent - 1):
            return
        if self.delay_s == 0.0:
            protocol.transport.sendto(data, address)
        else:
            asyncio.get_running_loop().call_later(self.delay_s, _put, protocol, data, address)


def _put(protocol: ice.StunProtocol, data: bytes, address: tuple[str, int]) -> None:
    if not protocol.transport.is_closing():
        protocol.transport.sendto(data, address)


def sockets() -> int:
    """How many sockets this process has open."""
    gc.collect()
    links = []
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            links.append(str(entry.readlink()))
    return sum(link.startswith("socket:") for link in links)


def resident_kb() -> int:
    """How much memory this process holds."""
    gc.collect()
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1])
