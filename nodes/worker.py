"""The worker node: packets from the queue -> masks and labels on their topics, decoded in batches across cameras.

claim -> admit -> [lane: Decoder] -> [lane: PNG] -> mask topic, labels topic -> done
"""

import asyncio
import os
import random
import re
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import structlog

from nodes.buffer import Losses
from nodes.publisher import FramePublisher, Looks, StatsPublisher
from nodes.service import Health, Lane, Presence, announced, health_page, now_ms, tell
from nodes.stats import Cameras, MaskFacts
from pipeline import metrics
from pipeline.bitstream import unpack
from pipeline.bundle import Bundle, default_bundle, load_bundle
from pipeline.codec import Decoder, open_decoder
from pipeline.config import DecoderSection, WorkerSection, WorkerSettings
from pipeline.errors import BitstreamError, BundleMismatch, MissingKey, PipelineError, TransportError
from pipeline.messages import Decoded, Kind, Packet, check_camera_name
from pipeline.redis_queue import RedisWorkQueue
from pipeline.transport import Channel, open_channel
from pipeline.work_queue import Job, WorkQueue

_RETRY_FIRST_S, _RETRY_MAX_S = 0.1, 2.0
# With frames this old a worker catches up: it looks at its whole backlog, and decodes of each camera the newest.
# Below this a few frames that came together, after a hiccup, are all worth their time.
_BEHIND_MS = 200
_BACKLOG = 1000  # packets
_BATCHES = 2  # one is decoded while one is published
_REASONS = {BundleMismatch: "bundle", MissingKey: "missing_key", TransportError: "uplink"}

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, eq=False)
class Ticket:
    """A packet that is being worked on, and the job it came with."""

    job: Job
    packet: Packet


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Packets and, in the same order, what became of them."""

    tickets: Sequence[Ticket]
    results: Sequence[Decoded | PipelineError]


class Worker:
    """Decodes what the queue gives; the next batch is claimed and decoded while the last one is published."""

    def __init__(
        self,
        name: str,
        *,
        queue: WorkQueue,
        decoder: Decoder,
        lane: Lane,
        cameras: Cameras,
        frames: FramePublisher,
        batch: int = 8,
        wait_s: float = 1.0,
        deadline_ms: int = 2000,
        rng: random.Random | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_ms: Callable[[], int] = now_ms,
    ) -> None:
        self._name, self._queue = name, queue
        self._decoder, self._lane = decoder, lane
        self._cameras, self._frames = cameras, frames
        self._batch, self._wait_s, self._deadline_ms = batch, wait_s, deadline_ms
        self._rng, self._clock, self._wall_ms = rng or random.Random(), clock, wall_ms
        self.losses = Losses("worker")
        self._decoded: asyncio.Queue[Batch] = asyncio.Queue(_BATCHES)
        # Taken before a claim: jobs that would wait for the batches before them are better left in the queue.
        self._room = asyncio.Semaphore(_BATCHES)
        self._kept: list[Ticket] = []  # found in the backlog, for the next batches
        self._away: str | None = "the queue was not reached yet"

    async def run(self) -> None:
        """Work until cancelled; what is under way then is left to the queue, which gives it to another worker."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._decode())
            tasks.create_task(self._publish())
            tasks.create_task(self.losses.report())

    def reason(self) -> str | None:
        """Why packets cannot be claimed right now, or None."""
        return self._away

    async def _decode(self) -> None:
        while True:
            await self._room.acquire()
            tickets = await self._next()
            metrics.BATCH_PACKETS.observe(len(tickets))
            with metrics.STAGE_SECONDS.labels("decode").time():
                packets, cameras = [one.packet for one in tickets], [one.job.camera for one in tickets]
                results = await self._lane.run(self._decoder.decode, packets, cameras)
            await self._decoded.put(Batch(tickets, results))

    async def _next(self) -> list[Ticket]:
        """The packets of the next batch."""
        tickets: list[Ticket] = []
        while not tickets:
            await self._until_ready()
            opened = await self._open(await self._claim())
            if self._is_behind(opened):
                opened += await self._open(await self._claim(_BACKLOG, at_once=True))
            sifted = await self._sift([*self._kept, *opened])
            tickets, self._kept = await self._in_order(sifted[: self._batch]), sifted[self._batch :]
        return tickets

    async def _until_ready(self) -> None:
        """Wait for the broker; a worker that cannot publish leaves its cameras to others."""
        if not self._frames.ready:
            try:
                await self._queue.rest()
            except TransportError as error:
                self._lost_queue(error)
            await self._frames.until_ready()

    async def _claim(self, batch: int | None = None, *, at_once: bool = False) -> list[Job]:
        """The next jobs, a batch of them; while the queue is away, tries again and again."""
        busy = at_once or bool(self._kept)  # others' work is for when there is none here
        retry_s = _RETRY_FIRST_S
        while True:
            try:
                jobs = await self._queue.claim(
                    batch=batch or self._batch, wait_s=0 if busy else self._wait_s, steal=not busy
                )
            except TransportError as error:
                self._lost_queue(error)
                await asyncio.sleep(retry_s * self._rng.uniform(0.5, 1.0))
                retry_s = min(2 * retry_s, _RETRY_MAX_S)
            else:
                if self._away is not None:
                    log.info("queue reached", worker=self._name)
                self._away = None
                return jobs

    async def _open(self, jobs: Sequence[Job]) -> list[Ticket]:
        """The packets of jobs that just came; what is none is buried."""
        opened: list[Ticket] = []
        for job in jobs:
            try:
                ticket = Ticket(job, open_job(job))
            except PipelineError as error:
                await self._bury(job, str(error))
            else:
                self._hear(ticket)
                opened.append(ticket)
        return opened

    def _hear(self, ticket: Ticket) -> None:
        camera, packet = self._cameras.of(ticket.job.camera), ticket.packet
        keys = sum(region.kind is Kind.KEY for region in packet.regions)
        camera.heard_s = self._clock()
        camera.stats.packet(size_bytes=len(ticket.job.packet), keys=keys, regions=len(packet.regions))
        camera.clock.learn(packet.captured_ms, now_ms=self._wall_ms())

    def _is_behind(self, tickets: Sequence[Ticket]) -> bool:
        now_ms = self._wall_ms()
        return self._deadline_ms > 0 and any(self._age_ms(ticket, now_ms) > _BEHIND_MS for ticket in tickets)

    def _age_ms(self, ticket: Ticket, now_ms: int) -> int:
        return self._cameras.of(ticket.job.camera).clock.age_ms(ticket.packet.captured_ms, now_ms=now_ms)

    async def _sift(self, tickets: Sequence[Ticket]) -> list[Ticket]:
        """The packets that are worth decoding, oldest first; the others are settled here."""
        now_ms = self._wall_ms()
        ages_ms = {ticket: self._age_ms(ticket, now_ms) for ticket in tickets}
        ordered = sorted(tickets, key=lambda ticket: (-ages_ms[ticket], ticket.packet.captured_ms))
        oldest_ms = {ticket.job.camera: ages_ms[ticket] for ticket in reversed(ordered)}
        newest = {ticket.job.camera: ticket.packet for ticket in ordered if stands_alone(ticket.packet)}

        def refusal(ticket: Ticket) -> str | None:
            if not self._deadline_ms:
                return None
            if ages_ms[ticket] > self._deadline_ms:
                return "late"
            best = newest.get(ticket.job.camera, ticket.packet)
            behind = oldest_ms[ticket.job.camera] > _BEHIND_MS
            return "superseded" if behind and ticket.packet.captured_ms < best.captured_ms else None

        return await self._settle(ordered, refusal)

    async def _in_order(self, tickets: Sequence[Ticket]) -> list[Ticket]:
        """The packets that are newer than all before them of their cameras; the others are settled here."""
        orders = [self._cameras.of(ticket.job.camera).order for ticket in tickets]
        stale = {ticket for ticket, order in zip(tickets, orders, strict=True) if not order.admit(ticket.packet.id)}
        return await self._settle(tickets, lambda ticket: "stale" if ticket in stale else None)

    async def _settle(self, tickets: Sequence[Ticket], refusal: Callable[[Ticket], str | None]) -> list[Ticket]:
        """Answer and count the packets that are refused for some reason; returns the others."""
        reasons = {ticket: refusal(ticket) for ticket in tickets}
        for ticket, reason in reasons.items():
            if reason is not None:
                self._lose(ticket.job.camera, reason)
        await self._acknowledge([ticket.job for ticket, reason in reasons.items() if reason is not None])
        return [ticket for ticket, reason in reasons.items() if reason is None]

    async def _publish(self) -> None:
        while True:
            batch = await self._decoded.get()
            settled: list[Job] = []
            for ticket, result in zip(batch.tickets, batch.results, strict=True):
                error = await self._finish(ticket, result)
                if isinstance(error, BitstreamError):
                    await self._bury(ticket.job, str(error))
                else:
                    settled.append(ticket.job)
            await self._acknowledge(settled)
            self._room.release()

    async def _finish(self, ticket: Ticket, result: Decoded | PipelineError) -> PipelineError | None:
        """Publish one result; returns the error that stood in the way."""
        name, packet = ticket.job.camera, ticket.packet
        if isinstance(result, PipelineError):
            return self._failed(name, result)
        with metrics.STAGE_SECONDS.labels("publish").time():
            rendered = await self._frames.publish(name, packet.id, result)
        if isinstance(rendered, PipelineError):
            return self._failed(name, rendered)
        camera = self._cameras.of(name)
        latency_ms = camera.clock.age_ms(packet.captured_ms, now_ms=self._wall_ms())
        camera.stats.mask(MaskFacts(latency_ms, rendered.share))
        metrics.LATENCY_SECONDS.observe(latency_ms / 1000)
        for counter, made in ((metrics.MASKS, result.mask), (metrics.LABELS, result.scores)):
            if made is not None:
                counter.labels(name).inc()
        metrics.PACKETS.labels("worker").inc()
        metrics.PACKET_BYTES.labels("worker").inc(len(ticket.job.packet))
        return None

    def _failed(self, name: str, error: PipelineError) -> PipelineError:
        """Count an error of one packet; that of a wrong bundle is for a person, and told once per camera."""
        camera = self._cameras.of(name)
        self._lose(name, _REASONS.get(type(error), "packet"))
        if isinstance(error, BundleMismatch) and not camera.mismatch_told:
            camera.mismatch_told = True
            log.error("packets cannot be decoded", camera=name, reason=str(error))
        return error

    def _lose(self, name: str, reason: str) -> None:
        self.losses.add(reason)
        self._cameras.of(name).stats.drops[reason] += 1

    async def _acknowledge(self, jobs: Sequence[Job]) -> None:
        """Tell the queue; if it is away the jobs come again later, and are found stale."""
        if jobs:
            try:
                await self._queue.done(jobs)
            except TransportError as error:
                self._lost_queue(error)

    async def _bury(self, job: Job, reason: str) -> None:
        self.losses.add("buried")
        log.debug("packet buried", camera=job.camera, reason=reason)
        try:
            await self._queue.bury(job, reason)
        except TransportError as error:
            self._lost_queue(error)

    def _lost_queue(self, error: TransportError) -> None:
        metrics.RETRIES.labels("queue").inc()
        if self._away is None:
            log.warning("queue away", worker=self._name, reason=str(error))
        self._away = str(error)


