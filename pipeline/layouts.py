"""The data sets that can be trained on, by the name that an experiment gives them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pipeline import cityscapes, coco, datasets
from pipeline.datasets import Classes, Labelled, Stored
from pipeline.errors import ConfigError
from pipeline.experiment import DataSettings


class OpenFrames(Protocol):
    """Opens one split of a data set, some drives left out; ConfigError says what is missing."""

    def __call__(self, root: Path, split: str, *, without_drives: Sequence[str] = ()) -> Labelled | Stored: ...


@dataclass(frozen=True, slots=True)
class Layout:
    """How the folder of one data set is read."""

    classes: Callable[[Path], Classes]
    frames: OpenFrames
    size: tuple[int, int]  # height and width that frames on disk are brought to; not used for those in memory
    folder: str  # what no other data set has in it


LAYOUTS: dict[str, Layout] = {
    "camvid": Layout(datasets.camvid_classes, datasets.camvid, (360, 480), "splits"),
    "cityscapes": Layout(lambda _: cityscapes.CLASSES, cityscapes.cityscapes, (1024, 2048), "leftImg8bit"),
    "coco": Layout(lambda _: coco.CLASSES, coco.coco, (640, 640), "annotations"),
}


def network_size(settings: DataSettings, data: Labelled | Stored) -> tuple[int, int]:
    """Height and width that the network takes frames at: without data.size their own, of those on disk the layout's."""
    if settings.size is not None:
        return settings.size
    if isinstance(data, Stored):
        return LAYOUTS[settings.dataset].size
    height, width = data.labels[0].shape
    return height, width


def layout_of(root: Path, name: str | None = None) -> Layout:
    """The layout of this name, or that of the folder; ConfigError where there is none."""
    if not root.is_dir():
        raise ConfigError(f"data set {root}: there is no such folder; name that of a data set")
    if name is not None and name not in LAYOUTS:
        raise ConfigError(f"dataset {name!r} is unknown; use {', '.join(LAYOUTS)}")
    if name is None:
        name = next((name for name, layout in LAYOUTS.items() if (root / layout.folder).is_dir()), None)
    if name is None:
        theirs = ", ".join(f"{layout.folder}/ ({name})" for name, layout in LAYOUTS.items())
        raise ConfigError(f"data set {root}: none of {theirs} in it; name the folder that holds one of these")
    return LAYOUTS[name]
