"""Cityscapes from a tiny tree in its layout: ids, void, splits and cities, what is said of files that are missing."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline import cityscapes
from pipeline.accuracy import VOID
from pipeline.errors import ConfigError

HEIGHT, WIDTH = 32, 64
FRAMES = {
    "train": ("aachen_000000_000019", "aachen_000001_000019", "ulm_000000_000019"),
    "val": ("lindau_000000_000019",),
}


def label_ids(seed: int = 0) -> NDArray[np.uint8]:
    """Every id that a label file can hold, somewhere."""
    ids = np.random.default_rng(seed).integers(0, 34, (HEIGHT, WIDTH)).astype(np.uint8)
    ids[0, :34] = np.arange(34)
    return ids


def picture(seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)


def picture_path(root: Path, split: str, name: str) -> Path:
    return root / "leftImg8bit" / split / name.split("_")[0] / f"{name}_leftImg8bit.png"


def label_path(root: Path, split: str, name: str) -> Path:
    return root / "gtFine" / split / name.split("_")[0] / f"{name}_gtFine_labelIds.png"


def write(path: Path, pixels: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four frames of three cities; beside them the other files that Cityscapes' archives hold."""
    for split, names in FRAMES.items():
        for seed, name in enumerate(names):
            write(picture_path(tmp_path, split, name), picture(seed)[..., ::-1])
            write(label_path(tmp_path, split, name), label_ids(seed))
            write(label_path(tmp_path, split, name).with_name(f"{name}_gtFine_color.png"), picture(seed))
            write(label_path(tmp_path, split, name).with_name(f"{name}_gtFine_instanceIds.png"), label_ids(seed))
    return tmp_path


def complaint(root: Path, split: str = "train") -> str:
    with pytest.raises(ConfigError) as caught:
        data = cityscapes.cityscapes(root, split)
        data.read(0)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_frames_are_rgb_with_train_ids(root: Path) -> None:
    frame = cityscapes.cityscapes(root, "train").read(1)
    assert np.array_equal(frame.image, picture(1))
    assert frame.labels.shape == (HEIGHT, WIDTH)
    assert frame.labels.dtype == np.uint8


@pytest.mark.parametrize(("label", "train"), [(7, 0), (8, 1), (17, 5), (20, 7), (24, 11), (26, 13), (31, 16), (33, 18)])
def test_label_id_becomes_its_train_id(root: Path, label: int, train: int) -> None:
    assert cityscapes.cityscapes(root, "train").read(0).labels[0, label] == train


def test_every_train_id_has_one_label_id_and_all_else_is_void(root: Path) -> None:
    read = cityscapes.cityscapes(root, "train").read(0).labels[0, :34]
    assert sorted(read[read != VOID]) == list(range(19))


@pytest.mark.parametrize("stray", [34, 200, 255])
def test_value_that_is_no_label_id_is_void(root: Path, stray: int) -> None:
    write(label_path(root, "val", FRAMES["val"][0]), np.full((HEIGHT, WIDTH), stray, np.uint8))
    assert (cityscapes.cityscapes(root, "val").read(0).labels == VOID).all()


@pytest.mark.parametrize(
    ("split", "names"),
    [
        ("train", FRAMES["train"]),
        ("val", FRAMES["val"]),
        ("trainval", FRAMES["train"] + FRAMES["val"]),
        ("aachen", FRAMES["train"][:2]),
        ("lindau", FRAMES["val"]),
    ],
)
def test_split_or_city_holds_its_frames(root: Path, split: str, names: tuple[str, ...]) -> None:
    data = cityscapes.cityscapes(root, split)
    assert data.names == names
    assert len(data) == len(names)


def test_city_that_is_held_out_is_not_in_the_split(root: Path) -> None:
    assert cityscapes.cityscapes(root, "train", without_drives=("aachen",)).names == FRAMES["train"][2:]


def test_a_city_of_another_split_may_be_left_out_and_one_that_is_not_there_may_not(root: Path) -> None:
    assert cityscapes.cityscapes(root, "train", without_drives=("lindau",)).names == FRAMES["train"]
    with pytest.raises(ConfigError, match=r"no drive 'achen' to leave out \(without_drives\); it has aachen, "):
        cityscapes.cityscapes(root, "train", without_drives=("achen",))


def test_nothing_is_read_before_it_is_asked_for(root: Path) -> None:
    picture_path(root, "train", FRAMES["train"][2]).write_bytes(b"no picture")
    data = cityscapes.cityscapes(root, "train")
    assert data.read(1).labels.shape == (HEIGHT, WIDTH)
    with pytest.raises(ConfigError, match=FRAMES["train"][2]):
        data.read(2)


def test_classes_are_the_nineteen_in_the_order_of_their_train_ids() -> None:
    names = [one.name for one in cityscapes.CLASSES.classes]
    assert len(names) == 19
    assert (names[0], names[5], names[11], names[18]) == ("road", "pole", "person", "bicycle")
    assert cityscapes.CLASSES.classes[13].colour == (0, 0, 142)
    assert cityscapes.CLASSES.from_cityscapes == tuple(range(19))


def test_folder_without_pictures_is_named(tmp_path: Path) -> None:
    assert f"{tmp_path}: no leftImg8bit/train" in complaint(tmp_path)


@pytest.mark.parametrize("split", ["test", "nightly"])
def test_unknown_split_is_named(root: Path, split: str) -> None:
    assert repr(split) in complaint(root, split)


def test_missing_labels_are_named_with_their_archive(root: Path) -> None:
    missing = label_path(root, "train", FRAMES["train"][1])
    missing.unlink()
    assert str(missing) in complaint(root)
    assert "gtFine_trainvaltest.zip" in complaint(root)


def test_damaged_labels_are_named(root: Path) -> None:
    damaged = label_path(root, "train", FRAMES["train"][0])
    damaged.write_bytes(damaged.read_bytes()[:40])
    assert str(damaged) in complaint(root)


def test_labels_of_another_size_than_their_picture_are_named(root: Path) -> None:
    small = label_path(root, "train", FRAMES["train"][0])
    write(small, label_ids()[:16])
    assert f"{small}: 64x16, but their picture is 64x32" in complaint(root)
