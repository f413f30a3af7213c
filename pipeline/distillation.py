"""Soft labels from a teacher network, computed once per data set and kept on disk beside the run."""

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

    The frames' names lie beside it: a file that was made for other frames is made again.
    """
    shape = (len(data.images), *data.images[0].shape[:2], classes)
    names, frames = path.with_suffix(".txt"), "\n".join(data.names)
    if path.is_file() and names.is_file() and names.read_text() == frames:
        stored = np.load(path, mmap_mode="r")
        if stored.shape == shape:
            return _bytes(stored)
    partial = path.with_suffix(".partial.npy")
    labels = np.lib.format.open_memmap(partial, "w+", np.uint8, shape)  # type: ignore[no-untyped-call]
    for i, image in enumerate(data.images):
        labels[i] = soft_labels(teacher, image, target=target, classes=classes, size=size)
    labels.flush()
    partial.replace(path)
    names.write_text(frames)
    return _bytes(np.load(path, mmap_mode="r"))


def _bytes(array: NDArray[np.generic]) -> NDArray[np.uint8]:
    """The same array, known to hold bytes."""
    return array.view(np.uint8)
