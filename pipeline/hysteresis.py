"""A pixel keeps its class until another one leads by a margin, so that masks do not flicker where nothing moves.

logits -> class_map -> where that is not the class before: by how much it leads there -> the class of each pixel
masks so far -> share of each class that lies at its border -> weight of the class -> margin between two classes

Where two classes are nearly as likely, noise decides between them, in each frame another way; two thresholds instead of
one are the old remedy (Schmitt, J. Sci. Instrum. 1938). What is thin would be dragged along behind a camera that moves:
a class most of whose places lie at its border (poles, signs) has no margin, and none is held against it. That share is
taken from the camera's own class maps as they were without any margin, so that what is thin and new comes through.
"""

import numpy as np
from numpy.typing import NDArray

from pipeline.class_map import STRIDE
from pipeline.compiled import compiled

_WIDE, _THIN = 0.4, 0.7  # border shares of a class: up to the first it has the margin whole, from the second on none
_KEPT = 0.95  # of a border share when a new mask comes in


class BorderShares:
    """How much of each class lies at its border (0..1, moving means over the class maps of one camera)."""

    def __init__(self, classes: int) -> None:
        self._shares = np.full(classes, np.nan, np.float32)

    def add(self, plain: NDArray[np.uint8]) -> None:
        """Take in a class map (H, W) of these classes."""
        places, borders = _counts(_places(plain), len(self._shares))
        seen = places > 0
        shares = borders[seen] / places[seen]
        known = np.where(np.isnan(self._shares[seen]), shares, self._shares[seen])
        self._shares[seen] = _KEPT * known + (1 - _KEPT) * shares

    @property
    def weights(self) -> NDArray[np.float32]:
        """Of the margin, by class (K,): 1 of what is wide, 0 of what is thin; 1 of what was never seen."""
        weights = np.clip((_THIN - self._shares) / (_THIN - _WIDE), 0, 1)
        return np.where(np.isnan(weights), 1, weights).astype(np.float32)


def steadied(
    plain: NDArray[np.uint8],
    logits: NDArray[np.float32],
    before: NDArray[np.uint8],
    *,
    shares: BorderShares,
    margin: float,
) -> NDArray[np.uint8]:
    """The class map (H, W) of logits (K, h, w), and the mask (H, W) of the frame before -> the mask (H, W) of this one.

    It is the class map but where its class leads the one before by less than the margin, in logits, times the weights
    of both: there the pixel keeps the one before. Both masks are of the K classes; ValueError on other sizes.
    """
    if plain.shape != before.shape:
        raise ValueError(f"a mask of {before.shape} before one of {plain.shape}")
    found, weights = plain.copy(), shares.weights
    _keep(np.ascontiguousarray(logits, np.float32), before, np.float32(margin) * np.outer(weights, weights), found)
    return found


def _places(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The class (ceil(H / 4), ceil(W / 4)) under the middle of each logit's pixels."""
    rows, columns = (np.minimum(np.arange(0, side, STRIDE) + STRIDE // 2, side - 1) for side in mask.shape)
    return np.ascontiguousarray(mask[np.ix_(rows, columns)])


@compiled
def _counts(places: NDArray[np.uint8], classes: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of each class (K,) its places, and those that have one of another class beside, above or below them."""
    rows, columns = places.shape
    found, borders = np.zeros(classes, np.int64), np.zeros(classes, np.int64)
    for i in range(rows):
        above, below = max(i - 1, 0), min(i + 1, rows - 1)
        for j in range(columns):
            one, left, right = places[i, j], places[i, max(j - 1, 0)], places[i, min(j + 1, columns - 1)]
            found[one] += 1
            borders[one] += (left != one) | (right != one) | (places[above, j] != one) | (places[below, j] != one)
    return found, borders


@compiled
def _keep(
    logits: NDArray[np.float32], before: NDArray[np.uint8], margins: NDArray[np.float32], found: NDArray[np.uint8]
) -> None:
    """Take back what leads the class before by less than the margin (K, K) of both, interpolated as by class_map."""
    _, rows, columns = logits.shape
    half, step = STRIDE // 2, np.float32(1 / STRIDE)
    for i in range(found.shape[0]):
        row, down = (i + half) // STRIDE, (np.float32((i + half) % STRIDE) + np.float32(0.5)) * step
        top, bottom = max(row - 1, 0), min(row, rows - 1)
        for j in range(found.shape[1]):
            one, other = found[i, j], before[i, j]
            if one != other:
                column = (j + half) // STRIDE
                across = (np.float32((j + half) % STRIDE) + np.float32(0.5)) * step
                left, right = max(column - 1, 0), min(column, columns - 1)
                first = logits[one, top, left] - logits[other, top, left]
                second = logits[one, top, right] - logits[other, top, right]
                first += down * (logits[one, bottom, left] - logits[other, bottom, left] - first)
                second += down * (logits[one, bottom, right] - logits[other, bottom, right] - second)
                if first + across * (second - first) < margins[one, other]:
                    found[i, j] = other


def warm_up_hysteresis() -> None:
    """Compile what the worker runs, or load it from the cache, so that the first frame is not late."""
    mask, shares = np.zeros((STRIDE, STRIDE), np.uint8), BorderShares(1)
    shares.add(mask)
    steadied(mask, np.zeros((1, 1, 1), np.float32), mask, shares=shares, margin=1.0)
