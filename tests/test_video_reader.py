"""The reader's thread: a mailbox of one place, a pace that does not drift, live sources that stall and return."""

import asyncio
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import structlog
from clips import MjpegServer, RtspServer, picture, write_clip

from pipeline import video_reader
from pipeline.errors import ConfigError
from pipeline.sources import Opened, Origin, Picture
from pipeline.video import Video
from pipeline.video_reader import Counting, Mailbox, Pace, Reader, Reading, Rotation, Shot

SIZE = {"width": 32, "height": 16}
LIMIT_S = 20


def shot(number: int) -> Shot:
    return Shot(1, number, picture(number))


def test_a_new_shot_replaces_the_one_not_taken_and_is_counted() -> None:
    woken: list[int] = []
    mailbox = Mailbox(lambda: woken.append(1))
    for number in range(3):
        mailbox.put(shot(number))
    taken = mailbox.take()
    assert taken is not None
    assert taken.captured_ms == 2
    assert mailbox.take() is None
    assert (mailbox.skipped, len(woken)) == (2, 3)


def test_a_closed_mailbox_ends_every_wait() -> None:
    mailbox = Mailbox(lambda: None)
    mailbox.put(shot(0))
    mailbox.close()
    mailbox.wait_empty()
    mailbox.wait_wanted()
    assert mailbox.wait_closed(60)


def test_the_pace_does_not_drift_when_each_wait_is_a_little_long() -> None:
    now_s = 100.0
    pace = Pace(lambda: now_s)
    for number in range(1000):
        now_s += pace.delay_s(number * 0.04) + 0.003
    assert now_s == pytest.approx(100.0 + 999 * 0.04 + 0.003)


@pytest.mark.parametrize("jump_s", [5.0, -60.0])
def test_after_a_jump_the_pace_goes_on_from_there(jump_s: float) -> None:
    now_s = 100.0
    pace = Pace(lambda: now_s)
    assert pace.delay_s(0.0) == 0.0
    now_s += jump_s
    assert pace.delay_s(0.04) == 0.0
    assert pace.delay_s(0.08) == pytest.approx(0.04)


def test_pictures_far_apart_are_no_jump_where_they_are_to_be() -> None:
    now_s = 100.0
    pace = Pace(lambda: now_s, ahead_s=40.0)
    assert [pace.delay_s(20.0 * number) for number in range(2)] == [0.0, 20.0]
    now_s = 120.0
    assert pace.delay_s(40.0) == 20.0


async def frames_in(video: Video, seconds: float) -> int:
    """How many frames come in so many seconds after the first one."""
    count = 0
    async with asyncio.timeout(LIMIT_S):
        await anext(video)
    try:
        async with asyncio.timeout(seconds):
            async for _ in video:
                count += 1
    except TimeoutError:
        return count
    raise AssertionError("the source ended")


@pytest.mark.parametrize(("max_fps", "counts"), [(None, (44, 51)), (5, (9, 11)), (25, (44, 51))])
async def test_of_a_live_source_so_many_frames_are_taken_as_are_wanted(
    max_fps: float | None, counts: tuple[int, int]
) -> None:
    async with MjpegServer(fps=25) as server, Video(server.url, **SIZE, max_fps=max_fps) as video:
        least, most = counts
        assert least <= await frames_in(video, 2.0) + video.skipped <= most


def counted(times_s: list[float]) -> list[float | None]:
    """What the rate is after each picture."""
    counting, rates = Counting(), []
    for time_s in times_s:
        counting.came(time_s)
        rates.append(counting.fps)
    return rates


@pytest.mark.parametrize("fps", [0.01, 0.04, 0.3, 1, 8, 25, 29.97, 500])
def test_a_rate_is_counted_once_it_can_be_told_and_is_never_none_again_nor_zero(fps: float) -> None:
    times_s = [100 + number / fps for number in range(int(max(30, 20 * fps)))]
    rates = counted(times_s)
    first = next(number for number, rate in enumerate(rates) if rate is not None)
    assert times_s[first] - times_s[0] <= max(3, 11 / fps) + 1 / fps + 0.01
    assert all(rate == pytest.approx(fps, rel=0.005) for rate in rates[first:])


def test_pictures_that_had_waited_do_not_count() -> None:
    rates = counted([0.0] * 30 + [0.04 * number for number in range(500)])
    assert {rate for rate in rates if rate is not None} == {25.0}


def test_another_rate_is_seen_within_seconds_and_a_small_change_is_none() -> None:
    times_s = [number / 25 for number in range(500)]  # 20 s
    times_s += [20 + number / 24 for number in range(480)]
    times_s += [40 + number / 5 for number in range(100)]
    rates = dict(zip(times_s, counted(times_s), strict=True))
    assert {rate for time_s, rate in rates.items() if 4 < time_s < 40} == {25.0}
    assert rates[59.8] == pytest.approx(5, rel=0.1)


def test_pictures_that_come_unevenly_do_not_change_the_rate() -> None:
    rng = random.Random(1)
    times_s = sorted(number / 25 + rng.expovariate(1 / 0.1) for number in range(2500))
    assert len({rate for rate in counted(times_s) if rate is not None}) == 1


