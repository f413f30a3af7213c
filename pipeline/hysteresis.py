"""A pixel keeps its class until another one leads by a margin, so that masks do not flicker where nothing moves.

last mask -> class of each logit's place -> share of each class that lies at its border -> weight of the class
logits - margin x weight of the class before x weight of each other one -> class_map

Where two classes are nearly as likely, noise decides between them, in each frame another way; two thresholds instead of
one are the old remedy (Schmitt, J. Sci. Instrum. 1938). What is thin would be dragged along behind a camera that moves:
a class most of whose places lie at its border (poles, signs) has no margin, and none is held against it. That share is
taken from the camera's own masks.
"""

import numpy as np
from numpy.typing import NDArray

from pipeline.class_map import STRIDE
from pipeline.compiled import compiled

_WIDE, _THIN = 0.4, 0.7  # border shares of a class: up to the first it has the margin whole, from the second on none
_KEPT = 0.95  # of a border share when a new mask comes in


class BorderShares:
    """How much of each class lies at its border (0..1, moving means over the masks of one camera)."""

    def __init__(self, classes: int) -> None:
        self._shares = np.full(classes, np.nan, np.float32)

    def add(self, mask: NDArray[np.uint8]) -> None:
        """Take in a mask (H, W)."""
        places, borders = _counts(_places(mask), len(self._shares))
        seen = places > 0
        shares = borders[seen] / places[seen]
        known = np.where(np.isnan(self._shares[seen]), shares, self._shares[seen])
        self._shares[seen] = _KEPT * known + (1 - _KEPT) * shares

    @property
    def weights(self) -> NDArray[np.float32]:
        """Of the margin, by class (K,): 1 of what is wide, 0 of what is thin; 1 of what was never seen."""
        weights = np.clip((_THIN - self._shares) / (_THIN - _WIDE), 0, 1)
        return np.where(np.isnan(weights), 1, weights).astype(np.float32)


def held_back(
    logits: NDArray[np.float32], mask: NDArray[np.uint8], shares: BorderShares, margin: float
) -> NDArray[np.float32]:
    """Logits (K, h, w) less what each class has to lead by, given the mask (H, W) before; a copy."""
    places = _places(mask)
    if places.shape[0] > logits.shape[1] or places.shape[1] > logits.shape[2]:
        raise ValueError(f"a mask {mask.shape} does not fit logits {logits.shape} at stride {STRIDE}")
    found = np.array(logits, np.float32, order="C")  # the key keeps its own
    _hold_back(found, places, np.float32(margin) * shares.weights, shares.weights)
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
def _hold_back(
    logits: NDArray[np.float32], places: NDArray[np.uint8], ahead: NDArray[np.float32], against: NDArray[np.float32]
) -> None:
    """Take from each class at each place what the class before is ahead, as far as anything is held against it."""
    rows, columns = places.shape
    for k in range(logits.shape[0]):
        for i in range(rows):
            for j in range(columns):
                before = places[i, j]
                logits[k, i, j] -= np.float32(0) if before == k else ahead[before] * against[k]


def warm_up_hysteresis() -> None:
    """Compile what the worker runs, or load it from the cache, so that the first frame is not late."""
    mask, shares = np.zeros((STRIDE, STRIDE), np.uint8), BorderShares(1)
    shares.add(mask)
    held_back(np.zeros((1, 1, 1), np.float32), mask, shares, 1.0)
