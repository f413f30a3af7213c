"""Logits at stride 4 to the class of every pixel, without ever making the full-size logits."""

import numpy as np
from numpy.typing import NDArray

from pipeline.compiled import compiled

STRIDE = 4


@compiled
def cubic_shares(after: float, shares: NDArray[np.float32]) -> None:
    """What four neighbours in a row give to a point between the middle two, `after` the second by 0 to 1: (4,).

    Cubic convolution with a = -0.75 (Keys, IEEE TASSP 1981, equation 4), as OpenCV, torch and ONNX have it.
    """
    a, t, u = np.float32(-0.75), np.float32(after), np.float32(1) - np.float32(after)
    shares[0] = a * t * u * u
    shares[1] = np.float32(1) + t * t * ((a + np.float32(2)) * t - a - np.float32(3))
    shares[2] = np.float32(1) + u * u * ((a + np.float32(2)) * u - a - np.float32(3))
    shares[3] = a * u * t * t


@compiled
def _fill(logits: NDArray[np.float32], out: NDArray[np.uint8]) -> None:
    """Rows and columns of the output that lie between the same two of the logits, four by four, are found together."""
    classes, rows, columns = logits.shape
    height, width = out.shape
    span = columns + 4  # a line: a row of logits, its ends repeated twice
    lines, count = np.empty(STRIDE * span, np.float32), STRIDE * span - 3  # one after the other: long loops are quick
    found, best = np.empty(count, np.float32), np.empty((STRIDE, count), np.float32)
    winner = np.empty((STRIDE, count), np.uint8)
    shares = np.empty((STRIDE, 4), np.float32)
    for phase in range(STRIDE):
        cubic_shares((phase + 0.5) / STRIDE, shares[phase])
    for above in range(-1, rows):  # half-pixel centres: from above the first row to below the last one
        for k in range(classes):
            plane = logits[k]
            first, second = plane[max(above - 1, 0)], plane[max(above, 0)]
            third, fourth = plane[min(above + 1, rows - 1)], plane[min(above + 2, rows - 1)]
            for phase in range(STRIDE):
                line = lines[phase * span : (phase + 1) * span]
                middle, (a, b, c, d) = line[2 : columns + 2], shares[phase]
                for j in range(columns):
                    middle[j] = a * first[j] + b * second[j] + c * third[j] + d * fourth[j]
                line[0] = line[1] = line[2]
                line[columns + 2] = line[columns + 3] = line[columns + 1]
            one, two, three, four = lines[:count], lines[1 : count + 1], lines[2 : count + 2], lines[3 : count + 3]
            for phase in range(STRIDE):
                high, of, (a, b, c, d) = best[phase], winner[phase], shares[phase]
                for j in range(count):
                    found[j] = a * one[j] + b * two[j] + c * three[j] + d * four[j]
                if k == 0:
                    high[:], of[:] = found, 0
                    continue
                for j in range(count):
                    if found[j] > high[j]:
                        high[j] = found[j]
                        of[j] = k
        for phase in range(STRIDE):
            i = STRIDE * above + STRIDE // 2 + phase
            if 0 <= i < height:
                for j in range(width):
                    shifted = j + STRIDE // 2
                    out[i, j] = winner[shifted % STRIDE, phase * span + shifted // STRIDE]


def class_map(logits: NDArray[np.float32], height: int, width: int) -> NDArray[np.uint8]:
    """Logits (K, h, w) with 4h >= height and 4w >= width -> the largest one's class per pixel (height, width).

    Equal to bicubic interpolation by 4 (half-pixel centres) and arg max. Raises ValueError on other sizes.
    """
    if logits.shape[1] * STRIDE < height or logits.shape[2] * STRIDE < width:
        raise ValueError(f"logits {logits.shape} at stride {STRIDE} do not cover {height}x{width} pixels")
    out = np.empty((height, width), np.uint8)
    _fill(np.ascontiguousarray(logits, np.float32), out)
    return out
