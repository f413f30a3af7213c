"""Data sets as they are read, and views of their frames: image, labels and soft labels stay on one another."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import tiny
from numpy.typing import NDArray

from pipeline import datasets
from pipeline.accuracy import VOID
from pipeline.datasets import Augmentation, Labelled, View, random_view
from pipeline.errors import ConfigError

STILL = Augmentation(1.0, 1.0, 0.0)
COLOURS = np.array([[250, 10, 10], [10, 250, 10], [10, 10, 250], [240, 240, 20]], np.uint8)


def painted(labels: NDArray[np.uint8]) -> Labelled:
    """One frame whose colour says its class."""
    return Labelled(("frame",), (COLOURS[labels],), (labels,))


def stripes(height: int = 48, width: int = 64, stripe: int = 4) -> NDArray[np.uint8]:
    """Vertical stripes of the four classes, in an order that no mirror or shift leaves as it is."""
    order = np.array([0, 1, 2, 0, 3, 1, 0, 2, 3, 2, 1, 3, 0, 0, 1, 3], np.uint8)
    return np.tile(np.repeat(order, stripe)[:width], (height, 1))


def blocks(seed: int = 0) -> NDArray[np.uint8]:
    coarse = np.random.default_rng(seed).integers(0, 4, (6, 8)).astype(np.uint8)
    return np.kron(coarse, np.ones((8, 8), np.uint8))


def soft_of(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return 255 * np.eye(4, dtype=np.uint8)[labels][None]


def nearest_class(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    distance = np.abs(image[..., None, :].astype(int) - COLOURS).sum(-1)
    return distance.argmin(-1).astype(np.uint8)


def view_of(labels: NDArray[np.uint8], seed: int, *, size: tuple[int, int], augmentation: Augmentation) -> View:
    rng = np.random.default_rng(seed)
    return random_view(painted(labels), 0, soft=soft_of(labels), size=size, augmentation=augmentation, rng=rng)


def test_frames_are_rgb_with_their_labels(tiny_camvid: Path) -> None:
    data = datasets.camvid(tiny_camvid, "train")
    first = tiny.scenes(1)[0]
    assert data.names[0] == "0001TP_train0"
    assert np.array_equal(data.images[0], first.image)
    assert np.array_equal(data.labels[0], first.labels)


@pytest.mark.parametrize(("split", "frames"), [("train", 8), ("val", 2), ("trainval", 10), ("test", 2)])
def test_split_holds_its_frames(tiny_camvid: Path, split: str, frames: int) -> None:
    data = datasets.camvid(tiny_camvid, split)
    assert len(data.names) == len(data.images) == len(data.labels) == frames


def test_drive_is_a_split_of_trainval(tiny_camvid: Path) -> None:
    data = datasets.camvid(tiny_camvid, "0001TP")
    assert data.names == (*(f"0001TP_train{i}" for i in range(4)), "0001TP_val0", "0001TP_val1")


def test_drive_that_is_held_out_is_not_in_the_split(tiny_camvid: Path) -> None:
    data = datasets.camvid(tiny_camvid, "train", without_drives=("0006R0",))
    assert data.names == tuple(f"0001TP_train{i}" for i in range(4))


def test_classes_have_names_colours_and_a_mapping_from_cityscapes(tiny_camvid: Path) -> None:
    described = datasets.camvid_classes(tiny_camvid)
    assert [(one.name, one.colour) for one in described.classes] == list(tiny.COLOURS.items())
    assert described.from_cityscapes == tiny.FROM_CITYSCAPES


def complaint(root: Path, split: str = "train") -> str:
    with pytest.raises(ConfigError) as caught:
        datasets.camvid_classes(root)
        datasets.camvid(root, split)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_folder_without_classes_is_named(tmp_path: Path) -> None:
    assert str(tmp_path) in complaint(tmp_path)


def test_unknown_split_is_named(tiny_camvid: Path) -> None:
    assert "'nightly'" in complaint(tiny_camvid, "nightly")


def test_folder_without_splits_is_named(tiny_camvid: Path, tmp_path: Path) -> None:
    shutil.copy(tiny_camvid / "classes.json", tmp_path)
    assert str(tmp_path / "splits" / "trainval.txt") in complaint(tmp_path)


def test_split_left_empty_by_drives_held_out_is_named(tiny_camvid: Path) -> None:
    with pytest.raises(ConfigError, match="'val'"):
        datasets.camvid(tiny_camvid, "val", without_drives=("0001TP",))


@pytest.mark.parametrize("kind", ["images", "labels"])
def test_missing_picture_is_named(tiny_camvid: Path, tmp_path: Path, kind: str) -> None:
    root = shutil.copytree(tiny_camvid, tmp_path / "copy")
    (root / kind / "train" / "0001TP_train2.png").unlink()
    assert str(root / kind / "train" / "0001TP_train2.png") in complaint(root)


@pytest.mark.parametrize("content", ["{", "{}", json.dumps({"classes": [], "cityscapes_train_id_to_camvid": {"1": 0}})])
def test_broken_classes_file_is_named(tiny_camvid: Path, tmp_path: Path, content: str) -> None:
    root = shutil.copytree(tiny_camvid, tmp_path / "copy")
    (root / "classes.json").write_text(content)
    assert str(root) in complaint(root)


def test_split_line_that_is_no_pair_is_named(tiny_camvid: Path, tmp_path: Path) -> None:
    root = shutil.copytree(tiny_camvid, tmp_path / "copy")
    (root / "splits" / "train.txt").write_text("images/train/0001TP_train0.png\n")
    assert str(root / "splits" / "train.txt") in complaint(root)


def test_view_at_scale_one_is_a_cut_of_the_frame() -> None:
    labels = blocks()
    for seed in range(8):
        view = view_of(labels, seed, size=(48, 64), augmentation=STILL)
        same, mirrored = np.array_equal(view.labels, labels), np.array_equal(view.labels, labels[:, ::-1])
        assert same or mirrored
        assert np.abs(view.image.astype(int) - COLOURS[view.labels]).max() <= 1  # light and colour untouched


def test_frames_are_mirrored_about_half_of_the_time() -> None:
    rng, labels = np.random.default_rng(3), stripes()
    views = [random_view(painted(labels), 0, soft=None, size=(48, 64), augmentation=STILL, rng=rng) for _ in range(60)]
    mirrored = sum(not np.array_equal(view.labels, labels) for view in views)
    assert 18 <= mirrored <= 42


@pytest.mark.parametrize("scale", [0.75, 1.0, 1.25, 1.5, 2.0])
def test_label_is_the_class_of_the_picture_at_the_same_place(scale: float) -> None:
    """Stripes are mixed between two neighbours only, so the nearer one must have the label."""
    for seed in range(8):
        view = view_of(stripes(), seed, size=(24, 32), augmentation=Augmentation(scale, scale, 0.0))
        inside = view.labels != VOID
        mixed = inside & (np.abs(view.image.astype(int) - COLOURS[nearest_class(view.image)]).sum(-1) > 150)
        sure = inside & ~mixed
        assert np.array_equal(view.labels[sure], nearest_class(view.image)[sure])
        assert sure.sum() > 0.6 * inside.sum()


@pytest.mark.parametrize("scale", [0.75, 1.0, 1.25, 1.5, 2.0])
def test_soft_labels_lie_on_the_labels(scale: float) -> None:
    for seed in range(8):
        view = view_of(stripes(), seed, size=(32, 32), augmentation=Augmentation(scale, scale, 0.0))
        sure = view.soft.max(-1) > 140
        assert np.array_equal(view.soft.argmax(-1)[sure], view.labels[sure])
        assert sure.mean() > 0.6 * (view.labels != VOID).mean()


def test_labels_are_never_mixed() -> None:
    labels = np.where(blocks() > 1, 7, 0).astype(np.uint8)
    data = Labelled(("frame",), (np.zeros((48, 64, 3), np.uint8),), (labels,))
    rng, augmentation = np.random.default_rng(0), Augmentation(0.4, 2.5, 0.3)
    for _ in range(30):
        view = random_view(data, 0, soft=None, size=(32, 48), augmentation=augmentation, rng=rng)
        assert set(np.unique(view.labels)) <= {0, 7, VOID}


def test_outside_the_picture_is_void_and_has_no_soft_labels() -> None:
    view = view_of(blocks(), 0, size=(48, 64), augmentation=Augmentation(0.5, 0.5, 0.0))
    inside = view.labels != VOID
    assert inside.sum() == 24 * 32
    far = cv2.erode((~inside).astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
    assert not view.soft[far].any()
    assert (view.image[far] == 128).all()


def test_view_without_soft_labels_has_none() -> None:
    rng = np.random.default_rng(0)
    assert random_view(painted(blocks()), 0, soft=None, size=(16, 16), augmentation=STILL, rng=rng).soft is None


def test_same_chance_gives_the_same_view() -> None:
    a, b = (view_of(blocks(), 5, size=(32, 32), augmentation=Augmentation(0.5, 2.0, 0.4)) for _ in range(2))
    assert np.array_equal(a.image, b.image)
    assert np.array_equal(a.labels, b.labels)
    assert np.array_equal(a.soft, b.soft)


def test_jitter_changes_light_and_colour_but_no_label() -> None:
    still = view_of(blocks(), 5, size=(48, 64), augmentation=STILL)
    jittered = view_of(blocks(), 5, size=(48, 64), augmentation=Augmentation(1.0, 1.0, 0.4))
    assert np.array_equal(still.labels, jittered.labels)
    assert not np.array_equal(still.image, jittered.image)


def test_scales_stay_in_their_range() -> None:
    """Seen by the width of a stripe in the view."""
    widths = []
    for seed in range(30):
        view = view_of(stripes(), seed, size=(24, 24), augmentation=Augmentation(1.5, 2.0, 0.0))
        edges = np.flatnonzero(np.diff(view.labels[12].astype(int)))
        widths += list(np.diff(edges))
    assert min(widths) >= 5  # 4 pixels at 1.5, less one where the cut falls
    assert np.mean(np.array(widths) <= 9) > 0.7  # 4 at 2.0; where two stripes are of one class, twice that


def test_rare_classes_weigh_more_and_a_pixel_weighs_one_on_average() -> None:
    labels = np.array([[0] * 90 + [1] * 9 + [2]], np.uint8)
    weights = datasets.class_weights([labels], 4, strength=1.12)
    assert weights[0] < weights[1] < weights[2] < weights[3]
    assert weights[labels].mean() == pytest.approx(1, rel=1e-5)


def test_void_pixels_do_not_change_the_class_weights() -> None:
    labels = np.array([[0] * 30 + [1] * 10], np.uint8)
    void = np.full((5, 8), VOID, np.uint8)
    assert np.array_equal(
        datasets.class_weights([labels], 2, strength=1.12), datasets.class_weights([labels, void], 2, strength=1.12)
    )
