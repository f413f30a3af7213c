"""Every data set is read through one form: its classes, and the frames of a split by number."""

from pathlib import Path

import numpy as np
import pytest
import test_cityscapes
import test_coco
import tiny

from pipeline import datasets
from pipeline.accuracy import VOID
from pipeline.errors import ConfigError
from pipeline.layouts import LAYOUTS, layout_of, network_size


def cityscapes(root: Path) -> Path:
    for seed, name in enumerate(test_cityscapes.FRAMES["train"]):
        test_cityscapes.write(test_cityscapes.picture_path(root, "train", name), test_cityscapes.picture(seed))
        test_cityscapes.write(test_cityscapes.label_path(root, "train", name), test_cityscapes.label_ids(seed))
    return root


def coco(root: Path) -> Path:
    return test_coco.write(root, "train", *(test_coco.crowd(i, test_coco.CAR, columns=30) for i in (1, 2)), images=2)


@pytest.fixture(params=["camvid", "cityscapes", "coco"])
def dataset(request: pytest.FixtureRequest, tiny_camvid: Path, tmp_path: Path) -> tuple[str, Path]:
    """The name of a data set and a folder in its layout."""
    made = {"camvid": lambda _: tiny_camvid, "cityscapes": cityscapes, "coco": coco}
    return request.param, made[request.param](tmp_path)


def test_there_are_no_others_than_those_tested_here() -> None:
    assert set(LAYOUTS) == {"camvid", "cityscapes", "coco"}


def test_the_layout_of_a_folder_is_known_by_what_is_in_it(dataset: tuple[str, Path]) -> None:
    name, root = dataset
    assert layout_of(root) is layout_of(root, name) is LAYOUTS[name]


def test_a_folder_that_is_no_data_set_is_named_with_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"none of splits/ \(camvid\), leftImg8bit/ \(cityscapes\), annotations/ \(coco\)"
    ):
        layout_of(tmp_path)
    with pytest.raises(ConfigError, match="'kitti' is unknown; use camvid, cityscapes, coco"):
        layout_of(tmp_path, "kitti")


def test_frames_know_their_classes(dataset: tuple[str, Path]) -> None:
    name, root = dataset
    data, described = LAYOUTS[name].frames(root, "train"), LAYOUTS[name].classes(root)
    assert data.classes == tuple(one.name for one in described.classes)
    assert datasets.in_memory(data, (32, 48)).classes == data.classes


def test_frames_are_read_by_number_and_have_names(dataset: tuple[str, Path]) -> None:
    name, root = dataset
    data = LAYOUTS[name].frames(root, "train")
    assert len(data) == len(data.names) == len(set(data.names)) > 1
    first, again, second = data.read(0), data.read(0), data.read(1)
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.labels, again.labels)
    assert not np.array_equal(first.image, second.image)


def test_labels_are_classes_of_the_data_set_or_void(dataset: tuple[str, Path]) -> None:
    name, root = dataset
    classes = len(LAYOUTS[name].classes(root).classes)
    data = LAYOUTS[name].frames(root, "train")
    for index in range(len(data)):
        frame = data.read(index)
        assert frame.image.shape == (*frame.labels.shape, 3)
        assert frame.image.dtype == frame.labels.dtype == np.uint8
        assert frame.labels[frame.labels != VOID].max() < classes


def test_every_cityscapes_class_counts_as_one_of_the_data_set(dataset: tuple[str, Path]) -> None:
    described = LAYOUTS[dataset[0]].classes(dataset[1])
    assert len(described.from_cityscapes) == 19
    assert set(described.from_cityscapes) <= set(range(len(described.classes)))


def test_classes_differ_in_name_and_colour(dataset: tuple[str, Path]) -> None:
    classes = LAYOUTS[dataset[0]].classes(dataset[1]).classes
    assert len({one.name for one in classes}) == len({one.colour for one in classes}) == len(classes)


def test_a_network_takes_frames_at_their_own_size_or_their_layouts_unless_told(
    dataset: tuple[str, Path],
) -> None:
    name, root = dataset
    data, own = LAYOUTS[name].frames(root, "train"), {"camvid": (tiny.HEIGHT, tiny.WIDTH)}
    without = tiny.experiment(data={"dataset": name}).data
    assert network_size(without, data) == own.get(name, LAYOUTS[name].size)
    assert network_size(without.model_copy(update={"size": (32, 48)}), data) == (32, 48)
