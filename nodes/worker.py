"""The worker node: packets from the queue -> masks and labels on their topics, decoded in batches across cameras.

claim -> [intake] -> [key_fetching, lane: Decoder] -> turn -> [lane: PNG] -> mask topic, labels topic -> done

What waits for its turn is put aside for a while, so that the masks of other cameras leave meanwhile.
Frames of a recording take no turns: they come here in order already, and each is answered before the next is published.
"""

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

import structlog

from nodes.answers import Answers
from nodes.buffer import Losses
from nodes.intake import Intake
from nodes.key_fetching import FetchingDecoder, KeyRequests
from nodes.presence import Presence, announced, node_name, tell
from nodes.publisher import Due, FramePublisher, Looks, StatsPublisher, always
from nodes.recordings import REPEATED, Recordings, Ticket
from nodes.service import Health, Lane, health_page, now_ms, told_if_slow
from nodes.stats import Cameras, MaskFacts
from nodes.zoning import CameraZones
from pipeline import metrics
from pipeline.bundle import Bundle, default_bundle, load_bundle
from pipeline.codec import Decoder, open_decoder
from pipeline.config import DecoderSection, WorkerSection, WorkerSettings
from pipeline.errors import BitstreamError, BundleMismatch, MissingKey, PipelineError, TransportError
from pipeline.mask_order import TURN_S, Turn
from pipeline.messages import Decoded
from pipeline.redis_queue import RedisWorkQueue
from pipeline.transport import Channel, open_channel
from pipeline.work_queue import Place, WorkQueue

_BATCHES = 2  # one is decoded while one is published
# Between two questions whether another worker's turn has ended; longer where many cameras wait for theirs.
_ASK_AGAIN_S, _ASK_EACH_S = 0.005, 0.0005
_ASIDE, _ASIDE_S = 64, 2 * TURN_S  # masks of live frames that wait for turns: so many at least, and for so long
_RETRY_S = 0.1  # before a mask of a recording is published again that the broker did not take
_REASONS = {BundleMismatch: "bundle", MissingKey: "missing_key", TransportError: "uplink"}

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, eq=False)
class Made:
    """A packet and what became of it."""

    ticket: Ticket
    result: Decoded | PipelineError


@dataclass(slots=True, eq=False)
class _Opened:
    """Turns that were given to one batch: when they were asked for last, and what became of them since."""

    asked_s: float
    newest: dict[str, Place] = field(default_factory=dict)  # by camera: those before it in the batch share its turn
    passed: dict[str, Turn] = field(default_factory=dict)  # by camera: what was said of those that are not ours now


