"""One row of `workers` while it is measured: a redis-server, the workers' processes, the cameras, and the counts.

cameras -> put, as a gateway does -> Redis -> workers' processes -> Told -> masks counted, room for the next packets
"""

import asyncio
import itertools
import shutil
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis

from benchmarks.workers_crew import Shift, Tally, serve, stretched_ms
from benchmarks.workers_load import Costs, Round, Start
from pipeline.bitstream import pack
from pipeline.bundle import Bundle
from pipeline.errors import ConfigError
from pipeline.messages import FrameId, Kind, Packet
from pipeline.redis_queue import RedisWorkQueue

_START_S = 60.0
_STARTS = 200
_SILENT = f"a worker's process says nothing for {_START_S:.0f} s; what it wrote may say why"


@dataclass(frozen=True, slots=True)
class Load:
    """What the workers are offered: cameras, packets under way of each, deadline in ms (0: recordings)."""

    cameras: int
    under_way: int
    deadline_ms: int


@dataclass(frozen=True, slots=True)
class Setting:
    """One row: how many workers, whether with affinity, and at what pace they are emulated, 0: for real."""

    workers: int
    affinity: bool
    pace: float


@contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """The address of a redis-server from PATH that keeps nothing; ConfigError where there is none."""
    program = shutil.which("redis-server")
    if program is None:
        raise ConfigError("redis-server is not installed: apt-get install redis-server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [program, "--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder), "--save", ""]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        _wait_for(port)
        yield f"redis://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


def _wait_for(port: int) -> None:
    for _ in range(_STARTS):
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise ConfigError(f"redis-server does not answer on port {port}")


class Crew:
    """The processes of the workers, started once for all rows; the first ones do each shift."""

    def __init__(self, size: int, *, bundle: Bundle, masks: Path, threads: int) -> None:
        self._size, self._given = size, (bundle.path, masks, threads)
        self._processes: list[BaseProcess] = []
        self.pipes: list[Connection] = []

    def __enter__(self) -> Self:
        context = get_context("forkserver")
        context.set_forkserver_preload(["benchmarks.workers_crew"])
        for _ in range(self._size):
            ours, theirs = context.Pipe()
            self._processes.append(context.Process(target=serve, args=(theirs, *self._given), daemon=True))
            self._processes[-1].start()
            theirs.close()
            self.pipes.append(ours)
        for pipe in self.pipes:
            _receive(pipe)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pipe in self.pipes:
            pipe.close()
        for process in self._processes:
            process.join(10)


def _receive(pipe: Connection) -> Any:
    try:
        if pipe.poll(_START_S):
            return pipe.recv()
    except EOFError as error:
        raise ConfigError("a worker's process ended; what it wrote says why") from error
    raise ConfigError(_SILENT)


@dataclass(slots=True, eq=False)
class Camera:
    """What it sent and what came of it; a mask counts once."""

    name: str
    start: Start
    room: asyncio.Semaphore
    since: int = 0  # the newest sequence that was shown when the measuring began
    shown: dict[int, float] = field(default_factory=dict)  # by sequence, pixels as expected


@dataclass(frozen=True, slots=True)
class Moment:
    """What had been counted by then."""

    at_s: float
    masks: int
    stored: int
    stored_bytes: int
    cpu_s: float
    tally: Tally


