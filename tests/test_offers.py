"""Where offers are taken: who is told what when the gateway starts, and who gets in."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from channels import LIMIT_S, until
from servers import free_port
from structlog.testing import capture_logs

from nodes import offers as module
from nodes.offers import taking_offers
from pipeline import metrics
from pipeline.config import WebRtcGatewaySection
from pipeline.errors import ConfigError
from pipeline.transport import open_channel
from pipeline.transport.address import is_loopback
from pipeline.transport.webrtc_address import WebRtcOptions

NO_TEXT = {"Authorization": b"Bearer \xff\xfe".decode(errors="surrogateescape")}

REQUEST = "POST /webrtc/cam-1 HTTP/1.1\r\nHost: x\r\nContent-Type: application/sdp\r\n"


def warnings(lines: list[dict[str, object]]) -> list[object]:
    return [line["event"] for line in lines if line["log_level"] == "warning"]


async def started(settings: WebRtcGatewaySection) -> list[object]:
    """What was warned of while the gateway began to take offers."""
    async with AsyncExitStack() as ending:
        with capture_logs() as lines:
            await ending.enter_async_context(taking_offers(settings, packet_bytes=65_536, changed=lambda: None))
        return warnings(lines)


@asynccontextmanager
async def opened(port: int, *beginnings: str) -> AsyncIterator[list[asyncio.StreamReader]]:
    """Connections over which so much is sent and then no more."""
    ends = [await asyncio.open_connection("127.0.0.1", port) for _ in beginnings]
    try:
        for (_, writer), beginning in zip(ends, beginnings, strict=True):
            writer.write(beginning.encode())
        yield [reader for reader, _ in ends]
    finally:
        for _, writer in ends:
            writer.transport.abort()


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("127.9.9.9", True), ("0.0.0.0", False), ("::", False)],
)
def test_loopback_is_known(host: str, loopback: bool) -> None:
    assert is_loopback(host) == loopback


async def test_a_gateway_that_takes_any_camera_from_the_network_says_so(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("cam-1 abc\n")
    open_to_all = WebRtcGatewaySection(port=free_port(), host="0.0.0.0")
    assert any("any camera may come" in str(text) for text in await started(open_to_all))
    assert await started(open_to_all.model_copy(update={"tokens_file": tokens})) == []
    assert await started(open_to_all.model_copy(update={"host": "127.0.0.1"})) == []


async def test_only_a_camera_with_its_token_gets_in(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("cam-1 abc\n")
    settings = WebRtcGatewaySection(port=free_port(), tokens_file=tokens)
    async with taking_offers(settings, packet_bytes=65_536, changed=lambda: None) as server:
        url = f"http://127.0.0.1:{settings.port}/webrtc/cam-1"
        async with aiohttp.ClientSession() as client:
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic abc"}, NO_TEXT):
                async with client.post(url, data="v=0", headers=headers) as answer:
                    assert answer.status == 401
        options = WebRtcOptions(token="abc")
        async with open_channel(f"webrtc+http://127.0.0.1:{settings.port}", camera="cam-1", webrtc=options) as camera:
            await camera.wait_connected(LIMIT_S)
            assert [session.camera for session in server.sessions()] == ["cam-1"]


@pytest.mark.parametrize("token", ["abc", "wrong"])
@pytest.mark.parametrize(
    ("header", "body"),
    [
        ("Content-Length: 100", b"v=0"),
        ("Content-Length: 100", b""),
        ("Content-Encoding: gzip\r\nContent-Length: 5", b"hello"),
    ],
)
async def test_an_offer_that_does_not_come_whole_is_nothing_for_a_person_at_night(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, token: str, header: str, body: bytes
) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("cam-1 abc\n")
    settings = WebRtcGatewaySection(port=free_port(), tokens_file=tokens)
    request = f"POST /webrtc/cam-1 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
    request += f"Content-Type: application/sdp\r\n{header}\r\n\r\n"
    async with taking_offers(settings, packet_bytes=65_536, changed=lambda: None):
        _, writer = await asyncio.open_connection("127.0.0.1", settings.port)
        writer.write(request.encode() + body)
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.transport.abort()
        await asyncio.sleep(0.05)
    assert [record.getMessage() for record in caplog.records if record.name.startswith("aiohttp")] == []


@pytest.mark.parametrize("beginning", ["", "POST /webrtc/cam-1 HT", REQUEST])
async def test_a_connection_over_which_no_request_comes_is_soon_closed(
    monkeypatch: pytest.MonkeyPatch, beginning: str
) -> None:
    monkeypatch.setattr(module, "_REQUEST_S", 0.3)
    settings, closed = WebRtcGatewaySection(port=free_port()), metrics.DROPS.labels("webrtc", "request_slow")._value
    before = closed.get()
    async with (
        taking_offers(settings, packet_bytes=65_536, changed=lambda: None),
        opened(settings.port, beginning) as (reader,),
        asyncio.timeout(LIMIT_S),
    ):
        assert await reader.read() == b""
    assert closed.get() == before + 1


@pytest.mark.parametrize("beginning", ["", f"{REQUEST}Content-Length: 100\r\n\r\n"])
async def test_a_camera_gets_in_however_many_connections_others_hold_open(tmp_path: Path, beginning: str) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("cam-1 abc\n")
    settings = WebRtcGatewaySection(port=free_port(), tokens_file=tokens)
    options, closed = WebRtcOptions(token="abc"), metrics.DROPS.labels("webrtc", "too_many_connections")._value
    before = closed.get()
    async with (
        taking_offers(settings, packet_bytes=65_536, changed=lambda: None),
        opened(settings.port, *[beginning] * 300) as readers,
        open_channel(f"webrtc+http://127.0.0.1:{settings.port}", camera="cam-1", webrtc=options) as camera,
    ):
        await camera.wait_connected(LIMIT_S)
        assert closed.get() >= before + 300 - 128
        async with asyncio.timeout(LIMIT_S):
            for reader in readers[: 300 - 128]:
                await reader.read()


async def test_an_offer_that_is_coming_makes_no_way_for_other_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CONNECTIONS", 8)
    settings, closed = (
        WebRtcGatewaySection(port=free_port()),
        metrics.DROPS.labels("webrtc", "too_many_connections")._value,
    )
    async with (
        taking_offers(settings, packet_bytes=65_536, changed=lambda: None),
        asyncio.timeout(LIMIT_S),
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", settings.port)
        writer.write(f"{REQUEST}Content-Length: 3\r\nExpect: 100-continue\r\n\r\n".encode())
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        before = closed.get()
        async with opened(settings.port, *[""] * 20):
            await until(lambda: closed.get() == before + 13)
            writer.write(b"v=0")
            assert (await reader.read()).startswith(b"HTTP/1.1 400")
        writer.close()


async def test_a_connection_ends_with_its_answer() -> None:
    settings = WebRtcGatewaySection(port=free_port())
    async with (
        taking_offers(settings, packet_bytes=65_536, changed=lambda: None),
        opened(settings.port, f"{REQUEST}Content-Length: 3\r\n\r\nv=0", "GET / HTTP/1.1\r\nHost: x\r\n\r\n") as readers,
        asyncio.timeout(LIMIT_S),
    ):
        answers = [await reader.read() for reader in readers]
    assert [answer.split(b" ", 2)[1] for answer in answers] == [b"400", b"404"]
    assert all(b"connection: close" in answer.lower() for answer in answers)


@pytest.mark.parametrize(
    "sent",
    [
        "POST / HTTP/9.9\r\n\r\n",
        "POST / HTTP/1.1\r\nno header\r\n\r\n",
        f"GET / HTTP/1.1\r\nHost: {'x' * 9000}\r\n\r\n",
        "\x16\x03\x01",  # TLS, on a port without
    ],
)
async def test_what_is_no_http_is_counted_and_nothing_for_the_log(caplog: pytest.LogCaptureFixture, sent: str) -> None:
    settings, counted = WebRtcGatewaySection(port=free_port()), metrics.DROPS.labels("webrtc", "request")._value
    before = counted.get()
    async with (
        taking_offers(settings, packet_bytes=65_536, changed=lambda: None),
        opened(settings.port, sent) as (reader,),
        asyncio.timeout(LIMIT_S),
    ):
        assert (await reader.read()).startswith(b"HTTP/1.0 400")
    assert counted.get() == before + 1
    assert [record.getMessage() for record in caplog.records if record.name.startswith("aiohttp")] == []


async def test_a_port_that_is_taken_is_an_error_that_names_the_settings() -> None:
    settings = WebRtcGatewaySection(port=free_port())
    async with taking_offers(settings, packet_bytes=65_536, changed=lambda: None):
        with pytest.raises(ConfigError, match=r"webrtc\.port"):
            await started(settings)
    with pytest.raises(ConfigError, match=r"webrtc\.host"):
        await started(WebRtcGatewaySection(port=free_port(), host="203.0.113.7"))


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"tokens_file": Path("/nowhere/tokens")}, "/nowhere/tokens"),
        ({"ice_servers": ("turn:h",)}, "ICE server"),
        ({"ice_servers": ("stun:host", "stun:other")}, "one stun:"),
    ],
)
async def test_wrong_settings_are_named_at_the_start(changed: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        await started(WebRtcGatewaySection(port=free_port()).model_copy(update=changed))
