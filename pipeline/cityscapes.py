"""Cityscapes: street scenes of many cities, 2048x1024, in the folders that its archives unpack to.

leftImg8bit/<split>/<city>/<frame>_leftImg8bit.png    pictures
gtFine/<split>/<city>/<frame>_gtFine_labelIds.png     label ids 0..33, of which 19 count (Cordts et al., CVPR 2016)
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.accuracy import VOID
from pipeline.datasets import (
    Classes,
    Image,
    LabelledClass,
    LabelledFrame,
    Stored,
    check_left_out,
    paired,
    read_image,
    read_labels,
)
from pipeline.errors import ConfigError

_PICTURE, _LABELS = "_leftImg8bit.png", "_gtFine_labelIds.png"
_SPLITS = {"train": ("train",), "val": ("val",), "trainval": ("train", "val")}

# By label id; the order is that of the train ids.
_COUNTED = {
    7: LabelledClass("road", (128, 64, 128)),
    8: LabelledClass("sidewalk", (244, 35, 232)),
    11: LabelledClass("building", (70, 70, 70)),
    12: LabelledClass("wall", (102, 102, 156)),
    13: LabelledClass("fence", (190, 153, 153)),
    17: LabelledClass("pole", (153, 153, 153)),
    19: LabelledClass("traffic light", (250, 170, 30)),
    20: LabelledClass("traffic sign", (220, 220, 0)),
    21: LabelledClass("vegetation", (107, 142, 35)),
    22: LabelledClass("terrain", (152, 251, 152)),
    23: LabelledClass("sky", (70, 130, 180)),
    24: LabelledClass("person", (220, 20, 60)),
    25: LabelledClass("rider", (255, 0, 0)),
    26: LabelledClass("car", (0, 0, 142)),
    27: LabelledClass("truck", (0, 0, 70)),
    28: LabelledClass("bus", (0, 60, 100)),
    31: LabelledClass("train", (0, 80, 100)),
    32: LabelledClass("motorcycle", (0, 0, 230)),
    33: LabelledClass("bicycle", (119, 11, 32)),
}
CLASSES = Classes(tuple(_COUNTED.values()), from_cityscapes=tuple(range(len(_COUNTED))))

_TRAIN_IDS = np.full(256, VOID, np.uint8)
_TRAIN_IDS[list(_COUNTED)] = np.arange(len(_COUNTED))


def cityscapes(root: Path, split: str, *, without_drives: Sequence[str] = ()) -> Stored:
    """One split of Cityscapes with fine labels: train, val, trainval, or the name of a city of these.

    Each city is one drive. ConfigError when pictures or labels are not where they belong, or there is no such city to
    leave out.
    """
    cities = [city for part in _SPLITS.get(split, _SPLITS["trainval"]) for city in _cities(root, part)]
    if split not in _SPLITS:
        cities = [city for city in cities if city.name == split]
    if without_drives:
        check_left_out(root, without_drives, {city.name for city in (root / "leftImg8bit").glob("*/*")})
    kept = [city for city in cities if city.name not in without_drives]
    pictures = [picture for city in kept for picture in sorted(city.glob(f"*{_PICTURE}"))]
    if not pictures:
        raise ConfigError(f"data set {root}: no pictures of {split!r}; use train, val, trainval or a city's name")
    labels = [_labels_of(root, picture) for picture in pictures]

    def load(index: int) -> LabelledFrame:
        return paired(labels[index], read_image(pictures[index]), _train_ids(labels[index]))

    names = tuple(picture.name.removesuffix(_PICTURE) for picture in pictures)
    return Stored(names, load, tuple(one.name for one in CLASSES.classes))


def _cities(root: Path, part: str) -> list[Path]:
    folder = root / "leftImg8bit" / part
    if not folder.is_dir():
        raise ConfigError(
            f"data set {root}: no leftImg8bit/{part} in it; name the folder with leftImg8bit/ and gtFine/"
        )
    return sorted(city for city in folder.iterdir() if city.is_dir())


def _labels_of(root: Path, picture: Path) -> Path:
    city = picture.parent
    path = root / "gtFine" / city.parent.name / city.name / (picture.name.removesuffix(_PICTURE) + _LABELS)
    if not path.is_file():
        raise ConfigError(f"labels {path}: no such file; unpack gtFine_trainvaltest.zip beside leftImg8bit/")
    return path


def _train_ids(path: Path) -> Image:
    found: Image = _TRAIN_IDS[read_labels(path)]
    return found
