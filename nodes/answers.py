"""What a worker says of its jobs: to the queue that they are answered, to the statistics what was lost and why."""

from collections.abc import Sequence

import structlog

from nodes.buffer import Losses
from nodes.stats import Cameras
from pipeline import metrics
from pipeline.errors import TransportError
from pipeline.work_queue import Job, Place, WorkQueue

log = structlog.get_logger()


class Answers:
    """Answers jobs and counts losses; knows whether the queue is there."""

    def __init__(self, worker: str, *, queue: WorkQueue, cameras: Cameras) -> None:
        self._worker, self._queue, self._cameras = worker, queue, cameras
        self.losses = Losses("worker")
        self.away: str | None = "the queue was not reached yet"

    def lose(self, camera: str, reason: str) -> None:
        """Count a packet of the camera that goes no further."""
        self.losses.add(reason)
        self._cameras.of(camera).stats.drops[reason] += 1

    async def acknowledge(self, jobs: Sequence[Job]) -> None:
        """Tell the queue; if it is away, it answers them later, or the jobs come again and are found stale."""
        if jobs:
            try:
                await self._queue.done(jobs)
            except TransportError as error:
                self.lost_queue(error)

    async def published(self, place: Place) -> None:
        """Tell the queue that the mask of a recording's frame is out; if it is away, it is told later."""
        try:
            await self._queue.published([place])
        except TransportError as error:
            self.lost_queue(error)

    async def bury(self, job: Job, reason: str) -> None:
        """Put a job that can never be worked on among the dead letters; whoever finds that out counts it."""
        log.debug("packet buried", camera=job.camera, reason=reason)
        try:
            await self._queue.bury(job, reason)
        except TransportError as error:
            self.lost_queue(error)

    def lost_queue(self, error: TransportError) -> None:
        """Take note that the queue did not answer."""
        metrics.RETRIES.labels("queue").inc()
        if self.away is None:
            log.warning("queue away", worker=self._worker, reason=str(error))
        self.away = str(error)

    def found_queue(self) -> None:
        """Take note that it did."""
        if self.away is not None:
            log.info("queue reached", worker=self._worker)
        self.away = None
