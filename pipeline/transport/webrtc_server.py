"""The gateway's end of WebRTC: takes cameras' offers over HTTP, and is a channel whose far side is all of them.

POST /webrtc/<camera> -> CameraSession -> readers of this channel        publish("<camera>/...") -> that camera
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import structlog
from aiohttp import web

from pipeline import metrics
from pipeline.errors import BitstreamError, TransportError
from pipeline.transport import LIVE, Delivery, Message
from pipeline.transport.subscription import Readers, Subscription, matches
from pipeline.transport.webrtc_address import WebRtcOptions
from pipeline.transport.webrtc_requests import RETRY, bad_offer, busy, camera_of, read_offer, token_check
from pipeline.transport.webrtc_session import CameraSession, Outlet, Session
from pipeline.transport.webrtc_signalling import SDP

__all__ = ["Session", "WebRtcLimits", "WebRtcServer", "token_check"]

_RETAINED, _RETAINED_BYTES = 4096, 16 << 20  # messages kept for late readers, of all cameras

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class WebRtcLimits:
    """How much of all cameras together a gateway takes on."""

    sessions: int = 64
    offers: int = 8  # being answered at a time, one of each camera
    offer_bytes: int = 64 * 1024


class WebRtcServer:
    """Channel to all cameras that connect over WebRTC; `routes` are to be mounted on an aiohttp application.

    `accepts` tells whether a camera's token is right; the token of an offer without one is empty. A new session of a
    camera ends its old one once its data channels are open. What a camera says is under its own name, or `bundle/`;
    what is published here goes to the camera that the topic begins with, if it subscribed. `changed` is called when a
    camera came, went, or changed what it wants.
    """

    def __init__(
        self,
        *,
        accepts: Callable[[str, str], bool],
        options: WebRtcOptions = WebRtcOptions(),  # noqa: B008 - frozen
        limits: WebRtcLimits = WebRtcLimits(),
        buffer: int = 1024,
        on_drop: Callable[[], None] | None = None,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._accepts, self._options, self._limits = accepts, options, limits
        self._readers = Readers(limit=buffer, on_drop=on_drop)
        self._retained: dict[str, bytes] = {}
        self._sessions: dict[str, CameraSession] = {}  # by camera
        self._begun: dict[str, CameraSession] = {}  # whose data channels are not open yet
        self._tasks: set[asyncio.Task[None]] = set()  # one for each of these, and for each offer
        self._offering: set[str] = set()  # cameras whose offer is being answered
        self._changed = changed
        self._outlet = Outlet(publish=self._take, subscribed=self._send_retained, changed=changed)
        self._entered = self._closed = False
        self._group = asyncio.TaskGroup()

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        self._entered = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._entered, self._closed = False, True
        self._readers.close()
        for task in self._tasks:
            task.cancel()
        # The body's own error goes up as it is, not inside a group.
        await self._group.__aexit__(None, None, None)

    @property
    def connected(self) -> bool:
        """Whether cameras can come."""
        return self._entered

    @property
    def dropped(self) -> int:
        """How many messages were thrown away because their reader was too slow."""
        return self._readers.dropped

    async def wait_connected(self, timeout_s: float) -> None:
        """Return at once when entered; raises TransportError when not, since waiting will not change that."""
        if not self._entered:
            raise TransportError("no cameras are taken over WebRTC")

    async def publish(self, topic: str, payload: bytes, delivery: Delivery = LIVE) -> None:
        """Send to the camera that the topic begins with; one that did not subscribe to it gets nothing.

        Raises TransportError when it is not connected, or its link too slow. Retained messages are kept, the
        newest of each topic, for cameras that come later, so they are no error.
        """
        if self._closed:
            raise TransportError("no cameras are taken over WebRTC")
        if delivery.retain:
            self._keep(Message(topic, payload))
        session = self._sessions.get(topic.partition("/")[0])
        if session is not None:
            if session.wants(topic):
                session.send(topic, payload, qos=delivery.qos, retain=delivery.retain)
        elif not delivery.retain:
            raise TransportError(f"camera {topic.partition('/')[0]!r} is not connected over WebRTC")

    def subscribe(self, *filters: str) -> Subscription:
        """What cameras say, beginning with the retained messages; ends when the channel closes."""
        subscription = self._readers.add(filters)
        for topic, payload in self._retained.items():
            subscription.offer(Message(topic, payload))
        return subscription

    def sessions(self) -> tuple[Session, ...]:
        """The cameras that are connected, by name."""
        return tuple(self._sessions[name].session() for name in sorted(self._sessions))

    def has(self, camera: str) -> bool:
        """Whether the camera is connected."""
        return camera in self._sessions

    def wants(self, topic: str) -> bool:
        """Whether the camera that the topic begins with is connected and subscribed to it."""
        camera = topic.partition("/")[0]
        return self.has(camera) and self._sessions[camera].wants(topic)

    def routes(self) -> list[web.RouteDef]:
        """POST /webrtc/<camera> with an SDP offer, and DELETE on the Location that it gives."""
        return [
            web.post("/webrtc/{camera}", self._post),
            web.delete("/webrtc/{camera}/{session}", self._delete),
        ]

    async def _post(self, request: web.Request) -> web.Response:
        camera = camera_of(request, self._accepts)
        # One of a camera at a time: else one that brings its offers slowly would keep all others out.
        if not self._entered or camera in self._offering or len(self._offering) >= self._limits.offers:
            raise busy("offers")
        known = self._sessions.keys() | self._begun.keys() | self._offering
        if camera not in known and len(known) >= self._limits.sessions:
            raise busy("sessions")
        self._offering.add(camera)
        try:
            offer = await read_offer(request, limit_bytes=self._limits.offer_bytes)
            session = CameraSession(camera, self._options, self._outlet)
            answer = await self._admit(session, offer)
        finally:
            self._offering.discard(camera)
        headers = {"Location": f"/webrtc/{camera}/{session.id}"}
        return web.Response(status=201, text=answer, content_type=SDP, headers=headers)

    async def _delete(self, request: web.Request) -> web.Response:
        camera = camera_of(request, self._accepts)
        held, begun = self._sessions.get(camera), self._begun.get(camera)
        if held is not None and held.id == request.match_info["session"]:
            await held.leave()
        elif begun is not None and begun.id == request.match_info["session"]:
            begun.peer.end("the camera left")
        else:
            raise web.HTTPNotFound(text="no such session\n")
        return web.Response(text="ended\n")

    async def _admit(self, session: CameraSession, offer: str) -> str:
        """Begin a session; returns the answer to its offer, or raises the refusal."""
        answered: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        task = self._group.create_task(self._serve(session, offer, answered), name=f"webrtc {session.camera}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            return await asyncio.shield(answered)
        except BitstreamError as error:
            raise bad_offer(str(error)) from error
        except TransportError as error:
            metrics.drop("webrtc", "gathering")
            raise web.HTTPServiceUnavailable(text=f"{error}\n", headers=RETRY) from error

    async def _serve(self, session: CameraSession, offer: str, answered: "asyncio.Future[str]") -> None:
        """Hold one session from the offer to its end."""
        try:
            async with session.peer as peer:
                answered.set_result(await peer.answer(offer))
                if await self._opened(session):
                    await self._hold(session)
        except (BitstreamError, TransportError) as error:
            if not answered.done():
                answered.set_exception(error)
        except Exception as error:  # what goes wrong with one camera's connection must not end those of the others
            metrics.drop("webrtc", "failed")
            log.exception("a camera's connection failed", camera=session.camera)
            if not answered.done():
                answered.set_exception(error)
        finally:
            answered.cancel()

    async def _opened(self, session: CameraSession) -> bool:
        """Wait for the session's data channels; a newer offer of the camera ends the wait."""
        camera = session.camera
        if (older := self._begun.get(camera)) is not None:
            older.peer.end("a newer offer of the camera came")
        self._begun[camera] = session
        try:
            await session.peer.opened()
        except TransportError as error:
            metrics.drop("webrtc", "half_open")
            log.warning("a camera's offer came to nothing", camera=camera, reason=str(error))
            return False
        finally:
            if self._begun.get(camera) is session:
                del self._begun[camera]
        return True

    async def _hold(self, session: CameraSession) -> None:
        """Let the session be its camera's until it ends; an older one goes, without its will."""
        camera = session.camera
        older = self._sessions.get(camera)
        self._sessions[camera] = session
        if older is not None:
            metrics.drop("webrtc", "replaced")
            older.make_way()
        log.info("camera connected over WebRTC", camera=camera, pair=session.peer.pair)
        self._note_change()
        try:
            reason = await session.peer.hold()
            told = log.info if session.left else log.warning
            told("camera's WebRTC connection is over", camera=camera, reason=reason)
        finally:
            self._forget(session)

    def _forget(self, session: CameraSession) -> None:
        session.ending.set()
        if self._sessions.get(session.camera) is session:
            del self._sessions[session.camera]
        if session.will is not None and not session.left and not self._closed:
            self._take(Message(session.will.topic, session.will.payload), session.will.retain)
        self._note_change()

    def _note_change(self) -> None:
        metrics.WEBRTC_SESSIONS.set(len(self._sessions))
        self._changed()

    def _take(self, message: Message, retain: bool) -> None:
        if retain:
            self._keep(message)
        self._readers.offer(message)

    def _keep(self, message: Message) -> None:
        """Hold a retained message; an empty one clears the topic. Where it is too much the oldest go."""
        self._retained.pop(message.topic, None)
        if message.payload:
            self._retained[message.topic] = message.payload
        while len(self._retained) > _RETAINED or sum(map(len, self._retained.values())) > _RETAINED_BYTES:
            del self._retained[next(iter(self._retained))]

    def _send_retained(self, session: CameraSession, wanted: str) -> None:
        for topic, payload in self._retained.items():
            if matches(wanted, topic):
                with suppress(TransportError):
                    session.send(topic, payload, qos=1, retain=True)
