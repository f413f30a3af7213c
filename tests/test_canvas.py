"""A frame's latents out of those of its regions: in place, moved, or the nearest."""

import numpy as np
import pytest

from pipeline.canvas import assemble, move
from pipeline.flow_coding import grid_of
from pipeline.regions import Grid

GRID = Grid(2, 2, 360, 480)
WHOLE = np.random.default_rng(0).normal(size=(3, 23, 30)).astype(np.float32)
CORES = {index: WHOLE[:, *place.core.at(16)] for index, place in enumerate(GRID.places)}


def flow(index: int, dx: float, dy: float) -> np.ndarray:
    """The same motion, in px, at all nodes of a region's picture."""
    picture = GRID.places[index].picture
    nodes = grid_of(picture.height, picture.width)
    return np.broadcast_to(np.float32([[[dx]], [[dy]]]), (2, nodes.rows, nodes.columns)).copy()


def test_all_regions_together_are_the_frame() -> None:
    np.testing.assert_array_equal(assemble(CORES, GRID), WHOLE)


def test_an_unknown_region_is_filled_with_the_nearest_that_is_known() -> None:
    filled = assemble({index: CORES[index] for index in (0, 2, 3)}, GRID)
    for index in (0, 2, 3):
        place = GRID.places[index].core.at(16)
        np.testing.assert_array_equal(filled[:, *place], WHOLE[:, *place])
    np.testing.assert_array_equal(filled[:, 0, 16:28], np.repeat(WHOLE[:, 0, 15:16], 12, axis=1))
    np.testing.assert_array_equal(filled[:, 11, 20], WHOLE[:, 12, 20])


def test_one_region_fills_the_frame() -> None:
    filled = assemble({3: CORES[3]}, GRID)
    assert (filled[:, 0, 0] == WHOLE[:, 12, 16]).all()
    assert (filled[:, 22, 3] == WHOLE[:, 22, 16]).all()


def test_nothing_cannot_be_put_together() -> None:
    with pytest.raises(ValueError, match="no latents"):
        assemble({}, GRID)


@pytest.mark.parametrize("index", range(4))
def test_without_motion_latents_stay(index: int) -> None:
    np.testing.assert_allclose(move(CORES[index], flow(index, 0, 0), GRID.places[index]), CORES[index], atol=1e-6)


def test_motion_by_whole_places_moves_latents_and_repeats_the_last() -> None:
    moved = move(CORES[1], flow(1, 32, -16), GRID.places[1])  # what is seen was two places right and one up
    expected = CORES[1][:, [0, *range(11)]][:, :, [*range(2, 14), 13, 13]]
    np.testing.assert_allclose(moved, expected, atol=1e-4)


def test_motion_by_half_a_place_takes_the_mean() -> None:
    moved = move(CORES[0], flow(0, 8, 0), GRID.places[0])
    np.testing.assert_allclose(moved[:, :, :-1], (CORES[0][:, :, :-1] + CORES[0][:, :, 1:]) / 2, atol=1e-4)


def test_motion_is_that_of_the_place_in_the_regions_picture() -> None:
    """A flow that grows to the right is read at the middle of each place of the core, the window's edge left out."""
    place = GRID.places[1]
    growing = flow(1, 0, 0)
    growing[0] = np.linspace(0, place.picture.width, growing.shape[2])  # by as many px as a node is right of the edge
    latents = np.broadcast_to(np.arange(14, dtype=np.float32), (1, 12, 14)).copy()
    middles = place.core.left - place.picture.left + 16 * (np.arange(14) + 0.5)
    expected = np.minimum(np.arange(14) + middles / 16, 13)
    np.testing.assert_allclose(move(latents, growing, place)[0, 5], expected, atol=1e-3)
