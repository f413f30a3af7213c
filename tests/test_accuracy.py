"""Confusion, class IoU and their mean, average precision and F1, against counting by hand."""

import numpy as np
import pytest

from pipeline.accuracy import (
    VOID,
    average_precision,
    class_iou,
    confusion,
    label_accuracy,
    mean_iou,
    micro_f1,
    shares_of,
)

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


def precision_of(truth: list[int], scores: list[float]) -> float:
    return average_precision(np.array(truth, bool), np.array(scores, np.float32))


def test_average_precision_is_the_mean_of_the_precision_at_each_hit() -> None:
    assert precision_of([1, 0, 1, 0, 1], [0.9, 0.8, 0.7, 0.6, 0.5]) == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)
    assert precision_of([0, 0, 1, 1], [0.1, 0.2, 0.3, 0.4]) == 1.0
    assert precision_of([1, 0, 0, 0], [0.1, 0.2, 0.3, 0.4]) == 0.25


def test_frames_with_equal_scores_have_no_order() -> None:
    for truth in ([1, 0, 0, 1], [0, 1, 1, 0], [0, 0, 1, 1]):
        assert precision_of(truth, [0.5] * 4) == 0.5
    assert precision_of([1, 0, 1], [0.9, 0.5, 0.5]) == pytest.approx(precision_of([1, 1, 0], [0.9, 0.5, 0.5]))


def test_what_never_occurs_has_no_average_precision() -> None:
    assert np.isnan(precision_of([0, 0], [0.9, 0.1]))


def test_micro_f1_counts_all_entries_together() -> None:
    truth = np.array([[1, 1, 0], [0, 1, 0]], bool)
    found = np.array([[1, 0, 0], [1, 1, 0]], bool)
    assert micro_f1(truth, found) == pytest.approx(2 * 2 / (3 + 3))
    assert micro_f1(truth, truth) == 1.0
    assert micro_f1(truth, ~truth) == 0.0
    assert micro_f1(np.zeros((2, 3), bool), np.zeros((2, 3), bool)) == 1.0


def test_label_accuracy_tells_classes_that_vary_from_those_that_are_always_there() -> None:
    truth = np.array([[1, 1, 0], [1, 0, 0], [1, 0, 0], [1, 1, 0]], bool)
    scores = np.array([[0.9, 0.6, 0.5], [0.9, 0.7, 0], [0.2, 0.1, 0], [0.9, 0.8, 0]], np.float32)
    figures = label_accuracy(truth, scores)
    assert figures.class_precision[:2].tolist() == [1.0, pytest.approx((1 + 2 / 3) / 2)]
    assert np.isnan(figures.class_precision[2])
    assert figures.prevalence.tolist() == [1.0, 0.5, 0.0]
    assert figures.varied_precision == pytest.approx((1 + 2 / 3) / 2)
    assert figures.mean_precision == pytest.approx((1 + (1 + 2 / 3) / 2) / 2)
    assert figures.f1 == pytest.approx(2 * 5 / (6 + 7))


def test_where_nothing_varies_there_is_no_such_mean() -> None:
    assert np.isnan(label_accuracy(np.ones((3, 2), bool), np.ones((3, 2), np.float32)).varied_precision)


def test_shares_are_of_all_pixels_void_among_them() -> None:
    labels = np.array([[0, 0, 2, VOID], [0, 0, VOID, VOID]], np.uint8)
    assert shares_of(labels, 3).tolist() == [0.5, 0.0, 0.125]
