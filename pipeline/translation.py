"""Soft labels in the words of the data set: a teacher from elsewhere draws by other rules than the labels do.

In Cityscapes walls are no fences and what carries a sign is a pole. Taught by such a teacher and by labels at once, a
network learns neither: on its own frames of training it stays halfway. Where some frames have labels, the difference
itself can be learned (as Patrini et al., CVPR 2017, do with a matrix; here with each place's surroundings), and holds
where there are none in streets of the same kind.
"""

import hashlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline import losses
from pipeline.kept_array import kept_array
from pipeline.models.translator import DILATIONS, LEAST, Translator

_WIDTH = 24  # channels
_STEPS, _TOGETHER = 500, 4  # frames a step
_LR, _WEIGHT_DECAY = 3e-3, 1e-2
_SEED = 0


def translated_file(
    path: Path,
    soft: NDArray[np.uint8],
    labels: NDArray[np.uint8],
    class_weights: NDArray[np.float32],
    *,
    steps: int = _STEPS,
) -> NDArray[np.uint8]:
    """`translated` as a memory map; made once, taken from `path` after that. What it was made of lies beside it."""
    made_of = _made_of(soft, labels, class_weights, steps)
    return kept_array(path, made_of, lambda: translated(soft, labels, class_weights, steps=steps))


def translated(
    soft: NDArray[np.uint8], labels: NDArray[np.uint8], class_weights: NDArray[np.float32], *, steps: int = _STEPS
) -> NDArray[np.uint8]:
    """Soft labels (N, h, w, K) in 1/255 -> the same in the words of labels (M, H, W), which the first M frames have.

    Classes count by the root of their weights (K,): with the weights themselves rare ones are seen everywhere.
    """
    with torch.random.fork_rng():  # whoever asks for soft labels keeps its own chances
        torch.manual_seed(_SEED)
        translator = Translator(soft.shape[3], width=_WIDTH)
    _learn(translator, soft, _at_stride(labels, soft.shape[2]), torch.from_numpy(class_weights).sqrt(), steps)
    made = np.empty_like(soft)
    with torch.no_grad():
        for i in range(len(soft)):
            shares = translator(_probabilities(soft[i : i + 1])).softmax(1)[0]
            made[i] = (shares * 255).round().byte().permute(1, 2, 0).numpy()
    return made


def _learn(
    translator: Translator, soft: NDArray[np.uint8], labels: NDArray[np.uint8], class_weights: Tensor, steps: int
) -> None:
    """On the CPU: it is small."""
    optimiser = torch.optim.AdamW(translator.parameters(), lr=_LR, weight_decay=_WEIGHT_DECAY)
    pace = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    rng = np.random.default_rng(_SEED)
    for _ in range(steps):
        chosen = rng.choice(len(labels), min(_TOGETHER, len(labels)), replace=False)
        told, meant = _probabilities(soft[chosen]), torch.from_numpy(labels[chosen]).long()
        if rng.random() < 0.5:
            told, meant = told.flip(3), meant.flip(2)
        loss = losses.segmentation(translator(told), meant, class_weights)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        pace.step()
    translator.eval()


def _probabilities(soft: NDArray[np.uint8]) -> Tensor:
    """(B, h, w, K) in 1/255 -> (B, K, h, w)."""
    return torch.from_numpy(np.ascontiguousarray(soft)).permute(0, 3, 1, 2).float() / 255


def _at_stride(labels: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    """Labels (M, H, W) at the places of soft labels that are so wide."""
    stride = labels.shape[2] // width
    return labels[:, stride // 2 :: stride, stride // 2 :: stride]


def _made_of(soft: NDArray[np.uint8], labels: NDArray[np.uint8], class_weights: NDArray[np.float32], steps: int) -> str:
    seen = hashlib.sha256()
    for array in (soft, labels, class_weights):
        seen.update(f"{array.shape}".encode())
        seen.update(np.ascontiguousarray(array).data)
    return f"{seen.hexdigest()} {_WIDTH} {steps} {_TOGETHER} {_LR} {_WEIGHT_DECAY} {_SEED} {DILATIONS} {LEAST}\n"
