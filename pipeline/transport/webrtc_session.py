"""One camera at the gateway: what it may say, what it hears, and what it is counted by."""

import asyncio
import re
import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import structlog

from pipeline import metrics
from pipeline.errors import BitstreamError, TransportError
from pipeline.transport import Message
from pipeline.transport.chunks import CHUNK_BYTES, Assembler
from pipeline.transport.subscription import matches
from pipeline.transport.webrtc_address import WebRtcOptions
from pipeline.transport.webrtc_messages import Envelope, Kind, unpack_message
from pipeline.transport.webrtc_peer import LATENT, Peer
from pipeline.transport.webrtc_sending import send_message

_OWN = ("state", "preview")  # what a camera may say of itself, beside its packets
_BUNDLE = re.compile(r"bundle/[0-9a-f]{8,64}")
_FILTERS = 32
_RETAINED = 8  # topics with a retained message, of one camera
_BYE_S = 2.0  # for what a camera that leaves said last to come over a slow link

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Session:
    """A connected camera, the chosen candidates, and what it subscribed to."""

    camera: str
    pair: str
    filters: frozenset[str]


@dataclass(frozen=True, slots=True)
class Outlet:
    """Where what a camera says goes: `publish` (message, retained), `changed` when its filters did."""

    publish: Callable[[Message, bool], None]
    subscribed: Callable[["CameraSession", str], None]
    changed: Callable[[], None]


class CameraSession:
    """The gateway's end of one camera's connection; counts and drops what the camera may not say."""

    def __init__(self, camera: str, options: WebRtcOptions, outlet: Outlet) -> None:
        self.camera, self.id = camera, secrets.token_urlsafe(12)
        self.will: Envelope | None = None
        self.left = False  # in order, so that its will is void
        self.peer = Peer(options, on_latent=self._take_chunk, on_message=self._take_message, on_refused=_refuse)
        self.ending = asyncio.Event()  # its bye has come, or it is over: no more is to be waited for
        self._outlet, self._packet_bytes = outlet, options.packet_bytes
        self._assembler = Assembler(packet_bytes=options.packet_bytes)
        self._filters: set[str] = set()
        self._retained: set[str] = set()

    def session(self) -> Session:
        """What there is to tell of it."""
        return Session(camera=self.camera, pair=self.peer.pair, filters=frozenset(self._filters))

    def wants(self, topic: str) -> bool:
        """Whether the camera subscribed to the topic."""
        return any(matches(wanted, topic) for wanted in self._filters)

    def send(self, topic: str, payload: bytes, *, qos: int, retain: bool) -> None:
        """Send a message down; raises TransportError when the camera's link is too slow, or the message too long."""
        if topic == f"{self.camera}/receipt":
            self._send_receipt(payload)
            return
        try:
            send_message(self.peer, Envelope(Kind.PUBLISH, topic, payload, qos, retain))
        except TransportError as error:
            metrics.drop("webrtc", "slow_camera")
            raise TransportError(f"camera {self.camera!r}: {error}") from error

    def _send_receipt(self, payload: bytes) -> None:
        """A newer receipt says all that an older one does: one that cannot leave now is dropped."""
        if self.peer.waiting_bytes:
            metrics.drop("webrtc", "receipt")
        elif not 0 < len(payload) <= CHUNK_BYTES:
            raise TransportError(f"receipt: {len(payload)} bytes, 1 to {CHUNK_BYTES} are right")
        else:
            self.peer.send(LATENT, payload)

    def make_way(self) -> None:
        """End for another connection of the camera: if this one is not just dead, two cameras have one name."""
        self.left = True
        self._say_bye()
        self.peer.end("a new connection of the camera took its place")

    async def leave(self) -> None:
        """End as the camera asks, when its bye has come: only that makes its will void, and it may be on its way."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_BYE_S):
                await self.ending.wait()
        self.peer.end("the camera left" if self.left else "the camera left, and what it said last did not come")

    def _say_bye(self) -> None:
        with suppress(TransportError):
            send_message(self.peer, Envelope(Kind.BYE))

    def _take_chunk(self, chunk: bytes) -> None:
        into = self._assembler
        given_up, missing, too_long = into.given_up, into.missing, into.too_long
        try:
            packet = into.add(chunk)
        except BitstreamError as error:
            packet = None
            self._refuse_chunk(error, too_long=into.too_long > too_long)
        metrics.drop("webrtc", "incomplete", into.given_up - given_up)
        metrics.drop("webrtc", "missing", into.missing - missing)
        if packet is not None:
            self._outlet.publish(Message(f"{self.camera}/latent", packet), False)

    def _refuse_chunk(self, error: BitstreamError, *, too_long: bool) -> None:
        """Count a chunk of no use, or a packet that is too long, of which the first is worth a warning."""
        _refuse("size" if too_long else "chunk")
        log.debug("chunk refused", camera=self.camera, reason=str(error))
        if too_long and self._assembler.too_long == 1:
            log.warning(
                "packets of a camera are too long for this gateway: raise gateway.packet_bytes",
                camera=self.camera,
                reason=str(error),
                limit_bytes=self._packet_bytes,
            )

    def _take_message(self, data: bytes) -> None:
        try:
            self._obey(unpack_message(data))
        except BitstreamError as error:
            _refuse("message")
            log.debug("message refused", camera=self.camera, reason=str(error))

    def _obey(self, envelope: Envelope) -> None:
        """Do what a message asks for; raises BitstreamError for what this camera may not ask."""
        match envelope.kind:
            case Kind.PUBLISH:
                self._check_topic(envelope)
                self._outlet.publish(Message(envelope.topic, envelope.payload), envelope.retain)
            case Kind.WILL:
                self._check_topic(envelope)
                self.will = envelope
            case Kind.SUBSCRIBE:
                self._subscribe(envelope.topic)
            case Kind.UNSUBSCRIBE:
                self._filters.discard(envelope.topic)
                self._outlet.changed()
            case Kind.BYE:
                self.left = True
                self._say_bye()
                self.ending.set()

    def _check_topic(self, envelope: Envelope) -> None:
        """Raise BitstreamError for a topic that is not this camera's to write."""
        topic = envelope.topic
        own = topic in {f"{self.camera}/{each}" for each in _OWN}
        if not own and not (_BUNDLE.fullmatch(topic) and envelope.kind is Kind.PUBLISH):
            raise BitstreamError(f"topic {topic!r} is not camera {self.camera}'s to write")
        if envelope.retain:
            if len(self._retained | {topic}) > _RETAINED:
                raise BitstreamError(f"more than {_RETAINED} retained messages of camera {self.camera}")
            self._retained.add(topic)

    def _subscribe(self, wanted: str) -> None:
        if wanted.partition("/")[0] != self.camera or len(self._filters | {wanted}) > _FILTERS:
            raise BitstreamError(f"filter {wanted!r} is not camera {self.camera}'s to read")
        self._filters.add(wanted)
        self._outlet.subscribed(self, wanted)
        self._outlet.changed()


def _refuse(reason: str) -> None:
    metrics.drop("webrtc", reason)
