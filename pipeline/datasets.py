"""Data sets as numbered labelled frames, in memory or on disk."""

import io
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, Self

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError, model_validator

from pipeline.accuracy import VOID
from pipeline.bundle import Shade
from pipeline.errors import ConfigError
from pipeline.sources import fit

Image = NDArray[np.uint8]
CITYSCAPES = 19  # train ids
_CLASSES = "classes.json"
_PNG, _INDEXED = b"\x89PNG\r\n\x1a\n", 3
_IMAGES = (".png", ".jpg", ".jpeg", ".webp")
_GREY = 128
_KEPT, _KEPT_PIXELS = 48, 240 * 576 * 432  # frames of a data set on disk that are kept in memory at least, all theirs


@dataclass(frozen=True, slots=True)
class LabelledClass:
    """One class of a data set and the colour (R, G, B) it is drawn in."""

    name: str
    colour: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Classes:
    """The classes of a data set by index, and which of them each Cityscapes train id counts as."""

    classes: tuple[LabelledClass, ...]
    from_cityscapes: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class LabelledFrame:
    """One frame: RGB uint8 (H, W, 3), and its class indexes uint8 (H, W), 255 where void."""

    image: Image
    labels: Image


@dataclass(frozen=True, slots=True, eq=False)
class Placed:
    """A picture as a network takes it (height, width, 3), and how much of that it covers, from the upper left."""

    image: Image
    rows: int
    columns: int


class Frames(Protocol):
    """N labelled frames by number; they may differ in size. `read` may be called from several threads at once."""

    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Their names by index; none where the data set does not say."""
        ...

    def __len__(self) -> int: ...

    def read(self, index: int) -> LabelledFrame:
        """Frame `index`; ConfigError when its file is missing or damaged."""
        ...

    def placed(self, image: Image, size: tuple[int, int]) -> Placed:
        """One of its pictures in the size (height, width) of a network."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Labelled:
    """Frames in memory: RGB uint8 (H, W, 3) each, and their class indexes uint8 (H, W), 255 where void.

    They are of one shape, as a camera's are, and brought to a network's size as a camera brings its own.
    """

    names: tuple[str, ...]
    images: tuple[Image, ...]
    labels: tuple[Image, ...]
    classes: tuple[str, ...] = ()  # their names by index; none where the data set does not say

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> LabelledFrame:
        return LabelledFrame(self.images[index], self.labels[index])

    def placed(self, image: Image, size: tuple[int, int]) -> Placed:
        return Placed(at_size(image, size), *size)


@dataclass(frozen=True, slots=True, eq=False)
class Stored:
    """Frames on disk, read anew by `load` each time they are asked for: data sets larger than memory.

    They may be of any shape, so that each is brought to a network's size whole, with grey beside or below it.
    """

    names: tuple[str, ...]
    load: Callable[[int], LabelledFrame]
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> LabelledFrame:
        return self.load(index)

    def placed(self, image: Image, size: tuple[int, int]) -> Placed:
        scale = min(size[0] / image.shape[0], size[1] / image.shape[1])
        rows, columns = (max(1, round(scale * side)) for side in image.shape[:2])
        whole = np.full((*size, 3), _GREY, np.uint8)
        smooth = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        whole[:rows, :columns] = cv2.resize(image, (columns, rows), interpolation=smooth)
        return Placed(whole, rows, columns)


class _ClassEntry(BaseModel):
    id: int | None = None
    name: str = Field(min_length=1)
    color: tuple[Shade, Shade, Shade]


class _ClassesFile(BaseModel):
    """`classes.json`: what else stands there is not looked at."""

    classes: list[_ClassEntry] = Field(min_length=1, max_length=VOID)
    cityscapes_train_id_to_camvid: dict[str, int]

    @model_validator(mode="after")
    def _one_after_the_other(self) -> Self:
        names, count = [one.name for one in self.classes], len(self.classes)
        if any(one.id not in (None, index) for index, one in enumerate(self.classes)):
            raise ValueError("classes stand in the order of their ids, from 0")
        if len(set(names)) < count:
            raise ValueError(f"two classes are called {max(names, key=names.count)!r}")
        table = self.cityscapes_train_id_to_camvid
        if sorted(table) != sorted(map(str, range(CITYSCAPES))) or not all(0 <= one < count for one in table.values()):
            raise ValueError(
                f"cityscapes_train_id_to_camvid gives each of '0' to '{CITYSCAPES - 1}' one of the {count} classes"
            )
        return self

    def told(self) -> Classes:
        table = self.cityscapes_train_id_to_camvid
        return Classes(
            tuple(LabelledClass(one.name, one.color) for one in self.classes),
            tuple(table[str(index)] for index in range(CITYSCAPES)),
        )


