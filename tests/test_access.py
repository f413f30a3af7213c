"""Who may read the feed, what names the viewer goes by, what `viewer.origins` may be; others are told of once."""

import pytest
from aiohttp.test_utils import make_mocked_request
from structlog.testing import capture_logs

from nodes.viewer.access import Access
from pipeline.config import ViewerSection, ViewerSettings, load_settings
from pipeline.errors import ConfigError


def admitted(access: Access, origin: str | None, *, host: str = "viewer.lan:8080") -> bool:
    headers = {"Host": host} | ({} if origin is None else {"Origin": origin})
    return access.admits(make_mocked_request("GET", "/ws", headers=headers))


def test_the_viewers_own_page_and_programs_may() -> None:
    assert admitted(Access(), "http://viewer.lan:8080")
    assert admitted(Access(), "https://viewer.lan:8080")  # a proxy with a certificate in front
    assert admitted(Access(), None)


def test_another_site_may_where_it_is_named() -> None:
    assert not admitted(Access(), "https://home.example")
    assert admitted(Access(["https://home.example"]), "https://home.example")
    assert not admitted(Access(["https://home.example"]), "http://home.example")


def test_pictures_may_be_shown_by_any_site_where_one_is_named() -> None:
    named = Access(["https://home.example"])
    assert named.picture_headers == {"Cross-Origin-Resource-Policy": "cross-origin"}
    assert named.headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert Access().picture_headers == {}


def answered(access: Access, host: str | None) -> bool:
    return access.answers_to(make_mocked_request("GET", "/", headers={} if host is None else {"Host": host}))


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.0.1", "::1", "localhost", "LocalHost"])
def test_a_viewer_of_one_machine_goes_by_no_name_that_a_site_could_have(address: str) -> None:
    access = Access(["https://Masks.example", "http://[fd00::7]:8123"], host=address)
    for host in ("127.0.0.1:8080", "[::1]:8080", "10.0.0.2", "[fd00::7]", "localhost", "LOCALHOST:8080", "a.localhost"):
        assert answered(access, host)
    for host in ("masks.example", "MASKS.example:8443", None):
        assert answered(access, host)
    for host in ("evil.example:8080", "127.0.0.1.evil.example", "localhost.evil.example", "home.masks.example"):
        assert not answered(access, host)
    for host in ("notlocalhost", "127.1", "2130706433", "", ":8080", "[::1", "[x]:8080"):
        assert not answered(access, host)


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "", "192.168.0.7", "masks.lan"])
def test_a_viewer_of_a_network_goes_by_any_name(address: str) -> None:
    assert answered(Access(host=address), "evil.example")


def test_a_name_that_is_refused_is_told_once_and_not_without_end() -> None:
    access = Access(host="127.0.0.1")
    with capture_logs() as lines:
        for number in range(100):
            for _ in range(3):
                assert not answered(access, f"{number}.example")
    assert [line["host"] for line in lines] == [f"{number}.example" for number in range(32)]
    assert "viewer.origins" in lines[0]["event"]


def test_a_refusal_is_told_once_for_each_site_and_not_without_end() -> None:
    access = Access()
    with capture_logs() as lines:
        for number in range(100):
            for _ in range(3):
                assert not admitted(access, f"https://{number}.example", host="127.0.0.1:8080")
    assert [line["origin"] for line in lines] == [f"https://{number}.example" for number in range(32)]
    assert {(line["log_level"], line["host"]) for line in lines} == {("warning", "127.0.0.1:8080")}
    assert "viewer.origins" in lines[0]["event"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("https://home.example", "https://home.example"),
        ("HTTPS://Home.Example", "https://home.example"),
        ("https://home.example:443", "https://home.example"),
        ("http://home:80", "http://home"),
        ("https://home.example:80", "https://home.example:80"),
        ("http://10.0.0.2:8123", "http://10.0.0.2:8123"),
        ("http://[FD00:0::7]:8123", "http://[fd00::7]:8123"),
        ("http://my_box.lan:08123", "http://my_box.lan:8123"),
    ],
)
def test_origins_are_taken_as_browsers_say_them(given: str, said: str) -> None:
    assert ViewerSection(origins=given).origins == (said,)
    assert admitted(Access(ViewerSection(origins=given).origins), said)


@pytest.mark.parametrize(
    "given",
    [
        "home.example",
        "ftp://home.example",
        "http://*",
        "https://*.home.example",
        "https://u:secret@home.example",
        "https://home.example/",
        "https://home.example/wall",
        "https://home.example?x",
        "https://home.example#x",
        "https://home.example:",
        "https://home.example:0",
        "https://home.example:65536",
        "https://home.example:port",
        "https://home.example.",
        "https://h\u00f6me.example",
        "http://10.0.0.300",
        "http://127.1",
        "http://[10.0.0.2]",
        "http://[fd00::7",
        "http://[x]",
        "https://",
        "null",
        "",
    ],
)
def test_what_no_browser_says_is_no_origin(given: str) -> None:
    with pytest.raises(ConfigError, match=r"^command line: viewer\.origins\.1: that is no origin: write ") as refused:
        load_settings(ViewerSettings, None, {"viewer.origins": ["https://home.example", given]})
    assert "secret" not in str(refused.value)
