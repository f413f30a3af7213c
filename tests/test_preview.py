"""Previews: small, not too many, and the picture that was sent."""

import cv2
import numpy as np
import pytest

from nodes.preview import Preview
from pipeline.messages import Frame, FrameId


def frame(width: int = 64, height: int = 48) -> Frame:
    image = np.zeros((height, width, 3), np.uint8)
    image[:, :, 0] = 200  # red
    return Frame(FrameId(1, 1), 0, image)


def decoded(jpeg: bytes | None) -> np.ndarray:
    assert jpeg is not None
    return cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)


def test_a_preview_is_a_jpeg_of_the_frame_in_its_colours() -> None:
    image = decoded(Preview(max_fps=5, max_width=480, jpeg_quality=80).picture(frame()))
    assert image.shape == (48, 64, 3)
    assert image[24, 32, 2] > 180 > 20 > image[24, 32, 0]  # OpenCV reads blue first


def test_a_preview_says_in_a_comment_of_which_frame_it_is() -> None:
    jpeg = Preview(max_fps=5, max_width=480, jpeg_quality=80).picture(frame())
    assert jpeg is not None
    assert jpeg[:4] == b"\xff\xd8\xff\xfe"
    assert jpeg[6:18] == b"maskcast 1 1"


def test_a_wide_frame_is_made_smaller_in_its_proportions() -> None:
    image = decoded(Preview(max_fps=5, max_width=100, jpeg_quality=80).picture(frame(400, 200)))
    assert image.shape == (50, 100, 3)


@pytest.mark.parametrize(("shape", "size"), [((768, 432), (36, 64)), ((432, 768), (114, 64)), ((64, 48), (48, 64))])
def test_a_preview_has_the_shape_of_the_source(shape: tuple[int, int], size: tuple[int, int]) -> None:
    image = decoded(Preview(max_fps=5, max_width=100, jpeg_quality=80).picture(frame(), shape))
    assert image.shape == (*size, 3)


def test_pictures_keep_to_the_rate_and_its_mean() -> None:
    now_s = 0.0
    preview = Preview(max_fps=10, max_width=480, jpeg_quality=50, clock=lambda: now_s)
    made = 0
    for _ in range(250):  # ten seconds at 25 frames per second
        made += preview.picture(frame()) is not None
        now_s += 0.04
    assert 95 <= made <= 101
