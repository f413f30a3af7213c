"""COCO 2017 with the 20 classes of Pascal VOC, rasterised as torchvision's segmentation reference does it.

train2017/*.jpg, val2017/*.jpg                   pictures
annotations/instances_{train,val}2017.json       objects: polygons, or run lengths where they are a crowd
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.accuracy import VOID
from pipeline.datasets import Classes, Image, LabelledClass, LabelledFrame, Stored, paired, read_image
from pipeline.errors import ConfigError

# Pascal VOC's classes in its order, by the category id that COCO gives them.
_CATEGORIES = {
    0: LabelledClass("background", (0, 0, 0)),
    5: LabelledClass("aeroplane", (128, 0, 0)),
    2: LabelledClass("bicycle", (0, 128, 0)),
    16: LabelledClass("bird", (128, 128, 0)),
    9: LabelledClass("boat", (0, 0, 128)),
    44: LabelledClass("bottle", (128, 0, 128)),
    6: LabelledClass("bus", (0, 128, 128)),
    3: LabelledClass("car", (128, 128, 128)),
    17: LabelledClass("cat", (64, 0, 0)),
    62: LabelledClass("chair", (192, 0, 0)),
    21: LabelledClass("cow", (64, 128, 0)),
    67: LabelledClass("dining table", (192, 128, 0)),
    18: LabelledClass("dog", (64, 0, 128)),
    19: LabelledClass("horse", (192, 0, 128)),
    4: LabelledClass("motorbike", (64, 128, 128)),
    1: LabelledClass("person", (192, 128, 128)),
    64: LabelledClass("potted plant", (0, 64, 0)),
    20: LabelledClass("sheep", (128, 64, 0)),
    63: LabelledClass("sofa", (0, 192, 0)),
    7: LabelledClass("train", (128, 192, 0)),
    72: LabelledClass("tv monitor", (0, 64, 128)),
}
_INDEX = {category: index for index, category in enumerate(_CATEGORIES)}
# Of Cityscapes' train ids, person and rider, car, bus, train, motorcycle and bicycle have a class here.
CLASSES = Classes(
    tuple(_CATEGORIES.values()), from_cityscapes=(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 15, 15, 7, 0, 6, 19, 14, 2)
)
_LEAST_AREA = 1000  # pixels of the 20 classes that a training picture must have more than


@dataclass(frozen=True, slots=True, eq=False)
class _Object:
    index: int  # of its class
    area: float
    outlines: list[NDArray[np.float64]] | dict[str, Any]  # polygons x0, y0, x1, ...; or COCO's run lengths


@dataclass(frozen=True, slots=True, eq=False)
class _Picture:
    file_name: str
    height: int
    width: int
    objects: list[_Object]


def coco(root: Path, split: str, *, without_drives: Sequence[str] = ()) -> Stored:
    """One split of COCO 2017, train or val; of train, pictures with hardly a pixel of the 20 classes are left out.

    ConfigError when the annotations are missing or damaged, or drives are named: COCO has none.
    """
    if split not in ("train", "val") or without_drives:
        raise ConfigError(
            f"data set {root}: split {split!r}, without drives {list(without_drives)}; COCO has train and val"
        )
    folder, listed = root / f"{split}2017", root / "annotations" / f"instances_{split}2017.json"
    if not folder.is_dir():
        raise ConfigError(
            f"data set {root}: no {folder.name} in it; name the folder with {folder.name}/ and annotations/"
        )
    pictures = _pictures(listed)
    if split == "train":
        pictures = [one for one in pictures if sum(thing.area for thing in one.objects) > _LEAST_AREA]
    if not pictures:
        raise ConfigError(f"annotations {listed}: no picture with one of the 20 classes; take COCO's own file")

    def load(index: int) -> LabelledFrame:
        one = pictures[index]
        return paired(listed, read_image(folder / one.file_name), _rasterised(one))

    names = tuple(Path(one.file_name).stem for one in pictures)
    return Stored(names, load, tuple(one.name for one in CLASSES.classes))


def _pictures(path: Path) -> list[_Picture]:
    """The pictures of an annotation file in the order of their ids, each with its objects of the 20 classes."""
    if not path.is_file():
        raise ConfigError(f"annotations {path}: no such file; unpack annotations_trainval2017.zip beside the pictures")
    try:
        described = json.loads(path.read_bytes())
        images = sorted(described["images"], key=lambda image: int(image["id"]))
        pictures = {i["id"]: _Picture(i["file_name"], int(i["height"]), int(i["width"]), []) for i in images}
        for one in described["annotations"]:
            if one["category_id"] in _INDEX:
                picture = pictures[one["image_id"]]
                picture.objects.append(_object(one, picture))
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"annotations {path}: damaged or of another form; take COCO's own file") from error
    return list(pictures.values())


def _object(described: dict[str, Any], picture: _Picture) -> _Object:
    outlines = described["segmentation"]
    if isinstance(outlines, dict):
        if outlines["size"] != [picture.height, picture.width] or sum(outlines["counts"]) != math.prod(
            outlines["size"]
        ):
            raise ValueError("run lengths of another size than their picture's")
    else:
        # Arrays take a quarter of a list's memory: train2017 has some 40 million coordinates.
        outlines = [np.array(outline, np.float64) for outline in outlines if len(outline) >= 6]
    return _Object(_INDEX[described["category_id"]], float(described["area"]), outlines)


def _rasterised(picture: _Picture) -> Image:
    """Class indexes (H, W); void where two objects overlap, even of one class."""
    labels = np.zeros((picture.height, picture.width), np.uint8)
    taken = np.zeros((picture.height, picture.width), np.uint16)
    for one in picture.objects:
        mask = _mask(one.outlines, picture)
        labels = np.maximum(labels, mask * np.uint8(one.index))
        taken += mask
    labels[taken > 1] = VOID
    return labels


def _mask(outlines: list[NDArray[np.float64]] | dict[str, Any], picture: _Picture) -> NDArray[np.uint8]:
    """One object (H, W), 1 inside any of its outlines; ConfigError without the library that draws them."""
    if not outlines:
        return np.zeros((picture.height, picture.width), np.uint8)
    try:
        from pycocotools import mask as coco_mask
    except ImportError as error:
        raise ConfigError("COCO's annotations need pycocotools; pip install pycocotools") from error
    coded = coco_mask.frPyObjects(outlines, picture.height, picture.width)
    mask: NDArray[np.uint8] = coco_mask.decode(coco_mask.merge(coded if isinstance(coded, list) else [coded]))
    return mask