def stands_alone(packet: Packet) -> bool:
    """Whether the packet shows the whole frame without any other packet, so that older ones are not needed."""
    keys = sum(region.kind is Kind.KEY for region in packet.regions)
    return keys == packet.rows * packet.columns


def open_job(job: Job) -> Packet:
    """The packet of a job; raises PipelineError where it is none."""
    check_camera_name(job.camera)
    return unpack(job.packet)


def worker_name(given: str) -> str:
    """The name of this worker: as given, else one of its own from host and process."""
    return given or re.sub(r"[^a-z0-9_.-]", "-", f"{socket.gethostname()}-{os.getpid()}".lower())


async def work(
    name: str,
    settings: WorkerSection,
    *,
    bundle: Bundle,
    decoder: Decoder,
    lane: Lane,
    queue: WorkQueue,
    channel: Channel,
    health: Health,
) -> None:
    """Run a worker over an open queue and channel until cancelled."""
    deadline_ms = settings.deadline_ms
    names = [each.name for each in bundle.manifest.classes]
    cameras = Cameras(names, deadline_ms=deadline_ms)
    async with Lane("png") as png, asyncio.TaskGroup() as tasks:
        worker = Worker(
            name,
            queue=queue,
            decoder=decoder,
            lane=lane,
            cameras=cameras,
            frames=FramePublisher(
                channel, png, looks=Looks(bundle.palette, names, rle=settings.rle), live=deadline_ms > 0
            ),
            batch=settings.batch,
            wait_s=settings.wait_s,
            deadline_ms=deadline_ms,
        )
        health.need(worker.reason)
        tasks.create_task(worker.run())
        tasks.create_task(StatsPublisher(name, channel, cameras, interval_s=settings.stats_s).run())


