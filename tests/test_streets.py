"""The rendered street: the same again, labels and flow true to the picture, and the committed sample made by it."""

from itertools import islice, pairwise
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from pipeline.errors import ConfigError
from pipeline.streets import SAMPLE_SEED, StreetFrame, main, render_street, travel_m, write_clip

SAMPLE = Path(__file__).parent.parent / "samples" / "street.mp4"
SKY, TREE, CAR = 0, 5, 8


@pytest.fixture(scope="module")
def driving() -> list[StreetFrame]:
    """Small frames, four a second, so that the camera moves far between two of them."""
    return list(render_street(SAMPLE_SEED, width=240, height=180, frames=14, fps=4.0))


@pytest.fixture(scope="module")
def smooth() -> list[StreetFrame]:
    """Small frames, ten a second; the camera begins to move after the tenth."""
    return list(render_street(SAMPLE_SEED, width=240, height=180, frames=24, fps=10.0))


@pytest.fixture(scope="module")
def sample() -> list[np.ndarray]:
    with av.open(str(SAMPLE)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def warped(before: np.ndarray, frame: StreetFrame, interpolation: int) -> np.ndarray:
    """The previous picture or labels, fetched by the flow to where they are now."""
    height, width = frame.labels.shape
    xs, ys = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    at = (xs + frame.flow[..., 0], ys + frame.flow[..., 1])
    return cv2.remap(before, *at, interpolation, borderMode=cv2.BORDER_REPLICATE)


def test_same_seed_gives_the_same_bytes(smooth: list[StreetFrame]) -> None:
    again = list(render_street(SAMPLE_SEED, width=240, height=180, frames=3, fps=10.0))
    for one, other in zip(smooth[:3], again, strict=True):
        assert one.image.tobytes() == other.image.tobytes()
        assert one.labels.tobytes() == other.labels.tobytes()
        assert one.flow.tobytes() == other.flow.tobytes()
        assert one.visible.tobytes() == other.visible.tobytes()


def test_another_seed_gives_another_street(smooth: list[StreetFrame]) -> None:
    other = next(render_street(SAMPLE_SEED + 1, width=240, height=180, frames=1))
    assert (other.labels != smooth[0].labels).mean() > 0.02


def test_frames_have_the_stated_types(smooth: list[StreetFrame]) -> None:
    frame = smooth[0]
    assert (frame.image.dtype, frame.image.shape) == (np.uint8, (180, 240, 3))
    assert (frame.labels.dtype, frame.labels.shape) == (np.uint8, (180, 240))
    assert (frame.flow.dtype, frame.flow.shape) == (np.float32, (180, 240, 2))
    assert (frame.visible.dtype, frame.visible.shape) == (np.bool_, (180, 240))


def test_all_eleven_classes_appear_in_the_sample(driving: list[StreetFrame]) -> None:
    pixels = np.bincount(np.concatenate([frame.labels.ravel() for frame in driving]), minlength=11)
    assert len(pixels) == 11
    assert (pixels > 30).all()


def test_nothing_of_the_first_frame_was_seen_before(smooth: list[StreetFrame]) -> None:
    assert not smooth[0].visible.any()


@pytest.mark.parametrize("pace", ["smooth", "driving"])
def test_labels_follow_the_flow(pace: str, request: pytest.FixtureRequest) -> None:
    frames: list[StreetFrame] = request.getfixturevalue(pace)
    for before, frame in pairwise(frames):
        agree = warped(before.labels, frame, cv2.INTER_NEAREST) == frame.labels
        assert agree[frame.visible].mean() > 0.99


def test_pictures_follow_the_flow(smooth: list[StreetFrame]) -> None:
    for before, frame in islice(pairwise(smooth), 16, None):
        error = np.abs(warped(before.image, frame, cv2.INTER_LINEAR).astype(float) - frame.image)
        unmoved = np.abs(before.image.astype(float) - frame.image)
        assert frame.visible.mean() > 0.85
        assert error[frame.visible].mean() < 5.0
        assert error[frame.visible].mean() < 0.8 * unmoved[frame.visible].mean()


def test_flow_is_better_than_any_small_change_of_it(smooth: list[StreetFrame]) -> None:
    before, frame = smooth[-2], smooth[-1]
    errors = []
    for shift in ((0, 0), (0.75, 0), (-0.75, 0), (0, 0.75), (0, -0.75)):
        moved = StreetFrame(frame.image, frame.labels, frame.flow + np.float32(shift), frame.visible)
        fetched = warped(before.image, moved, cv2.INTER_LINEAR).astype(float)
        errors.append(np.abs(fetched - frame.image)[frame.visible].mean())
    assert errors[0] == min(errors)


def test_what_is_newly_uncovered_is_not_called_visible(driving: list[StreetFrame]) -> None:
    frame = driving[-1]
    height, width = frame.labels.shape
    x = np.arange(width) + frame.flow[..., 0]
    y = np.arange(height)[:, None] + frame.flow[..., 1]
    outside = (x < -1) | (x > width) | (y < -1) | (y > height)
    assert outside.any()
    assert not frame.visible[outside].any()


def test_what_stands_still_before_a_still_camera_has_no_flow(smooth: list[StreetFrame]) -> None:
    frame = smooth[8]
    still = (frame.labels < TREE) | (frame.labels == TREE + 1)
    assert travel_m(8 / 10) == travel_m(7 / 10) == 0
    assert np.abs(frame.flow[still]).max() == pytest.approx(0, abs=1e-3)
    assert frame.visible[still].mean() > 0.98


def test_moving_things_have_flow_before_a_still_camera(smooth: list[StreetFrame]) -> None:
    frame = smooth[8]
    assert np.abs(frame.flow[frame.labels == CAR]).max() > 0.1


def test_the_street_comes_round_after_one_loop() -> None:
    frames = list(render_street(SAMPLE_SEED, width=160, height=120, frames=5, fps=1 / 3))
    assert (frames[0].labels == frames[4].labels).mean() > 0.999


@pytest.mark.parametrize(("width", "height"), [(160, 96), (97, 131), (640, 360)])
def test_other_sizes_work(width: int, height: int) -> None:
    frames = list(render_street(3, width=width, height=height, frames=2))
    assert [frame.image.shape for frame in frames] == [(height, width, 3)] * 2
    assert frames[1].visible.mean() > 0.9
    assert (frames[1].labels == SKY).mean() > 0.03


def test_an_empty_street_is_refused() -> None:
    with pytest.raises(ConfigError, match="must be positive"):
        next(render_street(1, width=0, frames=1))


def test_an_odd_clip_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="even"):
        write_clip(tmp_path / "odd.mp4", width=161, height=96, frames=1)


def test_an_unwritable_clip_is_named(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "street.mp4"
    with pytest.raises(ConfigError, match=str(path)):
        write_clip(path, width=96, height=64, frames=1)
    with pytest.raises(SystemExit, match=r"street\.mp4"):
        main([str(path)])


def test_a_written_clip_shows_the_frames(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.mp4", 5, width=96, height=64, frames=3)
    with av.open(str(tmp_path / "clip.mp4")) as container:
        shown = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    frames = list(render_street(5, width=96, height=64, frames=3))
    assert [psnr(one.image, other) > 25 for one, other in zip(frames, shown, strict=True)] == [True] * 3


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((one.astype(float) - other) ** 2)))


def test_sample_is_small_and_whole(sample: list[np.ndarray]) -> None:
    assert SAMPLE.stat().st_size < 1_000_000
    assert len(sample) == 300
    assert {picture.shape for picture in sample} == {(360, 480, 3)}


def test_sample_is_what_the_renderer_makes(sample: list[np.ndarray]) -> None:
    for frame, picture in zip(render_street(SAMPLE_SEED, frames=8), sample[:8], strict=True):
        assert psnr(frame.image, picture) > 28
