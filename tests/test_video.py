"""Video: frames at the bundle's size, in time, the newest first; nothing lost when played fast."""

import asyncio
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
import structlog
from clips import RtspServer, number_of, write_clip, write_images, write_scratched_clip

from pipeline.errors import SourceError
from pipeline.messages import Frame, FrameId
from pipeline.sources import Origin
from pipeline.video import Video, sample_path

SIZE = {"width": 32, "height": 16}


async def play(video: Video, count: int | None = None) -> list[Frame]:
    frames: list[Frame] = []
    async with asyncio.timeout(20), video:
        async for frame in video:
            frames.append(frame)
            if len(frames) == count:
                break
    return frames


async def test_of_a_file_every_so_many_frames_are_taken_in_a_loop_too(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", frames=10, fps=20)
    video = Video(str(clip), **SIZE, loop=True, max_fps=5)
    frames = await play(video, 5)
    assert [number_of(frame.image) for frame in frames] == [0, 4, 8, 2, 6]
    assert [frame.id.sequence for frame in frames] == list(range(5))
    assert video.origin == Origin(64, 48, 5)
    assert video.skipped == 0


async def test_a_recording_has_all_its_frames_and_a_slower_source_too(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", frames=10, fps=20)
    for settings in ({"fast": True, "max_fps": 5}, {"max_fps": 50}):
        video = Video(str(clip), **SIZE, **settings)
        assert len(await play(video)) + video.skipped == 10
        assert video.origin == Origin(64, 48, 20)


async def test_leaving_ends_a_reader_that_takes_next_to_nothing(tmp_path: Path) -> None:
    clip, before = write_clip(tmp_path / "clip.mp4", frames=10), threading.active_count()
    await play(Video(str(clip), **SIZE, loop=True, max_fps=0.001), 1)
    async with asyncio.timeout(1):
        while threading.active_count() > before:  # noqa: ASYNC110 - a thread sends no signal to the loop
            await asyncio.sleep(0.01)


async def test_a_file_of_which_few_frames_are_taken_keeps_its_time(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", frames=10, fps=10)
    began_s = time.monotonic()
    frames = await play(Video(str(clip), **SIZE, max_fps=2))
    assert [number_of(frame.image) for frame in frames] == [0, 5]
    assert 0.4 < time.monotonic() - began_s < 2


async def test_a_fast_file_gives_every_frame_however_slowly_they_are_taken(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", frames=12)
    numbers = []
    async with Video(str(clip), **SIZE, fast=True) as video:
        async for frame in video:
            numbers.append(number_of(frame.image))
            await asyncio.sleep(0.01)
    assert numbers == list(range(12))
    assert video.skipped == 0


async def test_frames_have_the_asked_size_and_rising_identities(tmp_path: Path) -> None:
    video = Video(str(write_clip(tmp_path / "clip.mp4")), **SIZE, fast=True)
    frames = await play(video)
    assert {frame.image.shape for frame in frames} == {(16, 32, 3)}
    assert {str(frame.image.dtype) for frame in frames} == {"uint8"}
    epoch = frames[0].id.epoch
    assert [frame.id for frame in frames] == [FrameId(epoch, n) for n in range(10)]
    assert video.origin is not None
    assert (video.origin.width, video.origin.height) == (64, 48)


async def test_a_small_source_is_made_larger(tmp_path: Path) -> None:
    (frame,) = await play(Video(str(write_clip(tmp_path / "c.mp4")), width=200, height=150, fast=True), 1)
    assert frame.image.shape == (150, 200, 3)


async def test_a_file_plays_at_its_own_rate_from_its_first_frame(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", frames=10, fps=20)
    async with Video(str(clip), **SIZE) as video:
        await asyncio.sleep(0.2)  # nobody has looked yet
        began_s = time.monotonic()
        numbers = [number_of(frame.image) async for frame in video]
    assert numbers[0] == 0
    assert 0.4 < time.monotonic() - began_s < 1.5


async def test_a_slow_taker_gets_the_newest_frame_and_the_others_are_counted(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", frames=20, fps=50)
    numbers, ids = [], []
    async with Video(str(clip), **SIZE) as video:
        async for frame in video:
            numbers.append(number_of(frame.image))
            ids.append(frame.id.sequence)
            await asyncio.sleep(0.1)
    assert numbers == sorted(numbers)
    assert ids == list(range(len(ids)))
    assert video.skipped == 20 - len(numbers) > 5
    assert numbers[-1] == 19


async def test_a_loop_goes_on_in_time_and_in_one_epoch(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", frames=4)
    frames = await play(Video(str(clip), **SIZE, fast=True, loop=True), 10)
    assert [number_of(frame.image) for frame in frames] == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
    assert [frame.id.sequence for frame in frames] == list(range(10))
    assert len({frame.id.epoch for frame in frames}) == 1


async def test_a_directory_plays_like_a_file(tmp_path: Path) -> None:
    frames = await play(Video(str(write_images(tmp_path / "images")), **SIZE, fps=100))
    assert number_of(frames[0].image) == 0
    assert number_of(frames[-1].image) == 4


async def test_the_start_is_passed_over_in_the_first_round_only(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", frames=6, fps=10)
    frames = await play(Video(str(clip), **SIZE, fast=True, loop=True, start_s=0.4), 4)
    assert [number_of(frame.image) for frame in frames] == [4, 5, 0, 1]


async def test_a_start_after_the_end_is_an_error_also_in_a_loop(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", frames=5)
    with pytest.raises(SourceError, match="no picture after 60 s"):
        await play(Video(str(clip), **SIZE, fast=True, loop=True, start_s=60.0))


async def test_a_mirrored_frame_has_its_left_edge_on_the_right(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", frames=1)
    (plain,) = await play(Video(str(clip), **SIZE, fast=True))
    (mirrored,) = await play(Video(str(clip), **SIZE, fast=True, mirror=True))
    assert (plain.image[:, ::-1] == mirrored.image).all()
    assert mirrored.image[:, -1].mean() > 200 > mirrored.image[:, 0].mean()


def write_noisy_images(folder: Path) -> None:
    """A scene that stands still, seen by a camera with noise."""
    folder.mkdir(exist_ok=True)
    still = np.kron([[60, 180], [200, 90]], np.ones((24, 32)))[..., None]
    for number in range(12):
        noise = np.random.default_rng(number).integers(0, 9, (48, 64, 3))
        cv2.imwrite(str(folder / f"{number:02d}.png"), still + noise)


async def test_noise_goes_where_it_is_asked_to(tmp_path: Path) -> None:
    write_noisy_images(tmp_path)
    size = {"width": 64, "height": 48}
    plain, calm = [await play(Video(str(tmp_path), **size, fast=True, noise_reduction=one)) for one in (False, True)]
    apart = [[np.abs(b.image.astype(int) - a.image).mean() for a, b in pairwise(frames)] for frames in (plain, calm)]
    assert apart[1][-1] < 0.3 * apart[0][-1]


def test_what_noise_reduction_compiles_is_no_time_that_the_source_takes(tmp_path: Path) -> None:
    write_noisy_images(tmp_path / "images")
    script = f"""
import asyncio
from pipeline.video import Video
async def play():
    async with Video({str(tmp_path / "images")!r}, width=64, height=48, timeout_s=0.5, noise_reduction=True) as video:
        return [frame async for frame in video]
print(len(asyncio.run(play())))
"""
    cold = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    ran = subprocess.run([sys.executable, "-c", script], env=cold, capture_output=True, text=True, timeout=120)
    assert (ran.stderr, ran.stdout) == ("", "12\n")


async def test_noise_reduction_begins_anew_whenever_the_source_is_opened(tmp_path: Path) -> None:
    write_noisy_images(tmp_path)
    video = Video(str(tmp_path), width=64, height=48, fast=True, loop=True, noise_reduction=True)
    frames = await play(video, 36)
    assert not np.array_equal(frames[11].image, frames[12].image)
    assert all(np.array_equal(one.image, again.image) for one, again in zip(frames[:12], frames[12:24], strict=True))
    assert np.array_equal(frames[12].image, frames[24].image)


async def test_the_time_of_capture_is_the_wall_clocks_when_the_frame_was_due(tmp_path: Path) -> None:
    frames = await play(Video(str(write_clip(tmp_path / "clip.mp4", frames=5)), **SIZE))
    steps = [after.captured_ms - before.captured_ms for before, after in pairwise(frames)]
    assert abs(frames[-1].captured_ms - time.time() * 1000) < 2000
    assert min(steps) > 0


async def test_each_start_draws_an_epoch(tmp_path: Path) -> None:
    clip = str(write_clip(tmp_path / "clip.mp4", frames=1))
    epochs = [(await play(Video(clip, **SIZE, rng=random.Random(seed))))[0].id.epoch for seed in range(4)]
    assert len(set(epochs)) == 4
    assert all(0 <= epoch < 1 << 16 for epoch in epochs)


@pytest.mark.parametrize("url", ["none.mp4", "99", "ftp://host"])
async def test_a_source_that_cannot_be_opened_is_an_error_on_entering(url: str) -> None:
    with pytest.raises(SourceError, match="cannot open"):
        async with Video(url, **SIZE):
            raise AssertionError("entered")


async def test_a_damaged_image_ends_the_frames_with_an_error(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images")
    (folder / "002.png").write_bytes(b"nothing")
    with pytest.raises(SourceError, match=r"002\.png"):
        await play(Video(str(folder), **SIZE, fast=True))


async def test_what_is_missing_of_a_damaged_file_is_told_once_and_a_loop_goes_on(tmp_path: Path) -> None:
    video = Video(str(write_scratched_clip(tmp_path / "clip.mp4")), **SIZE, fast=True, loop=True)
    with structlog.testing.capture_logs() as logs:
        assert len(await play(video, 70)) == 70
    assert [line["reason"] for line in logs] == [video.damage]
    assert str(video.damage).endswith("repair it")


async def test_leaving_ends_a_reader_that_waits(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", frames=50, fps=1)
    began_s = time.monotonic()
    assert len(await play(Video(str(clip), **SIZE), 1)) == 1
    assert len(await play(Video(str(clip), **SIZE, fast=True), 1)) == 1
    assert time.monotonic() - began_s < 2


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[Path]:
    """A named pipe that nobody writes to: opening it hangs until the test is over."""
    path = tmp_path / "pipe.ts"
    os.mkfifo(path)
    yield path
    os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK))


async def test_a_source_that_hangs_when_opened_is_an_error_in_bounded_time(pipe: Path) -> None:
    async with asyncio.timeout(5):
        with pytest.raises(SourceError, match=r"cannot open .*pipe\.ts: nothing came from it in 0\.2 s"):
            async with Video(str(pipe), **SIZE, timeout_s=0.2):
                raise AssertionError("entered")


async def test_a_reader_whose_opening_was_given_up_ends_as_soon_as_it_can(tmp_path: Path) -> None:
    clip = str(write_clip(tmp_path / "clip.mp4"))
    before = threading.active_count()
    entering = asyncio.create_task(Video(clip, **SIZE).__aenter__())
    await asyncio.sleep(0)
    entering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await entering
    async with asyncio.timeout(5):
        while threading.active_count() > before:  # noqa: ASYNC110 - a thread sends no signal to the loop
            await asyncio.sleep(0.01)


async def test_an_rtsp_server_is_read_over_tcp_and_opened_again_in_a_new_epoch() -> None:
    async with RtspServer(frames=10) as server:
        video = Video(server.url, **SIZE, retry_max_s=0.1, rng=random.Random(3))
        frames: list[Frame] = []
        async with asyncio.timeout(30), video:
            async for frame in video:
                frames.append(frame)
                if len({frame.id.epoch for frame in frames}) == 2 and frame.id.sequence >= 2:
                    break
    assert server.plays >= 2
    assert video.lost is None
    assert all("TCP" in transport for transport in server.transports)
    first = [frame for frame in frames if frame.id.epoch == frames[0].id.epoch]
    assert [frame.id.sequence for frame in first] == list(range(len(first)))
    assert video.origin is not None
    assert video.origin.width == 64


async def test_an_rtsp_server_that_is_not_there_is_waited_for() -> None:
    async with asyncio.timeout(10), Video("rtsp://127.0.0.1:9/live", **SIZE) as video:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await anext(video)


def test_the_sample_clip_is_found_or_its_place_is_named() -> None:
    try:
        assert sample_path().name == "street.mp4"
    except SourceError as error:
        assert "samples/street.mp4" in str(error)
