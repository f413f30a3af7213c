"""Which sites' pages may read the live feed and show the viewer's page in a frame of theirs; what browsers are told."""

from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

import structlog
from aiohttp import web

_REFUSALS_TOLD = 32  # origins that are named in the log, once each

_log = structlog.get_logger()


class Access:
    """The viewer's own pages may, and those of `origins`, such as https://home.example."""

    def __init__(self, origins: Sequence[str] = ()) -> None:
        self._origins = frozenset(origins)
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
        self._refused: set[str] = set()

    def headers_for(self, request: web.BaseRequest) -> Mapping[str, str]:
        """Those of an answer: pictures may be shown on pages of the sites that are named, and no others."""
        origin = _origin_of(request.headers.get("Referer", ""))
        shared = {"Cross-Origin-Resource-Policy": "cross-origin"} if origin in self._origins else {}
        return {**self.headers, **shared}

    def admits(self, request: web.Request) -> bool:
        """Whether the page that asks may read the feed: browsers say whose it is, and others' could read along."""
        origin = request.headers.get("Origin")
        if origin is None or origin in self._origins or _host_of(origin) == request.host:
            return True
        self._tell(origin, request.host)
        return False

    def _tell(self, origin: str, host: str) -> None:
        if origin in self._refused or len(self._refused) >= _REFUSALS_TOLD:
            return
        self._refused.add(origin)
        _log.warning(
            "the live feed was refused to a page of another address; a proxy in front of the viewer has to pass the "
            "Host header on, or viewer.origins to name the page's",
            origin=origin,
            host=host,
        )


def _origin_of(address: str) -> str | None:
    try:
        parts = urlsplit(address)
    except ValueError:
        return None
    return f"{parts.scheme}://{parts.netloc}"


def _host_of(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc
    except ValueError:  # it is no address at all
        return None
