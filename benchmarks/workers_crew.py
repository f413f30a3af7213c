"""The workers of `workers`: each a process with the project's own Worker and queue, whose decoder may be emulated.

parent: Shift -> | Redis -> Worker -> [decoder: real, or sleeps and takes masks made before] -> masks counted | -> Told

An emulated worker sleeps, on the lanes where it would compute, for as long as that takes; `pace` times as long, where
time is to run slower, so that several fit on few cores: then its
clock, and how long jobs wait before another worker takes them, are stretched alike.
"""

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from prometheus_client import Counter as Metric

from benchmarks.workers_load import Batch, Costs
from nodes.key_fetching import KeyRequests
from nodes.publisher import FramePublisher, Looks, Rendered
from nodes.service import Lane, now_ms, set_up_logging
from nodes.stats import Cameras
from nodes.worker import Worker
from pipeline import metrics
from pipeline.bundle import Bundle, load_bundle
from pipeline.codec import Decoder, open_decoder
from pipeline.errors import MissingKey, PipelineError
from pipeline.keys import KeyBuffers
from pipeline.messages import Decoded, FrameId, Kind, Mask, Packet
from pipeline.redis_queue import RedisWorkQueue
from pipeline.transport import open_channel
from pipeline.work_queue import KEEP_S, STEAL_AFTER_S, Job

BATCH = 8  # as a worker's settings have it
_WAIT_S = 1.0
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Shift:
    """What a worker is to do until it is told otherwise: emulated at a pace, or for real with pace 0."""

    worker: str
    url: str
    affinity: bool
    pace: float
    deadline_ms: int
    starts: dict[str, int]  # where in the video each camera begins
    costs: Costs | None  # needed to emulate

    @property
    def stretch(self) -> float:
        """How many seconds one second of the workers' time takes."""
        return self.pace or 1.0


@dataclass(frozen=True, slots=True)
class Shown:
    """A mask that was published, and the share of its pixels that are as an undisturbed decoder makes them."""

    camera: str
    sequence: int
    same: float


@dataclass(frozen=True, slots=True)
class Told:
    """How many jobs were answered, by camera, and the masks that were published since the last were."""

    answered: dict[str, int]
    shown: tuple[Shown, ...]


@dataclass(frozen=True, slots=True)
class Tally:
    """What a worker has counted since its process began."""

    lookups: Counter[str]
    regions: Counter[str]
    drops: Counter[str]
    fetched_bytes: int
    cpu_s: float
    batches: tuple[Batch, ...]  # of real decoders
    rendered_s: tuple[float, ...]


class Report:
    """What goes to the parent: masks with the answer of their jobs, bytes of keys that were fetched, times."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe, self._shown = pipe, list[Shown]()
        self.fetched_bytes = 0
        self.batches: list[Batch] = []
        self.rendered_s: list[float] = []

    def mask(self, shown: Shown) -> None:
        self._shown.append(shown)

    def done(self, jobs: Sequence[Job]) -> None:
        self._pipe.send(Told(dict(Counter(job.camera for job in jobs)), tuple(self._shown)))
        self._shown.clear()

    def tally(self) -> None:
        def counted(metric: Metric, label: str) -> Counter[str]:
            found = [sample for family in metric.collect() for sample in family.samples]
            return Counter({one.labels[label]: int(one.value) for one in found if one.name.endswith("_total")})

        lookups, regions = counted(metrics.KEY_LOOKUPS, "where"), counted(metrics.DECODED_REGIONS, "kind")
        drops = counted(metrics.DROPS, "reason")
        times = tuple(self.batches), tuple(self.rendered_s)
        self._pipe.send(Tally(lookups, regions, drops, self.fetched_bytes, time.process_time(), *times))
        self.batches, self.rendered_s = [], []


class CountingQueue(RedisWorkQueue):
    """The queue, which says what was answered and counts the bytes of keys."""

    def __init__(self, shift: Shift, report: Report) -> None:
        stretch = shift.stretch
        super().__init__(shift.url, shift.worker, steal_after_s=STEAL_AFTER_S * stretch, keep_s=KEEP_S * stretch)
        self._report = report

    async def done(self, jobs: Sequence[Job]) -> None:
        await super().done(jobs)
        self._report.done(jobs)

    async def fetch_keys(self, camera: str, regions: Collection[int]) -> dict[int, tuple[bytes, ...]]:
        found = await super().fetch_keys(camera, regions)
        self._report.fetched_bytes += sum(len(key) for keys in found.values() for key in keys)
        return found


class FreeForAll(CountingQueue):
    """The queue without affinity: every shard is everybody's, so whoever is free takes what is oldest."""

    async def _beat(self) -> None:
        await super()._beat()
        self._own = list(range(self._shards))


