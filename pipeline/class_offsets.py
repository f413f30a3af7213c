"""What is added to each class's logit before the arg max, so that masks are best by mean IoU.

Losses weigh rare classes and teachers draw in their own style, so the largest logit is not the best guess. The offsets
are fitted to frames of training, where they are the same as elsewhere: there are K numbers a level, against millions of
pixels (logit adjustment after Menon et al., ICLR 2021, with the measure itself in the place of the classes' shares).
Without labels, the teachers' classes stand in for them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from pipeline.accuracy import VOID, class_iou
from pipeline.datasets import Labelled, classes_at
from pipeline.models.split_segmenter import SplitSegmenter, levels_like

_FRAMES = 120  # of those trained on, spread over them
_SPARSE = 2  # every second row and column of the logits: neighbours say the same
_STEPS = (-0.4, -0.2, -0.1, 0.0, 0.1, 0.2, 0.4)
_ROUNDS = 6
_PENALTY = 0.03  # mean IoU, 0..1, that a mean square of one must gain: far offsets fit the frames, not the street


def offsets_of(network: SplitSegmenter, data: Labelled) -> NDArray[np.float32]:
    """One offset per quality level and class (L, K), fitted to frames that the network (in eval mode) learned from.

    Labels may be of another size than their pictures.
    """
    seen = list(_seen(network, data))
    labels = np.concatenate([one for one, _ in seen])
    levels = [np.concatenate([logits[level] for _, logits in seen], 1) for level in range(network.levels)]
    return np.stack([fit_offsets(logits, labels) for logits in levels])


def as_taught(data: Labelled, soft: NDArray[np.uint8]) -> Labelled:
    """The frames labelled with the teachers' likeliest classes, whatever their own labels are.

    Soft labels (N, H/s, W/s, K), the frames' own first. ValueError where they are of fewer frames, or do not cover one.
    """
    if len(soft) < len(data):
        raise ValueError(f"soft labels of {len(soft)} frames for {len(data)}")
    return replace(data, labels=tuple(map(_likeliest, data.labels, soft)))


def _likeliest(shown: NDArray[np.uint8], soft: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The class with the most of (h, w, K), at the size of what is shown (H, W)."""
    stride = shown.shape[0] // soft.shape[0]
    if shown.shape != (soft.shape[0] * stride, soft.shape[1] * stride):
        raise ValueError(f"soft labels {soft.shape} for a frame {shown.shape}")
    large: NDArray[np.uint8] = soft.argmax(2).astype(np.uint8).repeat(stride, 0).repeat(stride, 1)
    return large


def fit_offsets(logits: NDArray[np.float32], labels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Logits (K, N) and labels (N,), void among them -> offsets (K,), by coordinate ascent on the mean IoU.

    Where every label is void there is nothing to go by, and all offsets are zero.
    """
    counted = labels != VOID
    logits, labels = logits[:, counted], labels[counted]
    offsets = np.zeros(len(logits), np.float32)
    for _ in range(_ROUNDS if labels.size else 0):
        before = offsets.copy()
        for k in range(len(logits)):
            offsets[k] = _best(logits + offsets[:, None], labels, k, offsets)
        if (offsets == before).all():
            break
    return offsets


def _best(logits: NDArray[np.float32], labels: NDArray[np.uint8], k: int, offsets: NDArray[np.float32]) -> np.float32:
    """The best offset of class k, all others as they are in the logits (K, N)."""
    others = np.delete(logits, k, 0)
    rival = others.argmax(0)
    height = np.take_along_axis(others, rival[None], 0)[0]
    rival += rival >= k
    classes = len(logits)

    def worth(step: float) -> tuple[float, float]:
        predicted = np.where(logits[k] + np.float32(step) > height, k, rival)
        matrix = np.bincount(labels * np.int64(classes) + predicted, minlength=classes**2).reshape(classes, classes)
        moved = offsets.copy()
        moved[k] += step
        return float(np.nanmean(class_iou(matrix))) - _PENALTY * float(np.square(moved).mean()), -abs(step)

    return np.float32(offsets[k] + max(_STEPS, key=worth))


@torch.no_grad()
def _seen(network: SplitSegmenter, data: Labelled) -> Iterator[tuple[NDArray[np.uint8], Sequence[NDArray[np.float32]]]]:
    """Of some frames: labels (n,) and, level by level, logits (K, n) of the same places."""
    every = max(1, len(data) // _FRAMES)
    device = next(network.parameters()).device
    for image, truth in zip(data.images[::every], data.labels[::every], strict=True):
        pixels = torch.from_numpy(image).to(device).permute(2, 0, 1)[None].float()
        y = network.encode(pixels)
        shown = classes_at(truth, image.shape[:2])
        rows, columns = shown.shape[0] // 4, shown.shape[1] // 4  # of logits that lie wholly in the picture
        found = []
        for level in range(network.levels):
            logits = network.decoder(network.prior(y, levels_like(pixels, level)).y_hat)
            found.append(logits[0, :, :rows:_SPARSE, :columns:_SPARSE].flatten(1).cpu().numpy())
        cut = torch.from_numpy(shown)[None, None, : 4 * rows, : 4 * columns]
        near = F.interpolate(cut, (rows, columns), mode="nearest-exact")[0, 0, ::_SPARSE, ::_SPARSE]
        yield near.flatten().numpy(), found
