"""Coefficients follow the flow as closely as they pay for their bits, and no closer."""

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.flow_coding import GLOBAL_SHAPES, STEPS_PX, encode_flow, grid_of, node_flow
from pipeline.flow_fitting import COEFFICIENT_LIMIT, fit_flow, shapes_of

GRID = grid_of(360, 480)
CELLS = (GRID.rows - 1, GRID.columns - 1)
EVEN = np.ones(CELLS, np.float32)


def flow_of(dx: NDArray[np.float64] | float, dy: NDArray[np.float64] | float) -> NDArray[np.float32]:
    return np.stack(np.broadcast_arrays(np.broadcast_to(dx, CELLS), dy), axis=2).astype(np.float32)


def by_cell(nodes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Flow at the nodes (2, R, C) -> its mean over the cells (R - 1, C - 1, 2)."""
    means = (nodes[:, 1:, 1:] + nodes[:, 1:, :-1] + nodes[:, :-1, 1:] + nodes[:, :-1, :-1]) / 4
    return np.ascontiguousarray(means.transpose(1, 2, 0))


def refitted(flow: NDArray[np.float32], *, rate_weight: float = 1.0) -> NDArray[np.float32]:
    """What is left of the flow by cell after coding it."""
    return by_cell(node_flow(fit_flow(flow, EVEN, GRID, rate_weight=rate_weight), GRID))


def test_shapes_are_the_ones_that_the_decoder_adds_up() -> None:
    rng = np.random.default_rng(5)
    for size in ((360, 480), (97, 131), (1, 300)):
        grid = grid_of(*size)
        coefficients = rng.integers(-3, 4, (2, grid.coefficients)).astype(np.int16)
        shapes, steps = shapes_of(grid), np.array(STEPS_PX)
        summed = np.zeros((2, (grid.rows - 1) * (grid.columns - 1)))
        for n, level in enumerate(shapes.levels):
            part = slice(shapes.starts[n], shapes.starts[n + 1])
            summed[:, shapes.cells[part]] += np.outer(coefficients[:, n] * steps[level], shapes.values[part])
        expected = by_cell(node_flow(coefficients, grid)).transpose(2, 0, 1).reshape(2, -1)
        np.testing.assert_allclose(summed, expected, atol=1e-3)


def test_still_pictures_need_no_coefficients() -> None:
    assert not fit_flow(flow_of(0, 0), EVEN, GRID, rate_weight=1.0).any()


def test_global_motion_needs_global_coefficients_only() -> None:
    y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in CELLS), indexing="ij")
    flow = flow_of(6 + 9 * x - 2 * y, -3 + 2 * x + 9 * y)
    coefficients = fit_flow(flow, EVEN, GRID, rate_weight=20.0)
    assert not coefficients[:, GLOBAL_SHAPES:].any()
    assert np.abs(by_cell(node_flow(coefficients, GRID)) - flow).max() < 1.5


def test_a_moving_object_is_followed() -> None:
    flow = flow_of(0, 0)
    flow[8:16, 8:16] = 12, -6
    left = np.linalg.norm(refitted(flow) - flow, axis=2)
    assert np.median(left[9:15, 9:15]) < 3
    assert (left**2).sum() < (flow**2).sum() / 4


def test_a_single_wrong_cell_gets_no_bits() -> None:
    flow = flow_of(0, 0)
    flow[10, 10] = 9, 9
    assert not fit_flow(flow, EVEN, GRID, rate_weight=10.0).any()


def test_cells_without_weight_do_not_matter() -> None:
    rng = np.random.default_rng(2)
    flow, weights = flow_of(5, -5), EVEN.copy()
    flow[:, :10], weights[:, :10] = rng.normal(0, 30, (CELLS[0], 10, 2)), 0
    coefficients = fit_flow(flow, weights, GRID, rate_weight=1.0)
    np.testing.assert_allclose(by_cell(node_flow(coefficients, GRID))[:, 12:], flow[:, 12:], atol=1.0)


def test_a_higher_rate_weight_saves_bytes_and_costs_distance() -> None:
    rng = np.random.default_rng(1)
    coarse = rng.normal(0, 6, (4, 5, 2))
    flow = np.kron(coarse, np.ones((6, 7, 1)))[:, : CELLS[1]].astype(np.float32)[: CELLS[0]]
    sizes, distances = [], []
    for rate_weight in (0.5, 5.0, 50.0):
        coefficients = fit_flow(flow, EVEN, GRID, rate_weight=rate_weight)
        sizes.append(len(encode_flow(coefficients, GRID)))
        distances.append(float(((by_cell(node_flow(coefficients, GRID)) - flow) ** 2).sum()))
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > 2 * sizes[2]
    assert distances == sorted(distances)


def test_unreal_flow_is_limited() -> None:
    coefficients = fit_flow(flow_of(1e6, -1e6), EVEN, GRID, rate_weight=1.0)
    assert np.abs(coefficients).max() == COEFFICIENT_LIMIT


def test_the_same_flow_gives_the_same_coefficients_and_stays_as_it_is() -> None:
    flow = np.random.default_rng(3).normal(0, 8, (*CELLS, 2)).astype(np.float32)
    kept = flow.copy()
    first, second = (fit_flow(flow, EVEN, GRID, rate_weight=1.0) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(flow, kept)


@pytest.mark.parametrize("size", [(1, 1), (17, 300), (97, 131)])
def test_regions_of_any_size_are_fitted(size: tuple[int, int]) -> None:
    grid = grid_of(*size)
    flow = np.broadcast_to(np.array((3, 2), np.float32), (grid.rows - 1, grid.columns - 1, 2))
    coefficients = fit_flow(flow, np.ones(flow.shape[:2], np.float32), grid, rate_weight=1.0)
    np.testing.assert_allclose(by_cell(node_flow(coefficients, grid)), flow, atol=1.5)