def opening(bundle: Bundle, settings: WorkerSection, decoder: DecoderSection) -> Callable[[], Decoder]:
    """What opens the decoder that these settings ask for."""
    labels = settings.labels == "auto"
    return partial(open_decoder, bundle, batch=settings.batch, labels=labels, **decoder.model_dump())


def presence_of(name: str, *, bundle: Bundle, transport: str) -> Presence:
    """What the worker says of itself."""
    manifest = bundle.manifest
    return Presence(
        topic=f"worker/{name}/state",
        bundle=manifest.hash,
        width=manifest.width,
        height=manifest.height,
        transport=transport,
        since=now_ms(),
    )


async def main(settings: WorkerSettings) -> None:
    """Run one worker until it is cancelled; raises PipelineError."""
    bundle, root = load_bundle(settings.bundle or default_bundle()), settings.mqtt.root
    manifest, name, health = bundle.manifest, worker_name(settings.worker.id), Health()
    presence = presence_of(name, bundle=bundle, transport=settings.mqtt_url.partition(":")[0])
    async with (
        health_page(health, host=settings.health.host, port=settings.health.port),
        Lane("decoder") as lane,
        RedisWorkQueue(
            settings.redis_url,
            name,
            shards=settings.queue.shards,
            shard_limit=settings.queue.shard_packets,
        ) as queue,
        open_channel(settings.mqtt_url, root=root, will=presence.will, client_id=presence.client_id(root)) as channel,
        announced(channel, presence),
    ):
        decoder = await lane.run(opening(bundle, settings.worker, settings.decoder))
        await tell(channel, f"bundle/{manifest.hash}", manifest.model_dump_json().encode())
        health.need_broker(channel)
        health.complete()  # `work` names the last need before it first waits
        log.info("worker started", worker=name, bundle=manifest.name)
        await work(
            name,
            settings.worker,
            bundle=bundle,
            decoder=decoder,
            lane=lane,
            queue=queue,
            channel=channel,
            health=health,
        )
