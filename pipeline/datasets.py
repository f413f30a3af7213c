"""Data sets as lists of labelled frames in memory, and their augmentation as functions."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.accuracy import VOID
from pipeline.errors import ConfigError

Image = NDArray[np.uint8]


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
class Labelled:
    """N frames: RGB uint8 (H, W, 3) each, and their class indexes uint8 (H, W), 255 where void."""

    names: tuple[str, ...]
    images: tuple[Image, ...]
    labels: tuple[Image, ...]


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """One augmented frame: image (h, w, 3), labels (h, w), soft labels (h, w, K) in 1/255, 0 outside the picture."""

    image: Image
    labels: Image
    soft: Image | None


@dataclass(frozen=True, slots=True)
class Augmentation:
    """How far a view may differ from its frame: scale range, and jitter of light and colour as fractions."""

    scale_min: float
    scale_max: float
    jitter: float


def camvid_classes(root: Path) -> Classes:
    """Read `classes.json` of a CamVid folder; ConfigError when it is not there or damaged."""
    path = root / "classes.json"
    if not path.is_file():
        raise ConfigError(f"data set {root}: no classes.json in it; name the folder that holds images/ and splits/")
    try:
        described = json.loads(path.read_text())
        table = described["cityscapes_train_id_to_camvid"]
        return Classes(
            tuple(LabelledClass(c["name"], tuple(c["color"])) for c in described["classes"]),
            tuple(int(table[str(i)]) for i in range(len(table))),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"data set classes {path}: damaged or of another form; take the data set's own") from error


def camvid(root: Path, split: str, *, without_drives: Sequence[str] = ()) -> Labelled:
    """Load one split of CamVid: train, val, trainval, test, or the name of a drive such as 0006R0 (of trainval)."""
    listed = root / "splits" / f"{split}.txt"
    lines = _split_lines(listed if listed.is_file() else root / "splits" / "trainval.txt")
    pairs = [(image, label) for image, label in lines if _drive_of(image) not in without_drives]
    if not listed.is_file():
        pairs = [pair for pair in pairs if _drive_of(pair[0]) == split]
    if not pairs:
        raise ConfigError(f"data set {root}: no split or drive {split!r}; use train, val, trainval or a drive's name")
    return Labelled(
        tuple(Path(image).stem for image, _ in pairs),
        tuple(_read(root / image, cv2.IMREAD_COLOR) for image, _ in pairs),
        tuple(_read(root / label, cv2.IMREAD_GRAYSCALE) for _, label in pairs),
    )


def _split_lines(path: Path) -> list[tuple[str, str]]:
    if not path.is_file():
        raise ConfigError(f"data set split {path}: no such file; name a CamVid folder with splits/ in it")
    rows = [line.split() for line in path.read_text().splitlines() if line.strip()]
    if any(len(row) != 2 for row in rows):
        raise ConfigError(f"data set split {path}: each line must name an image and its labels, with a space between")
    return [(image, label) for image, label in rows]


def _drive_of(image: str) -> str:
    return Path(image).stem.split("_")[0]


def _read(path: Path, mode: int) -> Image:
    pixels = cv2.imread(str(path), mode)
    if pixels is None:
        raise ConfigError(f"image {path}: cannot be read; the data set is incomplete")
    return np.ascontiguousarray(pixels[..., ::-1]) if pixels.ndim == 3 else pixels.astype(np.uint8)


def class_weights(labels: Sequence[Image], classes: int, *, strength: float) -> NDArray[np.float32]:
    """Weights (K,) = 1 / ln(strength + share), normalised to a mean of one over pixels (Paszke et al. 2016, ENet)."""
    counts = sum(np.bincount(image.ravel(), minlength=VOID + 1)[:classes] for image in labels)
    share = counts / np.sum(counts)
    weights = 1 / np.log(strength + share)
    normalised: NDArray[np.float32] = (weights / (weights * share).sum()).astype(np.float32)
    return normalised


def random_view(
    data: Labelled,
    index: int,
    *,
    soft: NDArray[np.uint8] | None,
    size: tuple[int, int],
    augmentation: Augmentation,
    rng: np.random.Generator,
) -> View:
    """Crop frame `index` at a random scale to size (h, w), maybe mirrored, with its light and colour changed."""
    image, labels = data.images[index], data.labels[index]
    scale = np.exp(rng.uniform(np.log(augmentation.scale_min), np.log(augmentation.scale_max)))
    window = _random_window(labels.shape, (size[0] / scale, size[1] / scale), rng)
    mirrored = rng.random() < 0.5
    return View(
        _jitter(_cut(image, window, size, fill=128, flip=mirrored), augmentation.jitter, rng),
        _cut(labels, window, size, fill=VOID, flip=mirrored),
        None if soft is None else _cut(soft[index], window, size, fill=0, flip=mirrored),
    )


@dataclass(frozen=True, slots=True)
class _Window:
    top: int
    left: int
    height: int
    width: int


def _random_window(shape: tuple[int, ...], size: tuple[float, float], rng: np.random.Generator) -> _Window:
    height, width = round(size[0]), round(size[1])
    top = int(rng.integers(min(0, shape[0] - height), max(0, shape[0] - height) + 1))
    left = int(rng.integers(min(0, shape[1] - width), max(0, shape[1] - width) + 1))
    return _Window(top, left, height, width)


def _cut(pixels: Image, window: _Window, size: tuple[int, int], *, fill: int, flip: bool) -> Image:
    """The window of the pixels at size (h, w), `fill` where it lies outside; class indexes are never mixed."""
    mode = cv2.INTER_NEAREST_EXACT if pixels.ndim == 2 else cv2.INTER_LINEAR
    top, left = max(window.top, 0), max(window.left, 0)
    bottom = min(window.top + window.height, pixels.shape[0])
    right = min(window.left + window.width, pixels.shape[1])
    canvas = np.full((window.height, window.width, *pixels.shape[2:]), fill, np.uint8)
    canvas[top - window.top : bottom - window.top, left - window.left : right - window.left] = pixels[
        top:bottom, left:right
    ]
    view = cv2.resize(canvas, (size[1], size[0]), interpolation=mode).astype(np.uint8, copy=False)
    return np.ascontiguousarray(view[:, ::-1]) if flip else view


def _jitter(image: Image, amount: float, rng: np.random.Generator) -> Image:
    """Change brightness, contrast, saturation and the gain of each colour by up to `amount`."""
    brightness, contrast, saturation = 1 + amount * rng.uniform(-1, 1, 3)
    gains = 1 + amount / 4 * rng.uniform(-1, 1, 3)
    grey = np.array([0.299, 0.587, 0.114], np.float32)
    mix = saturation * np.eye(3, dtype=np.float32) + (1 - saturation) * grey
    mix = (contrast * brightness * gains[:, None] * mix).astype(np.float32)
    offset = (1 - contrast) * 128.0
    mixed = cv2.transform(image, np.hstack([mix, np.full((3, 1), offset, np.float32)]))
    return mixed.astype(np.uint8, copy=False)
