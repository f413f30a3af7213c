"""What is learned from: warps as a camera makes them, held against fresh masks, the same for the same seed."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.bundle import Bundle
from pipeline.codec import open_encoder
from pipeline.decide_samples import Samples, Video, Worker, approach, read_video, render_video, watch, watch_approaches
from pipeline.deciding import FACTS, MAPS, PLACES
from pipeline.errors import ConfigError, SourceError
from pipeline.experiment import Approaches, DecideSamples, Street
from pipeline.runtime import open_session

SETTINGS = DecideSamples(keys=4, longest_age=5, share=1.0, steps=2, fresh=0, cheaper=0.0)
AGE = 1  # place of a fact


@pytest.fixture(scope="module")
def video(tiny_bundle: Bundle) -> Video:
    size = (tiny_bundle.manifest.width, tiny_bundle.manifest.height)
    return render_video(Street(seed=3, frames=8, fps=12.0, light=1.0), size)


@pytest.fixture(scope="module")
def worker(tiny_bundle: Bundle) -> Worker:
    encoder = open_encoder(tiny_bundle, engine="onnxruntime", threads=1)
    return Worker(tiny_bundle, encoder, open_session(tiny_bundle.graph("decode"), engine="onnxruntime", threads=1))


def watched(worker: Worker, video: Video, seed: int = 0, **changed: float) -> Samples:
    return watch(worker, video, SETTINGS.model_copy(update=changed), np.random.default_rng(seed))


def test_warps_come_with_what_the_camera_sees_and_how_well_they_agree(worker: Worker, video: Video) -> None:
    found = watched(worker, video)
    count = len(found)
    assert count > 4
    assert (found.maps.shape, found.facts.shape) == ((count, MAPS, *PLACES), (count, FACTS))
    assert found.maps.dtype == found.facts.dtype == found.agreement.dtype == np.float32
    assert ((found.agreement >= 0) & (found.agreement <= 100)).all()
    assert found.agreement.std() > 0
    assert np.rint(found.facts[:, AGE] * 30).max() <= 5


def test_the_same_seed_gives_the_same_samples(worker: Worker, video: Video) -> None:
    first, again, other = (watched(worker, video, seed) for seed in (0, 0, 1))
    np.testing.assert_allclose(first.maps, again.maps, rtol=1e-5)
    np.testing.assert_array_equal(first.agreement, again.agreement)
    assert first.facts.shape != other.facts.shape or not np.allclose(first.facts, other.facts)


def test_masks_of_a_video_that_stands_still_agree(worker: Worker, video: Video) -> None:
    still = replace(video, images=video.images[:1] * 5)
    assert (watched(worker, still).agreement == 100).all()


def test_a_key_is_held_against_itself_at_better_levels(worker: Worker, video: Video) -> None:
    found = watched(worker, video, fresh=2, keys=12)
    fresh = found.facts[:, AGE] == 0
    assert fresh.any()
    assert found.agreement[fresh].max() < 100
    assert (watched(worker, video, keys=12).facts[:, AGE] > 0).all()


APPROACHES = Approaches(pictures=3, frames=6, fastest=0.05, noise=2.0)


def test_a_picture_becomes_a_video_of_a_camera_that_comes_nearer(video: Video) -> None:
    rng, picture = np.random.default_rng(2), video.images[0]
    nearer = approach(picture, APPROACHES, rng)
    assert [image.shape for image in nearer.images] == [picture.shape] * 6
    apart = [np.abs(image.astype(float) - picture).mean() for image in nearer.images]
    assert apart[0] < 2  # its noise alone
    assert apart[5] > 2 * apart[0]
    assert not np.array_equal(approach(picture, APPROACHES, rng).images[5], nearer.images[5])


def test_a_camera_that_stands_sees_the_same_but_for_its_noise(video: Video) -> None:
    rng, picture = np.random.default_rng(2), video.images[0]
    still = APPROACHES.model_copy(update={"fastest": 0.0, "noise": 0.0})
    for image in approach(picture, still, rng).images:
        np.testing.assert_array_equal(image, picture)
    noisy = approach(picture, still.model_copy(update={"noise": 3.0}), rng)
    assert not np.array_equal(noisy.images[0], noisy.images[1])


def test_each_of_some_pictures_is_watched_once(worker: Worker, video: Video) -> None:
    found = watch_approaches(worker, video, APPROACHES, SETTINGS, np.random.default_rng(0))
    assert 3 <= len(found) <= 3 * 5
    assert found.maps.shape[0] == found.facts.shape[0] == len(found)


def test_one_frame_is_refused(worker: Worker, video: Video) -> None:
    with pytest.raises(ConfigError, match="one frame is no video"):
        watched(worker, replace(video, images=video.images[:1]))


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path: Path) -> None:
    for shade in (10, 20, 30):
        cv2.imwrite(str(tmp_path / f"{shade}.png"), np.full((32, 48, 3), shade, np.uint8))
    found = read_video(tmp_path, (24, 16))
    assert [int(image.mean()) for image in found.images] == [10, 20, 30]
    assert found.images[0].shape == (16, 24, 3)
    with pytest.raises(SourceError):
        read_video(tmp_path / "none", (24, 16))


def test_light_makes_a_street_brighter() -> None:
    dark, bright = (render_video(Street(seed=3, frames=2, fps=25, light=light), (96, 64)) for light in (0.5, 1.0))
    assert np.mean(dark.images[0]) == pytest.approx(np.mean(bright.images[0]) / 2, rel=0.05)
