"""A camera's state: told anew whenever it is no longer as it was said, whenever that was."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import pytest
import structlog
from channels import until
from standins import BUNDLE

from nodes.camera_state import described, keep_described, presence_of
from nodes.control import InForce
from nodes.presence import Presence
from pipeline.sources import Origin

LIMIT_S = 5.0
PRESENCE = Presence(topic="cam-1/state", transport="memory", since=5, source="waiting")
CONTROL = InForce(quality=3, pause=False, max_fps=None, max_kbit_s=None)


@dataclass
class Source:
    origin: Origin | None = None
    lost: str | None = None


@dataclass
class Camera:
    video: Source = field(default_factory=Source)
    in_force: InForce = CONTROL
    refused: str | None = None


@asynccontextmanager
async def kept(said: Presence, camera: Camera, *, lag_frames: int = 0) -> AsyncIterator[list[Presence]]:
    """What is told while the context lasts."""
    told: list[Presence] = []

    async def renew(changed: Presence) -> None:
        told.append(changed)

    keeping = asyncio.create_task(keep_described(said, camera, renew, lag_frames=lag_frames))
    try:
        yield told
    finally:
        keeping.cancel()


def test_a_camera_is_described_by_its_source_and_by_what_it_was_told() -> None:
    camera = Camera(refused="control: too long")
    before = described(PRESENCE, camera)
    assert (before.source, before.fps, before.control, before.refused) == ("waiting", None, CONTROL, camera.refused)
    camera.video.origin = Origin(640, 360, 25.0)
    now = described(PRESENCE, camera)
    assert (now.source, now.fps, now.source_width, now.source_height) == ("ok", 25.0, 640, 360)
    camera.video.lost = "it ended"
    assert described(PRESENCE, camera) == replace(now, source="lost")


def test_its_zones_are_those_of_its_settings() -> None:
    zones = {"door": ((0.1, 0.4), (0.3, 0.4), (0.3, 1.0))}
    said = presence_of("cam-1", bundle=BUNDLE, video=Source(), transport="memory", zones=zones)  # type: ignore[arg-type]
    assert json.loads(said.payload("online"))["zones"] == {"door": [[0.1, 0.4], [0.3, 0.4], [0.3, 1.0]]}
    assert described(said, Camera()).zones == zones


async def test_what_changed_while_the_camera_was_announced_is_told() -> None:
    camera = Camera()
    said = described(PRESENCE, camera)
    camera.video.origin = Origin(640, 360, 25.0)  # before anybody looked again
    async with kept(said, camera) as told:
        await until(lambda: len(told) == 1, LIMIT_S)
        camera.in_force = replace(CONTROL, pause=True)
        await until(lambda: len(told) == 2, LIMIT_S)
        await asyncio.sleep(0.6)
    assert [(one.source_width, one.control) for one in told] == [(640, CONTROL), (640, camera.in_force)]


@pytest.mark.parametrize(("rates", "said"), [((None, 2.0, 2.5), [2.0]), ((None, 25.0), []), ((4.0, 3.0), [1.3])])
async def test_masks_that_come_late_are_told_of_once_when_the_sources_rate_is_known(
    rates: tuple[float | None, ...], said: list[float]
) -> None:
    camera = Camera(Source(Origin(64, 48, rates[0])))
    with structlog.testing.capture_logs() as logs:
        async with kept(described(PRESENCE, camera), camera, lag_frames=4) as told:
            for count, rate in enumerate(rates[1:], start=1):
                camera.video.origin = Origin(64, 48, rate)
                await until(lambda count=count: len(told) == count, LIMIT_S)  # type: ignore[misc]
    assert [line["up_to_s"] for line in logs] == said
