"""Addresses of gateways and of STUN and TURN servers: what is read, what is refused, and that secrets stay secret."""

from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from pipeline.transport.webrtc_address import (
    IceServer,
    WebRtcAddress,
    WebRtcOptions,
    parse_ice_url,
    parse_webrtc_url,
)


@pytest.mark.parametrize(
    ("url", "address", "base"),
    [
        ("webrtc+http://gate", WebRtcAddress("gate", 8090), "http://gate:8090"),
        ("webrtc+http://t%40k@gate:81/", WebRtcAddress("gate", 81, token="t@k"), "http://gate:81"),
        ("webrtc+https://t@gate", WebRtcAddress("gate", 443, token="t", tls=True), "https://gate:443"),
        ("webrtc+http://[::1]:80", WebRtcAddress("::1", 80), "http://[::1]:80"),
        (
            "webrtc+https://gate?ca=/etc/ca.pem",
            WebRtcAddress("gate", 443, tls=True, ca=Path("/etc/ca.pem")),
            "https://gate:443",
        ),
    ],
)
def test_address_is_read(url: str, address: WebRtcAddress, base: str) -> None:
    assert parse_webrtc_url(url) == address
    assert address.base_url == base


@pytest.mark.parametrize(
    "url",
    [
        "webrtc://secret@gate",
        "http://secret@gate",
        "webrtc+http://secret@",
        "webrtc+http://secret@gate:99999",
        "webrtc+http://secret@gate:port",
        "webrtc+http://user:secret@gate",
        "webrtc+http://secret@gate/path",
        "webrtc+http://secret@gate?version=5",
        "webrtc+http://secret@gate#here",
        "webrtc+http://secret%20@gate",
        "webrtc+http://secret%0A@gate",
        "webrtc+http://@gate",
    ],
)
def test_wrong_address_is_refused_without_telling_the_token(url: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_webrtc_url(url)
    assert "secret" not in str(raised.value)


def test_a_certificate_file_for_a_connection_that_checks_none_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"of gate: \?ca= .* only webrtc\+https://"):
        parse_webrtc_url("webrtc+http://token@gate?ca=/etc/ca.pem")


def test_port_0_is_refused() -> None:
    with pytest.raises(ConfigError, match="of gate: port 0"):
        parse_webrtc_url("webrtc+http://token@gate:0")


def test_no_text_of_an_address_or_of_options_holds_a_secret() -> None:
    server = parse_ice_url("turn:me:secret@relay")
    options = WebRtcOptions(token="secret", ice_servers=(server,))
    for value in (parse_webrtc_url("webrtc+http://secret@gate"), server, options):
        assert "secret" not in f"{value} {value!r}"


@pytest.mark.parametrize(
    ("url", "server"),
    [
        ("stun:stun.example", IceServer("stun:stun.example")),
        ("stun:stun.example:3478", IceServer("stun:stun.example:3478")),
        ("turn:me:pass@relay", IceServer("turn:relay", "me", "pass")),
        ("turn://me:p%40ss@relay:80?transport=tcp", IceServer("turn:relay:80?transport=tcp", "me", "p@ss")),
        ("turns:me:pass@relay:443", IceServer("turns:relay:443", "me", "pass")),
    ],
)
def test_ice_server_is_read(url: str, server: IceServer) -> None:
    assert parse_ice_url(url) == server


@pytest.mark.parametrize(
    "url",
    [
        "http://relay",
        "stun:",
        "turn:relay",
        "turn:me@relay",
        "turn:me:secret@",
        "turn:me:secret@relay?transport=sctp",
        "turn:me:secret@relay:port",
        "turn:me:secret@relay/path",
        "turns:me:secret@relay?transport=udp",
        "stun:me:secret@relay",
        "stun:relay?transport=udp",
    ],
)
def test_wrong_ice_server_is_refused_without_telling_its_password(url: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_ice_url(url)
    assert "secret" not in str(raised.value)


def test_certificate_file_that_is_missing_is_named() -> None:
    with pytest.raises(ConfigError, match=r"missing\.pem"):
        parse_webrtc_url("webrtc+https://gate?ca=missing.pem").tls_context()
    assert parse_webrtc_url("webrtc+http://gate").tls_context() is None
    assert parse_webrtc_url("webrtc+https://gate").tls_context() is not None
