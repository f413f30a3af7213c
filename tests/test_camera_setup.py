"""What a camera is made of, as its settings say, and which settings contradict one another."""

import asyncio
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import aiohttp
import numpy as np
import pytest
from clips import write_clip
from servers import free_port
from test_rate_control import MANIFEST

from nodes import camera_setup
from nodes.camera import main
from nodes.camera_setup import open_gate, open_rate, open_simple, open_video, open_window, room_for
from nodes.rate_control import RateControl
from nodes.window import Window
from pipeline.config import (
    CameraSection,
    CameraSettings,
    EncoderSection,
    SceneSection,
    SourceSection,
    load_settings,
)
from pipeline.errors import ConfigError
from pipeline.sources import Origin
from pipeline.transport.memory import MemoryBroker, MemoryChannel

LIMIT_S = 60  # an engine opens in a few seconds, more where the machine is busy


def window_of(url: str, *, fast: bool) -> Window | None:
    bundle = SimpleNamespace(has_graph=lambda graph: graph == "decode")
    channel, source = MemoryChannel(MemoryBroker()), SourceSection(url=url, fast=fast)
    return open_window("cam-1", CameraSection(), source, bundle=bundle, channel=channel)  # type: ignore[arg-type]


def test_a_recording_has_a_window(tmp_path: Path) -> None:
    for url in ("a.mp4", str(tmp_path)):
        assert window_of(url, fast=True) is not None
        assert window_of(url, fast=False) is None


@pytest.mark.parametrize(("url", "named"), [("rtsp://user:secret@camera/1", "rtsp://camera/1"), ("0", "0")])
def test_a_live_source_is_no_recording(url: str, named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_video(SourceSection(url=url, fast=True), width=64, height=48)
    said = f"source.fast: {named} is live and comes at its own pace; leave out source.fast"
    assert str(caught.value) == said


def test_the_video_takes_as_many_frames_as_the_settings_want(tmp_path: Path) -> None:
    clip = str(write_clip(tmp_path / "clip.mp4", frames=10, fps=20))

    async def rate_at(max_fps: float | None) -> float:
        async with open_video(SourceSection(url=clip, max_fps=max_fps), width=64, height=48) as video:
            assert video.origin is not None
            return video.origin.fps

    assert [asyncio.run(rate_at(max_fps)) for max_fps in (None, 5, 50)] == [20, 5, 20]


def rate_of(video: object = None, **overrides: object) -> RateControl | None:
    """The rate control that settings ask for, such as `rate__mode`."""
    values = {name.replace("__", "."): value for name, value in overrides.items()}
    bundle = SimpleNamespace(manifest=SimpleNamespace(**vars(MANIFEST), default_quality=5))
    video = video or SimpleNamespace(origin=None)
    return open_rate(load_settings(CameraSettings, None, values), bundle=bundle, video=video)  # type: ignore[arg-type]


def test_unless_it_is_asked_for_there_is_no_rate_control() -> None:
    assert rate_of() is None


def test_a_pinned_rate_needs_no_receipts_and_the_modes_do() -> None:
    pinned, rule, bandit = rate_of(rate__max_kbit_s=64), rate_of(rate__mode="rule"), rate_of(rate__mode="bandit")
    assert [one.asks_receipts for one in (pinned, rule, bandit) if one is not None] == [False, True, True]


@pytest.mark.parametrize("mode", ["off", "rule", "bandit"])
def test_a_pinned_rate_can_be_raised_later_and_let_go(mode: str) -> None:
    here = rate_of(rate__mode=mode, rate__max_kbit_s=20, rate__start_kbit_s=1e5)
    assert here is not None
    for _ in range(2):
        here.admits()
    assert here.point.quality <= 3
    here.limit(None)
    here.cap(5)  # chooses afresh, at once
    here.admits()
    assert here.point.quality == 5


@pytest.mark.parametrize("mode", ["rule", "bandit"])
def test_nothing_is_chosen_above_what_the_settings_ask_for(mode: str) -> None:
    origin = Origin(width=640, height=480, fps=12.0)
    options = {"encoder__quality": 4, "encoder__threshold": 95.0, "rate__start_kbit_s": 1e5}
    here = rate_of(SimpleNamespace(origin=origin), rate__mode=mode, **options)
    assert here is not None
    for _ in range(3):
        here.admits()
        point = here.point
        assert (point.quality <= 4, point.threshold <= 95, point.fps <= 12) == (True, True, True)


def test_packets_that_leave_the_encoder_at_once_have_room() -> None:
    camera = CameraSection(buffer_packets=4)
    assert [room_for(camera, EncoderSection(lookahead=lookahead)) for lookahead in (0, 3, 30)] == [4, 7, 34]


@pytest.mark.parametrize(
    ("values", "header_bytes"),
    [
        ({}, 70),
        ({"uplink": "mqtts://broker"}, 70),
        ({"uplink": "webrtc+http://gateway"}, 100),
        ({"uplink": "webrtc+http://gateway", "webrtc__fallback": True}, 100),
    ],
)
def test_headers_are_those_of_the_uplink_and_not_of_its_spare_way(
    values: dict[str, object], header_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[object] = []
    monkeypatch.setattr(camera_setup, "RateControl", lambda *_, header_bytes, **options: counted.append(header_bytes))
    rate_of(rate__max_kbit_s=64, **values)
    assert counted == [header_bytes]


async def test_the_health_page_names_what_the_uplink_waits_for(tmp_path: Path) -> None:
    port = free_port()
    values = {
        "uplink": f"webrtc+http://127.0.0.1:{free_port()}",
        "webrtc.fallback": True,
        "mqtt_url": f"mqtt://127.0.0.1:{free_port()}",
        "source.url": str(write_clip(tmp_path / "clip.mp4")),
        "source.loop": True,
        "encoder.engine": "onnxruntime",
        "health.port": port,
    }
    running = asyncio.create_task(main(load_settings(CameraSettings, None, values)))
    async with aiohttp.ClientSession() as client, asyncio.timeout(LIMIT_S):
        said = ""
        while "waiting" not in said:
            await asyncio.sleep(0.05)
            with suppress(aiohttp.ClientError):  # the page is not there yet
                async with client.get(f"http://127.0.0.1:{port}/readyz") as answer:
                    said = await answer.text()
    running.cancel()
    await asyncio.wait({running}, timeout=LIMIT_S)
    assert said == "waiting for the gateway or the broker\n"


def test_a_gate_is_there_where_it_is_wanted_and_never_for_a_recording() -> None:
    still, wanted = np.zeros((36, 48, 3), np.uint8), SceneSection(drop_unchanged=True, longest_s=2)
    assert open_gate(SceneSection(), SourceSection()) is None
    assert open_gate(wanted, SourceSection(fast=True)) is None
    gate = open_gate(wanted, SourceSection())
    assert gate is not None
    assert [gate.changed(still, at_s) for at_s in (0.0, 1.0, 1.9, 2.0)] == [True, False, False, True]


def test_a_level_for_simple_scenes_has_to_be_one_of_the_bundles() -> None:
    bundle = SimpleNamespace(manifest=SimpleNamespace(**vars(MANIFEST), name="tiny"))
    assert open_simple(SceneSection(), bundle) is None  # type: ignore[arg-type]
    simple = open_simple(SceneSection(simple_quality=3), bundle)  # type: ignore[arg-type]
    assert simple is not None
    assert simple.level(5) == 5
    with pytest.raises(ConfigError, match=r"simple_quality 9: .*\[0, 1"):
        open_simple(SceneSection(simple_quality=9), bundle)  # type: ignore[arg-type]
