"""The comparison of key policies on made-up results and on the shortest of videos; the measuring takes minutes."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks.temporal import EVERY, INTERVAL, THRESHOLD, Result, Setting, loss_at, measure, video_of
from pipeline.bundle import Bundle, default_bundle, load_bundle
from pipeline.errors import ConfigError
from pipeline.video_encoder import EVERY_FRAME, at_interval, at_threshold


def result(family: str, share: float, loss: float) -> Result:
    return Result(
        Setting(family, 1), None, 100 - loss, loss, total_bytes=1000, share=share, key_share=share, key_bytes=9,
        warp_bytes=1, key_camera_ms=1, warp_camera_ms=1, key_worker_ms=1, warp_worker_ms=1,
    )  # fmt: skip


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return load_bundle(default_bundle())


def test_the_loss_at_a_share_of_the_bits_lies_between_its_neighbours() -> None:
    results = [result(EVERY, 1, 0), result(INTERVAL, 0.5, 1), result(INTERVAL, 0.25, 3), result(THRESHOLD, 0.2, 2)]
    assert loss_at(results, INTERVAL, 0.4) == pytest.approx(1.8)
    assert loss_at(results, INTERVAL, 0.75) == pytest.approx(0.5)
    assert loss_at(results, INTERVAL, 0.2) is None
    assert loss_at(results, THRESHOLD, 0.2) == pytest.approx(2)


def test_settings_are_the_policies_of_the_codec() -> None:
    assert Setting(EVERY, 1).policy == EVERY_FRAME
    assert Setting(INTERVAL, 4).policy == at_interval(4)
    assert Setting(THRESHOLD, 93.5).policy == at_threshold(93.5)


@pytest.fixture
def still(tmp_path: Path, bundle: Bundle) -> Path:
    """A folder of three equal pictures."""
    size = (bundle.manifest.width, bundle.manifest.height)
    picture = cv2.resize(np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8), size)
    for number in range(3):
        assert cv2.imwrite(str(tmp_path / f"{number}.png"), picture)
    return tmp_path


def test_where_nothing_moves_a_warp_costs_its_bytes_and_loses_nothing(bundle: Bundle, still: Path) -> None:
    video = video_of(bundle, data=None, split="val", clip=still, frames=3)
    every, interval = measure(video, bundle, [Setting(INTERVAL, 3)], level=5, engine="onnxruntime", threads=1)
    assert (every.share, every.key_share, every.loss, every.warp_bytes) == (1, 1, 0, None)
    assert (interval.loss, interval.agreement, interval.miou) == (0, 100, None)
    assert interval.key_share == pytest.approx(1 / 3)
    assert interval.key_bytes == every.key_bytes and interval.warp_bytes is not None
    assert interval.total_bytes == interval.key_bytes + 2 * interval.warp_bytes
    assert interval.share == interval.total_bytes / every.total_bytes


def test_exactly_one_video_is_to_be_named(bundle: Bundle, still: Path) -> None:
    for data, clip in ((None, None), (still, still)):
        with pytest.raises(ConfigError, match="name one video"):
            video_of(bundle, data=data, split="val", clip=clip, frames=3)
