"""The comparison of key policies on made-up results and on the shortest of videos; the measuring takes minutes."""

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from rich.console import Console

from benchmarks.temporal import measure, settings_of, video_of, without_noise
from benchmarks.temporal_tables import (
    EVERY,
    INTERVAL,
    MOVING,
    PRICE,
    THRESHOLD,
    Result,
    Setting,
    loss_at,
    table_of,
    targets_of,
)
from pipeline.bundle import Bundle, default_bundle, load_bundle
from pipeline.errors import ConfigError
from pipeline.key_policies import EVERY_FRAME, at_interval, at_price, at_threshold
from pipeline.noise_reduction import NoiseReduction


def result(family: str, share: float, loss: float, *, level: int = 5, lookahead: int = 0) -> Result:
    setting = Setting(family, 1, level, lookahead)
    return Result(setting, None, 100 - loss, 1.0, loss, 1000, share=share, camera_ms=1, worker_ms=1, kinds={})


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return load_bundle(default_bundle())


def test_a_key_in_every_frame_is_of_every_family_and_other_levels_are_of_none() -> None:
    results = [
        result(EVERY, 1, 0),
        result(INTERVAL, 0.25, 3),
        result(THRESHOLD, 0.2, 2),
        result(EVERY, 0.3, 1, level=4),
    ]
    assert loss_at(results, INTERVAL, 5, 0.4) == pytest.approx(2.4)
    assert loss_at(results, THRESHOLD, 5, 0.6) == pytest.approx(1)
    assert loss_at(results, INTERVAL, 5, 0.2) is None
    assert loss_at(results, PRICE, 4, 0.4) == 1


def test_policies_whose_frames_wait_are_families_of_their_own() -> None:
    results = [result(EVERY, 1, 0), result(INTERVAL, 0.3, 3), result(INTERVAL, 0.3, 1, lookahead=4)]
    assert (loss_at(results, INTERVAL, 5, 0.4), loss_at(results, INTERVAL, 5, 0.4, 4)) == pytest.approx(
        (2.571, 0.857), abs=1e-3
    )
    console = Console(width=150, record=True, file=io.StringIO())
    console.print(targets_of(results))
    assert "interval, lookahead 4" in console.export_text()


def test_targets_name_the_level_that_loses_least() -> None:
    results = [result(EVERY, 1, 0), result(INTERVAL, 0.4, 2), result(INTERVAL, 0.3, 1, level=4)]
    console = Console(width=150, record=True, file=io.StringIO())
    console.print(targets_of(results))
    lines = [line.split("│") for line in console.export_text().splitlines() if line.startswith("│")]
    assert [[cell.strip() for cell in line[1:4]] for line in lines] == [
        ["40 %", "0.5", "1.00 (4)"], ["27 %", "1.0", "-"], ["15 %", "2.5", "-"],
    ]  # fmt: skip


def test_settings_are_the_policies_of_the_codec() -> None:
    assert Setting(EVERY, 1, 5).policy == EVERY_FRAME
    assert Setting(INTERVAL, 4, 5).policy == at_interval(4)
    assert Setting(THRESHOLD, 93.5, 5).policy == at_threshold(93.5)
    assert Setting(MOVING, 93.5, 5).policy == at_threshold(93.5, moving=True)
    assert Setting(PRICE, 2.5, 5).policy == at_price(2.5)


def test_every_level_of_keys_is_compared_with_all_policies(bundle: Bundle) -> None:
    settings = settings_of(bundle, 5, [3, 5], intervals=[4], thresholds=[95.0], prices=[2.0])
    assert settings[0] == Setting(EVERY, 1, 5)
    for family in (EVERY, INTERVAL, THRESHOLD, MOVING):
        assert [one.level for one in settings if one.family == family] == [5, 3]
    assert [one.level for one in settings if one.family == PRICE] == ([5] if bundle.has_graph("decide") else [])


