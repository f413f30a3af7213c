"""What a worker knows of cameras' zones: what their states said last, of so many cameras at most."""

import asyncio
import json

import pytest

from nodes.zoning import CameraZones
from pipeline import metrics
from pipeline.transport import STATE
from pipeline.transport.memory import MemoryBroker, MemoryChannel

DOOR = {"door": [[0.1, 0.4], [0.3, 0.4], [0.3, 1]]}
READ = {"door": ((0.1, 0.4), (0.3, 0.4), (0.3, 1.0))}


def state(**more: object) -> bytes:
    return json.dumps({"state": "online", **more}).encode()


def test_a_camera_has_the_zones_of_its_newest_state() -> None:
    zones = CameraZones()
    assert zones.of("cam-1") == {}
    zones.hear("cam-1", state(zones=DOOR))
    zones.hear("cam-2", state())
    assert (zones.of("cam-1"), zones.of("cam-2")) == (READ, {})
    zones.hear("cam-1", state(zones=None))
    assert zones.of("cam-1") == {}


def test_a_camera_that_is_forgotten_has_none() -> None:
    zones = CameraZones()
    zones.hear("cam-1", state(zones=DOOR))
    zones.hear("cam-1", b"")
    assert zones.of("cam-1") == {}


@pytest.mark.parametrize("payload", [b"{", b"[]", state(zones={"door": [[0, 0], [1, 1]]}), state(zones=[1])])
def test_a_state_that_is_none_is_counted_and_changes_nothing(payload: bytes) -> None:
    zones, counted = CameraZones(), metrics.DROPS.labels("worker", "state")._value
    zones.hear("cam-1", state(zones=DOOR))
    before = counted.get()
    zones.hear("cam-1", payload)
    assert zones.of("cam-1") == READ
    assert counted.get() == before + 1


def test_of_too_many_cameras_the_one_that_spoke_first_goes() -> None:
    zones = CameraZones(limit=2)
    for camera in ("cam-1", "cam-2", "cam-1", "cam-3"):
        zones.hear(camera, state(zones=DOOR))
    assert [zones.of(camera) for camera in ("cam-1", "cam-2", "cam-3")] == [READ, {}, READ]


async def test_states_that_were_said_before_count_too() -> None:
    broker, zones = MemoryBroker(), CameraZones()
    async with MemoryChannel(broker) as camera, MemoryChannel(broker) as worker:
        await camera.publish("cam-1/state", state(zones=DOOR), STATE)
        listening = asyncio.create_task(zones.listen(worker))
        async with asyncio.timeout(5):
            while not zones.of("cam-1"):  # noqa: ASYNC110 - it sends no signal
                await asyncio.sleep(0.01)
        listening.cancel()
