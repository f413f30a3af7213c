"""Confusion, class IoU and their mean, against counting by hand."""

import numpy as np
import pytest

from pipeline.accuracy import VOID, class_iou, confusion, mean_iou

TRUTH = np.array([[0, 0, 1], [1, 1, VOID]], np.uint8)
PREDICTED = np.array([[0, 1, 1], [1, 0, 2]], np.uint8)


def test_rows_are_truth_and_columns_are_prediction() -> None:
    assert confusion(TRUTH, PREDICTED, 3).tolist() == [[1, 1, 0], [1, 2, 0], [0, 0, 0]]


def test_void_pixels_of_the_truth_do_not_count() -> None:
    void = np.full((4, 4), VOID, np.uint8)
    assert confusion(void, np.zeros((4, 4), np.uint8), 3).sum() == 0


def test_matrices_of_frames_add_up_to_that_of_all_pixels() -> None:
    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(0, 11, (2, 6, 8, 8)).astype(np.uint8)
    total = sum(confusion(t, p, 11) for t, p in zip(truth, predicted, strict=True))
    assert np.array_equal(total, confusion(truth, predicted, 11))
    assert np.trace(total) == (truth == predicted).sum()


def test_class_iou_is_intersection_over_union() -> None:
    assert class_iou(confusion(TRUTH, PREDICTED, 2 + 1))[:2] == pytest.approx([1 / 3, 2 / 4])


def test_class_that_does_not_occur_has_no_iou_and_no_say_in_the_mean() -> None:
    matrix = confusion(TRUTH, PREDICTED, 3)
    assert np.isnan(class_iou(matrix)[2])
    assert mean_iou(matrix) == pytest.approx((1 / 3 + 2 / 4) / 2)


def test_class_that_is_only_predicted_counts_as_zero() -> None:
    matrix = confusion(np.zeros((2, 2), np.uint8), np.array([[0, 0], [0, 1]], np.uint8), 2)
    assert class_iou(matrix).tolist() == [0.75, 0.0]
    assert mean_iou(matrix) == 0.375


def test_perfect_prediction_scores_one() -> None:
    assert mean_iou(confusion(TRUTH, np.where(TRUTH == VOID, 0, TRUTH), 2)) == 1.0
