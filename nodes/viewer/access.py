"""By which names the viewer is called, which sites' pages may read its feed and frame it, what browsers are told."""

from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from urllib.parse import urlsplit

import structlog
from aiohttp import web

_REFUSALS_TOLD = 32  # origins that are named in the log, once each, and as many hosts

_log = structlog.get_logger()


class Access:
    """The viewer's own pages may, and those of `origins`, such as https://home.example.

    `host` is where the viewer listens. Where that is this machine alone it answers to addresses, to localhost and to
    the hosts of `origins`: any site may have a name of its own lead here, and its page then passes for the viewer's.
    """

    def __init__(self, origins: Sequence[str] = (), *, host: str = "") -> None:
        self._origins = frozenset(origins)
        self._names = {_hostname(_host_of(each)) for each in origins}
        self._local = _is_loopback(host)
        framed_by = " ".join(["'self'", *sorted(self._origins)]) if origins else "'none'"
        self.headers: Mapping[str, str] = {
            "Content-Security-Policy": (
                "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
                f"base-uri 'none'; form-action 'none'; frame-ancestors {framed_by}"
            ),
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Opener-Policy": "same-origin",
            "Cross-Origin-Resource-Policy": "same-origin",
        }
        # Not every dashboard's page says whose it is when it asks for a picture, so all may show them, and none read.
        self.picture_headers: Mapping[str, str] = {"Cross-Origin-Resource-Policy": "cross-origin"} if origins else {}
        self._refused_origins: set[str] = set()
        self._refused_hosts: set[str] = set()

    def admits(self, request: web.Request) -> bool:
        """Whether the page that asks may read the feed: browsers say whose it is, and others' could read along."""
        origin = request.headers.get("Origin")
        if origin is None or origin in self._origins or _host_of(origin) == request.host:
            return True
        if _is_news(origin, self._refused_origins):
            _log.warning(
                "the live feed was refused to a page of another address; a proxy in front of the viewer has to pass "
                "the Host header on, or viewer.origins to name the page's",
                origin=origin,
                host=request.host,
            )
        return False

    def answers_to(self, request: web.BaseRequest) -> bool:
        """Whether the viewer goes by the name that it was asked by; who says none, as some programs do, is no page."""
        host = request.headers.get("Host")
        if not self._local or host is None:
            return True
        name = _hostname(host)
        if name is not None and (_is_local_name(name) or name in self._names):
            return True
        if _is_news(host, self._refused_hosts):
            _log.warning(
                "the viewer listens on this machine only, and was asked by a name that it does not know; "
                "viewer.origins has to name the address of a proxy in front of it",
                host=host,
            )
        return False


def _is_news(refused: str, told: set[str]) -> bool:
    if refused in told or len(told) >= _REFUSALS_TOLD:
        return False
    told.add(refused)
    return True


def _host_of(origin: str) -> str:
    """Host and port; empty where it is no address at all."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""


def _hostname(host: str) -> str | None:
    """The host without its port, in lower case."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _is_local_name(name: str) -> bool:
    """Whether no page of another site can have this name: an address, or one that always means this machine."""
    return name == "localhost" or name.endswith(".localhost") or _is_address(name)


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    return host.lower() == "localhost" or (_is_address(host) and ip_address(host).is_loopback)
