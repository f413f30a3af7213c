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


@pytest.mark.parametrize(("rows", "columns", "height", "width"), [(92, 120, 360, 480), (3, 5, 9, 18), (1, 1, 4, 4)])
def test_equals_interpolation_and_arg_max(rows: int, columns: int, height: int, width: int) -> None:
    logits = np.random.default_rng(0).normal(size=(11, rows, columns)).astype(np.float32)
    full = reference(logits, height, width)
    best = np.sort(full, axis=0)
    clear = best[-1] - best[-2] > 1e-4  # where no rounding can decide
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(class_map(logits, height, width)[clear], full.argmax(0)[clear])


def test_first_of_equal_classes_wins() -> None:
    assert not class_map(np.zeros((3, 2, 2), np.float32), 8, 8).any()


def test_logits_that_do_not_cover_the_picture_are_refused() -> None:
    with pytest.raises(ValueError, match="do not cover 9x8"):
        class_map(np.zeros((3, 2, 2), np.float32), 9, 8)
