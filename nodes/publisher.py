"""What a worker publishes: masks, class scores, and once a second the statistics of each camera.

Several workers may serve one camera. Each says in its statistics who it is and how many masks it made; of two, the
one that made more goes on publishing, the other is silent. So `<camera>/stats` is the word of one worker at a time.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from nodes.service import Lane, until_connected
from nodes.stats import Cameras, Served
from nodes.zoning import CameraZones
from pipeline.errors import PipelineError, TransportError
from pipeline.label_report import pack_labels
from pipeline.mask_image import REGIONS, pack_mask, pack_mask_rle, regions_of
from pipeline.messages import Decoded, FrameId
from pipeline.transport import CONTROL, Channel, Delivery
from pipeline.zones import Polygon, zone_share

_LIVE_EXPIRY_S = 2
_STATS = Delivery(expiry_s=5, content_type="application/json")
_RIVAL_S = 2.5  # a rival that is silent for longer is gone


Due = Callable[[], Awaitable[bool]]  # asked before a frame is sent


async def always() -> bool:
    """Of what has no turn: it is due however late."""
    return True


@dataclass(frozen=True, slots=True)
class Part:
    """One of the things that are published of a frame: what follows the camera's name in its topic, and the bytes."""

    topic: str
    content_type: str
    payload: bytes


@dataclass(frozen=True, slots=True, eq=False)
class Rendered:
    """A frame as it is published.

    `share` (K,) is the part of the mask's pixels per class, zero without a mask, `zones` the same of each zone;
    `regions` how each region was coded, as the mask's PNG says it, empty if not known.
    """

    parts: tuple[Part, ...]
    share: NDArray[np.float64]
    zones: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    regions: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Looks:
    """How masks and scores are published: colours (K, 3) and names of the classes, and whether in compact form too."""

    palette: NDArray[np.uint8]
    names: Sequence[str]
    rle: bool = False


def render(
    decoded: Decoded, camera: str, looks: Looks, zones: Mapping[str, Polygon] | None = None
) -> Rendered | PipelineError:
    """What was decoded as bytes, and the share of each class in the picture and in its zones."""
    mask, share, parts, regions = decoded.mask, np.zeros(len(looks.palette)), [], ""
    zoned: dict[str, NDArray[np.float64]] = {}
    try:
        if mask is not None:
            regions = regions_of(mask)
            parts.append(Part("mask", "image/png", pack_mask(mask, camera, looks.palette)))
            if looks.rle:
                parts.append(Part("mask/rle", "application/octet-stream", pack_mask_rle(mask)))
            share = np.bincount(mask.classes.ravel(), minlength=len(share)) / mask.classes.size  # (K,)
            zoned = {name: zone_share(mask.classes, each, count=len(share)) for name, each in (zones or {}).items()}
        if decoded.scores is not None:
            parts.append(Part("labels", "application/json", pack_labels(decoded.scores, looks.names)))
    except PipelineError as error:
        return error
    return Rendered(tuple(parts), share, zoned, regions)