class Floor:
    """One row while it is measured: the cameras, the workers' reports, the counts."""

    def __init__(self, setting: Setting, load: Load, video: Round, *, epoch: int) -> None:
        self._setting, self._video, self._epoch = setting, video, epoch
        self._deadline_ms = load.deadline_ms
        self.cameras = [
            Camera(f"cam-{n}", video.start_of(n, load.cameras), asyncio.Semaphore(load.under_way))
            for n in range(load.cameras)
        ]
        self._by_name = {camera.name: camera for camera in self.cameras}
        self._tallies: asyncio.Queue[Tally] = asyncio.Queue()
        self._stored = self._stored_bytes = 0

    def shift(self, number: int, url: str, costs: Costs | None) -> Shift:
        starts = {camera.name: camera.start.key_place for camera in self.cameras}
        setting = self._setting
        return Shift(f"worker-{number}", url, setting.affinity, setting.pace, self._deadline_ms, starts, costs)

    async def run(
        self, url: str, pipes: Sequence[Connection], costs: Costs | None, warm_s: float, seconds: float
    ) -> tuple[Moment, Moment]:
        """Measure for so long, after a while in which the workers meet and keys come."""
        with redis.Redis.from_url(url) as client:
            client.flushdb()
        self._pipes = pipes[: self._setting.workers]
        for number, pipe in enumerate(self._pipes, start=1):
            pipe.send(self.shift(number, url, costs))
        for pipe in self._pipes:
            await asyncio.to_thread(_receive, pipe)
        loop = asyncio.get_running_loop()
        for pipe in self._pipes:
            loop.add_reader(pipe.fileno(), self._hear, pipe)
        async with RedisWorkQueue(url) as queue:
            playing = [asyncio.create_task(self._play(camera, queue)) for camera in self.cameras]
            await asyncio.sleep(warm_s)
            before = await self._moment(url)
            for camera in self.cameras:
                camera.since = max(camera.shown, default=camera.start.sequence)
            await asyncio.sleep(seconds)
            after = await self._moment(url)
            for task in playing:
                task.cancel()
            await asyncio.gather(*playing, return_exceptions=True)
        for pipe in self._pipes:
            loop.remove_reader(pipe.fileno())
            pipe.send(False)
        await asyncio.to_thread(lambda: [_until_over(pipe) for pipe in self._pipes])
        return before, after

    async def _play(self, camera: Camera, queue: RedisWorkQueue) -> None:
        # It has been on for a while: its key is stored, and no worker has it yet.
        await self._store(camera, self._packet(camera, 0), queue)
        for sequence in itertools.count(camera.start.sequence):
            await camera.room.acquire()
            packet = self._packet(camera, sequence)
            if packet.regions[0].kind is Kind.KEY:
                await self._store(camera, packet, queue)
            await queue.put(camera.name, pack(packet))

    def _packet(self, camera: Camera, sequence: int) -> Packet:
        now_ms = stretched_ms(self._setting.pace or 1.0)()
        id = FrameId(self._epoch, sequence)
        return self._video.packet(camera.start.key_place + sequence, id, captured_ms=now_ms)

    async def _store(self, camera: Camera, packet: Packet, queue: RedisWorkQueue) -> None:
        """As the gateway does with a KEY before it is queued."""
        data = pack(packet)
        await queue.store_keys(camera.name, {0: data})
        self._stored += 1
        self._stored_bytes += len(data)

    def _hear(self, pipe: Connection) -> None:
        try:
            told = pipe.recv()
        except EOFError:  # the worker died; who waits for its tally will say so
            asyncio.get_running_loop().remove_reader(pipe.fileno())
            return
        if isinstance(told, Tally):
            self._tallies.put_nowait(told)
            return
        for mask in told.shown:
            self._by_name[mask.camera].shown.setdefault(mask.sequence, mask.same)
        for name, count in told.answered.items():
            for _ in range(count):
                self._by_name[name].room.release()

    async def _moment(self, url: str) -> Moment:
        for pipe in self._pipes:
            pipe.send(True)
        try:
            async with asyncio.timeout(_START_S):
                tallies = [await self._tallies.get() for _ in self._pipes]
        except TimeoutError as error:
            raise ConfigError(_SILENT) from error
        at_s, masks = time.monotonic(), sum(len(camera.shown) for camera in self.cameras)
        with redis.Redis.from_url(url) as client:
            used = client.info("cpu")
        cpu_s = time.process_time() + used["used_cpu_user"] + used["used_cpu_sys"] + sum(one.cpu_s for one in tallies)
        total = Tally(
            sum((one.lookups for one in tallies), Counter()),
            sum((one.regions for one in tallies), Counter()),
            sum((one.drops for one in tallies), Counter()),
            sum(one.fetched_bytes for one in tallies),
            sum(one.cpu_s for one in tallies),
            sum((one.batches for one in tallies), ()),
            sum((one.rendered_s for one in tallies), ()),
        )
        return Moment(at_s, masks, self._stored, self._stored_bytes, cpu_s, total)

    def same(self) -> float:
        """The share of the pixels of all masks that are as an undisturbed decoder makes them."""
        found = [same for camera in self.cameras for same in camera.shown.values()]
        return sum(found) / max(1, len(found))

    def accuracy(self) -> float:
        """Percent, over all frames from what was shown when the measuring began to the last mask of each camera."""
        places, shown = len(self._video.packets), Counter[tuple[int, int]]()
        for camera in self.cameras:
            first, last = camera.start.key_place, camera.since
            for sequence in range(camera.since, max(camera.shown, default=camera.since) + 1):
                last = sequence if sequence in camera.shown else last
                shown[(first + last) % places, (first + sequence) % places] += 1
        return self._video.accuracy(shown)


def _until_over(pipe: Connection) -> None:
    while _receive(pipe) is not None:
        pass
