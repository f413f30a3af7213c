"""Soft labels: what a teacher tells of frames, labelled or not, made once and kept on disk."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray

from pipeline.errors import ConfigError
from pipeline.kept_array import kept_rows
from pipeline.teachers import BATCH, Teacher, digest, load_teachers, stacked

__all__ = ["STRIDE", "Teacher", "load_teachers", "soft_label_file", "soft_labels"]

# Of soft labels to the frame. At 4 poles and signs are lost: 91.7 mIoU to the full size's classes, 97.0 at 2.
STRIDE = 2


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


def soft_label_file(path: Path, images: Sequence[NDArray[np.uint8]], teacher: Teacher) -> NDArray[np.uint8]:
    """Soft labels (N, H/2, W/2, K) of all frames as a memory map; made once, taken from `path` after that.

    What it was made of lies beside it: a file of other frames, or of another teacher, is made again. A process that
    dies leaves those of the frames that it had come to, and the next one goes on from there.
    """
    made_of = f"{teacher.made_of}\n{STRIDE}\n{digest(images)}\n"
    return kept_rows(path, made_of, partial(soft_labels, teacher, images), count=len(images))