class FramePublisher:
    """Puts masks and scores on their cameras' topics.

    `live`: while the broker is away they are given up, else they wait. What is `recorded` the broker acknowledges, and
    who publishes it waits and tries again.
    """

    def __init__(
        self, channel: Channel, lane: Lane, *, looks: Looks, live: bool, zones: CameraZones | None = None
    ) -> None:
        self._channel, self._lane = channel, lane
        self._looks, self._live = looks, live
        self._zones = CameraZones() if zones is None else zones

    @property
    def ready(self) -> bool:
        """Whether anything can leave right now."""
        return self._channel.connected

    async def until_ready(self) -> None:
        """Wait until something can leave, as long as it takes."""
        await until_connected(self._channel)

    async def publish(
        self, camera: str, id: FrameId, decoded: Decoded, *, recorded: bool = False, due: Due = always
    ) -> Rendered | PipelineError | None:
        """Publish what a frame was decoded to; returns what was published, or the error that stood in the way.

        Between rendering and sending it is asked whether the frame is `due` still; None if it is not.
        """
        rendered = await self._lane.run(render, decoded, camera, self._looks, self._zones.of(camera))
        if isinstance(rendered, PipelineError):
            return rendered
        if not await due():
            return None
        while True:
            try:
                await self._send(camera, id, rendered, recorded=recorded)
            except TransportError as error:
                if self._live or recorded:
                    return error
                await until_connected(self._channel)
            else:
                return rendered

    async def settle(self, worker: str, *, limit_s: float) -> None:
        """Wait until the broker has all that was published, or for so long.

        Of two connections a broker that is behind may read the later messages first. It answers this one, which nobody
        needs, only after those before it.
        """
        with suppress(TransportError, TimeoutError):
            async with asyncio.timeout(limit_s):
                await self._channel.publish(f"worker/{worker}/turn", b"", CONTROL)

    async def _send(self, camera: str, id: FrameId, rendered: Rendered, *, recorded: bool) -> None:
        frame = {"epoch": str(id.epoch), "sequence": str(id.sequence)}
        frame |= {REGIONS: rendered.regions} if rendered.regions else {}
        expiry_s = _LIVE_EXPIRY_S if self._live and not recorded else None
        for part in rendered.parts:
            delivery = Delivery(qos=int(recorded), expiry_s=expiry_s, content_type=part.content_type, properties=frame)
            await self._channel.publish(f"{camera}/{part.topic}", part.payload, delivery)


class Rivals:
    """What other workers say of cameras that this one serves too."""

    def __init__(self, worker: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._worker, self._clock = worker, clock
        self._heard: dict[str, tuple[tuple[int, str], float]] = {}  # camera -> (masks, worker), when

    def hear(self, camera: str, payload: bytes) -> None:
        """Take what was published on the camera's stats topic; what makes no sense is passed over."""
        try:
            facts = json.loads(payload)
            masks, worker = int(facts["masks"]), str(facts["worker"])
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            return
        if worker != self._worker:
            self._heard[camera] = ((masks, worker), self._clock())

    def leave_it_to_us(self, camera: str, masks: int) -> bool:
        """Whether this worker, with so many masks of late, is the one to speak for the camera."""
        heard = self._heard.get(camera)
        if heard is None or self._clock() - heard[1] > _RIVAL_S:
            return True
        return (masks, self._worker) > heard[0]

    def forget_silent(self) -> None:
        """Keep only what was heard lately."""
        oldest_s = self._clock() - _RIVAL_S
        self._heard = {camera: each for camera, each in self._heard.items() if each[1] >= oldest_s}


class StatsPublisher:
    """Puts statistics on the topics of the cameras that this worker speaks for."""

    def __init__(
        self,
        worker: str,
        channel: Channel,
        cameras: Cameras,
        *,
        interval_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._worker, self._channel, self._cameras = worker, channel, cameras
        self._interval_s, self._clock = interval_s, clock
        self._rivals = Rivals(worker, clock=clock)

    async def run(self) -> None:
        """Publish until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._listen())
            tasks.create_task(self._tell())

    async def _listen(self) -> None:
        async for message in self._channel.subscribe("+/stats"):
            camera = message.topic.partition("/")[0]
            if camera in self._cameras:
                self._rivals.hear(camera, message.payload)

    async def _tell(self) -> None:
        told_s = self._clock()
        while True:
            await asyncio.sleep(self._interval_s)
            elapsed_s, told_s = self._clock() - told_s, self._clock()
            self._rivals.forget_silent()
            for name, camera in self._cameras.heard_of_late().items():
                await self._tell_of(name, camera, elapsed_s)

    async def _tell_of(self, name: str, camera: Served, elapsed_s: float) -> None:
        masks = camera.stats.masks
        facts = camera.stats.summary(elapsed_s)
        facts |= {"clock_offset_ms": camera.clock.offset_ms, "worker": self._worker}
        if self._rivals.leave_it_to_us(name, masks):
            with suppress(TransportError):  # the next one is a second away
                await self._channel.publish(f"{name}/stats", json.dumps(facts).encode(), _STATS)
