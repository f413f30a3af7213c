"""The gateway node: packets from the cameras' topics -> work queue. It checks them but has no model.

+/latent of broker and WebRTC -> admit -> PacketBuffer per sender -> global key buffer, then queue
                                   +----> Receipts -> <camera>/receipt
"""

import asyncio
import random
import zlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import structlog

from nodes.arrivals import Receipts
from nodes.bridge import Bridge
from nodes.buffer import Losses, PacketBuffer
from nodes.offers import taking_offers
from nodes.presence import Presence, announced, node_name
from nodes.reports import State, read_report
from nodes.service import Health, health_page, now_ms
from pipeline import metrics
from pipeline.bitstream import MAX_PACKET_BYTES, is_bidirectional, pack, unpack
from pipeline.config import GatewaySettings
from pipeline.errors import BitstreamError, ConfigError, TransportError
from pipeline.keys import AHEAD_GENERATIONS
from pipeline.messages import FrameId, Kind, check_camera_name
from pipeline.redis_queue import RedisWorkQueue
from pipeline.transport import Channel, Message, open_channel
from pipeline.work_queue import KEY_GENERATIONS, RECORDED_GENERATIONS, WorkQueue

if TYPE_CHECKING:
    from pipeline.transport.webrtc_server import WebRtcServer

_RETRY_FIRST_S, _RETRY_MAX_S = 0.1, 2.0
_PROBE_S = 2.0
_OTHERS = 32  # gateways that are told of

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Arrived:
    """A packet that has been checked, on its way to the queue."""

    camera: str
    frame: FrameId
    data: bytes
    keys: Mapping[int, bytes]  # by region, each as a packet of its own, so that it says which frame it is of
    recorded: bool = False
    receipt: bool = False
    generations: int = KEY_GENERATIONS  # of its keys, that frames under way may refer to

    @property
    def key(self) -> bool:
        """Whether later packets may refer to this one."""
        return bool(self.keys)


def admit(message: Message, *, packet_bytes: int = MAX_PACKET_BYTES) -> Arrived:
    """Check one message of a latent topic; raises ConfigError (camera's name) or BitstreamError (packet)."""
    camera = check_camera_name(message.topic.partition("/")[0])
    if len(message.payload) > packet_bytes:
        raise BitstreamError(f"packet: {len(message.payload)} bytes, at most {packet_bytes} here")
    packet = unpack(message.payload)
    found = [region for region in packet.regions if region.kind is Kind.KEY]
    if len(packet.regions) == 1:
        keys = {region.index: message.payload for region in found}
    else:
        keys = {region.index: pack(replace(packet, regions=(region,))) for region in found}
    generations = AHEAD_GENERATIONS if is_bidirectional(packet) else KEY_GENERATIONS
    return Arrived(camera, packet.id, message.payload, keys, packet.recorded, packet.receipt, generations)


