"""What the gateway checks of a camera's HTTP request before any of it goes further; each refusal is counted."""

import asyncio
import hmac
from collections.abc import Callable, Mapping

from aiohttp import web

from pipeline import metrics
from pipeline.errors import ConfigError
from pipeline.messages import check_camera_name
from pipeline.transport.webrtc_signalling import SDP, read_body

RETRY = {"Retry-After": "1"}  # seconds
_BODY_S = 5.0  # for an offer to arrive


def token_check(tokens: Mapping[str, str]) -> Callable[[str, str], bool]:
    """Return what tells whether a camera's token is right, from a table of tokens by camera."""
    unknown = "\0"  # no token that can be sent, so that an unknown camera takes as long as a wrong token

    def accepts(camera: str, token: str) -> bool:
        right = tokens.get(camera, unknown)
        return hmac.compare_digest(right.encode(), token.encode(errors="surrogateescape"))

    return accepts


def camera_of(request: web.Request, accepts: Callable[[str, str], bool]) -> str:
    """The camera that a request is of; raises the answer to one that is of none, or without the right token."""
    try:
        camera = check_camera_name(request.match_info["camera"])
    except ConfigError as error:
        metrics.drop("webrtc", "camera_name")
        raise web.HTTPNotFound(text=f"{error}\n") from error
    kind, _, token = request.headers.get("Authorization", "").partition(" ")
    if not accepts(camera, token.strip() if kind.lower() == "bearer" else ""):
        metrics.drop("webrtc", "token")
        raise web.HTTPUnauthorized(text="wrong token, or none\n", headers={"WWW-Authenticate": "Bearer"})
    return camera


async def read_offer(request: web.Request, *, limit_bytes: int) -> str:
    """The offer in a request; raises the answer to one that is too long, too slow or of another kind."""
    if request.content_type != SDP:
        metrics.drop("webrtc", "content_type")
        raise web.HTTPUnsupportedMediaType(text=f"send {SDP}\n")
    try:
        async with asyncio.timeout(_BODY_S):
            body = await read_body(request.content, limit_bytes=limit_bytes)
    except TimeoutError as error:
        metrics.drop("webrtc", "offer_slow")
        raise web.HTTPRequestTimeout(text="the offer did not come in time\n") from error
    except (ConnectionError, web.RequestPayloadError) as error:  # the link was lost, or the HTTP is none
        raise bad_offer("it did not come whole") from error
    if len(body) > limit_bytes:
        metrics.drop("webrtc", "offer_size")
        raise web.HTTPRequestEntityTooLarge(limit_bytes, len(body), text=f"at most {limit_bytes} bytes\n")
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise bad_offer("it is not UTF-8") from error


def busy(what: str) -> web.HTTPServiceUnavailable:
    """The answer where there are too many; the camera comes again soon."""
    metrics.drop("webrtc", f"too_many_{what}")
    return web.HTTPServiceUnavailable(text=f"too many {what}\n", headers=RETRY)


def bad_offer(reason: str) -> web.HTTPBadRequest:
    """The answer to what is not an offer that can be taken."""
    metrics.drop("webrtc", "offer")
    return web.HTTPBadRequest(text=f"{reason}\n")