def camvid_classes(root: Path) -> Classes:
    """Read `classes.json` of a CamVid folder; ConfigError when it is not there or damaged."""
    path = root / _CLASSES
    if not path.is_file():
        raise ConfigError(f"data set {root}: no classes.json in it; name the folder that holds images/ and splits/")
    try:
        return _ClassesFile.model_validate_json(path.read_bytes()).told()
    except OSError as error:
        raise ConfigError(f"data set classes {path}: {error.strerror}; README says what is in it") from error
    except ValidationError as error:
        fault = error.errors()[0]
        field = ".".join(map(str, fault["loc"])) or "the file"
        raise ConfigError(f"data set classes {path}: {field}: {fault['msg']}; README says what is in it") from error


def camvid(root: Path, split: str, *, without_drives: Sequence[str] = ()) -> Labelled:
    """Load one split of CamVid: train, val, trainval, test, or the name of a drive such as 0006R0 (of trainval).

    ConfigError when there is no such split, the data set has no such drive to leave out, or a picture or its labels are
    missing, damaged or of different sizes.
    """
    listed = root / "splits" / f"{split}.txt"
    lines = _split_lines(listed if listed.is_file() else root / "splits" / "trainval.txt")
    if without_drives:
        check_left_out(root, without_drives, _drives(root))
    pairs = [(image, label) for image, label in lines if _drive_of(image) not in without_drives]
    if not listed.is_file():
        pairs = [pair for pair in pairs if _drive_of(pair[0]) == split]
    if not pairs:
        raise ConfigError(f"data set {root}: no split or drive {split!r}; use train, val, trainval or a drive's name")
    frames = [paired(root / label, read_image(root / image), read_labels(root / label)) for image, label in pairs]
    return Labelled(
        tuple(Path(image).stem for image, _ in pairs),
        tuple(frame.image for frame in frames),
        tuple(frame.labels for frame in frames),
        tuple(one.name for one in camvid_classes(root).classes) if (root / _CLASSES).is_file() else (),
    )


def check_left_out(root: Path, named: Sequence[str], drives: Collection[str]) -> None:
    """ConfigError where a drive is to be left out that the data set in `root` has not: it is misspelled most likely."""
    if unknown := set(named) - set(drives):
        has = ", ".join(sorted(drives))
        raise ConfigError(f"data set {root}: no drive {min(unknown)!r} to leave out (without_drives); it has {has}")


def _drives(root: Path) -> set[str]:
    """The names of all drives that any split of CamVid lists."""
    return {_drive_of(image) for listed in (root / "splits").glob("*.txt") for image, _ in _split_lines(listed)}


def _split_lines(path: Path) -> list[tuple[str, str]]:
    if not path.is_file():
        raise ConfigError(f"data set split {path}: no such file; name a CamVid folder with splits/ in it")
    rows = [line.split() for line in path.read_text().splitlines() if line.strip()]
    if any(len(row) != 2 for row in rows):
        raise ConfigError(f"data set split {path}: each line must name an image and its labels, with a space between")
    return [(image, label) for image, label in rows]


def _drive_of(image: str) -> str:
    return Path(image).stem.split("_")[0]


