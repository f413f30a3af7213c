"""class_map against the two steps it replaces: bilinear interpolation, then arg max."""

import cv2
import numpy as np
import pytest

from pipeline.class_map import class_map


def reference(logits: np.ndarray, height: int, width: int) -> np.ndarray:
    """Logits (K, h, w) interpolated by 4 with OpenCV (half-pixel centres) and cut: (K, height, width)."""
    rows, columns = logits.shape[1:]
    full = [cv2.resize(one, (4 * columns, 4 * rows), interpolation=cv2.INTER_LINEAR) for one in logits]
    return np.stack(full)[:, :height, :width]


@pytest.mark.parametrize(
    ("rows", "columns", "height", "width"),
    [(92, 120, 360, 480), (3, 5, 9, 18), (1, 1, 4, 4), (2, 2, 3, 1), (1, 3, 2, 9)],
)
def test_equals_interpolation_and_arg_max(rows: int, columns: int, height: int, width: int) -> None:
    logits = np.random.default_rng(0).normal(size=(11, rows, columns)).astype(np.float32)
    full = reference(logits, height, width)
    best = np.sort(full, axis=0)
    clear = best[-1] - best[-2] > 1e-4  # where no rounding can decide
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(class_map(logits, height, width)[clear], full.argmax(0)[clear])


def masks_of_things(rows: int, columns: int) -> np.ndarray:
    """Logits (5, rows, columns) of large things with soft borders, as networks make them."""
    seeds = np.random.default_rng(1).normal(size=(5, 4, 4)).astype(np.float32)
    return np.stack([cv2.resize(one, (columns, rows), interpolation=cv2.INTER_CUBIC) for one in seeds])


@pytest.mark.parametrize(("height", "width"), [(80, 120), (79, 117), (78, 118), (77, 119)])
def test_blocks_inside_of_things_and_between_them_equal_it_too(height: int, width: int) -> None:
    logits = masks_of_things(20, 30)
    full = reference(logits, height, width)
    best = np.sort(full, axis=0)
    clear = best[-1] - best[-2] > 1e-5
    assert clear.mean() > 0.99
    found = class_map(logits, height, width)
    assert len(np.unique(found)) > 2
    np.testing.assert_array_equal(found[clear], full.argmax(0)[clear])


def test_a_class_that_wins_at_no_corner_can_win_between_them() -> None:
    logits = np.zeros((3, 1, 2), np.float32)
    logits[0, 0], logits[1, 0], logits[2, 0] = (10, -10), (-10, 10), (6, 6)
    assert class_map(logits, 1, 8)[0].tolist() == [0, 0, 0, 2, 2, 1, 1, 1]


def test_first_of_equal_classes_wins() -> None:
    assert not class_map(np.zeros((3, 2, 2), np.float32), 8, 8).any()


def test_first_of_equal_classes_wins_between_others_too() -> None:
    logits = np.zeros((4, 1, 2), np.float32)
    logits[0, 0], logits[3, 0] = (9, -9), (-9, 9)
    logits[1:3] = 8
    assert class_map(logits, 1, 8)[0].tolist() == [0, 0, 1, 1, 1, 1, 3, 3]


def test_logits_that_do_not_cover_the_picture_are_refused() -> None:
    with pytest.raises(ValueError, match="do not cover 9x8"):
        class_map(np.zeros((3, 2, 2), np.float32), 9, 8)