@dataclass(frozen=True, slots=True, eq=False)
class Video:
    """The masks (P, H, W) that are right, and where in them each camera begins."""

    masks: NDArray[np.uint8]
    starts: dict[str, int]

    def mask(self, camera: str, id: FrameId) -> NDArray[np.uint8]:
        return self.masks[(self.starts[camera] + id.sequence) % len(self.masks)]


class TimedDecoder:
    """A real decoder as a worker uses it, and how long its batches took."""

    def __init__(self, decoder: Decoder, report: Report) -> None:
        self._decoder, self._report = decoder, report
        self.missing = decoder.missing

    def decode(self, packets: Sequence[Packet], cameras: Sequence[str]) -> list[Decoded | PipelineError]:
        began_s = time.perf_counter()
        results = self._decoder.decode(packets, cameras)
        kinds = Counter(packet.regions[0].kind for packet in packets)
        self._report.batches.append(Batch(kinds, time.perf_counter() - began_s))
        return results


class EmulatedDecoder(Decoder):
    """Knows which keys it has, and takes as long as the real one; its masks were made before."""

    def __init__(self, bundle: Bundle, video: Video, costs: Costs, *, pace: float) -> None:
        self._held = KeyBuffers()  # type: ignore[var-annotated]
        super().__init__(bundle, None, keys=self._held)
        self._video = video
        self._decode_s = {kind: pace * cost_s for kind, cost_s in costs.decode_s.items()}

    def decode(self, packets: Sequence[Packet], cameras: Sequence[str] | None = None) -> list[Decoded | PipelineError]:
        ends = time.perf_counter() + sum(self._decode_s[packet.regions[0].kind] for packet in packets)
        names = [""] * len(packets) if cameras is None else cameras
        results = [self._result(packet, name) for packet, name in zip(packets, names, strict=True)]
        time.sleep(max(0.0, ends - time.perf_counter()))
        return results

    def _result(self, packet: Packet, camera: str) -> Decoded | PipelineError:
        region, keys = packet.regions[0], self._held.of(camera)
        try:
            if region.kind is Kind.KEY:
                keys.put(packet, region.index, None)
            else:
                keys.get(packet, region)
        except MissingKey as error:
            return error
        classes = self._video.mask(camera, packet.id)
        return Decoded(Mask(packet.id, packet.captured_ms, packet.bundle, classes), None)


class RenderingLane(Lane):
    """Where masks are rendered: how long that took, and how many pixels are those of an undisturbed decoder."""

    def __init__(self, video: Video, report: Report) -> None:
        super().__init__("png")
        self._video, self._report = video, report

    async def run(self, compute: Callable[..., R], *args: object) -> R:
        began_s = time.perf_counter()
        rendered = await super().run(compute, *args)
        self._report.rendered_s.append(time.perf_counter() - began_s)
        match args:
            case (Decoded(mask=Mask(id=id, classes=classes)), str(camera), *_):
                same = np.mean(classes == self._video.mask(camera, id))
                self._report.mask(Shown(camera, id.sequence, float(same)))
        return rendered


