"""The data sets that can be trained on, by the name that an experiment gives them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pipeline import cityscapes, coco, datasets
from pipeline.datasets import Classes, Frames


class OpenFrames(Protocol):
    """Opens one split of a data set, some drives left out; ConfigError says what is missing."""

    def __call__(self, root: Path, split: str, *, without_drives: Sequence[str] = ()) -> Frames: ...


@dataclass(frozen=True, slots=True)
class Layout:
    """How the folder of one data set is read."""

    classes: Callable[[Path], Classes]
    frames: OpenFrames
    size: tuple[int, int]  # height and width that frames on disk are brought to; not used for those in memory


LAYOUTS: dict[str, Layout] = {
    "camvid": Layout(datasets.camvid_classes, datasets.camvid, (360, 480)),
    "cityscapes": Layout(lambda _: cityscapes.CLASSES, cityscapes.cityscapes, (1024, 2048)),
    "coco": Layout(lambda _: coco.CLASSES, coco.coco, (640, 640)),
}
