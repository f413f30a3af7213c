"""Sources: what an address names, its pictures as they are, and one sentence where it cannot be read."""

import asyncio
import gc
import os
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from clips import (
    number_of,
    picture,
    write_clip,
    write_images,
    write_late_stream,
    write_scratched_clip,
    write_stream,
    write_turned_clip,
)

from pipeline.errors import ConfigError, SourceError
from pipeline.sources import Origin, damage_of, fit, image_files, open_source

OPTIONS = {"fps": 10.0, "timeout_s": 2.0, "decode_threads": 1}


def read(url: Path | str) -> tuple[Origin, list[int], list[float]]:
    with open_source(str(url), **OPTIONS) as source:
        pictures = list(source.pictures)
    return source.origin, [number_of(each.image) for each in pictures], [each.time_s for each in pictures]


def sentence(url: Path | str) -> str:
    with pytest.raises((SourceError, ConfigError)) as caught:
        read(url)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_file_gives_every_picture_with_its_time(tmp_path: Path) -> None:
    origin, numbers, times_s = read(write_clip(tmp_path / "clip.mp4", frames=6, fps=20))
    assert origin == Origin(64, 48, 20.0)
    assert numbers == list(range(6))
    assert times_s == pytest.approx([n / 20 for n in range(6)])


@pytest.mark.parametrize(
    ("matrix", "size", "white", "black"),
    [
        ((1, 0, 0, 1), (64, 48), "left", "top"),
        ((-1, 0, 0, 1), (64, 48), "right", "top"),
        ((1, 0, 0, -1), (64, 48), "left", "bottom"),
        ((-1, 0, 0, -1), (64, 48), "right", "bottom"),
        ((0, 1, -1, 0), (48, 64), "top", "right"),  # a quarter turn clockwise: a phone held upright
        ((0, -1, 1, 0), (48, 64), "bottom", "left"),
        ((0, 1, 1, 0), (48, 64), "top", "left"),
        ((0, -1, -1, 0), (48, 64), "bottom", "right"),
    ],
)
def test_a_clip_is_turned_and_mirrored_as_it_says(
    tmp_path: Path, matrix: tuple[int, int, int, int], size: tuple[int, int], white: str, black: str
) -> None:
    edges = {"left": np.s_[12:-12, 2], "right": np.s_[12:-12, -3], "top": np.s_[2, 12:-12], "bottom": np.s_[-3, 12:-12]}
    clip = write_turned_clip(tmp_path / "clip.mp4", matrix=matrix)
    with open_source(str(clip), **OPTIONS) as source:
        images = [one.image for one in source.pictures]
    assert (source.origin.width, source.origin.height) == size
    assert {image.shape for image in images} == {(size[1], size[0], 3)}
    assert len(images) == 3
    for image in images:
        assert image[edges[white]].mean() > 240
        assert image[edges[black]].mean() < 20
        assert 100 < image[16:-16, 16:-16].mean() < 160