def read_image(path: Path) -> Image:
    """RGB (H, W, 3) of an image file; ConfigError when it is missing or damaged."""
    # Labels are drawn on the picture as it is stored: one turned by its EXIF tag would no longer lie under them.
    pixels = cv2.imread(str(path), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if pixels is None:
        raise ConfigError(f"image {path}: cannot be read; the data set is incomplete")
    return np.ascontiguousarray(pixels[..., ::-1]).astype(np.uint8, copy=False)


def read_labels(path: Path) -> Image:
    """(H, W) of a grey image file of 8 bits, or an indexed PNG, its values as they are.

    ConfigError when it is missing, damaged or of another kind, whose values would be changed in reading.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"image {path}: {error.strerror}; the data set is incomplete") from error
    depth, kind = content[24:26] if content.startswith(_PNG) and len(content) > 25 else (8, 0)  # of its first chunk
    if kind == _INDEXED:
        return _indexes(path, content)
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED) if content else None
    if pixels is None:
        raise ConfigError(f"image {path}: cannot be read; the data set is incomplete")
    if pixels.ndim == 3 and (pixels == pixels[..., :1])[..., :3].all():
        pixels = pixels[..., 0]
    if pixels.ndim != 2 or pixels.dtype != np.uint8 or depth != 8:
        raise ConfigError(
            f"labels {path}: neither grey with 8 bits a pixel nor an indexed PNG; save them as one of these"
        )
    return pixels.astype(np.uint8, copy=False)


def _indexes(path: Path, content: bytes) -> Image:
    """(H, W) of an indexed PNG: which colours they stand for is of no matter."""
    try:
        from PIL import Image as Pillow
    except ImportError as error:
        raise ConfigError(f"labels {path}: to read an indexed PNG, pip install pillow, or save it as grey") from error
    try:
        with Pillow.open(io.BytesIO(content)) as opened:
            return np.array(opened, np.uint8)
    except (OSError, SyntaxError) as error:  # the latter is that library's for a damaged PNG
        raise ConfigError(f"image {path}: cannot be read; the data set is incomplete") from error


def unlabelled_frames(path: Path) -> Iterator[Image]:
    """The images of a folder in the order of their names, or frames of a clip, about two a second, in time's order.

    Raises ConfigError when there are none.
    """
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in _IMAGES) if path.is_dir() else []
    images = iter(map(read_image, files) if files else _clip_frames(path))
    first = next(images, None)
    if first is None:
        raise ConfigError(f"unlabelled frames {path}: no images and no clip; name a folder of images or a video file")
    yield first
    yield from images


def _clip_frames(path: Path) -> Iterator[Image]:
    clip = cv2.VideoCapture(str(path))
    step = max(1, round(clip.get(cv2.CAP_PROP_FPS) / 2)) if clip.isOpened() else 1
    taken = 0
    while clip.grab():
        if taken * step == round(clip.get(cv2.CAP_PROP_POS_FRAMES)) - 1:
            taken += 1
            yield cv2.cvtColor(clip.retrieve()[1], cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False)


def paired(path: Path, image: Image, labels: Image) -> LabelledFrame:
    """The picture with its labels, which are those of `path`; ConfigError when they are not of one size."""
    if image.shape[:2] != labels.shape:
        (height, width), (rows, columns) = image.shape[:2], labels.shape
        raise ConfigError(
            f"labels {path}: {columns}x{rows}, but their picture is {width}x{height}; take both from one data set"
        )
    return LabelledFrame(image, labels)


def at_size(image: Image, size: tuple[int, int] | None) -> Image:
    """A picture brought to (height, width) as a camera brings its own; without a size it stays as it is."""
    return image if size is None else fit(image, (size[1], size[0]))


def scaled(data: Labelled, size: tuple[int, int]) -> Labelled:
    """Pictures and labels brought to (height, width)."""
    return Labelled(
        data.names,
        tuple(at_size(image, size) for image in data.images),
        tuple(classes_at(labels, size) for labels in data.labels),
    )


def classes_at(classes: Image, size: tuple[int, ...]) -> Image:
    """A map of classes (H', W') brought to (height, width): to each pixel the class that lies under its centre."""
    if classes.shape == size:
        return classes
    height, width = size
    return cv2.resize(classes, (width, height), interpolation=cv2.INTER_NEAREST_EXACT).astype(np.uint8, copy=False)


def fitted(data: Stored, height: int, width: int) -> Stored:
    """The frames as large as (height, width) holds them whole, the rest grey and void at the right and the bottom."""

    def load(index: int) -> LabelledFrame:
        frame = data.read(index)
        placed = data.placed(frame.image, (height, width))
        labels = np.full((height, width), VOID, np.uint8)
        labels[: placed.rows, : placed.columns] = classes_at(frame.labels, (placed.rows, placed.columns))
        return LabelledFrame(placed.image, labels)

    return Stored(data.names, load, data.classes)


def in_memory(data: Labelled | Stored, size: tuple[int, int]) -> Labelled:
    """The frames, their pictures at the size (height, width) of a network; of those on disk some, spread over them."""
    if isinstance(data, Labelled):
        return replace(data, images=tuple(at_size(image, size) for image in data.images))
    most = max(_KEPT, _KEPT_PIXELS // (size[0] * size[1]))
    chosen = np.linspace(0, len(data) - 1, min(most, len(data))).round().astype(int).tolist()
    frames = [fitted(data, *size).read(index) for index in chosen]
    return Labelled(
        tuple(data.names[index] for index in chosen),
        tuple(frame.image for frame in frames),
        tuple(frame.labels for frame in frames),
        data.classes,
    )


def class_weights(share: NDArray[np.float64], *, strength: float) -> NDArray[np.float32]:
    """Weights (K,) = 1 / ln(strength + share) of the classes' shares of all pixels, normalised to a mean of one.

    Paszke et al. 2016 (ENet).
    """
    weights = 1 / np.log(strength + share)
    normalised: NDArray[np.float32] = (weights / (weights * share).sum()).astype(np.float32)
    return normalised
