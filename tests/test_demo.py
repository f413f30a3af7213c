"""The demo: one process, no servers, live masks of every camera on the page."""

import asyncio
from pathlib import Path

import aiohttp
import pytest
from clips import write_clip
from servers import free_port

from nodes import demo
from nodes.camera_setup import open_window
from nodes.demo import has_desktop, vary
from nodes.window import Window
from pipeline.config import DemoSettings, SourceSection, load_settings
from pipeline.errors import ConfigError, SourceError
from pipeline.mask_image import unpack_mask

LIMIT_S = 60


def settings_of(source: Path, **overrides: object) -> DemoSettings:
    values = {
        "source.url": str(source),
        "viewer.port": free_port(),
        "demo.open_page": False,
        "worker.stats_s": 0.2,
        "encoder.engine": "onnxruntime",
        "decoder.engine": "onnxruntime",
        **overrides,
    }
    return load_settings(DemoSettings, None, values)


async def test_the_page_gets_masks_statistics_and_previews_of_each_camera(tmp_path: Path) -> None:
    settings = settings_of(write_clip(tmp_path / "clip.mp4", frames=25))
    page = f"http://127.0.0.1:{settings.viewer.port}"
    task = asyncio.create_task(demo.main(settings))
    try:
        async with asyncio.timeout(LIMIT_S), aiohttp.ClientSession() as client:
            for camera in ("cam-1", "cam-2"):
                png = await _until_there(client, f"{page}/api/cameras/{camera}/mask.png")
                assert unpack_mask(png)[1] == camera
                assert b"latency_p95_ms" in await _until_there(client, f"{page}/api/cameras/{camera}/stats")
    finally:
        task.cancel()
        await asyncio.wait({task}, timeout=LIMIT_S)
    assert task.cancelled()


async def _until_there(client: aiohttp.ClientSession, url: str) -> bytes:
    while True:
        try:
            async with client.get(url) as answer:
                if answer.status == 200:
                    return await answer.read()
        except aiohttp.ClientError:
            pass
        await asyncio.sleep(0.05)


async def test_a_source_that_is_played_once_ends_the_demo(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", frames=5)
    async with asyncio.timeout(LIMIT_S):
        await demo.main(settings_of(clip, **{"source.loop": False}))


async def test_a_recording_ends_the_demo_when_every_frame_has_its_mask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    windows: list[Window] = []

    def noting(*args: object, **options: object) -> Window | None:
        window = open_window(*args, **options)  # type: ignore[arg-type]
        windows.extend([window] if window else [])
        return window

    monkeypatch.setattr(demo, "open_window", noting)
    clip = write_clip(tmp_path / "clip.mp4", frames=45)
    async with asyncio.timeout(LIMIT_S):
        await demo.main(settings_of(clip, **{"source.loop": False, "source.fast": True}))
    answered = [(window.answered, window.resent) for window in windows]
    assert answered == [(45, 0)] * 2


async def test_a_source_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ExceptionGroup) as caught:
        await demo.main(settings_of(tmp_path / "none.mp4"))
    assert caught.group_contains(SourceError, match=r"cannot open .*none\.mp4")


async def test_a_taken_port_is_one_sentence(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4")
    settings = settings_of(clip)
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", settings.viewer.port)
    async with server:
        with pytest.raises(ConfigError, match=str(settings.viewer.port)):
            await demo.main(settings)


def test_cameras_play_the_source_each_a_little_different() -> None:
    sources = vary(SourceSection(url="clip.mp4", start_s=1.0), cameras=4)
    assert [(each.mirror, round(each.start_s, 1)) for each in sources] == [
        (False, 1.0),
        (True, 1.0),
        (False, 1.7),
        (True, 1.7),
    ]


@pytest.mark.parametrize("url", ["0", "/dev/video0", "rtsp://camera/1"])
def test_a_live_source_is_opened_only_once(url: str) -> None:
    assert vary(SourceSection(url=url), cameras=4) == [SourceSection(url=url)]


def test_a_page_is_opened_only_where_a_person_sits() -> None:
    assert has_desktop({"DISPLAY": ":0"}, terminal=True)
    assert has_desktop({"WAYLAND_DISPLAY": "wayland-0"}, terminal=True)
    assert not has_desktop({"DISPLAY": ":0"}, terminal=False)
    assert not has_desktop({"DISPLAY": ""}, terminal=True)
    assert not has_desktop({}, terminal=True)
