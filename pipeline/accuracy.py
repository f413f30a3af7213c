"""Accuracy: confusion matrix and intersection over union of masks, average precision and F1 of class scores."""

from dataclasses import dataclass

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


def average_precision(truth: NDArray[np.bool_], scores: NDArray[np.float32]) -> float:
    """Precision averaged over recall, of scores (N,) for what is true (N,) of N frames; NaN where nothing is true.

    The sum over distinct scores, from the highest, of the recall that each adds times the precision reached by it.
    """
    if not truth.any():
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    last = np.append(ranked[1:] != ranked[:-1], True)  # frames with equal scores come in together
    hits = truth[order].cumsum()[last]
    precision = hits / (1 + np.flatnonzero(last))
    return float((precision * np.diff(hits, prepend=0)).sum() / hits[-1])


def micro_f1(truth: NDArray[np.bool_], found: NDArray[np.bool_]) -> float:
    """Harmonic mean of precision and recall over all entries together; 1 where there is nothing to find, nor found."""
    total = int(truth.sum()) + int(found.sum())
    return 2 * int((truth & found).sum()) / total if total else 1.0


@dataclass(frozen=True, slots=True, eq=False)
class LabelAccuracy:
    """Of K classes in N frames: average precision (K,), NaN where a class never occurs, prevalence (K,), micro F1."""

    class_precision: NDArray[np.float64]
    prevalence: NDArray[np.float64]
    f1: float

    @property
    def mean_precision(self) -> float:
        """Mean average precision over the classes that occur."""
        return float(np.nanmean(self.class_precision))

    @property
    def varied_precision(self) -> float:
        """The same over the classes that some frames show and some do not; the others are always right."""
        varied = (self.prevalence > 0) & (self.prevalence < 1)
        return float(self.class_precision[varied].mean()) if varied.any() else float("nan")


def label_accuracy(truth: NDArray[np.bool_], scores: NDArray[np.float32]) -> LabelAccuracy:
    """Score what is in the picture, truth (N, K), against scores (N, K); a score of one half or more is a yes."""
    precision = [average_precision(*pair) for pair in zip(truth.T, scores.T, strict=True)]
    return LabelAccuracy(np.array(precision), truth.mean(0), micro_f1(truth, scores >= 0.5))


def shares_of(labels: NDArray[np.uint8], classes: int) -> NDArray[np.float64]:
    """Share (K,) of all pixels of labels (H, W) that each class covers; void covers the rest."""
    counts = np.bincount(labels.ravel(), minlength=VOID + 1)[:classes]
    share: NDArray[np.float64] = counts / labels.size
    return share
