"""One end of a WebRTC connection with the data channels `latent` and `messages`; the only file that knows aiortc.

camera: offer() -> [HTTP] -> accept(answer) -> opened() -> hold()        gateway: answer(offer) -> opened() -> hold()
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

import structlog
from aiortc import (
    RTCBundlePolicy,
    RTCConfiguration,
    RTCDataChannel,
    RTCIceServer,
    RTCPeerConnection,
    RTCSctpTransport,
    RTCSessionDescription,
)
from aiortc.exceptions import InternalError, InvalidStateError, OperationError
from aiortc.rtcconfiguration import RTCIceTransportPolicy

from pipeline.errors import BitstreamError, TransportError
from pipeline.transport.webrtc_address import IceServer, WebRtcOptions

LATENT, MESSAGES = "latent", "messages"
BEAT_S = 1.0  # an end that has sent nothing for so long sends an empty message, so that the other knows it lives
_LOOK_S = 0.5
_GATHER_S = 6.0  # aiortc itself waits 5 s for STUN and TURN servers
_CLOSE_S = 2.0
_REFUSALS = 16  # channels, texts: an end that does so more often has another program
# What aiortc raises for SDP that is none: it parses by splitting, and checks some of it late; a StopIteration of its
# own leaves a coroutine as RuntimeError.
_SDP_ERRORS = (
    OSError,
    ValueError,
    LookupError,
    AssertionError,
    AttributeError,
    TypeError,
    RuntimeError,
    InternalError,
    InvalidStateError,
    OperationError,
)
_CANDIDATES = 64  # of an offer: for each one this end sends checks to an address that the other end chose

log = structlog.get_logger(__name__)


class Peer:
    """A connection, as an async context manager that closes it; what arrives goes to `on_latent` and `on_message`.

    These two must not raise. `on_refused` is told the reason of each thing that is thrown away here.
    """

    def __init__(
        self,
        options: WebRtcOptions,
        *,
        on_latent: Callable[[bytes], None],
        on_message: Callable[[bytes], None],
        on_refused: Callable[[str], None] = lambda reason: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._options = options
        self._receivers = {LATENT: on_latent, MESSAGES: on_message}
        self._on_refused = on_refused
        self._clock = clock
        self._channels: dict[str, RTCDataChannel] = {}
        self._open = asyncio.Event()
        self._over = asyncio.Event()
        self._reason = self._missing = ""
        self._refusals = 0
        self._said_s = clock()
        self._closing: asyncio.Future[None] | None = None

    async def __aenter__(self) -> Self:
        self._connection = RTCPeerConnection(_configuration(self._options))
        self._connection.on("connectionstatechange", self._note_state)
        self._connection.on("datachannel", self._take_channel)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end("closed")
        # A cancellation must not leave sockets behind: closing goes on without us.
        self._closing = asyncio.ensure_future(self._connection.close())
        await asyncio.wait({self._closing}, timeout=_CLOSE_S)
        if not self._closing.done():
            log.warning("a WebRTC connection does not close", after_s=_CLOSE_S)

    async def offer(self) -> str:
        """Open both channels and return the SDP that tells of them, with all candidates; raises TransportError."""
        try:
            self._keep(self._connection.createDataChannel(LATENT, ordered=False, maxRetransmits=0))
            self._keep(self._connection.createDataChannel(MESSAGES))
            return await self._describe(await self._connection.createOffer())
        except _SDP_ERRORS as error:
            raise TransportError(f"no offer can be made: {error}") from error

    async def accept(self, answer: str) -> None:
        """Take the answer to the offer; raises TransportError when it is none."""
        try:
            await self._connection.setRemoteDescription(RTCSessionDescription(answer, "answer"))
        except _SDP_ERRORS as error:
            raise TransportError(f"the gateway's answer is not one: {error}") from error

    async def answer(self, offer: str) -> str:
        """Return the answer to an offer; raises BitstreamError when it is none with a data channel and nothing else."""
        _check_offer(offer)
        try:
            await self._connection.setRemoteDescription(RTCSessionDescription(offer, "offer"))
            return await self._describe(await self._connection.createAnswer())
        except _SDP_ERRORS as error:
            raise BitstreamError(f"offer: {type(error).__name__} {error}") from error

    async def opened(self) -> None:
        """Wait until both channels are open; raises TransportError when the connection ends before, or time is over."""
        try:
            async with asyncio.timeout(self._options.open_s):
                await _first(self._open, self._over)
        except TimeoutError as error:
            state = self._connection.iceConnectionState
            reason = f"no data channels in {self._options.open_s:g} s, ICE is {state}"
            raise TransportError("; ".join(filter(None, (reason, self._missing)))) from error
        if self._over.is_set():
            raise TransportError(self._reason)

    async def hold(self) -> str:
        """Wait for the end, with signs of life to the other end; returns the reason."""
        silent_s, looked_s, received = 0.0, self._clock(), 0
        while not self._over.is_set():
            if _flooded(self._connection.sctp):
                self.end("the other end sends more than it may")
            elif silent_s >= self._options.silence_s:
                self.end(f"nothing heard for {silent_s:.1f} s")
            elif self._clock() - self._said_s >= BEAT_S and not self.waiting_bytes:
                with suppress(TransportError):
                    self.send(LATENT, b"")
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S):
                    await self._over.wait()
            now_s, before, received = self._clock(), received, _received(self._connection.sctp)
            # Time that this process did not run for is no silence of the other.
            silent_s = 0.0 if received != before else silent_s + min(now_s - looked_s, 2 * _LOOK_S)
            looked_s = now_s
        return self._reason

    def end(self, reason: str) -> None:
        """Let hold() return this, unless there was a reason before."""
        self._reason = self._reason or reason
        self._over.set()

    def send(self, label: str, data: bytes) -> None:
        """Hand one message to a channel; raises TransportError when it is not open."""
        try:
            self._channels[label].send(data)
        except (KeyError, InvalidStateError, ValueError) as error:
            raise TransportError(f"the data channel {label} is not open") from error
        if label == LATENT:
            self._said_s = self._clock()

    @property
    def waiting_bytes(self) -> int:
        """What the channels were given and have not sent for the first time; they share one queue."""
        return sum(channel.bufferedAmount for channel in self._channels.values()) + _unsent_bytes(self._connection.sctp)

    @property
    def pair(self) -> str:
        """The chosen candidates, such as `host 10.0.0.2 <-> srflx 192.0.2.7`; empty when there are none."""
        return _pair(self._connection.sctp)

    async def _describe(self, description: RTCSessionDescription) -> str:
        try:
            async with asyncio.timeout(_GATHER_S):
                await self._connection.setLocalDescription(description)
        except TimeoutError as error:
            raise TransportError("the addresses of this machine were not found out in time") from error
        sdp: str = self._connection.localDescription.sdp
        if any(each.username for each in self._options.ice_servers) and " typ relay" not in sdp:
            self._missing = "the turn: server gave no address: is it there, and the login right?"
        if self._missing and self._options.relay_only:
            raise TransportError(self._missing)
        return sdp

    def _note_state(self) -> None:
        state = self._connection.connectionState
        if state in ("failed", "closed"):
            self.end("no way to the other end was found" if not self._open.is_set() else "the connection was closed")

    def _take_channel(self, channel: RTCDataChannel) -> None:
        """A channel that the other end opened; only the first of each label is wanted."""
        if channel.label in self._receivers and channel.label not in self._channels:
            self._keep(channel)
        else:
            channel.close()
            self._refuse("channel")

    def _keep(self, channel: RTCDataChannel) -> None:
        label = channel.label
        self._channels[label] = channel
        channel.on("open", self._note_open)
        channel.on("close", lambda: self.end(f"the data channel {label} was closed"))
        channel.on("message", lambda data: self._take(label, data))
        self._note_open()

    def _note_open(self) -> None:
        if all(label in self._channels and self._channels[label].readyState == "open" for label in self._receivers):
            self._open.set()

    def _take(self, label: str, data: bytes | str) -> None:
        if self._over.is_set():
            return  # another connection may speak for this end by now
        if not isinstance(data, bytes):
            self._refuse("text")
        elif data:  # an empty one is a sign of life
            self._receivers[label](data)

    def _refuse(self, reason: str) -> None:
        self._on_refused(reason)
        self._refusals += 1
        if self._refusals >= _REFUSALS:
            self.end("the other end does not keep to the protocol")


def _configuration(options: WebRtcOptions) -> RTCConfiguration:
    return RTCConfiguration(
        iceServers=[_ice_server(each) for each in options.ice_servers],
        iceTransportPolicy=RTCIceTransportPolicy.RELAY if options.relay_only else RTCIceTransportPolicy.ALL,
        bundlePolicy=RTCBundlePolicy.MAX_BUNDLE,
    )


def _ice_server(server: IceServer) -> RTCIceServer:
    return RTCIceServer(server.url, username=server.username, credential=server.credential)


def _check_offer(offer: str) -> None:
    """Raise BitstreamError for an offer of anything but one data section with a bounded number of candidates."""
    lines = offer.splitlines()
    media = [line for line in lines if line.startswith("m=")]
    if len(media) != 1 or not media[0].startswith("m=application "):
        raise BitstreamError(f"offer: {len(media)} media sections, one of kind application is right")
    candidates = sum(line.startswith("a=candidate:") for line in lines)
    if candidates > _CANDIDATES:
        raise BitstreamError(f"offer: {candidates} candidates, at most {_CANDIDATES}")


async def _first(*events: asyncio.Event) -> None:
    """Wait for any of the events."""
    waiting = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for each in waiting:
            each.cancel()


def _unsent_bytes(transport: RTCSctpTransport | None) -> int:
    """Bytes that left the channels' buffers and wait for the congestion window; aiortc tells them nowhere else."""
    return 0 if transport is None else sum(len(chunk.user_data) for chunk in transport._outbound_queue)


def _received(transport: RTCSctpTransport | None) -> int:
    """How many datagrams came; parts of long messages and mere acknowledgements are signs of life too."""
    if transport is None:
        return 0
    return sum(each.packetsReceived for each in transport.transport._get_stats().values())


def _flooded(transport: RTCSctpTransport | None) -> bool:
    """Whether parts of messages wait for their rest beyond the window that the other end was told; aiortc takes all."""
    return transport is not None and transport._advertised_rwnd < 0


def _pair(transport: RTCSctpTransport | None) -> str:
    """The pair that ICE nominated; aiortc tells it nowhere else."""
    if transport is None:
        return ""
    pairs = transport.transport.transport._connection._nominated.values()
    ends = [(pair.local_candidate, pair.remote_candidate) for pair in pairs]
    # How the far end reaches its relay, over UDP or TCP, is not known here.
    return ", ".join(f"{local.type} {local.host} <-> {far.type} {far.host}" for local, far in ends)
