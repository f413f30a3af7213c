"""Which packets a worker spends time on: claimed, opened, in time, in order; the others are answered and counted here.

claim -> open -> [too old? passed by a newer one?] -> [newer than all before of its camera?] -> batch
           +-> of a recording -> [recordings: the one after those before it?] -------------------^
"""

import asyncio
import random
import time
from collections.abc import Callable, Sequence

from nodes.answers import Answers
from nodes.publisher import FramePublisher
from nodes.recordings import Recordings, Ticket
from nodes.service import now_ms
from nodes.stats import Cameras
from pipeline.bitstream import is_bidirectional, unpack
from pipeline.errors import PipelineError, TransportError
from pipeline.keys import is_whole, stands_alone
from pipeline.messages import Kind, Packet, check_camera_name
from pipeline.work_queue import Job, WorkQueue

_RETRY_FIRST_S, _RETRY_MAX_S = 0.1, 2.0
# With frames this old a worker catches up: it looks at its whole backlog, and decodes of each camera the newest.
# Below this a few frames that came together, after a hiccup, are all worth their time.
_BEHIND_MS = 200
_BACKLOG = 1000  # packets
_HELD_WAIT_S = 0.05  # between two looks whether others have published what packets of a recording wait for
# One in so many places of a batch is for recordings, and no more while a live camera sends: its next packet would wait.
_RECORDED_SHARE, _LIVE_S = 4, 1.0


