"""Sources: what an address names, its pictures as they are, and one sentence where it cannot be read."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from clips import number_of, write_clip, write_images

from pipeline.errors import SourceError
from pipeline.sources import Origin, kind_of, open_source, shown

OPTIONS = {"fps": 10.0, "timeout_s": 2.0, "decode_threads": 1}


def read(url: Path | str) -> tuple[Origin, list[int], list[float]]:
    with open_source(str(url), **OPTIONS) as source:
        pictures = list(source.pictures)
    return source.origin, [number_of(each.image) for each in pictures], [each.time_s for each in pictures]


def sentence(url: Path | str) -> str:
    with pytest.raises(SourceError) as caught:
        read(url)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_file_gives_every_picture_with_its_time(tmp_path: Path) -> None:
    origin, numbers, times_s = read(write_clip(tmp_path / "clip.mp4", frames=6, fps=20))
    assert origin == Origin(64, 48, 20.0)
    assert numbers == list(range(6))
    assert times_s == pytest.approx([n / 20 for n in range(6)])


def test_a_directory_gives_its_images_in_order_at_the_given_rate(tmp_path: Path) -> None:
    origin, numbers, times_s = read(write_images(tmp_path / "images", count=4))
    assert origin == Origin(64, 48, 10.0)
    assert numbers == [0, 1, 2, 3]
    assert times_s == pytest.approx([0.0, 0.1, 0.2, 0.3])


def test_pictures_are_rgb(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", count=1)
    cv2.imwrite(str(folder / "000.png"), np.full((4, 4, 3), (0, 0, 255), np.uint8))  # red, as BGR
    with open_source(str(folder), **OPTIONS) as source:
        assert next(source.pictures).image[0, 0].tolist() == [255, 0, 0]


def test_a_scratch_in_a_file_does_not_end_it(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", frames=30)
    data = bytearray(clip.read_bytes())
    begin = data.index(b"mdat")
    at = (begin + data.index(b"moov")) // 2
    data[at : at + 40] = bytes(40)
    clip.write_bytes(data)
    assert len(read(clip)[1]) >= 20


@pytest.mark.parametrize("url", ["none.mp4", "rtmp://host/live", "99", "/dev/video99", "https://host/a.mp4"])
def test_what_cannot_be_opened_is_named_with_what_is_expected(url: str) -> None:
    text = sentence(url)
    assert text.startswith(f"cannot open {url}: ")
    assert "expected a video file, a directory of images, rtsp:// or a device" in text


def test_a_file_that_is_no_video_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes.mp4").write_text("these are notes\n" * 50)
    assert "notes.mp4" in sentence(tmp_path / "notes.mp4")


def test_an_empty_directory_is_named(tmp_path: Path) -> None:
    assert ".png" in sentence(tmp_path)


def test_an_image_that_is_none_is_named(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images")
    (folder / "002.png").write_bytes(b"nothing")
    assert "002.png" in sentence(folder)


def test_user_and_password_are_not_shown() -> None:
    assert shown("rtsp://user:secret@camera/1") == "rtsp://camera/1"


@pytest.mark.parametrize(
    ("url", "kind"),
    [("rtsp://c/1", "server"), ("rtsps://c/1", "server"), ("0", "device"), ("/dev/video2", "device"), ("x", "file")],
)
def test_an_address_names_a_kind(url: str, kind: str) -> None:
    assert kind_of(url) == kind
