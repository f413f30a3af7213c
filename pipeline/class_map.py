"""Logits at stride 4 to the class of every pixel, without ever making the full-size logits."""

import numpy as np
from numpy.typing import NDArray

from pipeline.compiled import compiled

STRIDE = 4


@compiled
def _fill(logits: NDArray[np.float32], out: NDArray[np.uint8]) -> None:
    classes, rows, columns = logits.shape
    height, width = out.shape
    line = np.empty(columns + 2, np.float32)  # one interpolated row, its ends repeated
    best = np.empty((STRIDE, columns), np.float32)
    winner = np.empty((STRIDE, columns), np.uint8)
    for i in range(height):
        # Half-pixel centres: output i lies at (i + 0.5) / 4 - 0.5.
        place = (np.float32(i) + np.float32(0.5)) / np.float32(STRIDE) - np.float32(0.5)
        above = int(np.floor(place))
        weight = place - np.float32(above)
        top, bottom = max(above, 0), min(above + 1, rows - 1)
        for k in range(classes):
            for j in range(columns):
                line[j + 1] = logits[k, top, j] + weight * (logits[k, bottom, j] - logits[k, top, j])
            line[0], line[columns + 1] = line[1], line[columns]
            for phase in range(STRIDE):
                right = (np.float32(phase) + np.float32(0.5)) / np.float32(STRIDE) - np.float32(0.5)
                first = 0 if right < 0 else 1
                share = right + np.float32(1) if right < 0 else right
                for j in range(columns):
                    value = line[j + first] + share * (line[j + first + 1] - line[j + first])
                    if k == 0 or value > best[phase, j]:
                        best[phase, j] = value
                        winner[phase, j] = k
        for j in range(width):
            out[i, j] = winner[j % STRIDE, j // STRIDE]


def class_map(logits: NDArray[np.float32], height: int, width: int) -> NDArray[np.uint8]:
    """Logits (K, h, w) with 4h >= height and 4w >= width -> the largest one's class per pixel (height, width).

    Equal to bilinear interpolation by 4 (half-pixel centres) and arg max. Raises ValueError on other sizes.
    """
    if logits.shape[1] * STRIDE < height or logits.shape[2] * STRIDE < width:
        raise ValueError(f"logits {logits.shape} at stride {STRIDE} do not cover {height}x{width} pixels")
    out = np.empty((height, width), np.uint8)
    _fill(np.ascontiguousarray(logits, np.float32), out)
    return out
