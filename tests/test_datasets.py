"""Data sets as they are read: frames with their labels, classes, frames without labels."""

import json
import re
import shutil
from itertools import pairwise
from pathlib import Path

import clips
import cv2
import numpy as np
import pytest
import tiny
from numpy.typing import NDArray
from PIL import Image

from pipeline import datasets
from pipeline.accuracy import VOID
from pipeline.datasets import Labelled, Stored, at_size, camvid_classes, classes_at, read_labels, scaled
from pipeline.errors import ConfigError
from pipeline.mask_image import pack_mask
from pipeline.messages import FrameId, Mask

COLOURS = np.array([[250, 10, 10], [10, 250, 10], [10, 10, 250], [240, 240, 20]], np.uint8)


def painted(labels: NDArray[np.uint8]) -> Labelled:
    """One frame whose colour says its class."""
    return Labelled(("frame",), (COLOURS[labels],), (labels,))


def blocks(seed: int = 0) -> NDArray[np.uint8]:
    coarse = np.random.default_rng(seed).integers(0, 4, (6, 8)).astype(np.uint8)
    return np.kron(coarse, np.ones((8, 8), np.uint8))


def nearest_class(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    distance = np.abs(image[..., None, :].astype(int) - COLOURS).sum(-1)
    return distance.argmin(-1).astype(np.uint8)


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


def test_a_drive_that_is_not_there_cannot_be_left_out(tiny_camvid: Path) -> None:
    with pytest.raises(ConfigError, match=r"no drive '0006RO' to leave out \(without_drives\); it has 0001TP, 0006R0"):
        datasets.camvid(tiny_camvid, "val", without_drives=("0006RO",))


def test_frame_in_memory_is_read_by_its_number() -> None:
    frames = [painted(labels) for labels in (blocks(1), blocks())]
    data = Labelled(("a", "b"), *(tuple(getattr(f, kind)[0] for f in frames) for kind in ("images", "labels")))
    assert len(data) == 2
    assert np.array_equal(data.read(1).labels, blocks())
    assert np.array_equal(data.read(1).image, COLOURS[blocks()])


def test_picture_is_read_as_it_is_stored_whatever_its_orientation_tag(tmp_path: Path) -> None:
    """Labels are drawn on the stored picture: a turned one would no longer lie under them."""
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[:, :15] = 255
    tag = Image.Exif()
    tag[0x0112] = 6  # turn by a quarter
    Image.fromarray(pixels).save(tmp_path / "turned.jpg", exif=tag)
    read = datasets.read_image(tmp_path / "turned.jpg")
    assert read.shape == pixels.shape
    assert read[:, :10].min() > 240


@pytest.mark.parametrize(("size", "rows", "columns"), [((24, 32), 24, 32), ((30, 32), 24, 32), ((96, 200), 96, 128)])
def test_fitted_frame_is_whole_and_the_rest_is_void(size: tuple[int, int], rows: int, columns: int) -> None:
    data = painted(blocks())
    frame = datasets.fitted(Stored(data.names, data.read), *size).read(0)
    assert (frame.image.shape, frame.labels.shape) == ((*size, 3), size)
    assert (frame.labels[:rows, :columns] != VOID).all()
    outside = np.ones(size, bool)
    outside[:rows, :columns] = False
    assert (frame.labels[outside] == VOID).all()
    assert (frame.image[outside] == 128).all()
    inside = frame.labels[:rows, :columns]
    assert np.mean(nearest_class(frame.image[:rows, :columns]) == inside) > 0.9
    back = cv2.resize(inside, (64, 48), interpolation=cv2.INTER_NEAREST_EXACT)
    assert np.mean(back == data.labels[0]) > 0.9


def test_frames_in_memory_are_brought_to_a_size_as_a_camera_does_and_those_on_disk_whole() -> None:
    data = painted(blocks())  # 64x48
    (wide,) = datasets.in_memory(data, (48, 96)).images
    assert np.array_equal(wide, datasets.at_size(data.images[0], (48, 96)))
    assert datasets.in_memory(data, (48, 96)).labels is data.labels
    whole = datasets.in_memory(Stored(data.names, data.read, ("sky",)), (48, 96))
    assert (whole.names, whole.classes) == (data.names, ("sky",))
    assert np.array_equal(whole.images[0][:, :64], data.images[0])
    assert np.array_equal(whole.labels[0][:, :64], data.labels[0])
    assert (whole.images[0][:, 64:] == 128).all() and (whole.labels[0][:, 64:] == VOID).all()


@pytest.mark.parametrize(
    ("count", "size", "kept"), [(100, (48, 64), 100), (100, (1024, 2048), 48), (72, (1024, 2048), 48), (3, (64, 64), 3)]
)
def test_of_many_frames_on_disk_so_many_are_kept_as_there_is_room_for(
    count: int, size: tuple[int, int], kept: int
) -> None:
    """At least 48 of them, spread over all."""
    read: list[int] = []

    def load(index: int) -> datasets.LabelledFrame:
        read.append(index)
        return datasets.LabelledFrame(np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2), np.uint8))

    many = Stored(tuple(map(str, range(count))), load)
    assert datasets.in_memory(many, size).names == tuple(map(str, read))
    assert (len(read), read[0], read[-1]) == (kept, 0, count - 1)
    assert all(1 <= later - index <= -(-count // kept) for index, later in pairwise(read))


def test_pictures_are_brought_to_a_size_and_labels_with_them() -> None:
    labels = np.array([[0, 1], [2, 255]], np.uint8).repeat(8, 0).repeat(8, 1)
    image = np.stack([labels] * 3, 2)
    data = scaled(Labelled(("a",), (image,), (labels,)), (24, 32))
    assert (data.images[0].shape, data.labels[0].shape) == ((24, 32, 3), (24, 32))
    assert np.array_equal(data.labels[0], labels[::8, ::8].repeat(12, 0).repeat(16, 1))
    assert np.array_equal(classes_at(data.labels[0], labels.shape), labels)
    assert at_size(image, None) is image


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


def test_labels_of_another_size_than_their_picture_are_named(tiny_camvid: Path, tmp_path: Path) -> None:
    root = shutil.copytree(tiny_camvid, tmp_path / "copy")
    path = root / "labels" / "train" / "0001TP_train2.png"
    assert cv2.imwrite(str(path), np.zeros((8, 12), np.uint8))
    assert f"labels {path}: 12x8, but their picture is 96x64" in complaint(root)


@pytest.mark.parametrize("content", ["{", "{}", json.dumps({"classes": [], "cityscapes_train_id_to_camvid": {"1": 0}})])
def test_broken_classes_file_is_named(tiny_camvid: Path, tmp_path: Path, content: str) -> None:
    root = shutil.copytree(tiny_camvid, tmp_path / "copy")
    (root / "classes.json").write_text(content)
    assert str(root) in complaint(root)


def test_split_line_that_is_no_pair_is_named(tiny_camvid: Path, tmp_path: Path) -> None:
    root = shutil.copytree(tiny_camvid, tmp_path / "copy")
    (root / "splits" / "train.txt").write_text("images/train/0001TP_train0.png\n")
    assert str(root / "splits" / "train.txt") in complaint(root)


def test_rare_classes_weigh_more_and_a_pixel_weighs_one_on_average() -> None:
    share = np.array([0.9, 0.09, 0.01, 0.0])
    weights = datasets.class_weights(share, strength=1.12)
    assert weights[0] < weights[1] < weights[2] < weights[3]
    assert (weights * share).sum() == pytest.approx(1, rel=1e-5)
    assert weights / weights[0] == pytest.approx(np.log(1.12 + 0.9) / np.log(1.12 + share), rel=1e-5)


def test_a_stronger_weighting_sets_the_classes_further_apart() -> None:
    share = np.array([0.9, 0.1])
    weak, strong = (datasets.class_weights(share, strength=strength) for strength in (10.0, 1.1))
    assert strong[1] / strong[0] > 2 * weak[1] / weak[0]


def test_images_of_a_folder_come_in_the_order_of_their_names_from_below_too(tmp_path: Path) -> None:
    tiny.pictures(tmp_path / "b", 2)
    tiny.pictures(tmp_path / "a" / "deeper", 1, seed=8)
    (tmp_path / "notes.txt").write_text("not an image")
    expected = [*tiny.scenes(1, seed=8), *tiny.scenes(2, seed=7)]
    found = list(datasets.unlabelled_frames(tmp_path))
    assert len(found) == 3
    assert all(np.array_equal(image, one.image) for image, one in zip(found, expected, strict=True))


@pytest.mark.parametrize(("fps", "numbers"), [(10, [0, 5, 10]), (25, [0, 12]), (1, list(range(13)))])
def test_a_clip_gives_about_two_frames_a_second(tmp_path: Path, fps: int, numbers: list[int]) -> None:
    clip = clips.write_clip(tmp_path / "clip.mp4", frames=13, fps=fps)
    assert [clips.number_of(image) for image in datasets.unlabelled_frames(clip)] == numbers


@pytest.mark.parametrize("what", ["missing", "empty", "text"])
def test_where_nothing_is_to_be_seen_is_named(tmp_path: Path, what: str) -> None:
    path = tmp_path / what
    if what == "empty":
        path.mkdir()
    if what == "text":
        path.write_text("not a clip")
    with pytest.raises(ConfigError, match=f"{what}: no images and no clip"):
        list(datasets.unlabelled_frames(path))


def described(**changed: object) -> str:
    table = {str(index): index % 3 for index in range(19)}
    classes = [{"id": index, "name": name, "color": [index, 0, 0]} for index, name in enumerate("abc")]
    return json.dumps({"classes": classes, "cityscapes_train_id_to_camvid": table, **changed})


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"classes": []}, "classes: List should have at least 1 item"),
        ({"classes": [{"name": "a", "color": [1, 2]}]}, "classes.0.color.2: Field required"),
        ({"classes": [{"name": "a", "color": [300, 0, 0]}]}, "classes.0.color.0: Input should be less than"),
        ({"classes": [{"name": 7, "color": [0, 0, 0]}]}, "classes.0.name: Input should be a valid string"),
        ({"classes": [{"id": 1, "name": "a", "color": [0, 0, 0]}]}, "in the order of their ids, from 0"),
        ({"classes": [{"name": "a", "color": [0, 0, 0]}] * 2}, "two classes are called 'a'"),
        ({"cityscapes_train_id_to_camvid": {"0": 0}}, "gives each of '0' to '18' one of the 3 classes"),
        ({"cityscapes_train_id_to_camvid": {str(i): 3 for i in range(19)}}, "one of the 3 classes"),
        ({"cityscapes_train_id_to_camvid": None}, "cityscapes_train_id_to_camvid: Input should be"),
    ],
)
def test_what_is_wrong_with_the_classes_is_said(tmp_path: Path, changed: dict[str, object], said: str) -> None:
    (tmp_path / "classes.json").write_text(described(**changed))
    with pytest.raises(ConfigError, match=re.escape(said)):
        camvid_classes(tmp_path)


