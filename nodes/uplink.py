"""What a camera sends: its packets in order, and none whose keys did not leave.

put -> PacketBuffer -> channel       a KEY lost, or the connection -> ask for KEYs, and hold WARPs back until they come
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

from nodes.buffer import Losses, PacketBuffer
from nodes.service import until_connected
from pipeline import metrics
from pipeline.errors import TransportError
from pipeline.keys import stands_alone
from pipeline.messages import FrameId, Kind, Packet
from pipeline.transport import Channel, Delivery

_LIVE_EXPIRY_S = 2
_RETRY_S = 0.1


@dataclass(frozen=True, slots=True)
class Encoded:
    """A packet on its way to the uplink."""

    camera: str
    packet: Packet
    data: bytes
    preview: bytes | None

    @property
    def keys(self) -> frozenset[int]:
        """Its KEY regions."""
        return frozenset(region.index for region in self.packet.regions if region.kind is Kind.KEY)

    @property
    def stands_alone(self) -> bool:
        """Whether it brings KEYs for all of the frame, so that it can be decoded whatever came before."""
        return stands_alone(self.packet)


class Uplink:
    """Sends what one camera encoded; `ask_keys` is to make all of the next packet KEY, `on_sent` hears what left.

    Live: bounded, and what cannot be sent is dropped. `fast`: each packet is sent, however long it takes.
    """

    def __init__(
        self,
        channel: Channel,
        *,
        losses: Losses,
        ask_keys: Callable[[], Awaitable[None]],
        on_sent: Callable[[Encoded], None] = lambda _: None,
        buffer_packets: int = 4,
        fast: bool = False,
    ) -> None:
        self._channel, self._losses, self._ask_keys, self._fast = channel, losses, ask_keys, fast
        self._on_sent = on_sent
        self._buffer: PacketBuffer[Encoded] = PacketBuffer(buffer_packets, on_drop=lambda: losses.add("uplink"))
        self._newest: dict[int, FrameId] = {}  # key of each region
        self._broken = False  # keys may be missing beyond the channel

    async def run(self) -> None:
        """Send what is put, until the uplink is closed and nothing is left."""
        while (encoded := await self._buffer.take()) is not None:
            self._broken = self._broken and not encoded.stands_alone
            if self._broken:
                self._losses.add("uplink")
                continue
            while not await self._sent(encoded):
                if not self._fast:
                    self._losses.add("uplink")
                    break
                await asyncio.sleep(_RETRY_S)
                await until_connected(self._channel)

    async def put(self, encoded: Encoded) -> None:
        """Take a packet to send: at once, at the cost of another where there is no room; or, if fast, when there is."""
        self._newest |= dict.fromkeys(encoded.keys, encoded.packet.id)
        if self._fast:
            await self._buffer.put_when_free(encoded)
            return
        dropped = self._buffer.put(encoded)
        if dropped is not None and any(self._newest[index] == dropped.packet.id for index in dropped.keys):
            await self.begin_anew()

    def close(self) -> None:
        """Nothing more will be put."""
        self._buffer.close()

    async def begin_anew(self) -> None:
        """Ask for a packet of nothing but KEYs; live, what is put before it is dropped."""
        self._broken = not self._fast
        await self._ask_keys()

    async def _sent(self, encoded: Encoded) -> bool:
        """Send one packet; whether it left."""
        try:
            with metrics.STAGE_SECONDS.labels("uplink").time():
                await self._publish(encoded)
        except TransportError:
            # A WARP that a slow link does not take is lost without harm, and a KEY after it would make things worse.
            if not self._fast and (encoded.keys or not self._channel.connected):
                await self.begin_anew()
            return False
        return True

    async def _publish(self, encoded: Encoded) -> None:
        id = encoded.packet.id
        frame = {"epoch": str(id.epoch), "sequence": str(id.sequence)}
        expiry_s = None if self._fast else _LIVE_EXPIRY_S
        packet = Delivery(expiry_s=expiry_s, content_type="application/octet-stream", properties=frame)
        await self._channel.publish(f"{encoded.camera}/latent", encoded.data, packet)
        self._on_sent(encoded)
        metrics.PACKETS.labels("camera").inc()
        metrics.PACKET_BYTES.labels("camera").inc(len(encoded.data))
        for region in encoded.packet.regions:
            metrics.REGIONS.labels(region.kind.name).inc()
            metrics.REGION_BYTES.labels(region.kind.name).inc(len(region.body))
        if encoded.preview is not None:
            picture = Delivery(expiry_s=_LIVE_EXPIRY_S, content_type="image/jpeg", properties=frame)
            with suppress(TransportError):  # the packet has left
                await self._channel.publish(f"{encoded.camera}/preview", encoded.preview, picture)