def test_frames_that_were_read_are_freed_at_once(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", frames=30)
    gc.collect()
    gc.disable()
    try:
        with open_source(str(clip), **OPTIONS) as source:
            assert sum(1 for _ in source.pictures) == 30
        kept = sum(isinstance(one, av.VideoFrame) for one in gc.get_objects())
    finally:
        gc.enable()
    assert kept <= 2


def test_a_directory_gives_its_images_in_order_at_the_given_rate(tmp_path: Path) -> None:
    origin, numbers, times_s = read(write_images(tmp_path / "images", count=4))
    assert origin == Origin(64, 48, 10.0)
    assert numbers == [0, 1, 2, 3]
    assert times_s == pytest.approx([0.0, 0.1, 0.2, 0.3])


def test_a_stream_without_time_stamps_comes_at_its_rate(tmp_path: Path) -> None:
    origin, numbers, times_s = read(write_stream(tmp_path / "raw.m4v", frames=5))
    assert numbers == list(range(5))
    assert times_s == pytest.approx([n / origin.fps for n in range(5)])


def test_images_of_a_directory_are_in_order_of_their_names(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", count=3)
    assert [file.name for file in image_files(folder)] == ["000.png", "001.png", "002.png"]


@pytest.mark.parametrize("size", [(32, 16), (200, 150), (32, 100)])
def test_a_picture_is_made_to_fit(size: tuple[int, int]) -> None:
    image = fit(picture(3), size)
    assert (image.shape, image.dtype) == ((size[1], size[0], 3), np.uint8)
    assert number_of(image) == 3


def test_a_fine_pattern_that_shrinks_becomes_its_mean() -> None:
    stripes = np.zeros((48, 64, 3), np.uint8)
    stripes[:, ::2] = 200
    assert (fit(stripes, (16, 12)) == 100).all()


def test_a_picture_that_fits_is_returned_as_it_is() -> None:
    image = picture(3)
    assert fit(image, (64, 48)) is image


def test_pictures_are_rgb(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", count=1)
    cv2.imwrite(str(folder / "000.png"), np.full((4, 4, 3), (0, 0, 255), np.uint8))  # red, as BGR
    with open_source(str(folder), **OPTIONS) as source:
        assert next(source.pictures).image[0, 0].tolist() == [255, 0, 0]


def test_a_scratch_in_a_file_does_not_end_it(tmp_path: Path) -> None:
    clip = write_scratched_clip(tmp_path / "clip.mp4")
    with open_source(str(clip), fps=25, timeout_s=5, decode_threads=1) as source:
        found = list(source.pictures)
        assert 20 <= len(found) < 30
        assert 0 < source.damage.packets <= 30 - len(found)
        assert str(damage_of(str(clip), source)).startswith(f"{clip} is damaged, so that pictures are missing: ")


def test_nothing_is_said_of_a_file_that_is_whole(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4")
    with open_source(str(clip), fps=25, timeout_s=5, decode_threads=1) as source:
        assert len(list(source.pictures)) == 10
        assert damage_of(str(clip), source) is None


@pytest.mark.parametrize("url", ["none.mp4", "gopher://host/live", "99", "/dev/video99"])
def test_what_cannot_be_opened_is_named_with_what_is_expected(url: str) -> None:
    text = sentence(url)
    assert text.startswith(f"cannot open {url}: ")
    assert text.endswith(
        "; expected a video file, a directory of images, a device, "
        "or a stream over rtsp, rtsps, rtmp, rtmps, http, https, udp or rtp"
    )


def test_a_recording_on_a_web_server_is_no_stream(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.mp4")
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        said = sentence(f"http://127.0.0.1:{server.server_port}/clip.mp4")
        server.shutdown()
    assert "it is a recording or a picture, no stream; download it, and name the file" in said


def test_sources_that_are_opened_again_and_again_leave_no_threads_behind(tmp_path: Path) -> None:
    """Also where what is in cycles is not collected soon: each frame's converter had a thread per core."""
    clip, counts = write_clip(tmp_path / "clip.mp4"), []
    gc.disable()
    try:
        for _ in range(4):
            with open_source(str(clip), fps=25, timeout_s=5, decode_threads=1) as source:
                assert len(list(source.pictures)) == 10
            counts.append(len(list(Path("/proc/self/task").iterdir())))
    finally:
        gc.enable()
    assert counts[-1] <= counts[0]


def test_a_file_that_is_no_video_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes.mp4").write_text("these are notes\n" * 50)
    assert "notes.mp4" in sentence(tmp_path / "notes.mp4")


def test_an_empty_directory_is_named(tmp_path: Path) -> None:
    assert ".png" in sentence(tmp_path)


def test_an_image_that_is_none_is_named(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images")
    (folder / "002.png").write_bytes(b"nothing")
    assert "002.png" in sentence(folder)


def test_a_stream_that_is_met_long_before_its_next_key_frame_is_read(tmp_path: Path) -> None:
    file = write_late_stream(tmp_path / "late.h264", frames=160, key_interval=150)
    with open_source(str(file), fps=25.0, timeout_s=5.0, decode_threads=1) as opened:
        assert len(list(opened.pictures)) == 10


async def test_a_server_that_does_not_answer_is_said_to_be_silent() -> None:
    async with await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0) as server:
        url = f"rtsp://user:pass@127.0.0.1:{server.sockets[0].getsockname()[1]}/stream"

        def opened() -> None:
            with open_source(url, fps=25.0, timeout_s=0.5, decode_threads=1):
                pass

        with pytest.raises(SourceError, match=r"rtsp://127\.0\.0\.1:\d+/stream: it did not answer in 0\.5 s"):
            await asyncio.to_thread(opened)


@pytest.mark.parametrize("host", ["no-such-host.invalid", "two..dots"])
def test_a_host_that_has_no_address_is_named(host: str) -> None:
    said = rf"^cannot open rtsp://{re.escape(host)}:554/stream: no address is known of {re.escape(host)} \("
    with (
        pytest.raises(SourceError, match=said),
        open_source(f"rtsp://user:secret@{host}:554/stream", fps=25.0, timeout_s=5.0, decode_threads=1),
    ):
        pass


@pytest.mark.parametrize(
    ("url", "code", "said"),
    [("rtsp://camera/x", 111, "connection refused"), ("udp://:1234", 5, "input/output error")],
)
def test_a_host_is_looked_up_only_where_the_library_may_have_found_no_address(
    monkeypatch: pytest.MonkeyPatch, url: str, code: int, said: str
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    def looked_up(*_: object) -> None:
        raise AssertionError("looked up")

    monkeypatch.setattr(av, "open", refused)
    monkeypatch.setattr(socket, "getaddrinfo", looked_up)
    assert sentence(url) == f"cannot open {url}: {said}"


@contextmanager
def sent(url: str, format: str) -> Iterator[None]:
    """The numbered pictures, sent again and again, 25 a second, until the context is left."""
    over = threading.Event()

    def send() -> None:
        with av.open(url, "w", format=format) as container:
            stream = container.add_stream("mpeg4", rate=25, options={"g": "5"})
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            number = 0
            while not over.wait(0.04):
                frame = av.VideoFrame.from_ndarray(picture(number % 10), format="rgb24")
                container.mux(stream.encode(frame))
                number += 1

    sender = threading.Thread(target=send)
    sender.start()
    try:
        yield
    finally:
        over.set()
        sender.join()


@pytest.mark.parametrize(
    ("scheme", "at", "format"),
    [("udp", "@:", "mpegts"), ("udp", ":", "mpegts"), ("rtp", "@:", "rtp_mpegts"), ("RTP", ":", "rtp_mpegts")],
)
def test_what_is_sent_to_a_port_of_this_machine_is_read(scheme: str, at: str, format: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (
        sent(f"{scheme.lower()}://127.0.0.1:{port}", format),
        open_source(f"{scheme}://{at}{port}", fps=25.0, timeout_s=10.0, decode_threads=1) as source,
    ):
        numbers = [number_of(next(source.pictures).image) for _ in range(5)]
    assert (source.origin.width, source.origin.height) == (64, 48)
    assert numbers == [(numbers[0] + later) % 10 for later in range(5)]


def test_an_image_that_ends_too_early_is_named_and_one_with_a_thumbnail_or_more_behind_it_is_read(
    tmp_path: Path,
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    whole = cv2.imencode(".jpg", image)[1].tobytes()
    small = cv2.imencode(".jpg", image[:8, :8])[1].tobytes()
    thumbnail = b"\xff\xe1" + (2 + len(small)).to_bytes(2, "big") + small  # as cameras put one before the picture
    file = tmp_path / "a.jpg"
    behind = b"\0\0\0\x18ftypmp42" + np.random.default_rng(1).bytes(100_000)  # the video of a motion photo
    lines = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_RST_INTERVAL, 1])[1].tobytes()
    progressive = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()
    filled = whole[:-2] + b"\xff\xff" + whole[-2:]  # any marker may have more of these before it
    for content in (whole, whole[:2] + thumbnail + whole[2:], whole + behind, lines, progressive, filled):
        file.write_bytes(content)
        with open_source(str(tmp_path), fps=1, timeout_s=1, decode_threads=1) as opened:
            assert next(iter(opened.pictures)).image.shape == (64, 64, 3)
    for cut in (whole[: len(whole) // 2], (whole[:2] + thumbnail + whole[2:])[:-9], progressive[:-400], lines[:-2]):
        file.write_bytes(cut)
        with (
            pytest.raises(SourceError, match=r"a\.jpg: it ends too early; repair it"),
            open_source(str(tmp_path), fps=1, timeout_s=1, decode_threads=1),
        ):
            pass


def test_what_may_not_be_read_is_said_to_be_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").mkdir()  # root may read all files, but no directory as one
    with (
        pytest.raises(SourceError, match=r"a\.png: is a directory; repair it or take it out"),
        open_source(str(tmp_path), fps=1, timeout_s=1, decode_threads=1),
    ):
        pass

    def refused(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refused)
    with pytest.raises(SourceError, match=r"cannot open .*: permission denied; "):
        image_files(tmp_path)