def test_labels_are_the_values_of_the_file_whatever_their_colours(tmp_path: Path) -> None:
    labels = np.random.default_rng(0).integers(0, 3, (30, 40)).astype(np.uint8)
    labels[3:9] = 255
    grey, indexed, tripled = (tmp_path / name for name in ("grey.png", "indexed.png", "tripled.png"))
    cv2.imwrite(str(grey), labels)
    cv2.imwrite(str(tripled), np.repeat(labels[..., None], 3, 2))
    picture = Image.fromarray(labels, "P")
    picture.putpalette([255, 255, 255] * 256)  # void and all classes in one colour
    picture.save(indexed)
    for path in (grey, indexed, tripled):
        np.testing.assert_array_equal(read_labels(path), labels)


def test_masks_that_maskcast_wrote_are_labels(tmp_path: Path) -> None:
    classes = np.random.default_rng(1).integers(0, 3, (30, 40)).astype(np.uint8)
    mask = Mask(FrameId(7, 0), 0, bytes(4), classes)
    (tmp_path / "mask.png").write_bytes(pack_mask(mask, "cam-1", np.zeros((11, 3), np.uint8)))
    np.testing.assert_array_equal(read_labels(tmp_path / "mask.png"), classes)


@pytest.mark.parametrize("kind", ["16 bits", "colours", "four grey levels"])
def test_labels_whose_values_would_be_changed_are_refused(tmp_path: Path, kind: str) -> None:
    path, rng = tmp_path / "labels.png", np.random.default_rng(0)
    if kind == "16 bits":
        cv2.imwrite(str(path), rng.integers(0, 3, (30, 40)).astype(np.uint16))
    elif kind == "colours":
        cv2.imwrite(str(path), rng.integers(0, 255, (30, 40, 3)).astype(np.uint8))
    else:
        cv2.imwrite(str(path), rng.integers(0, 2, (30, 40)).astype(np.uint8) * 255, [cv2.IMWRITE_PNG_BILEVEL, 1])
    with pytest.raises(ConfigError, match=r"labels\.png: neither grey with 8 bits a pixel nor an indexed PNG"):
        read_labels(path)
