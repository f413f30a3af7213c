"""Soft labels from a teacher network, computed once per data set and kept on disk beside the run."""

import hashlib
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.datasets import Labelled
from pipeline.errors import ConfigError
from pipeline.models.teacher import FDDWNet, group_classes, normalise


def load_teacher(weights: Path) -> FDDWNet:
    """The teacher in eval mode; ConfigError when the file is missing or is another network's."""
    if not weights.is_file():
        raise ConfigError(f"teacher weights {weights}: no such file; name the FDDWNet safetensors file")
    teacher = FDDWNet()
    try:
        teacher.load_state_dict(load_file(weights), strict=True)
    except (RuntimeError, SafetensorError) as error:
        raise ConfigError(f"teacher weights {weights}: not the state of an FDDWNet with 19 classes") from error
    return teacher.eval()


@torch.no_grad()
def soft_labels(
    teacher: nn.Module, image: NDArray[np.uint8], *, target: Tensor, classes: int, size: tuple[int, int]
) -> NDArray[np.uint8]:
    """RGB (H, W, 3) -> probabilities (H, W, K) in 1/255, from the teacher looking at `size` (width, height)."""
    device = target.device
    large = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)
    x = torch.from_numpy(large).to(device).permute(2, 0, 1)[None].float()
    probabilities = group_classes(teacher(normalise(x)).softmax(1), target, classes)
    small = F.interpolate(probabilities, image.shape[:2], mode="area")[0]
    rounded: NDArray[np.uint8] = (small * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    return rounded


def soft_label_file(
    path: Path,
    data: Labelled,
    *,
    teacher: nn.Module,
    target: Tensor,
    classes: int,
    size: tuple[int, int],
) -> NDArray[np.uint8]:
    """Soft labels (N, H, W, K) of all frames as a memory map; made once, taken from `path` after that.

    What it was made of lies beside it: a file of other frames, teacher, size or classes is made again.
    """
    shape = (len(data.images), *data.images[0].shape[:2], classes)
    source, made_of = path.with_suffix(".txt"), _made_of(data, teacher, target, size)
    if path.is_file() and source.is_file() and source.read_text() == made_of:
        stored = np.load(path, mmap_mode="r")
        if stored.shape == shape:
            return _bytes(stored)
    partial = path.with_suffix(".partial.npy")
    labels = np.lib.format.open_memmap(partial, "w+", np.uint8, shape)  # type: ignore[no-untyped-call]
    for i, image in enumerate(data.images):
        labels[i] = soft_labels(teacher, image, target=target, classes=classes, size=size)
    labels.flush()
    partial.replace(path)
    source.write_text(made_of)
    return _bytes(np.load(path, mmap_mode="r"))


def _made_of(data: Labelled, teacher: nn.Module, target: Tensor, size: tuple[int, int]) -> str:
    """Teacher, its input's size, the class each of its classes counts as, and the frames' names."""
    digest = hashlib.sha256()
    for weight in teacher.state_dict().values():
        digest.update(weight.cpu().contiguous().numpy().tobytes())
    return "\n".join([digest.hexdigest(), f"{size[0]}x{size[1]}", str(target.tolist()), *data.names])


def _bytes(array: NDArray[np.generic]) -> NDArray[np.uint8]:
    """The same array, known to hold bytes."""
    return array.view(np.uint8)