class Gateway:
    """Carries packets from channels to a queue; one camera's packets stay in order, as they came over one channel."""

    def __init__(
        self,
        channel: Channel,
        queue: WorkQueue,
        *,
        others: Sequence[Channel] = (),
        buffer_packets: int = 256,
        senders: int = 2,
        packet_bytes: int = 65_536,
        rng: random.Random | None = None,
    ) -> None:
        self._channels, self._queue = (channel, *others), queue
        self._packet_bytes = packet_bytes
        self._rng = rng or random.Random()
        self.losses = Losses("gateway")
        self._buffers: list[PacketBuffer[Arrived]] = [
            PacketBuffer(buffer_packets, on_drop=lambda: self.losses.add("queue")) for _ in range(senders)
        ]
        self._stuck: set[PacketBuffer[Arrived]] = set()  # whose packets could not be put when last tried
        self._away: str | None = "the queue was not reached yet"

    async def run(self) -> None:
        """Carry packets until the channels close."""
        async with asyncio.TaskGroup() as tasks:
            beside = [tasks.create_task(self._probe()), tasks.create_task(self.losses.report())]
            sending = [tasks.create_task(self._send(buffer)) for buffer in self._buffers]
            receiving = []
            for channel in self._channels:
                receipts = Receipts(channel, on_loss=partial(self.losses.add, "receipt"))
                beside.append(tasks.create_task(receipts.run()))
                receiving.append(tasks.create_task(self._receive(channel.subscribe("+/latent"), receipts)))
            await asyncio.gather(*receiving)
            for buffer in self._buffers:
                buffer.close()
            await asyncio.gather(*sending)
            for task in beside:
                task.cancel()

    def reason(self) -> str | None:
        """Why packets cannot be put into the queue right now, or None."""
        return self._away

    async def _receive(self, messages: AsyncIterator[Message], receipts: Receipts) -> None:
        async for message in messages:
            try:
                arrived = admit(message, packet_bytes=self._packet_bytes)
            except ConfigError:
                self.losses.add("camera_name")
            except BitstreamError as error:
                self.losses.add("size" if len(message.payload) > self._packet_bytes else "packet")
                log.debug("packet refused", topic=message.topic, reason=str(error))
            else:
                if arrived.receipt:
                    receipts.note(arrived.camera, arrived.frame, size_bytes=len(arrived.data))
                self._buffers[zlib.crc32(arrived.camera.encode()) % len(self._buffers)].put(arrived)

    async def _send(self, buffer: PacketBuffer[Arrived]) -> None:
        """Buffer -> queue; while the queue is away the buffer holds the newest packets."""
        retry_s = _RETRY_FIRST_S
        while (arrived := await buffer.take()) is not None:
            try:
                with metrics.STAGE_SECONDS.labels("enqueue").time():
                    await self._put(arrived)
            except TransportError as error:
                buffer.give_back(arrived)
                self._stuck.add(buffer)
                self._lost_queue(error)
                await asyncio.sleep(retry_s * self._rng.uniform(0.5, 1.0))
                retry_s = min(2 * retry_s, _RETRY_MAX_S)
            else:
                retry_s = _RETRY_FIRST_S
                self._stuck.discard(buffer)
                self._found_queue()

    async def _put(self, arrived: Arrived) -> None:
        # The keys come first: a worker that meets a later WARP must find them.
        if arrived.keys:
            generations = RECORDED_GENERATIONS if arrived.recorded else arrived.generations
            await self._queue.store_keys(arrived.camera, arrived.keys, generations=generations)
            metrics.KEYS.inc(len(arrived.keys))
        await self._queue.put(arrived.camera, arrived.data)
        metrics.PACKETS.labels("gateway").inc()
        metrics.PACKET_BYTES.labels("gateway").inc(len(arrived.data))

    async def _probe(self) -> None:
        """Ask the queue for its depth now and then: a measure, and a sign of life."""
        cut = 0
        while True:
            metrics.BUFFERED.labels("gateway").set(sum(map(len, self._buffers)))
            self.losses.add("queue_full", self._queue.dropped - cut)
            cut = self._queue.dropped
            try:
                metrics.QUEUE_DEPTH.set(await self._queue.depth())
            except TransportError as error:
                self._lost_queue(error)
            else:
                if not self._stuck:  # a full Redis tells its depth and takes nothing
                    self._found_queue()
            await asyncio.sleep(_PROBE_S)

    def _lost_queue(self, error: TransportError) -> None:
        metrics.RETRIES.labels("queue").inc()
        if self._away is None:
            log.warning("queue away, newest packets are held", reason=str(error))
        self._away = str(error)

    def _found_queue(self) -> None:
        if self._away is not None:
            log.info("queue reached")
        self._away = None


def presence_of(name: str, *, transport: str) -> Presence:
    """What the gateway says of itself."""
    return Presence(topic=f"gateway/{name}/state", transport=transport, since=now_ms())


async def warn_of_others(messages: AsyncIterator[Message], own: str) -> None:
    """Say it when another gateway is at the broker than that of topic `own`: each packet is queued by both."""
    others: set[str] = set()
    async for message in messages:
        try:
            online = bool(message.payload) and read_report(State, message.payload).state == "online"
        except BitstreamError:
            online = False
        if not online or message.topic == own:
            others.discard(message.topic)
        elif message.topic not in others and len(others) < _OTHERS:
            others.add(message.topic)
            log.warning("another gateway serves this broker: every packet is queued twice", other=message.topic)


async def main(settings: GatewaySettings) -> None:
    """Run one gateway until it is cancelled; raises ConfigError."""
    health, changed, root = Health(), asyncio.Event(), settings.mqtt.root
    presence = presence_of(node_name(settings.gateway.id), transport=settings.mqtt_url.partition(":")[0])
    async with (
        health_page(health, host=settings.health.host, port=settings.health.port),
        RedisWorkQueue(
            settings.redis_url, shards=settings.queue.shards, shard_limit=settings.queue.shard_packets
        ) as queue,
        open_channel(
            settings.mqtt_url,
            root=root,
            will=presence.will,
            client_id=presence.client_id(root),
            on_drop=partial(metrics.drop, "gateway", "behind"),
        ) as channel,
        AsyncExitStack() as stack,
    ):
        server = await stack.enter_async_context(_offers(settings, changed)) if settings.webrtc.port else None
        gateway = Gateway(
            channel,
            queue,
            others=() if server is None else (server,),
            buffer_packets=settings.gateway.buffer_packets,
            senders=settings.gateway.senders,
            packet_bytes=settings.gateway.packet_bytes,
        )
        health.need_broker(channel)
        health.need(gateway.reason)
        health.complete()
        log.info("gateway started")
        async with announced(channel, presence), asyncio.TaskGroup() as tasks:
            others = tasks.create_task(warn_of_others(channel.subscribe("gateway/+/state"), presence.topic))
            if server is not None:
                tokens = settings.webrtc.tokens_file is not None
                bridge = Bridge(server, channel, changed=changed, losses=gateway.losses, manifests=not tokens)
                tasks.create_task(bridge.run())
            await gateway.run()
            others.cancel()


def _offers(settings: GatewaySettings, changed: asyncio.Event) -> AbstractAsyncContextManager["WebRtcServer"]:
    return taking_offers(settings.webrtc, packet_bytes=settings.gateway.packet_bytes, changed=changed.set)
