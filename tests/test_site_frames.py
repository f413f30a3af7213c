"""A site's video: spread over its length, split in time, and seen by teachers in its own shape."""

from pathlib import Path

import clips
import cv2
import numpy as np
import pytest
import tiny
import torch
from graphs import light_meter

from pipeline.datasets import Classes, LabelledClass
from pipeline.errors import ConfigError
from pipeline.site_frames import (
    class_maps,
    opinions,
    read_shots,
    soft_labels,
    split_in_time,
    spread,
    teacher_size,
)
from pipeline.teachers import Teacher, load_teachers

OURS = Classes(tuple(LabelledClass(n, c) for n, c in tiny.COLOURS.items()), tiny.FROM_CITYSCAPES)
SIZE = (tiny.WIDTH, tiny.HEIGHT)


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 100, 1000])
def test_frames_are_spread_evenly_and_never_too_many(count: int) -> None:
    kept = spread(range(count), 8)
    assert len(kept) == min(count, len(kept)) <= 8
    assert len(kept) > 4 or len(kept) == count
    assert kept == list(range(0, count, kept[1] if len(kept) > 1 else 1))


@pytest.mark.parametrize("count", [10, 18, 19, 100, 137, 200])
def test_held_out_frames_have_no_neighbour_that_is_learned(count: int) -> None:
    split = split_in_time(count)
    assert not {i + d for i in split.held for d in (-1, 0, 1)} & set(split.learned)
    assert 0.1 <= len(split.held) / count <= 0.3
    assert len(split.learned) >= 0.4 * count
    stretches = np.count_nonzero(np.diff(split.held) > 1) + 1
    assert stretches == 2


@pytest.mark.parametrize("source", [(1920, 1080), (960, 540), (640, 480), (720, 1280), (96, 64)])
def test_teachers_see_the_sources_shape_at_four_times_the_bundles_pixels(source: tuple[int, int]) -> None:
    width, height = teacher_size(source, (480, 360))
    assert width % 8 == height % 8 == 0
    assert width / height == pytest.approx(source[0] / source[1], rel=0.02)
    assert width * height == pytest.approx(960 * 720, rel=0.02)


def test_shots_are_as_the_camera_codes_them_and_as_teachers_see_them(tmp_path: Path) -> None:
    shots = read_shots(clips.write_clip(tmp_path / "wide.mp4", frames=150, width=128, height=64, fps=25), SIZE)
    assert len(shots) >= 10
    assert all(shot.coded.shape == (tiny.HEIGHT, tiny.WIDTH, 3) for shot in shots)
    assert {shot.shown.shape for shot in shots} == {(112, 224, 3)}


def test_pictures_of_several_sizes_are_brought_to_those_of_the_first(tmp_path: Path) -> None:
    tiny.pictures(tmp_path, 12)
    cv2.imwrite(str(tmp_path / "999.png"), np.zeros((50, 70, 3), np.uint8))
    shots = read_shots(tmp_path, SIZE)
    assert len(shots) == 13
    assert {shot.shown.shape for shot in shots} == {(2 * tiny.HEIGHT, 2 * tiny.WIDTH, 3)}


def test_too_short_a_video_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"9 frames are too few; name 10 images or 5 s of video"):
        read_shots(tiny.pictures(tmp_path, 9), SIZE)


def test_a_video_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"no video" * 100)
    with pytest.raises(ConfigError, match=r"broken\.mp4: no images and no clip"):
        read_shots(tmp_path / "broken.mp4", SIZE)


@pytest.fixture
def teacher(tmp_path: Path) -> Teacher:
    """Sure that what is bright is road and what is dark is sky."""
    path = light_meter(tmp_path / "teacher.onnx", tiny.CLASSES, bright=tiny.ROAD, dark=tiny.SKY)
    size = (2 * tiny.WIDTH, 2 * tiny.HEIGHT)
    return load_teachers([path], size=size, mirrored=False, described=OURS, device=torch.device("cpu"))


def test_opinions_have_the_size_that_is_asked_for_and_the_order_of_the_shots(teacher: Teacher, tmp_path: Path) -> None:
    for i in range(10):
        image = np.zeros((tiny.HEIGHT, tiny.WIDTH, 3), np.uint8)
        image[:, : 8 * (i + 1)] = 255
        cv2.imwrite(str(tmp_path / f"{i}.png"), image)
    shots, told = read_shots(tmp_path, SIZE), []
    maps = class_maps(opinions(teacher, shots, (tiny.HEIGHT, tiny.WIDTH), told.append))
    assert maps.shape == (10, tiny.HEIGHT, tiny.WIDTH)
    assert told == [4, 8, 10]
    np.testing.assert_allclose((maps == tiny.ROAD).mean((1, 2)), np.arange(1, 11) / 12, atol=0.02)
    soft = soft_labels(opinions(teacher, shots, (tiny.HEIGHT // 2, tiny.WIDTH // 2), told.append))
    assert soft.shape == (10, tiny.CLASSES, tiny.HEIGHT // 2, tiny.WIDTH // 2)
    np.testing.assert_array_equal(soft.argmax(1)[:, 4, ::4], maps[:, 9, 1::8])
    assert soft.sum(1, dtype=int).min() >= 250
