"""The queue between gateways and workers: what any of them promises.

 gateway -> put -> shard of the camera -> claim -> worker -> done
                        ^                   |
                        +---- reclaim <-----+ the worker died

Delivery is at least once. Each shard has one worker that prefers it, found by rendezvous hashing over the
live ones; any other may take from it when that worker is behind, and then takes the shard over: hashing knows nothing
of load. What comes of the jobs of one camera leaves in order all the same, by turns (`mask_order`).
"""

import hashlib
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType, TracebackType
from typing import Protocol, Self

from pipeline.mask_order import Position, Turn
from pipeline.messages import FrameId

SHARDS = 16
SHARD_LIMIT = 1000  # entries; a full shard drops its oldest, and that is counted
DELIVERY_LIMIT = 2  # a job that two workers left unanswered is not given to a third
DEAD_LIMIT = 1000
DEAD_BYTES = 4096  # of a packet: enough to see what is wrong, too little to fill the memory
RECLAIM_AFTER_S = 0.6
# A worker that takes another's jobs first has to decode the keys they refer to, so it is not for a single late one:
# at 25 fps some four of a camera wait by then, and go together.
STEAL_AFTER_S = 0.15
STEAL_RATIO = 1.5  # what is waiting there has waited so many times as long as what is here: both may be behind
# A shard that was taken over stays where it is for so long; twice as long each time it soon goes on, since one that
# is too much for any worker would go round, and its keys with it.
KEEP_S, KEEP_MOST_S = 1.0, 60.0
HOLD_S = 10.0  # a live worker that is still silent after this long has lost the job
KEYS_EXPIRE_S = 60.0
KEY_GENERATIONS = 2  # kept of each region
# Of a recording workers may be as far behind the newest as its camera sends before it waits for masks.
RECORDED_GENERATIONS = 64
KEYS_BYTES, KEYS_LEAST = 512 * 1024, 3  # of each region no more than that, but so many KEYs at least

NONE_TAKEN: Mapping[int, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Job:
    """One packet to work on, and when it was queued; `deliveries` is 1 the first time it is given to a worker."""

    shard: int
    entry: str
    camera: str
    packet: bytes
    deliveries: int
    queued_ms: int = 0


@dataclass(frozen=True, slots=True)
class Place:
    """A frame in the order of its camera's masks, and the job it came with."""

    job: Job
    frame: FrameId


class WorkQueue(Protocol):
    """An async context manager; what talks to a server raises TransportError, and may be tried again.

    A worker has shards of its own from its first claim on.
    """

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    @property
    def connected(self) -> bool:
        """Whether the queue's server answered lately."""
        ...

    @property
    def alone(self) -> bool:
        """Whether no other worker lives, as far as this one knows."""
        ...

    @property
    def dropped(self) -> int:
        """How many entries were cut from full shards by what was put here."""
        ...

    async def put(self, camera: str, packet: bytes) -> None:
        """Queue a packet; in a full shard the oldest make room and are counted."""
        ...

    async def claim(self, *, batch: int, wait_s: float, steal: bool = True) -> list[Job]:
        """Return up to `batch` jobs, oldest first, or none after `wait_s`; done or bury answers each.

        What a dead worker left comes first, then own shards; with `steal`, room that is left goes to the jobs
        of a worker that is behind, as many as wait in one shard before those of the next: few keys serve them. The
        first of these shards is this worker's own until another one takes it over, or a worker comes or goes.
        """
        ...

    async def rest(self) -> None:
        """Leave the own shards, and what was claimed, to others until the next claim."""
        ...

    async def take_turns(self, places: Sequence[Place]) -> list[Turn]:
        """Ask for the turns of frames that are about to be published; those of one camera stand in order.

        A turn that was given ends when its job is answered.
        """
        ...

    async def done(self, jobs: Sequence[Job]) -> None:
        """Take the jobs from the queue, and end their turns; answering twice does no harm."""
        ...

    async def positions(self, cameras: Collection[str]) -> dict[str, Position]:
        """Return how far the recordings of these cameras are, of those where that is known."""
        ...

    async def published(self, places: Sequence[Place]) -> None:
        """Note that the masks of these frames of recordings are out, and take their jobs from the queue."""
        ...

    async def bury(self, job: Job, reason: str) -> None:
        """Take the job from the queue and keep its beginning, with the reason, among the dead letters."""
        ...

    async def depth(self) -> int:
        """Return how many entries wait or are being worked on."""
        ...

    async def store_keys(self, camera: str, keys: Mapping[int, bytes], *, generations: int = KEY_GENERATIONS) -> None:
        """Keep the newest KEY of each region, beside those before it, so many in all, for a minute.

        Fewer are kept where they are longer than KEYS_BYTES together.
        """
        ...

    async def fetch_keys(self, camera: str, regions: Collection[int]) -> dict[int, tuple[bytes, ...]]:
        """Return the KEYs that are kept of each of the regions, newest first; of regions without any nothing."""
        ...


def shard_of(camera: str, shards: int) -> int:
    """Return the shard of a camera; all programs that share a queue must agree on it."""
    return zlib.crc32(camera.encode()) % shards


def preferred_shards(
    worker: str, live: Iterable[str], shards: int, *, taken: Mapping[int, str] = NONE_TAKEN
) -> list[int]:
    """Return a worker's shards: an even share by rendezvous hashing, but for those that a live worker has `taken` over.

    When another worker comes or goes its share moves, and a few of the others' shards to even them out. Left to hashing
    alone, one of several workers may have no shard, and idles until the others are behind.
    """
    names = sorted({worker, *live})
    owned = Counter[str]()
    share, more = divmod(shards, len(names))  # so many workers may have one more
    own = []

    def weight(name: str, shard: int) -> bytes:
        return hashlib.blake2b(f"{shard}:{name}".encode(), digest_size=8).digest()

    for shard in range(shards):
        having_room = [name for name in names if owned[name] < share + (more > 0)]
        owner = max(having_room, key=lambda name: weight(name, shard))
        more -= owned[owner] == share
        owned[owner] += 1
        owner = taken[shard] if taken.get(shard) in names else owner
        own += [shard] if owner == worker else []
    return own


def given_up(deliveries: int) -> str:
    """Return the reason for burying a job that is claimed for the n-th time."""
    return f"given to {deliveries - 1} workers and answered by none"
