"""A camera's channel to a gateway over WebRTC that connects, and reconnects for ever, in the background.

`<camera>/latent` -> chunks -> data channel `latent`; all else -> `messages`        what comes down `latent`: receipts
"""

import asyncio
import random
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import structlog

from pipeline import metrics
from pipeline.errors import BitstreamError, TransportError
from pipeline.transport import LIVE, Delivery, Message
from pipeline.transport.reconnecting import STEADY_S, Reconnecting, Retry
from pipeline.transport.subscription import Subscription
from pipeline.transport.webrtc_address import WebRtcAddress, WebRtcOptions, parse_webrtc_url
from pipeline.transport.webrtc_messages import MESSAGE_BYTES, Envelope, Kind, message_bytes, unpack_message
from pipeline.transport.webrtc_peer import Peer
from pipeline.transport.webrtc_sending import KeptSender, PacketSender, check_message, send_message
from pipeline.transport.webrtc_signalling import Answered, delete_session, post_offer, reach

_BYE_S = 1.0
_RIVAL_PAUSES = 3  # who is thrown out comes again after 1.5 `refused_s` at most, and the time that connecting takes

log = structlog.get_logger(__name__)


class WebRtcChannel(Reconnecting[WebRtcAddress]):
    """Channel of one camera to its gateway; `url` as parse_webrtc_url reads it (raises ConfigError).

    Entering does not wait for the gateway. The will is published, retained, when this process dies without closing;
    the gateway ends an older session of the same camera. Attempts begin as far apart as `retry` says, which takes us as
    not wanted where the gateway says no or another took our place. It may publish only under `<camera>/` (`latent`,
    `state`, `preview`) and `bundle/`, and read only what is under `<camera>/`.
    """

    def __init__(
        self,
        url: str,
        *,
        camera: str,
        will: tuple[str, bytes] | None = None,
        options: WebRtcOptions = WebRtcOptions(),  # noqa: B008 - frozen
        buffer: int = 256,
        on_drop: Callable[[], None] | None = None,
        retry: Retry = Retry(ceiling_s=2.0),  # noqa: B008 - frozen
        rng: random.Random | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        address = parse_webrtc_url(url)
        super().__init__(address, "the gateway", buffer=buffer, on_drop=on_drop, retry=retry, rng=rng, clock=clock)
        self._token = address.token or options.token
        self._camera, self._will, self._options = camera, will, options
        self._latent, self._receipt = f"{camera}/latent", f"{camera}/receipt"
        self._active: set[str] = set()  # filters that the gateway knows
        self._retained: dict[str, Envelope] = {}
        self._peer: Peer | None = None
        self._packets: PacketSender | None = None
        self._kept: KeptSender | None = None
        self._too_long: set[str] = set()  # topics of which that was told
        self._bye = asyncio.Event()
        self._rival = False  # another camera has our name: it and we would throw each other out
        self._rivalry_reported = False
        self._opened_s: float | None = None

    @property
    def connected(self) -> bool:
        """Whether both data channels are open, our subscriptions sent, and our retained messages handed over."""
        return self._peer is not None

    async def publish(self, topic: str, payload: bytes, delivery: Delivery = LIVE) -> None:
        """Send one message; raises TransportError when it cannot leave now.

        A packet waits until all before it has left, 1 s at most, so that a sender of one after the other never has
        more than one in the channel's buffer, and chooses the next one late; a newer packet takes its place. One that
        is replaced, or whose time is over, is skipped, and an error as over MQTT: so an Uplink learns that keys did
        not leave. Other messages are refused where much waits. Retained ones are kept, the newest of each topic: they
        leave when less waits, or with the next connection, and are sent again on each connect.
        """
        envelope = Envelope(Kind.PUBLISH, topic, payload, delivery.qos, delivery.retain)
        if topic != self._latent:
            self._check(envelope)
        if delivery.retain:
            self._retained[topic] = envelope
        peer = self._peer
        if peer is None or self._packets is None or self._kept is None:
            if delivery.retain and not self._closed:
                return
            raise TransportError(f"no connection to the gateway at {self._address}")
        try:
            if topic == self._latent:
                await self._packets.send(payload)
            elif delivery.retain:
                self._kept.send(envelope)
            else:
                send_message(peer, envelope)
        except TransportError:
            if peer is self._peer:
                metrics.drop("transport", "skipped")
            raise

    def subscribe(self, *filters: str) -> Subscription:
        """Messages that match, beginning with the retained ones; ends when the channel closes."""
        subscription = self._readers.add(filters)
        if self._peer is not None:
            # A filter that is known is told again: that is how its new reader gets the retained messages.
            try:
                self._tell_filters(self._peer, fresh=set(filters))
            except TransportError as error:
                self._peer.end(str(error))  # the next connection tells them all
        return subscription

    def _check(self, envelope: Envelope) -> None:
        """Raise TransportError for what can never be sent; what is too long is counted, and told once of each topic."""
        size = message_bytes(envelope)
        if size > MESSAGE_BYTES:
            metrics.drop("transport", "size")
            if envelope.topic not in self._too_long:
                self._too_long.add(envelope.topic)
                preview = envelope.topic == f"{self._camera}/preview"
                advice = ": lower preview.max_width or preview.jpeg_quality" if preview else ""
                said = f"a message is too long for WebRTC and is not sent{advice}"
                log.warning(said, topic=envelope.topic, bytes=size, limit_bytes=MESSAGE_BYTES)
        check_message(envelope)

    async def _run(self) -> None:
        attempt = 0
        while True:
            begun, self._opened_s = self._clock(), None
            useless_s = await self._connection()
            now = self._clock()
            steady = self._opened_s is not None and now - self._opened_s >= STEADY_S
            attempt = 0 if steady else attempt + 1
            passed_s = now - begun if self._opened_s is None else 0.0
            await asyncio.sleep(self._pause_s(attempt, useless_s, passed_s=passed_s))

    async def _connection(self) -> float:
        """Hold one connection from first to last; returns for how many seconds another attempt is of no use."""
        self._rival = False
        try:
            await reach(self._address)
            async with self._new_peer() as peer:
                offer = await peer.offer()
                answered = await post_offer(self._address, self._camera, offer, token=self._token, tls=self._tls)
                if not answered.taken:
                    self._report_refusal(answered)
                    return self._retry.refused_s if answered.final else answered.retry_after_s or 0.0
                try:
                    await self._serve(peer, answered.text)
                finally:
                    await self._end_session(answered)
        except TransportError as error:
            self._report(str(error))
        return self._retry.refused_s if self._rival else 0.0

    def _new_peer(self) -> Peer:
        refused = partial(metrics.drop, "transport")
        return Peer(self._options, on_latent=self._take_receipt, on_message=self._take_message, on_refused=refused)

    async def _serve(self, peer: Peer, answer: str) -> None:
        """Keep one connection from the answer on; raises TransportError with what ended it."""
        await peer.accept(answer)
        await peer.opened()
        kept = KeptSender(peer)
        try:
            self._greet(peer, kept)
            async with asyncio.TaskGroup() as group:
                sending = group.create_task(kept.run())
                reason = await peer.hold()
                sending.cancel()
        finally:
            self._peer = self._packets = self._kept = None
            self._ready.clear()
        raise TransportError(f"the connection was lost: {reason}")

    def _greet(self, peer: Peer, kept: KeptSender) -> None:
        """Tell the gateway who we are: will, filters, retained messages."""
        self._opened_s = self._clock()
        self._bye.clear()
        if self._will is not None:
            send_message(peer, Envelope(Kind.WILL, *self._will, qos=1, retain=True))
        self._active = set()
        self._tell_filters(peer, fresh=self._readers.filters())
        for envelope in self._retained.values():
            kept.send(envelope)
        self._peer, self._kept = peer, kept
        self._packets = PacketSender(peer, packet_bytes=self._options.packet_bytes)
        self._ready.set()
        self._reported = ""
        log.info("connected to the gateway", address=str(self._address), pair=peer.pair)

    def _tell_filters(self, peer: Peer, *, fresh: set[str]) -> None:
        gone = self._active - self._readers.filters()
        for wanted in sorted(gone):
            send_message(peer, Envelope(Kind.UNSUBSCRIBE, wanted))
        for wanted in sorted(fresh):
            send_message(peer, Envelope(Kind.SUBSCRIBE, wanted))
        self._active = (self._active - gone) | fresh

    def _take_receipt(self, data: bytes) -> None:
        self._readers.offer(Message(self._receipt, data))

    def _take_message(self, data: bytes) -> None:
        try:
            envelope = unpack_message(data)
        except BitstreamError:
            metrics.drop("transport", "message")
            return
        if envelope.kind is Kind.PUBLISH:
            self._readers.offer(Message(envelope.topic, envelope.payload))
        elif envelope.kind is Kind.BYE:
            self._bye.set()
            if self._peer is not None and not self._closed:
                self._rival = True
                self._peer.end("another camera of this name took its place")

    async def _leave(self) -> None:
        """Leave in order: what was sent, or kept, before the bye has come when it is answered."""
        if self._kept is None:
            return
        self._kept.send(Envelope(Kind.BYE))
        with suppress(TimeoutError):
            async with asyncio.timeout(_BYE_S):
                await self._bye.wait()

    async def _end_session(self, answered: Answered) -> None:
        """When it is our wish that ends the session, say so; a lost one is replaced by the next offer.

        A bye that was answered has said it, and who answered may be gone by now.
        """
        if self._closed and not self._bye.is_set() and answered.session is not None:
            with suppress(TransportError):
                await delete_session(answered.session, token=self._token, tls=self._tls)

    def _report(self, reason: str) -> None:
        """Say why there is no connection, once for each new reason."""
        if self._rival:
            self._report_rival()
        elif reason != self._reported:
            log.warning("waiting for the gateway", address=str(self._address), reason=reason)
        self._reported = reason

    def _report_rival(self) -> None:
        """Say that another camera has our name; again only after a connection held for longer than it stays away."""
        held_s = 0.0 if self._opened_s is None else self._clock() - self._opened_s
        if not self._rivalry_reported or held_s >= _RIVAL_PAUSES * self._retry.refused_s:
            log.error("thrown out by another camera of this name: give each one its own", camera=self._camera)
        self._rivalry_reported = True

    def _report_refusal(self, refusal: Answered) -> None:
        reason = f"the gateway {refusal.reason}"
        if reason != self._reported:
            level = log.error if refusal.final else log.warning
            level(reason, address=str(self._address), camera=self._camera)
        self._reported = reason

    def _pause_s(self, attempt: int, useless_s: float, *, passed_s: float) -> float:
        """Attempts begin so far apart that those of many cameras spread; the time that one took counts."""
        spread = self._rng.uniform(0.5, 1.0)
        wait_s = self._retry.full_s(attempt) * spread
        return max(wait_s - passed_s, self._retry.first_s * spread, useless_s * (0.5 + spread))
