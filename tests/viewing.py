"""Two made-up cameras, a viewer and a browser that looks at them, for tests of the page."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from browser import Page, chromium

from nodes.viewer import serve
from pipeline.mask_image import pack_mask
from pipeline.messages import FrameId, Kind, Mask
from pipeline.streets import render_street
from pipeline.transport import STATE
from pipeline.transport.memory import MemoryBroker, MemoryChannel

CLASSES = {
    "sky": (128, 128, 128),
    "building": (128, 0, 0),
    "pole": (192, 192, 128),
    "road": (128, 64, 128),
    "pavement": (60, 40, 222),
    "tree": (128, 128, 0),
    "sign": (192, 128, 128),
    "fence": (64, 64, 128),
    "car": (64, 0, 128),
    "pedestrian": (64, 64, 0),
    "bicyclist": (0, 128, 192),
}
NAMES = list(CLASSES)
PALETTE = np.array(list(CLASSES.values()), np.uint8)
HASH = "5eed" * 16
ROAD = NAMES.index("road")
SIZE = (480, 360)


class Clock:
    """The viewer's clock, which a test may set back to tell of the past."""

    def __init__(self) -> None:
        self.behind_ms = 0

    def now_ms(self) -> int:
        return now_ms() - self.behind_ms


class StreetCamera:
    """What a camera and a worker would publish of one street."""

    def __init__(self, channel: MemoryChannel, name: str, seed: int) -> None:
        self.name, self.channel = name, channel
        self.rng = np.random.default_rng(seed)
        self.sequence = 0
        self.kinds: tuple[Kind | None, ...] = ()  # of 2 x 2 regions
        self.zones: dict[str, dict[str, float]] = {}  # the share of each class in each of its zones
        image, self.classes = street(seed)
        self.preview = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes()

    async def state(self, state: str, **more: object) -> None:
        facts = {"state": state, "bundle": HASH, "since": now_ms() - 60_000, "width": 480, "height": 360, **more}
        await self.channel.publish(f"{self.name}/state", json.dumps(facts).encode(), STATE)

    async def stats(self) -> None:
        counts = np.bincount(self.classes.ravel(), minlength=len(NAMES)) / self.classes.size
        facts = {
            "fps": 25 + self.rng.normal(0, 0.1),
            "kbit_s": 168 + 30 * np.sin(self.sequence / 9) + self.rng.normal(0, 6),
            "latency_p50_ms": 21.4,
            "latency_p95_ms": 38.2,
            "drops": {"late": 3, "uplink": 1} if self.name == "station-road" else {},
            "share": dict(zip(NAMES, counts.tolist(), strict=True)),
            "zones": self.zones,
            "key_share": 0.125,
        }
        await self.channel.publish(f"{self.name}/stats", json.dumps(facts).encode())

    async def picture(self, *, preview: bool = True) -> None:
        self.sequence += 1
        mask = Mask(FrameId(7, self.sequence), now_ms() - 40, bytes.fromhex(HASH[:8]), self.classes, 2, 2, self.kinds)
        if preview:
            await self.channel.publish(f"{self.name}/preview", self.preview)
        await self.channel.publish(f"{self.name}/mask", pack_mask(mask, self.name, PALETTE))

    async def tell_the_past(self, clock: Clock, *, seconds: int = 90) -> None:
        """The statistics of some time, at once, so that the curve has something to show."""
        for clock.behind_ms in range(1000 * seconds, 0, -1000):
            self.sequence += 1
            await self.stats()
            await asyncio.sleep(0.002)
        clock.behind_ms = 0

    async def run(self) -> None:
        while True:
            await self.picture()
            await self.stats()
            await asyncio.sleep(0.15)


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@cache
def street(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """One picture (H, W, 3) of a street, and its classes (H, W)."""
    frame = next(render_street(seed, width=SIZE[0], height=SIZE[1], frames=1))
    return frame.image, frame.labels


@asynccontextmanager
async def shown(tmp_path: Path, clock: Clock | None = None) -> AsyncIterator[tuple[Page, MemoryChannel]]:
    """A viewer on a broker of its own, and a browser beside it."""
    broker, clock = MemoryBroker(), clock or Clock()
    async with (
        MemoryChannel(broker) as cameras,
        MemoryChannel(broker) as channel,
        serve(channel, host="127.0.0.1", port=0, now_ms=clock.now_ms) as address,
        chromium(tmp_path / "profile", address) as page,
    ):
        yield page, cameras


@asynccontextmanager
async def running(*cameras: StreetCamera) -> AsyncIterator[None]:
    manifest = {
        "name": "streets", "hash": HASH,
        "classes": [{"name": name, "colour": colour} for name, colour in CLASSES.items()],
    }  # fmt: skip
    await cameras[0].channel.publish(f"bundle/{HASH}", json.dumps(manifest).encode(), STATE)
    async with asyncio.TaskGroup() as tasks:
        tasks_running = []
        for camera in cameras:
            await camera.state("online")
            tasks_running.append(tasks.create_task(camera.run()))
        yield
        for task in tasks_running:
            task.cancel()


def part(camera: str, selector: str) -> str:
    return f"document.querySelector('[data-camera={camera}] {selector}')"
