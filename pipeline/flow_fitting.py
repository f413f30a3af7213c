"""Dense flow -> the coefficients of `flow_coding`: as near to it as is worth the bits.

The region is cut into cells, one between any four nodes. Minimised is the sum over the cells of weight x squared
distance in px2, plus rate_weight x bits. One coefficient after the other, from the global ones to the finest tents and
five times over, gets the best of four values: the nearest to what is left there, the next nearer to zero, zero, and
its old one. What does not pay for its bits is zero that way.
"""

import itertools
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pipeline.compiled import compiled
from pipeline.flow_coding import GLOBAL_SHAPES, STEPS_PX, FlowGrid

COEFFICIENT_LIMIT = 1023
_SWEEPS = 5
# Bits of a coefficient that is zero, of magnitude 1, and of each magnitude more: global, then grid by grid; measured.
_ZERO_BITS = (1.6, 0.7, 0.3, 0.25, 0.12, 0.08, 0.02, 0.0)
_ONE_BITS = (4.2, 4.6, 4.7, 5.0, 6.0, 6.3, 8.7, 10.6)
_MORE_BITS = (0.25, 0.33, 0.7, 0.75, 0.8, 0.9, 0.8, 0.75)
_COSTS = np.array([_ZERO_BITS, _ONE_BITS, _MORE_BITS], np.float32)  # (3, 8)
_STEPS = np.array(STEPS_PX, np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Shapes:
    """The shape of each of N coefficients over the cells: `cells[starts[n]:starts[n + 1]]` and its values there."""

    starts: NDArray[np.int32]  # (N + 1,)
    cells: NDArray[np.int32]
    values: NDArray[np.float32]
    levels: NDArray[np.int32]  # (N,) 0: global, then 1 for the first grid and so on


def fit_flow(
    flow: NDArray[np.float32], weights: NDArray[np.float32], grid: FlowGrid, *, rate_weight: float
) -> NDArray[np.int16]:
    """Flow (R - 1, C - 1, 2) in px and weights (R - 1, C - 1), by cell -> coefficients (2, N)."""
    shapes = shapes_of(grid)
    left = np.ascontiguousarray(flow.transpose(2, 0, 1).reshape(2, -1), np.float32)
    found = np.zeros((2, grid.coefficients), np.int16)
    flat = np.ascontiguousarray(weights.reshape(-1), np.float32)
    _descend(
        shapes.starts, shapes.cells, shapes.values, shapes.levels, left, flat, np.float32(rate_weight) * _COSTS, found
    )
    return found


@lru_cache(maxsize=64)
def shapes_of(grid: FlowGrid) -> Shapes:
    """All shapes of a grid, their values averaged over each cell."""
    nodes = grid.polynomials / grid.polynomials[0, 0, 0]  # (6, R, C)
    means = (nodes[:, 1:, 1:] + nodes[:, 1:, :-1] + nodes[:, :-1, 1:] + nodes[:, :-1, :-1]) / 4
    all_cells = np.arange(means[0].size)
    cells, values, levels = [all_cells] * GLOBAL_SHAPES, list(means.reshape(GLOBAL_SHAPES, -1)), [0] * GLOBAL_SHAPES
    for level, tents in enumerate(grid.tents, 1):
        down = _tent_rows(tents.shape[0], grid.rows - 1, between=tents.axis == 1)
        across = _tent_rows(tents.shape[1], grid.columns - 1, between=tents.axis == 2)
        for row, column in itertools.product(down, across):
            i, j = np.flatnonzero(row), np.flatnonzero(column)
            cells.append((i[:, None] * (grid.columns - 1) + j).ravel())
            values.append(np.outer(row[i], column[j]).ravel())
            levels.append(level)
    starts = np.cumsum([0, *map(len, cells)])
    return Shapes(
        starts.astype(np.int32), np.concatenate(cells).astype(np.int32), np.concatenate(values).astype(np.float32),
        np.array(levels, np.int32),
    )  # fmt: skip


def _tent_rows(count: int, cells: int, *, between: bool) -> NDArray[np.float64]:
    """Values (count, cells) along one axis of tents that stand side by side, or `between` those of the grid before."""
    half = cells // (2 * count) if between else cells // (count - 1)  # width, in cells
    tops = (2 * np.arange(count) + 1) * half if between else np.arange(count) * half
    distances = np.abs(np.arange(cells) + 0.5 - tops[:, None])
    return np.maximum(1 - distances / half, 0)


@compiled
def _descend(
    starts: NDArray[np.int32], cells: NDArray[np.int32], values: NDArray[np.float32], levels: NDArray[np.int32],
    left: NDArray[np.float32], weights: NDArray[np.float32], costs: NDArray[np.float32], found: NDArray[np.int16],
) -> None:  # fmt: skip
    """Change coefficients `found` (2, N), and what they leave of the flow (2, cells), until no bit is spent in vain."""
    for _ in range(_SWEEPS):
        for n in range(levels.size):
            first, end, level = starts[n], starts[n + 1], levels[n]
            norm, pulls = np.float32(1e-9), np.zeros(2, np.float32)
            for k in range(first, end):
                share = weights[cells[k]] * values[k]
                norm += share * values[k]
                pulls[0] += share * left[0, cells[k]]
                pulls[1] += share * left[1, cells[k]]
            step = _STEPS[level]
            for d in range(2):
                old = 0 + int(found[d, n])
                new = _best(old + pulls[d] / (norm * step), old, norm * step * step, costs[:, level])
                if new != old:
                    change = np.float32(new - old) * step
                    for k in range(first, end):
                        left[d, cells[k]] -= change * values[k]
                    found[d, n] = new


@compiled
def _best(wanted: float, old: int, curvature: float, costs: NDArray[np.float32]) -> int:
    """The value with the least sum of curvature x squared distance from the wanted one and of its bits' cost."""
    near = min(max(int(np.floor(wanted + 0.5)), -COEFFICIENT_LIMIT), COEFFICIENT_LIMIT)
    nearer = near - 1 if near > 0 else near + 1 if near < 0 else 0
    best, least = 0, curvature * wanted * wanted + costs[0]
    for value in (near, nearer, old):
        cost = curvature * (value - wanted) ** 2
        cost += costs[0] if value == 0 else costs[1] + costs[2] * (abs(value) - 1)
        if cost < least:
            best, least = value, cost
    return best