class Intake:
    """The packets of a worker's next batches; `deadline_ms` since capture, 0 where nothing is late."""

    def __init__(
        self,
        *,
        queue: WorkQueue,
        answers: Answers,
        recordings: Recordings,
        cameras: Cameras,
        frames: FramePublisher,
        batch: int,
        wait_s: float,
        deadline_ms: int,
        rng: random.Random | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_ms: Callable[[], int] = now_ms,
    ) -> None:
        self._queue, self._answers, self._recordings = queue, answers, recordings
        self._cameras, self._frames = cameras, frames
        self._batch, self._wait_s, self._deadline_ms = batch, wait_s, deadline_ms
        self._rng, self._clock, self._wall_ms = rng or random.Random(), clock, wall_ms
        self._kept: list[Ticket] = []  # found in the backlog, for the next batches
        self._live_s = clock() - _LIVE_S  # when a live packet came last
        self._more = self._shared = False  # recordings have more for the next batch, had some in the last one

    async def next(self) -> list[Ticket]:
        """The packets of the next batch; waits for them as long as it takes."""
        tickets: list[Ticket] = []
        while not tickets:
            await self._until_ready()
            # Without deadlines nothing is passed over: what does not fit into this batch is left in the queue.
            full = not self._deadline_ms and len(self._kept) >= self._batch
            opened = [] if full else await self._open(await self._claim())
            if self._is_behind(opened):
                opened += await self._open(await self._claim(_BACKLOG, at_once=True))
            sifted = await self._sift([*self._kept, *opened])
            recorded = await self._recorded(self._batch - len(sifted))
            room = self._batch - len(recorded)
            tickets, self._kept = await self._in_order(sifted[:room]) + recorded, sifted[room:]
        return tickets

    async def _recorded(self, room: int) -> list[Ticket]:
        """The packets of recordings for this batch: as many as there is room for, or as are their share of it."""
        share = self._batch // _RECORDED_SHARE or int(not self._shared)  # of a small batch every second one
        alone = self._clock() - self._live_s > _LIVE_S
        most = max(room, share) if alone else share
        tickets = await self._recordings.next(most)
        self._shared = bool(tickets)
        self._more = len(tickets) >= most and self._recordings.waiting
        return tickets

    async def _until_ready(self) -> None:
        """Wait for the broker; a worker that cannot publish leaves its cameras to others."""
        if not self._frames.ready:
            try:
                await self._queue.rest()
            except TransportError as error:
                self._answers.lost_queue(error)
            await self._frames.until_ready()

    async def _claim(self, batch: int | None = None, *, at_once: bool = False) -> list[Job]:
        """The next jobs, a batch of them; while the queue is away, tries again and again."""
        busy = at_once or bool(self._kept) or self._more  # others' work is for when there is none here
        wait_s = min(self._wait_s, _HELD_WAIT_S) if self._recordings.waiting else self._wait_s
        retry_s = _RETRY_FIRST_S
        while True:
            try:
                jobs = await self._queue.claim(batch=batch or self._batch, wait_s=0 if busy else wait_s, steal=not busy)
            except TransportError as error:
                self._answers.lost_queue(error)
                await asyncio.sleep(retry_s * self._rng.uniform(0.5, 1.0))
                retry_s = min(2 * retry_s, _RETRY_MAX_S)
            else:
                self._answers.found_queue()
                return jobs

    async def _open(self, jobs: Sequence[Job]) -> list[Ticket]:
        """The packets of jobs that just came, those of recordings apart; what is none is buried."""
        opened: list[Ticket] = []
        for job in jobs:
            try:
                ticket = Ticket(job, open_job(job))
            except PipelineError as error:
                self._answers.losses.add("packet")  # of nobody's: what names no camera may be one of any name
                await self._answers.bury(job, str(error))
            else:
                self._hear(ticket)
                opened.append(ticket)
        self._recordings.hold(ticket for ticket in opened if ticket.packet.recorded)
        return [ticket for ticket in opened if not ticket.packet.recorded]

    def _hear(self, ticket: Ticket) -> None:
        camera, packet = self._cameras.of(ticket.job.camera), ticket.packet
        camera.heard_s = self._clock()
        camera.stats.take(packet, size_bytes=len(ticket.job.packet))
        if is_bidirectional(packet):
            camera.waiting_epoch = packet.id.epoch
        if not packet.recorded:
            self._live_s = camera.heard_s
            camera.clock.learn(packet.captured_ms, now_ms=self._wall_ms())

    def _is_behind(self, tickets: Sequence[Ticket]) -> bool:
        now_ms, prompt = self._wall_ms(), [ticket for ticket in tickets if self._is_prompt(ticket)]
        return self._deadline_ms > 0 and any(self._age_ms(ticket, now_ms) > _BEHIND_MS for ticket in prompt)

    def _is_prompt(self, ticket: Ticket) -> bool:
        """Whether the packet left its camera when its frame came; else its age does not say that this worker is behind.

        Of a camera that lets frames wait only the KEYs' own frames never do.
        """
        waits = self._cameras.of(ticket.job.camera).waiting_epoch == ticket.packet.id.epoch
        return not waits or any(region.shows is Kind.KEY for region in ticket.packet.regions)

    def _age_ms(self, ticket: Ticket, now_ms: int) -> int:
        return self._cameras.of(ticket.job.camera).clock.age_ms(ticket.packet.captured_ms, now_ms=now_ms)

    async def _sift(self, tickets: Sequence[Ticket]) -> list[Ticket]:
        """The packets that are worth decoding, oldest first; the others are settled here."""
        now_ms = self._wall_ms()
        ages_ms = {ticket: self._age_ms(ticket, now_ms) for ticket in tickets}
        ordered = sorted(tickets, key=lambda ticket: (-ages_ms[ticket], ticket.packet.captured_ms))
        oldest_ms = {ticket.job.camera: ages_ms[ticket] for ticket in reversed(ordered) if self._is_prompt(ticket)}
        alone = {ticket.job.camera: ticket.packet for ticket in ordered if stands_alone(ticket.packet)}
        whole = {ticket.job.camera: ticket.packet for ticket in ordered if is_whole(ticket.packet)}

        def refusal(ticket: Ticket) -> str | None:
            if not self._deadline_ms:
                return None
            if ages_ms[ticket] > self._deadline_ms:
                return "late"
            newest = alone if has_key(ticket.packet) else whole  # what others may refer to goes last
            best = newest.get(ticket.job.camera, ticket.packet)
            behind = oldest_ms.get(ticket.job.camera, 0) > _BEHIND_MS
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
                self._answers.lose(ticket.job.camera, reason)
        await self._answers.acknowledge([ticket.job for ticket, reason in reasons.items() if reason is not None])
        return [ticket for ticket, reason in reasons.items() if reason is None]


def has_key(packet: Packet) -> bool:
    """Whether later packets may refer to this one."""
    return any(region.kind is Kind.KEY for region in packet.regions)


def open_job(job: Job) -> Packet:
    """The packet of a job; raises PipelineError where it is none."""
    check_camera_name(job.camera)
    return unpack(job.packet)