class EmulatedLane(Lane):
    """Takes as long as rendering does; nothing is published."""

    def __init__(self, rest_s: float, classes: int, report: Report) -> None:
        super().__init__("png")
        self._rest_s, self._report = rest_s, report
        self._nothing = Rendered((), np.zeros(classes))

    async def run(self, compute: Callable[..., R], *args: object) -> R:
        await super().run(time.sleep, self._rest_s)
        match args:
            case (Decoded(mask=Mask(id=id)), str(camera), *_):
                self._report.mask(Shown(camera, id.sequence, 1.0))
        return cast(R, self._nothing)


class Bench:
    """What a worker's process keeps from shift to shift."""

    def __init__(self, bundle: Bundle, masks: NDArray[np.uint8], report: Report, *, threads: int) -> None:
        self.bundle, self.masks, self.report, self._threads = bundle, masks, report, threads
        self.names = [each.name for each in bundle.manifest.classes]
        self._opened: Decoder | None = None

    def decoder(self, shift: Shift) -> Decoder:
        """For one shift; what a real one has seen is of other epochs."""
        if shift.costs is not None and shift.pace:
            video = Video(self.masks, shift.starts)
            return EmulatedDecoder(self.bundle, video, shift.costs, pace=shift.pace)
        self._opened = self._opened or open_decoder(self.bundle, threads=self._threads, batch=BATCH, labels=False)
        return cast(Decoder, TimedDecoder(self._opened, self.report))

    def rendering(self, shift: Shift) -> Lane:
        """Where the masks of one shift are rendered."""
        costs = shift.costs
        if costs is None or not shift.pace:
            return RenderingLane(Video(self.masks, shift.starts), self.report)
        rest_s = shift.pace * costs.render_s + (shift.pace - 1) * costs.around_s
        return EmulatedLane(rest_s, len(self.names), self.report)


def serve(pipe: Connection, bundle: Path, masks: Path, threads: int) -> None:
    """Work off shifts, until the pipe ends; a process's main."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops us
    set_up_logging(level="error", format="console")
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    bench = Bench(load_bundle(bundle), np.load(masks, mmap_mode="r"), Report(pipe), threads=threads)
    pipe.send(None)
    with suppress(EOFError, OSError):
        while True:
            asyncio.run(_work(pipe.recv(), bench, pipe))
            pipe.send(None)


async def _work(shift: Shift, bench: Bench, pipe: Connection) -> None:
    """One shift, until the parent says so."""
    queue_of = CountingQueue if shift.affinity else FreeForAll
    async with (
        Lane("decoder") as lane,
        bench.rendering(shift) as png,
        queue_of(shift, bench.report) as queue,
        open_channel("memory://workers") as channel,
    ):
        worker = Worker(
            shift.worker,
            queue=queue,
            decoder=await lane.run(bench.decoder, shift),
            lane=lane,
            requests=KeyRequests(channel),
            cameras=Cameras(bench.names, deadline_ms=shift.deadline_ms),
            frames=FramePublisher(
                channel, png, looks=Looks(bench.bundle.palette, bench.names), live=shift.deadline_ms > 0
            ),
            batch=BATCH,
            wait_s=_WAIT_S,
            deadline_ms=shift.deadline_ms,
            wall_ms=stretched_ms(shift.stretch),
        )
        tasks = {asyncio.create_task(worker.run()), asyncio.create_task(_obey(pipe, bench.report))}
        ended, going = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in going:
            task.cancel()
        await asyncio.wait(going)
        for task in ended:
            task.result()


async def _obey(pipe: Connection, report: Report) -> None:
    """Tell what was counted for each True that comes, and end with anything else."""
    loop, orders = asyncio.get_running_loop(), asyncio.Queue[bool]()
    pipe.send(None)
    loop.add_reader(pipe.fileno(), lambda: orders.put_nowait(_order(pipe)))
    try:
        while await orders.get():
            report.tally()
    finally:
        loop.remove_reader(pipe.fileno())


def _order(pipe: Connection) -> bool:
    try:
        return bool(pipe.recv())
    except EOFError:  # the parent is gone
        return False


def stretched_ms(stretch: float) -> Callable[[], int]:
    """The wall clock of a time that runs so many times slower."""
    return lambda: int(now_ms() / stretch)
