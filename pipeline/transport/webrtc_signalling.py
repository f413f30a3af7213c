"""How a camera brings its offer to the gateway and takes its leave, in WHIP's shape (RFC 9725): POST and DELETE."""

import asyncio
import ssl
from dataclasses import dataclass

import aiohttp
from yarl import URL

from pipeline.errors import TransportError
from pipeline.transport.webrtc_address import WebRtcAddress

SDP = "application/sdp"
_ANSWER_BYTES = 64 * 1024
_CONNECT_S = 2.0  # a cut link swallows the first packets: a new attempt beats the kernel's own, ever slower ones
_ANSWER_S = 8.0  # the gateway asks its STUN and TURN servers first, 5 s at most
_LEAVE_S = 1.0
_MISTAKES = {
    400: "does not understand our offer",
    401: "refuses our token: check the one in the uplink's address, or webrtc.token",
    403: "refuses our token: check the one in the uplink's address, or webrtc.token",
    404: "takes no offers there: check the uplink's address and the camera's name",
    405: "takes no offers there: check the uplink's address",
    413: "finds our offer too long",
    415: "takes no offers there: check the uplink's address",
}


@dataclass(frozen=True, slots=True)
class Answered:
    """What the gateway said to an offer; `session` is where a DELETE ends it, `text` the answer or the refusal."""

    status: int
    text: str
    session: URL | None = None
    retry_after_s: float | None = None

    @property
    def taken(self) -> bool:
        """Whether there is a session now."""
        return self.status == 201

    @property
    def final(self) -> bool:
        """Whether only a person can change it, so that soon is too early for another attempt."""
        return self.status in _MISTAKES

    @property
    def reason(self) -> str:
        """Why there is none."""
        said = _MISTAKES.get(self.status, "takes no camera now")
        return f"{said} ({self.status} {' '.join(self.text.split())[:200]})"


async def reach(address: WebRtcAddress) -> None:
    """Find out whether the gateway's machine answers at all, before an offer is made; raises TransportError.

    An offer takes seconds where STUN servers do not answer, and on a link that is cut they do not.
    """
    try:
        async with asyncio.timeout(_CONNECT_S):
            _, writer = await asyncio.open_connection(address.host, address.port)
    except (OSError, TimeoutError) as error:
        reason = str(error) or f"no answer in {_CONNECT_S:g} s"
        raise TransportError(f"the gateway at {address} was not reached: {reason}") from error
    writer.close()


async def post_offer(
    address: WebRtcAddress, camera: str, offer: str, *, token: str | None, tls: ssl.SSLContext | None
) -> Answered:
    """Bring the offer; raises TransportError when no gateway answers."""
    url = URL(address.base_url) / "webrtc" / camera
    headers = _headers(token) | {"Content-Type": SDP}
    timeout = aiohttp.ClientTimeout(total=_ANSWER_S, sock_connect=_CONNECT_S)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as client,
            client.post(url, data=offer, headers=headers, ssl=tls or True, allow_redirects=False) as response,
        ):
            body = await read_body(response.content, limit_bytes=_ANSWER_BYTES)
            location = response.headers.get("Location")
            # The token goes to no other host, whatever the answer says.
            session = None if location is None else URL(address.base_url).with_path(URL(location).path)
            return Answered(response.status, body.decode(errors="replace"), session, _retry_after_s(response))
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        reason = str(error) or ("no answer in time" if isinstance(error, TimeoutError) else type(error).__name__)
        raise TransportError(f"the gateway at {address} was not reached: {reason}") from error


async def read_body(stream: aiohttp.StreamReader, *, limit_bytes: int) -> bytes:
    """Read a body; one byte more than the limit where it is longer."""
    body = bytearray()
    while len(body) <= limit_bytes and (part := await stream.read(limit_bytes + 1 - len(body))):
        body += part
    return bytes(body)


async def delete_session(session: URL, *, token: str | None, tls: ssl.SSLContext | None) -> None:
    """Tell the gateway that the session is over; raises TransportError when it does not answer soon."""
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_LEAVE_S)) as client:
            await client.delete(session, headers=_headers(token), ssl=tls or True, allow_redirects=False)
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise TransportError("the gateway was not told of the end") from error


def _headers(token: str | None) -> dict[str, str]:
    return {} if token is None else {"Authorization": f"Bearer {token}"}


def _retry_after_s(response: aiohttp.ClientResponse) -> float | None:
    seconds = response.headers.get("Retry-After", "")
    return float(seconds) if seconds.isdecimal() and len(seconds) < 5 else None
