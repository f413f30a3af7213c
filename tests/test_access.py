"""Who may read the live feed: the viewer's own page and pages of sites that are named; others are told of once."""

import pytest
from aiohttp.test_utils import make_mocked_request
from structlog.testing import capture_logs

from nodes.viewer.access import Access


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


@pytest.mark.parametrize(
    ("referer", "policy"),
    [
        ("https://home.example/wall", "cross-origin"),
        ("https://home.example", "cross-origin"),
        ("https://evil.example/https://home.example", "same-origin"),
        ("http://[x", "same-origin"),
        (None, "same-origin"),
    ],
)
def test_pictures_may_be_shown_by_the_sites_that_are_named(referer: str | None, policy: str) -> None:
    headers = {} if referer is None else {"Referer": referer}
    request = make_mocked_request("GET", "/api/cameras/hall/mask.png", headers=headers)
    told = Access(["https://home.example"]).headers_for(request)
    assert told["Cross-Origin-Resource-Policy"] == policy
    assert Access().headers_for(request)["Cross-Origin-Resource-Policy"] == "same-origin"


def test_a_refusal_is_told_once_for_each_site_and_not_without_end() -> None:
    access = Access()
    with capture_logs() as lines:
        for number in range(100):
            for _ in range(3):
                assert not admitted(access, f"https://{number}.example", host="127.0.0.1:8080")
    assert [line["origin"] for line in lines] == [f"https://{number}.example" for number in range(32)]
    assert {(line["log_level"], line["host"]) for line in lines} == {("warning", "127.0.0.1:8080")}
    assert "viewer.origins" in lines[0]["event"]
