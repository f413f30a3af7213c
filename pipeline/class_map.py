"""Logits at stride 4 to the class of every pixel, without ever making the full-size logits.

Most of a mask is the inside of things. A block of 4 x 4 pixels lies between four logits; a class that is the largest at
all four is the largest between them too, and nothing is interpolated there. Noise takes twice as long as without this.
"""

import numpy as np
from numpy.typing import NDArray

from pipeline.compiled import compiled

STRIDE = 4
_HALF = STRIDE // 2
_PHASES = STRIDE * STRIDE  # pixels of a block


@compiled
def _winners(logits: NDArray[np.float32], winners: NDArray[np.uint8]) -> None:
    """The largest one's class at each place, of equal ones the first."""
    classes, rows, columns = logits.shape
    best = np.empty(columns, np.float32)
    for i in range(rows):
        for j in range(columns):
            best[j], winners[i, j] = logits[0, i, j], 0
        for k in range(1, classes):
            for j in range(columns):
                larger = logits[k, i, j] > best[j]
                best[j] = logits[k, i, j] if larger else best[j]
                winners[i, j] = k if larger else winners[i, j]


@compiled
def _fill(logits: NDArray[np.float32], winners: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    """Row of blocks by row of blocks: all get the winner above, then those between several are interpolated."""
    rows, columns = winners.shape
    height, width = out.shape
    mixed = np.empty(columns + 1, np.int64)  # the columns of the blocks between several winners
    corners = np.empty((4, columns + 1), np.float32)
    best = np.empty((_PHASES, columns + 1), np.float32)
    winner = np.empty((_PHASES, columns + 1), np.uint8)
    line = np.empty(STRIDE * columns, np.uint8)
    for row in range((height + _HALF - 1) // STRIDE + 1):  # half-pixel centres: the first block begins at pixel -2
        top, bottom = max(row - 1, 0), min(row, rows - 1)
        count = 0
        for column in range(columns + 1):
            left, right = max(column - 1, 0), min(column, columns - 1)
            one = winners[top, left]
            mixed[count] = column
            count += (one != winners[top, right]) | (one != winners[bottom, left]) | (one != winners[bottom, right])
        for column in range(columns):
            for i in range(STRIDE):
                line[STRIDE * column + i] = winners[top, column]
        for i in range(max(STRIDE * row - _HALF, 0), min(STRIDE * row + _HALF, height)):
            for j in range(width):
                out[i, j] = line[j]
        _interpolate(logits, top, bottom, mixed[:count], corners, best, winner)
        for phase in range(_PHASES):
            i = STRIDE * row - _HALF + phase // STRIDE
            for m in range(count):
                j = STRIDE * mixed[m] - _HALF + phase % STRIDE
                if 0 <= i < height and 0 <= j < width:
                    out[i, j] = winner[phase, m]


@compiled
def _interpolate(
    logits: NDArray[np.float32], top: int, bottom: int, mixed: NDArray[np.int64],
    corners: NDArray[np.float32], best: NDArray[np.float32], winner: NDArray[np.uint8],
) -> None:  # fmt: skip
    """The class of each pixel of the blocks between two rows of logits, by phase and block."""
    classes, _, columns = logits.shape
    for k in range(classes):
        for m in range(mixed.size):
            left, right = max(mixed[m] - 1, 0), min(mixed[m], columns - 1)
            corners[0, m], corners[1, m] = logits[k, top, left], logits[k, top, right]
            corners[2, m], corners[3, m] = logits[k, bottom, left], logits[k, bottom, right]
        for phase in range(_PHASES):
            down = (np.float32(phase // STRIDE) + np.float32(0.5)) / np.float32(STRIDE)
            across = (np.float32(phase % STRIDE) + np.float32(0.5)) / np.float32(STRIDE)
            for m in range(mixed.size):
                first = corners[0, m] + down * (corners[2, m] - corners[0, m])
                second = corners[1, m] + down * (corners[3, m] - corners[1, m])
                value = first + across * (second - first)
                larger = k == 0 or value > best[phase, m]
                best[phase, m] = value if larger else best[phase, m]
                winner[phase, m] = k if larger else winner[phase, m]


def class_map(logits: NDArray[np.float32], height: int, width: int) -> NDArray[np.uint8]:
    """Logits (K, h, w) with 4h >= height and 4w >= width -> the largest one's class per pixel (height, width).

    Equal to bilinear interpolation by 4 (half-pixel centres) and arg max. Raises ValueError on other sizes.
    """
    if logits.shape[1] * STRIDE < height or logits.shape[2] * STRIDE < width:
        raise ValueError(f"logits {logits.shape} at stride {STRIDE} do not cover {height}x{width} pixels")
    found = np.ascontiguousarray(logits, np.float32)
    winners, out = np.empty(found.shape[1:], np.uint8), np.empty((height, width), np.uint8)
    _winners(found, winners)
    _fill(found, winners, out)
    return out