class Worker:
    """Decodes what the queue gives; the next batch is claimed and decoded while the last one is published."""

    def __init__(
        self,
        name: str,
        *,
        queue: WorkQueue,
        decoder: Decoder,
        lane: Lane,
        requests: KeyRequests,
        cameras: Cameras,
        frames: FramePublisher,
        batch: int = 8,
        wait_s: float = 1.0,
        deadline_ms: int = 2000,
        rng: random.Random | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_ms: Callable[[], int] = now_ms,
    ) -> None:
        self._queue, self._cameras, self._frames = queue, cameras, frames
        self._name, self._live, self._clock, self._wall_ms = name, deadline_ms > 0, clock, wall_ms
        self._answers = Answers(name, queue=queue, cameras=cameras)
        self._recordings = Recordings(queue=queue, answers=self._answers, clock=clock)
        self._intake = Intake(
            queue=queue,
            answers=self._answers,
            recordings=self._recordings,
            cameras=cameras,
            frames=frames,
            batch=batch,
            wait_s=wait_s,
            deadline_ms=deadline_ms,
            rng=rng,
            clock=clock,
            wall_ms=wall_ms,
        )
        self._decoder = FetchingDecoder(decoder, lane, queue=queue, requests=requests)
        self._decoded: asyncio.Queue[list[Made]] = asyncio.Queue(_BATCHES)
        self._aside = max(_ASIDE, _BATCHES * batch)
        # Taken before a claim: jobs that would wait for the batches before them are better left in the queue.
        self._room = asyncio.Semaphore(_BATCHES)

    @property
    def losses(self) -> Losses:
        """What went no further here."""
        return self._answers.losses

    async def run(self) -> None:
        """Work until cancelled; what is under way then is left to the queue, which gives it to another worker."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._decode())
            tasks.create_task(self._publish())
            tasks.create_task(self.losses.report())

    def reason(self) -> str | None:
        """Why packets cannot be claimed right now, or None."""
        return self._answers.away

    async def _decode(self) -> None:
        while True:
            await self._room.acquire()
            tickets = await self._intake.next()
            metrics.BATCH_PACKETS.observe(len(tickets))
            with metrics.STAGE_SECONDS.labels("decode").time():
                packets, names = [one.packet for one in tickets], [self._keys_under(one) for one in tickets]
                results = await self._decoder.decode(packets, names)
            await self._decoded.put([Made(*each) for each in zip(tickets, results, strict=True)])

    def _keys_under(self, ticket: Ticket) -> str:
        return self._recordings.keys_under(ticket) if ticket.packet.recorded else ticket.job.camera

    async def _publish(self) -> None:
        aside: dict[Made, float] = {}  # what waits for its turn, and since when; of each camera in order
        while True:
            batch = await self._next_batch(len({each.ticket.job.camera for each in aside}))
            waiting = await self._publish_live(list(aside), [each for each in batch if not each.ticket.packet.recorded])
            aside = {each: aside.get(each, self._clock()) for each in waiting}
            await self._give_up(aside)
            await self._publish_recorded([each for each in batch if each.ticket.packet.recorded])
            if batch:
                self._room.release()

    async def _next_batch(self, waiting: int) -> list[Made]:
        """What was decoded next; nothing, after a little, where so many cameras wait for their turns."""
        again_s = max(_ASK_AGAIN_S, waiting * _ASK_EACH_S) if waiting else None
        with suppress(TimeoutError):
            async with asyncio.timeout(again_s):
                return await self._decoded.get()
        return []

    async def _publish_live(self, aside: Sequence[Made], made: Sequence[Made]) -> list[Made]:
        """Publish what is in turn of what was put aside, and after it of what was made now; returns those that wait."""
        # Of a camera that waits the first is asked for alone, the rest once that is ours: of all at once, a turn that
        # ends meanwhile would go to one behind those that were told to wait, and make them too old.
        first = {each.ticket.job.camera: each for each in reversed(aside)}
        waiting, ours = await self._publish_those_in_turn(list(first.values()))
        rest = [each for each in (*aside, *made) if first.get(each.ticket.job.camera) is not each]
        held = first.keys() - ours
        more, _ = await self._publish_those_in_turn([each for each in rest if each.ticket.job.camera not in held])
        return [*waiting, *(each for each in rest if each.ticket.job.camera in held), *more]

    async def _give_up(self, aside: dict[Made, float]) -> None:
        """Answer what waited for too long, and the oldest of what is too much: newer frames are worth more."""
        now_s, excess = self._clock(), len(aside) - self._aside
        over = [each for at, each in enumerate(aside) if at < excess or now_s - aside[each] >= _ASIDE_S]
        for each in over:
            del aside[each]
            self._answers.lose(each.ticket.job.camera, "stale")
        await self._answers.acknowledge([each.ticket.job for each in over])

    async def _publish_recorded(self, made: Sequence[Made]) -> None:
        """Publish what is next of its recording; what others published meanwhile is settled, the rest comes again."""
        if made:
            await self._recordings.look({each.ticket.job.camera for each in made})
        for each in made:
            await self._publish_next(each.ticket, each.result)

    async def _publish_next(self, ticket: Ticket, result: Decoded | PipelineError) -> None:
        turn = self._recordings.turn(ticket)
        if turn is Turn.MINE:
            if isinstance(result, MissingKey) and self._recordings.try_again(ticket):
                return
            error = await self._finish(ticket, result)
            if isinstance(error, TransportError):  # tried again later, so that masks of other cameras need not wait
                await asyncio.sleep(_RETRY_S)
                self._recordings.stop(ticket)
                self._recordings.hold([ticket])
            else:
                await self._settle_recorded(ticket, error)
        elif turn is Turn.WAIT:
            self._recordings.hold([ticket])
        else:
            self._answers.lose(ticket.job.camera, REPEATED)
            await self._answers.acknowledge([ticket.job])

    async def _settle_recorded(self, ticket: Ticket, error: PipelineError | None) -> None:
        """Answer for a packet of a recording whose mask is out, or that nothing will come of here."""
        if error is None:
            await self._answers.published(Place(ticket.job, ticket.packet.id))
            self._recordings.advance(ticket)
            return
        self._recordings.stop(ticket)
        if isinstance(error, BitstreamError):
            await self._answers.bury(ticket.job, str(error))
        else:
            await self._answers.acknowledge([ticket.job])

    async def _publish_those_in_turn(self, made: Sequence[Made]) -> tuple[list[Made], set[str]]:
        """Publish what is next, settle what is too old; returns those that wait, and the cameras whose turn is ours."""
        turns, opened = await self._turns(made)
        settled, waiting, ours, out = [], [], set[str](), False
        for each, asked in zip(made, turns, strict=True):
            job, turn, error = each.ticket.job, asked, None
            if turn is Turn.MINE:
                turn, error = await self._publish_mine(each, opened)
                if turn is Turn.MINE:
                    ours.add(job.camera)
                    out = out or error is None
            if turn is Turn.OVER:
                self._answers.lose(job.camera, "stale")
            if turn is Turn.WAIT:
                waiting.append(each)
            elif isinstance(error, BitstreamError):
                await self._answers.bury(job, str(error))
            else:
                settled.append(job)
        if out and self._live and not self._queue.alone:
            await self._frames.settle(self._name, limit_s=TURN_S)  # the next turn may be another worker's
        # Before the rest is asked for again: others may wait for these turns to end, as we do for theirs.
        await self._answers.acknowledge(settled)
        return waiting, ours

    async def _turns(self, made: Sequence[Made]) -> tuple[list[Turn], _Opened]:
        """Whether each mask may be published: all where nothing is late, or in our own order if the queue is away."""
        places = [Place(each.ticket.job, each.ticket.packet.id) for each in made if isinstance(each.result, Decoded)]
        turns, opened = [Turn.MINE] * len(places), _Opened(self._clock())
        if self._live and places:
            try:
                turns = await self._queue.take_turns(places)
            except TransportError as error:
                self._answers.lost_queue(error)
            else:
                own = (place for place, turn in zip(places, turns, strict=True) if turn is Turn.MINE)
                opened.newest.update((place.job.camera, place) for place in own)
        given = iter(turns)
        return [next(given) if isinstance(each.result, Decoded) else Turn.MINE for each in made], opened

    async def _publish_mine(self, made: Made, opened: _Opened) -> tuple[Turn, PipelineError | None]:
        """Publish in our turn; the turn may have passed to another worker when the mask is ready to be sent."""
        camera = made.ticket.job.camera
        error = await self._finish(made.ticket, made.result, partial(self._still_ours, camera, opened))
        return opened.passed.get(camera, Turn.MINE) if isinstance(made.result, Decoded) else Turn.MINE, error

    async def _still_ours(self, camera: str, opened: _Opened) -> bool:
        """Whether a turn is open still: others wait for its end no longer than TURN_S, so it is asked for again."""
        if self._clock() - opened.asked_s >= TURN_S / 2 and opened.newest:
            opened.asked_s = self._clock()
            try:
                turns = await self._queue.take_turns(list(opened.newest.values()))
            except TransportError as error:
                self._answers.lost_queue(error)
                opened.newest.clear()  # as where it was away to begin with
            else:
                again = zip(list(opened.newest), turns, strict=True)
                opened.passed |= {name: turn for name, turn in again if turn is not Turn.MINE}
                opened.newest = {name: one for name, one in opened.newest.items() if name not in opened.passed}
        return camera not in opened.passed

    async def _finish(self, ticket: Ticket, result: Decoded | PipelineError, due: Due = always) -> PipelineError | None:
        """Publish one result, if it is still due; returns the error that stood in the way."""
        name, packet = ticket.job.camera, ticket.packet
        if isinstance(result, PipelineError):
            return self._failed(name, result)
        with metrics.STAGE_SECONDS.labels("publish").time():
            rendered = await self._frames.publish(name, packet.id, result, recorded=packet.recorded, due=due)
        if rendered is None:
            return None
        if isinstance(rendered, PipelineError):
            tried_again = packet.recorded and isinstance(rendered, TransportError)
            return rendered if tried_again else self._failed(name, rendered)
        camera = self._cameras.of(name)
        latency_ms = camera.clock.age_ms(packet.captured_ms, now_ms=self._wall_ms())
        camera.stats.mask(MaskFacts(latency_ms, rendered.share, rendered.zones))
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
        self._answers.lose(name, _REASONS.get(type(error), "packet"))
        if isinstance(error, BundleMismatch) and not camera.mismatch_told:
            camera.mismatch_told = True
            log.error("packets cannot be decoded", camera=name, reason=str(error))
        return error


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
    looks = Looks(bundle.palette, names, rle=settings.rle)
    cameras, zones = Cameras(names, deadline_ms=deadline_ms), CameraZones()
    async with Lane("png") as png, asyncio.TaskGroup() as tasks:
        worker = Worker(
            name,
            queue=queue,
            decoder=decoder,
            lane=lane,
            requests=KeyRequests(channel),
            cameras=cameras,
            frames=FramePublisher(channel, png, looks=looks, live=deadline_ms > 0, zones=zones),
            batch=settings.batch,
            wait_s=settings.wait_s,
            deadline_ms=deadline_ms,
        )
        health.need(worker.reason)
        tasks.create_task(worker.run())
        tasks.create_task(zones.listen(channel))
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
        transport=transport,
        since=now_ms(),
        bundle=manifest.hash,
        width=manifest.width,
        height=manifest.height,
    )


async def main(settings: WorkerSettings) -> None:
    """Run one worker until it is cancelled; raises PipelineError."""
    bundle, root = load_bundle(settings.bundle or default_bundle()), settings.mqtt.root
    manifest, name, health = bundle.manifest, node_name(settings.worker.id), Health()
    transport = settings.mqtt_url.partition(":")[0]
    presence = presence_of(name, bundle=bundle, transport=transport)
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
    ):
        with told_if_slow(f"bundle {manifest.name}"):
            decoder = await lane.run(opening(bundle, settings.worker, settings.decoder))
        await tell(channel, f"bundle/{manifest.hash}", manifest.model_dump_json().encode())
        health.need_broker(channel)
        health.complete()  # `work` names the last need before it first waits
        log.info("worker started", worker=name, bundle=manifest.name)
        async with announced(channel, presence):
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