def test_labelled_frames_are_brought_to_the_bundles_size_and_masks_to_that_of_the_labels(
    bundle: Bundle, tiny_camvid: Path
) -> None:
    video = video_of(bundle, data=tiny_camvid, split="train", clip=None, frames=2)
    assert {image.shape[1::-1] for image in video.images} == {(bundle.manifest.width, bundle.manifest.height)}
    (found,) = measure(video, bundle, [Setting(EVERY, 1, 0)], engine="onnxruntime", threads=1)
    assert found.miou is not None


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
    every, interval = measure(
        video, bundle, [Setting(EVERY, 1, 5), Setting(INTERVAL, 3, 5)], engine="onnxruntime", threads=1
    )
    assert (every.share, every.loss, list(every.kinds)) == (1, 0, ["KEY"])
    assert (interval.loss, interval.agreement, interval.miou) == (0, 100, None)
    assert (every.changed, interval.changed) == (0, 0)
    key, warp = interval.kinds["KEY"], interval.kinds["WARP"]
    assert (key.share, warp.share) == (pytest.approx(1 / 3), pytest.approx(2 / 3))
    assert key.size_bytes == every.kinds["KEY"].size_bytes
    assert interval.total_bytes == key.size_bytes + 2 * warp.size_bytes
    assert interval.share == interval.total_bytes / every.total_bytes


def test_changed_is_told_from_one_frame_to_the_next(bundle: Bundle, still: Path) -> None:
    picture = cv2.imread(str(still / "1.png"))
    assert cv2.imwrite(str(still / "1.png"), 255 - picture)
    video = video_of(bundle, data=None, split="val", clip=still, frames=3)
    (every,) = measure(video, bundle, [Setting(EVERY, 1, 5)], engine="onnxruntime", threads=1)
    assert every.changed is not None
    assert every.changed > 1
    alone = video_of(bundle, data=None, split="val", clip=still, frames=1)
    (first,) = measure(alone, bundle, [Setting(EVERY, 1, 5)], engine="onnxruntime", threads=1)
    assert first.changed is None
    assert table_of([every, first], "").row_count == 2


@pytest.mark.parametrize("setting", [Setting(EVERY, 1, 5), Setting(INTERVAL, 2, 5, 4)], ids=["all KEYs", "lookahead"])
def test_with_hysteresis_less_changes_also_between_two_keys(bundle: Bundle, still: Path, setting: Setting) -> None:
    for number in range(3):
        picture = cv2.imread(str(still / f"{number}.png"))
        noise = np.random.default_rng(number).normal(0, 12, picture.shape)
        assert cv2.imwrite(str(still / f"{number}.png"), np.clip(picture + noise, 0, 255).astype(np.uint8))
    video, changed = video_of(bundle, data=None, split="val", clip=still, frames=3), []
    for hysteresis in (0.0, 0.5):
        (found,) = measure(video, bundle, [setting], engine="onnxruntime", threads=1, hysteresis=hysteresis)
        changed.append(found.changed or 0)
    assert 0 < changed[1] < 0.8 * changed[0]


def test_noise_is_taken_out_of_all_pictures_one_after_the_other(bundle: Bundle, still: Path) -> None:
    for number in range(3):
        picture = cv2.imread(str(still / f"{number}.png"))
        noise = np.random.default_rng(number).integers(0, 6, picture.shape, np.uint8)
        assert cv2.imwrite(str(still / f"{number}.png"), cv2.add(picture, noise))
    video = video_of(bundle, data=None, split="val", clip=still, frames=3)
    reduce_noise, calm = NoiseReduction(), without_noise(video)
    assert all(np.array_equal(one, reduce_noise(seen)) for one, seen in zip(calm.images, video.images, strict=True))
    assert (calm.name, calm.labels) == (video.name, video.labels)


def test_frames_that_wait_are_counted_once_each_and_their_key_for_itself(bundle: Bundle, still: Path) -> None:
    video = video_of(bundle, data=None, split="val", clip=still, frames=3)
    settings = [Setting(EVERY, 1, 5), Setting(INTERVAL, 2, 5, 4), Setting(INTERVAL, 4, 5, 4)]
    every, between, rest = measure(video, bundle, settings, engine="onnxruntime", threads=1)
    key, warp = between.kinds["KEY"], between.kinds["WARP"]
    assert (key.share, warp.share) == (pytest.approx(2 / 3), pytest.approx(1 / 3))
    assert key.size_bytes == pytest.approx(
        every.kinds["KEY"].size_bytes, abs=20
    )  # of the second KEY the frame tells so
    assert between.total_bytes == 2 * key.size_bytes + warp.size_bytes
    assert (between.loss, rest.loss, key.camera_ms) == (0, 0, None)
    assert rest.kinds["KEY"].share == pytest.approx(1 / 3)


def test_exactly_one_video_is_to_be_named(bundle: Bundle, still: Path) -> None:
    for data, clip in ((None, None), (still, still)):
        with pytest.raises(ConfigError, match="name one video"):
            video_of(bundle, data=data, split="val", clip=clip, frames=3)
