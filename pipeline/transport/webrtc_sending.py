"""How an end gives what it has to say to a connection: never more than one packet waits there, and little else."""

import asyncio
from contextlib import suppress

from pipeline.errors import BitstreamError, TransportError
from pipeline.transport.chunks import split
from pipeline.transport.webrtc_messages import Envelope, Kind, pack_message
from pipeline.transport.webrtc_peer import LATENT, MESSAGES, Peer

_PACKET_S = 1.0  # for a packet to leave this machine; later it would be of no use
_POLL_S = 0.002
_KEPT_POLL_S = 0.02
_LIVE_BYTES = 16 * 1024  # behind more than that a picture would be late, and so would the packets behind it
_WAITING_BYTES = 256 * 1024


class PacketSender:
    """Sends packets over one connection; numbers them from 1, those that it skips included."""

    def __init__(self, peer: Peer, *, packet_bytes: int) -> None:
        self._peer, self._packet_bytes = peer, packet_bytes
        self._sequence = 0

    async def send(self, packet: bytes) -> None:
        """Send when all before has left; raises TransportError when that takes too long or a newer packet comes."""
        if len(packet) > self._packet_bytes:
            raise TransportError(f"packet: {len(packet)} bytes, at most {self._packet_bytes}")
        self._sequence = mine = self._sequence + 1
        with suppress(TimeoutError):
            async with asyncio.timeout(_PACKET_S):
                while self._peer.waiting_bytes and mine == self._sequence:  # noqa: ASYNC110 - aiortc has no signal
                    await asyncio.sleep(_POLL_S)
        if self._peer.waiting_bytes or mine != self._sequence:
            raise TransportError("the link to the gateway is too slow: a packet was skipped")
        for chunk in split(mine, packet):
            self._peer.send(LATENT, chunk)


class KeptSender:
    """Sends what must not be lost over one connection, in order; while much waits there, it is kept here.

    Of each topic only the newest is kept, so there is no more than the topics of one node.
    """

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._kept: dict[str, Envelope] = {}  # by topic
        self._some = asyncio.Event()

    def send(self, envelope: Envelope) -> None:
        """Send a message now, or as soon as less waits."""
        self._kept[envelope.topic] = envelope
        self._send_what_may()

    async def run(self) -> None:
        """Send what is kept, until cancelled."""
        while True:
            await self._some.wait()
            await asyncio.sleep(_KEPT_POLL_S)
            self._send_what_may()

    def _send_what_may(self) -> None:
        self._some.set()
        with suppress(TransportError):  # too slow yet; or the connection ends, and the next one carries it
            for topic, envelope in list(self._kept.items()):
                send_message(self._peer, envelope)
                del self._kept[topic]
            self._some.clear()


def check_message(envelope: Envelope) -> bytes:
    """Return a message's bytes; raises TransportError when it is too long, or no message."""
    try:
        return pack_message(envelope)
    except BitstreamError as error:
        raise TransportError(f"{envelope.topic}: {error}") from error


def send_message(peer: Peer, envelope: Envelope) -> None:
    """Send a message; raises TransportError when more waits than a message of its kind bears."""
    data, waiting_bytes = check_message(envelope), peer.waiting_bytes
    live = envelope.kind is Kind.PUBLISH and envelope.qos == 0 and not envelope.retain
    if waiting_bytes > (_LIVE_BYTES if live else _WAITING_BYTES):
        raise TransportError(f"the link is too slow: {waiting_bytes} bytes wait")
    peer.send(MESSAGES, data)
