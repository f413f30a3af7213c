"""COCO read from a tiny tree in its layout: classes, overlaps, crowds, pictures left out, what is said of bad files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from pipeline import coco
from pipeline.accuracy import VOID
from pipeline.errors import ConfigError

HEIGHT, WIDTH = 60, 80
PERSON, CAR, TRUCK, TV = 1, 3, 8, 72  # category ids; a truck is none of the 20 classes
Described = dict[str, Any]


def box(left: int, top: int, right: int, bottom: int) -> list[float]:
    return [left, top, right, top, right, bottom, left, bottom]


def thing(image_id: int, category: int, *outlines: list[float], area: float = 1600.0) -> Described:
    return {"image_id": image_id, "category_id": category, "iscrowd": 0, "area": area, "segmentation": list(outlines)}


def crowd(image_id: int, category: int, columns: int, area: float = 2000.0) -> Described:
    """The right-most columns, as run lengths; those go down the columns."""
    counts = [HEIGHT * (WIDTH - columns), HEIGHT * columns]
    segmentation = {"counts": counts, "size": [HEIGHT, WIDTH]}
    return {
        "image_id": image_id,
        "category_id": category,
        "iscrowd": 1,
        "area": area,
        "segmentation": segmentation,
    }


def write(root: Path, split: str, *things: Described, images: int = 1) -> Path:
    """Pictures of one grey each, numbered from 1, and their annotations; returns the folder."""
    (root / f"{split}2017").mkdir(parents=True, exist_ok=True)
    (root / "annotations").mkdir(exist_ok=True)
    listed = []
    for number in range(images, 0, -1):  # the file lists them in no order
        name = f"{number:012}.jpg"
        assert cv2.imwrite(str(root / f"{split}2017" / name), np.full((HEIGHT, WIDTH, 3), 10 * number, np.uint8))
        listed.append({"id": number, "file_name": name, "height": HEIGHT, "width": WIDTH})
    described = {"images": listed, "annotations": list(things), "categories": []}
    annotations(root, split).write_text(json.dumps(described))
    return root


def annotations(root: Path, split: str = "val") -> Path:
    return root / "annotations" / f"instances_{split}2017.json"


def labels(root: Path, *things: Described) -> np.ndarray:
    return coco.coco(write(root, "val", *things), "val").read(0).labels


def complaint(root: Path, split: str = "val", drives: tuple[str, ...] = ()) -> str:
    with pytest.raises(ConfigError) as caught:
        data = coco.coco(root, split, without_drives=drives)
        data.read(0)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_object_is_drawn_as_its_class_on_background(tmp_path: Path) -> None:
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[20:40, 10:50] = 15
    assert np.array_equal(labels(tmp_path, thing(1, PERSON, box(10, 20, 50, 40))), expected)


@pytest.mark.parametrize(
    ("category", "index"), [(5, 1), (2, 2), (44, 5), (CAR, 7), (62, 9), (67, 11), (63, 18), (TV, 20)]
)
def test_category_becomes_its_class_of_pascal_voc(tmp_path: Path, category: int, index: int) -> None:
    assert labels(tmp_path, thing(1, category, box(0, 0, 9, 9)))[4, 4] == index


def test_object_of_another_class_is_background(tmp_path: Path) -> None:
    assert not labels(tmp_path, thing(1, TRUCK, box(0, 0, 60, 60))).any()


def test_object_may_have_several_outlines(tmp_path: Path) -> None:
    drawn = labels(tmp_path, thing(1, CAR, box(0, 0, 10, 10), box(30, 30, 40, 40)))
    assert (drawn[5, 5], drawn[35, 35], drawn[20, 20]) == (7, 7, 0)


@pytest.mark.parametrize("other", [CAR, PERSON])
def test_where_objects_overlap_is_void_even_of_one_class(tmp_path: Path, other: int) -> None:
    drawn = labels(tmp_path, thing(1, PERSON, box(0, 0, 40, 40)), thing(1, other, box(30, 30, 60, 60)))
    assert (drawn[30:40, 30:40] == VOID).all()
    assert (drawn == VOID).sum() == 100


def test_outlines_of_one_object_may_overlap(tmp_path: Path) -> None:
    drawn = labels(tmp_path, thing(1, CAR, box(0, 0, 40, 40), box(20, 20, 50, 50)))
    assert drawn[30, 30] == 7


def test_crowd_is_drawn_from_its_run_lengths(tmp_path: Path) -> None:
    drawn = labels(tmp_path, crowd(1, PERSON, columns=12))
    assert (drawn[:, -12:] == 15).all()
    assert not drawn[:, :-12].any()


def test_crowd_over_an_object_is_void(tmp_path: Path) -> None:
    drawn = labels(tmp_path, crowd(1, PERSON, columns=12), thing(1, PERSON, box(60, 0, 80, 10)))
    assert (drawn[0, 65], drawn[5, 75], drawn[30, 75]) == (15, VOID, 15)


def test_outline_of_fewer_than_three_points_draws_nothing(tmp_path: Path) -> None:
    assert not labels(tmp_path, thing(1, CAR, [3.0, 3.0, 50.0, 50.0])).any()


def test_frames_are_in_the_order_of_their_ids(tmp_path: Path) -> None:
    data = coco.coco(write(tmp_path, "val", images=3), "val")
    assert data.names == ("000000000001", "000000000002", "000000000003")
    assert [int(data.read(i).image[0, 0, 0]) for i in range(len(data))] == [10, 20, 30]


def test_frame_is_rgb(tmp_path: Path) -> None:
    red = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    red[..., 2] = 255  # OpenCV writes BGR
    cv2.imwrite(str(write(tmp_path, "val") / "val2017" / "000000000001.jpg"), red)
    image = coco.coco(tmp_path, "val").read(0).image
    assert image.shape == (HEIGHT, WIDTH, 3)
    assert image[..., 0].min() > 250
    assert image[..., 1:].max() < 5


def test_training_leaves_out_pictures_with_hardly_a_pixel_of_the_classes(tmp_path: Path) -> None:
    """One has 1001 pixels of the classes in two objects, one has exactly 1000, one only a truck, one nothing."""
    things = (
        thing(1, PERSON, box(0, 0, 30, 20), area=600.0),
        thing(1, CAR, box(40, 0, 60, 21), area=401.0),
        thing(2, CAR, box(0, 0, 50, 20), area=1000.0),
        thing(3, TRUCK, box(0, 0, 60, 60), area=3600.0),
    )
    assert coco.coco(write(tmp_path, "train", *things, images=4), "train").names == ("000000000001",)


def test_crowds_count_when_pictures_are_left_out(tmp_path: Path) -> None:
    assert len(coco.coco(write(tmp_path, "train", crowd(2, PERSON, columns=30), images=2), "train")) == 1


def test_validation_keeps_every_picture(tmp_path: Path) -> None:
    assert len(coco.coco(write(tmp_path, "val", thing(2, CAR, box(0, 0, 9, 9), area=81.0), images=3), "val")) == 3


def test_classes_are_those_of_pascal_voc() -> None:
    names = [one.name for one in coco.CLASSES.classes]
    assert len(names) == 21
    assert (names[0], names[15], names[20]) == ("background", "person", "tv monitor")
    assert coco.CLASSES.classes[15].colour == (192, 128, 128)
    by_train_id = [names[index] for index in coco.CLASSES.from_cityscapes]
    assert by_train_id[11:] == ["person", "person", "car", "background", "bus", "train", "motorbike", "bicycle"]


def test_folder_without_pictures_is_named(tmp_path: Path) -> None:
    assert f"{tmp_path}: no val2017" in complaint(tmp_path)


def test_missing_annotations_are_named_with_their_archive(tmp_path: Path) -> None:
    annotations(write(tmp_path, "val")).unlink()
    assert str(annotations(tmp_path)) in complaint(tmp_path)
    assert "annotations_trainval2017.zip" in complaint(tmp_path)


def test_missing_picture_is_named(tmp_path: Path) -> None:
    missing = write(tmp_path, "val") / "val2017" / "000000000001.jpg"
    missing.unlink()
    assert str(missing) in complaint(tmp_path)


@pytest.mark.parametrize("split", ["trainval", "test"])
def test_unknown_split_is_named(tmp_path: Path, split: str) -> None:
    assert repr(split) in complaint(write(tmp_path, "val"), split)


def test_drives_to_hold_out_are_refused(tmp_path: Path) -> None:
    assert "'aachen'" in complaint(write(tmp_path, "val"), drives=("aachen",))


def test_training_without_a_picture_of_the_classes_is_refused(tmp_path: Path) -> None:
    assert str(annotations(tmp_path, "train")) in complaint(write(tmp_path, "train"), "train")


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"images": [{"id": 1}], "annotations": []}'])
def test_damaged_annotations_are_named(tmp_path: Path, content: str) -> None:
    annotations(write(tmp_path, "val")).write_text(content)
    assert str(annotations(tmp_path)) in complaint(tmp_path)


def without_segmentation(one: Described) -> None:
    del one["segmentation"]


def of_unknown_picture(one: Described) -> None:
    one["image_id"] = 99


def of_another_size(one: Described) -> None:
    one["segmentation"]["size"] = [HEIGHT, WIDTH + 1]


def too_long(one: Described) -> None:
    one["segmentation"]["counts"][1] += 1


@pytest.mark.parametrize("damage", [without_segmentation, of_unknown_picture, of_another_size, too_long])
def test_damaged_object_is_told(tmp_path: Path, damage: Callable[[Described], None]) -> None:
    one = crowd(1, PERSON, columns=10)
    damage(one)
    assert str(annotations(tmp_path)) in complaint(write(tmp_path, "val", one))


def test_picture_of_another_size_than_its_annotations_say_is_told(tmp_path: Path) -> None:
    write(tmp_path, "val")
    cv2.imwrite(str(tmp_path / "val2017" / "000000000001.jpg"), np.zeros((20, 30, 3), np.uint8))
    assert "80x60, but their picture is 30x20" in complaint(tmp_path)
