"""Soft labels: what a teacher tells of frames, labelled or not, made once and kept on disk."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray

from pipeline.errors import ConfigError
from pipeline.kept_array import kept_rows, made_of
from pipeline.teachers import BATCH, Teacher, digest, load_teachers, stacked

__all__ = ["STRIDE", "Teacher", "digest", "learned_soft_labels", "load_teachers", "soft_label_file", "soft_labels"]

# Of soft labels to the frame. At 4 poles and signs are lost: 91.7 mIoU to the full size's classes, 97.0 at 2.
STRIDE = 2
_FILE = "soft_labels.npy"
_LEARNED = "learned_soft_labels.txt"  # what those were made of that a run learned from, wherever they are kept


def soft_labels(teacher: Teacher, images: Sequence[NDArray[np.uint8]], first: int = 0) -> Iterator[NDArray[np.uint8]]:
    """Frames RGB (H, W, 3), all of one size -> probabilities (B, H/2, W/2, K) in 1/255, means over 2x2 pixels.

    They come some frames at a time, from the frame `first` on. Raises ConfigError on frames of several sizes, or of one
    that 2 does not divide.
    """
    shapes = {image.shape[:2] for image in images}
    if len(shapes) != 1 or any(length % STRIDE for length in min(shapes)):
        sizes = ", ".join(sorted(f"{width}x{height}" for height, width in shapes)) or "no size"
        raise ConfigError(f"frames of {sizes} for a teacher: they must be of one size, divisible by {STRIDE}")
    return (_soft_labels(teacher, images[i : i + BATCH]) for i in range(first, len(images), BATCH))


def _soft_labels(teacher: Teacher, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    small = F.avg_pool2d(teacher.probabilities(stacked(images, teacher.device)), STRIDE)
    rounded: NDArray[np.uint8] = (small * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return rounded


def soft_label_file(
    folder: Path, images: Sequence[NDArray[np.uint8]], teacher: Teacher, *, run: Path | None = None
) -> NDArray[np.uint8]:
    """Soft labels (N, H/2, W/2, K) of all frames as a memory map; made once, taken from the folder after that.

    What they were made of lies beside them: those of other frames, or of another teacher, are made again. A process
    that dies leaves those of the frames that it had come to, and the next one goes on from there. In the folder of a
    run that learns from them it is told too, for `learned_soft_labels`.
    """
    source = f"{teacher.made_of}\n{STRIDE}\n{digest(images)}\n"
    found = kept_rows(folder / _FILE, source, partial(soft_labels, teacher, images), count=len(images))
    if run is not None:
        run.mkdir(parents=True, exist_ok=True)
        (run / _LEARNED).write_text(source)
    return found


def learned_soft_labels(folder: Path, run: Path) -> NDArray[np.uint8]:
    """The soft labels that a run learned from (N, H/2, W/2, K), those of the data set's frames first.

    ConfigError where the folder that kept them has none, or others by now.
    """
    path = folder / _FILE
    if not path.is_file():
        raise ConfigError(f"{folder}: no {_FILE}, and labels are not looked at; name the --cache of run {run}")
    learned = run / _LEARNED
    if not learned.is_file() or made_of(path) != learned.read_text():
        raise ConfigError(f"{path}: not what run {run} learned from; train once more with this --cache: it makes that")
    stored: NDArray[np.uint8] = np.load(path, mmap_mode="r")
    return stored
