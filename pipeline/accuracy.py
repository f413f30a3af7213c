"""Segmentation accuracy: confusion matrix, intersection over union, agreement of two masks."""

import numpy as np
from numpy.typing import NDArray

VOID = 255


def confusion(truth: NDArray[np.uint8], predicted: NDArray[np.uint8], classes: int) -> NDArray[np.int64]:
    """Pixels (K, K) by true class (row) and predicted class (column); void pixels of the truth do not count."""
    counted = truth != VOID
    pairs = truth[counted].astype(np.int64) * classes + predicted[counted]
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def class_iou(matrix: NDArray[np.int64]) -> NDArray[np.float64]:
    """Intersection over union per class (K,); NaN for a class that neither the truth nor the prediction has."""
    hit = np.diag(matrix).astype(np.float64)
    union = matrix.sum(0) + matrix.sum(1) - hit
    return np.divide(hit, union, out=np.full_like(hit, np.nan), where=union > 0)


def mean_iou(matrix: NDArray[np.int64]) -> float:
    """Mean of the class IoUs over classes that occur."""
    return float(np.nanmean(class_iou(matrix)))