async def test_the_rate_of_a_stream_that_does_not_say_it_is_counted() -> None:
    async with MjpegServer(fps=8) as server, Video(server.url, **SIZE) as video:
        assert await video.opened() == Origin(64, 48, None)
        await frames_in(video, 3.6)
        assert video.origin is not None and video.origin.fps == pytest.approx(8, rel=0.1)
        video.max_fps = 5
        assert video.origin.fps == 5


async def test_a_stream_that_says_its_rate_is_believed() -> None:
    async with MjpegServer(fps=15, instead="stream") as server, Video(server.url, **SIZE) as video:
        async with asyncio.timeout(LIMIT_S):
            await anext(video)
        assert video.origin == Origin(64, 48, 15)


async def test_a_stream_that_does_not_say_its_rate_has_none_until_it_was_counted() -> None:
    async with RtspServer(frames=200) as server, Video(server.url, **SIZE) as video:
        async with asyncio.timeout(LIMIT_S):
            await anext(video)
            assert video.origin == Origin(64, 48, None)
            while video.origin.fps is None:
                await anext(video)
        assert video.origin.fps == pytest.approx(25, rel=0.1)


async def test_a_stream_that_stalls_is_said_to_and_opened_again() -> None:
    with structlog.testing.capture_logs() as lines:
        async with (
            MjpegServer(fps=25, frames=5) as server,
            Video(server.url, **SIZE, timeout_s=0.5, retry_max_s=0.1) as video,
            asyncio.timeout(LIMIT_S),
        ):
            epochs = {(await anext(video)).id.epoch}
            while video.lost is None:  # noqa: ASYNC110 - the reader's thread sets it
                await asyncio.sleep(0.02)
            assert video.lost == f"{server.url} cannot be read any further: nothing came any more"
            server.frames = 1000
            async for frame in video:
                epochs.add(frame.id.epoch)
                if len(epochs) == 2 and frame.id.sequence:
                    break
            assert video.lost is None
    assert [line["event"] for line in lines][-1] == "source found"


async def test_why_a_stream_was_never_there_is_said_before_it_comes() -> None:
    async with Video("rtsp://user:secret@127.0.0.1:9/live", **SIZE) as video:
        async with asyncio.timeout(LIMIT_S):
            while video.lost is None:  # noqa: ASYNC110 - the reader's thread sets it
                await asyncio.sleep(0.02)
    assert video.lost.startswith("cannot open rtsp://127.0.0.1:9/live: ")
    assert video.origin is None


async def test_a_recording_on_a_web_server_ends_a_live_source() -> None:
    async with MjpegServer(fps=25, instead="recording") as server, Video(server.url, **SIZE) as video:
        with pytest.raises(ConfigError, match="it is a recording or a picture, no stream"):
            async with asyncio.timeout(LIMIT_S):
                await anext(video)


def test_what_is_no_stream_is_waited_for_once_there_was_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A camera that starts may give a page or a picture before its stream."""
    openings = iter([True, False, True])

    @contextmanager
    def opened_source(url: str, **_: object) -> Iterator[Opened]:
        if not next(openings):
            raise ConfigError(f"cannot open {url}: it is a recording or a picture")
        yield Opened(Origin(64, 48, 25), iter([Picture(picture(1), 0.0)]))

    lost: list[str | None] = []

    def opened() -> None:
        lost.append(reader.lost)
        if len(lost) == 2:
            mailbox.close()

    monkeypatch.setattr(video_reader, "open_source", opened_source)
    reading = Reading("a camera", 32, 16, retry_max_s=0.01)
    reader = Reader(reading, max_fps=None, rng=random.Random(1), clock=lambda: 0.0, now_ms=lambda: 0)
    mailbox = Mailbox(lambda: None)
    reader.read("http://camera/live", mailbox, opened)
    assert lost == [None, "cannot open http://camera/live: it is a recording or a picture"]


@pytest.mark.parametrize(
    ("rotate", "mirror", "edge"),
    [(0, False, "left"), (90, False, "top"), (180, False, "right"), (270, False, "bottom"), (90, True, "top"),
     (0, True, "right"), (180, True, "left")],
)  # fmt: skip
async def test_pictures_are_turned_and_then_mirrored(rotate: Rotation, mirror: bool, edge: str, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4")  # white at its left edge
    across = rotate in (0, 180)
    size = {"width": 64, "height": 48} if across else {"width": 48, "height": 64}
    async with Video(str(clip), **size, rotate=rotate, mirror=mirror) as video:
        image = (await anext(video)).image
    assert video.origin == Origin(**size, fps=25)
    sides = {"left": image[:, :4], "right": image[:, -4:], "top": image[:4], "bottom": image[-4:]}
    opposite = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}
    assert sides[edge].mean() > 240
    assert sides[opposite[edge]].mean() < 20


async def test_a_picture_of_another_shape_is_turned_before_it_is_stretched(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4")  # 64x48
    async with Video(str(clip), **SIZE, rotate=90) as video:
        image = (await anext(video)).image
    assert image.shape == (16, 32, 3)
    assert image[0].mean() > 240
    assert image[4:].mean() < 20
