"""Grids share out every frame, and merging windows gives back what they were cut from."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.class_map import class_map
from pipeline.errors import ConfigError
from pipeline.regions import Grid, Place, Rectangle, merge, onto_last, parse_grid, split, warm_up_merging

CLASSES = 5


@st.composite
def grids(draw: st.DrawFn, side: int = 8) -> Grid:
    height, width = draw(st.integers(1, 400)), draw(st.integers(1, 500))
    rows, columns = (draw(st.integers(1, min(side, -(-pixels // 64)))) for pixels in (height, width))
    return Grid(rows, columns, height, width, draw(st.sampled_from([0, 16, 32, 64])))


def logits_of(grid: Grid, seed: int) -> NDArray[np.float32]:
    height, width = grid.padded_size
    return np.random.default_rng(seed).normal(size=(CLASSES, height // 4, width // 4)).astype(np.float32)


def windows_of(logits: NDArray[np.float32], grid: Grid) -> dict[int, NDArray[np.float32]]:
    return {index: logits[:, *place.window.at(4)] for index, place in enumerate(grid.places)}


@given(grids())
def test_each_place_of_the_padded_frame_is_of_one_core(grid: Grid) -> None:
    seen = np.zeros(grid.padded_size, int)
    for place in grid.places:
        seen[place.core.at()] += 1
        assert place.core.height > 0 and place.core.width > 0
        assert (seen[place.core.at()] == 1).all()
    assert len(grid.places) == grid.count
    assert (seen == 1).all()


@given(grids())
def test_cores_begin_at_cells_of_the_hyper_latent_and_differ_by_one_at_most(grid: Grid) -> None:
    cores = [place.core for place in grid.places]
    assert all(core.top % 64 == 0 and core.left % 64 == 0 for core in cores)
    for sizes in ({-(-core.height // 64) for core in cores}, {-(-core.width // 64) for core in cores}):
        assert max(sizes) - min(sizes) <= 1


@given(grids())
def test_windows_reach_into_their_neighbours_and_never_out_of_the_frame(grid: Grid) -> None:
    height, width = grid.padded_size
    for place in grid.places:
        core, window = place.core, place.window
        assert window.top == max(core.top - grid.overlap_px, 0)
        assert window.left == max(core.left - grid.overlap_px, 0)
        assert window.top + window.height == min(core.top + core.height + grid.overlap_px, height)
        assert window.left + window.width == min(core.left + core.width + grid.overlap_px, width)
        assert all(side % 16 == 0 for side in (window.top, window.left, window.height, window.width))
    for left, right in pairwise(grid.places[: grid.columns]):
        assert left.window.left + left.window.width - right.window.left >= min(grid.overlap_px, right.core.width)


def test_a_grid_is_numbered_row_by_row() -> None:
    assert Grid(2, 2, 360, 480).places == (
        Place(Rectangle(0, 0, 192, 256), Rectangle(0, 0, 224, 288), Rectangle(0, 0, 224, 288)),
        Place(Rectangle(0, 256, 192, 224), Rectangle(0, 224, 224, 256), Rectangle(0, 224, 224, 256)),
        Place(Rectangle(192, 0, 176, 256), Rectangle(160, 0, 208, 288), Rectangle(160, 0, 200, 288)),
        Place(Rectangle(192, 256, 176, 224), Rectangle(160, 224, 208, 256), Rectangle(160, 224, 200, 256)),
    )
    whole = Rectangle(0, 0, 368, 480)
    assert Grid(1, 1, 360, 480).places == (Place(whole, whole, Rectangle(0, 0, 360, 480)),)


def test_the_largest_grid_of_the_wire_fits_a_large_frame() -> None:
    assert Grid(8, 8, 500, 512).count == 64
    assert Grid(15, 4, 1080, 1920).count == 60


@pytest.mark.parametrize(
    ("rows", "columns", "height", "width", "overlap_px"),
    [(0, 1, 360, 480, 0), (16, 1, 4096, 4096, 0), (15, 15, 4096, 4096, 0), (7, 1, 360, 480, 0), (1, 9, 360, 480, 0),
     (1, 2, 360, 64, 0), (1, 1, 0, 480, 0), (2, 2, 360, 480, -16), (2, 2, 360, 480, 8)],
)  # fmt: skip
def test_a_grid_that_cannot_be_is_refused(rows: int, columns: int, height: int, width: int, overlap_px: int) -> None:
    with pytest.raises(ConfigError, match=f"grid {rows}x{columns}"):
        Grid(rows, columns, height, width, overlap_px)


def test_the_grid_of_a_manifest_is_read() -> None:
    assert parse_grid("2x3", height=360, width=480) == Grid(2, 3, 360, 480)


@pytest.mark.parametrize("text", ["", "2", "2x", "x2", "2X2", "-1x2", "2x2x2", "0x1", "100x1", "2x2\n"])
def test_what_names_no_grid_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="grid"):
        parse_grid(text, height=360, width=480)


@given(grids())
def test_pictures_are_the_windows_of_the_frame_without_its_padding(grid: Grid) -> None:
    image = np.arange(grid.height * grid.width).reshape(grid.height, grid.width)
    pictures = split(image, grid)
    assert len(pictures) == grid.count
    for picture, place in zip(pictures, grid.places, strict=True):
        np.testing.assert_array_equal(picture, image[place.window.at()])
        assert picture.shape == (place.picture.height, place.picture.width)


def test_an_image_of_another_size_is_not_split() -> None:
    with pytest.raises(ValueError, match="360x480"):
        split(np.zeros((480, 360, 3), np.uint8), Grid(2, 2, 360, 480))


@settings(max_examples=30, deadline=None)
@given(grids(), st.integers(0, 1 << 16))
def test_merging_the_windows_of_logits_gives_them_back(grid: Grid, seed: int) -> None:
    logits = logits_of(grid, seed)
    np.testing.assert_array_equal(merge(windows_of(logits, grid), grid), logits)


@settings(max_examples=30, deadline=None)
@given(grids(side=3), st.integers(0, 1 << 16), st.data())
def test_the_larger_maximum_gives_all_logits_of_a_place(grid: Grid, seed: int, data: st.DataObject) -> None:
    present = data.draw(st.sets(st.integers(0, grid.count - 1), min_size=1))
    random = np.random.default_rng(seed)
    windows = windows_of(logits_of(grid, 0), grid)
    logits = {index: random.integers(-9, 9, windows[index].shape).astype(np.float32) for index in present}
    expected = np.zeros_like(logits_of(grid, 0))
    largest = np.full(expected.shape[1:], -np.inf)
    for index in sorted(present):
        place = grid.places[index].window.at(4)
        wins = logits[index].max(0) > largest[place]
        expected[:, *place][:, wins] = logits[index][:, wins]
        largest[place] = np.maximum(largest[place], logits[index].max(0))
    np.testing.assert_array_equal(merge(logits, grid), expected)


def test_logits_of_other_sizes_or_regions_are_not_merged() -> None:
    grid = Grid(2, 2, 360, 480)
    good, other = np.zeros((CLASSES, 56, 72), np.float32), np.zeros((4, 56, 64), np.float32)
    for logits in ({}, {4: good}, {-1: good}, {0: good[:, :51]}, {0: good, 1: other}, {0: good[0]}, {1: good}):
        with pytest.raises(ValueError, match="expected"):
            merge(logits, grid)


@settings(max_examples=30, deadline=None)
@given(grids(side=3), st.integers(0, 1 << 16), st.data())
def test_absent_regions_keep_the_last_mask_and_present_ones_show_theirs(
    grid: Grid, seed: int, data: st.DataObject
) -> None:
    present = data.draw(st.sets(st.integers(0, grid.count - 1), min_size=1))
    logits = logits_of(grid, seed)
    last = np.full((grid.height, grid.width), 200, np.uint8)
    windows = {index: one for index, one in windows_of(logits, grid).items() if index in present}
    fresh = class_map(merge(windows, grid), grid.height, grid.width)
    joined = onto_last(fresh, last, present=present, grid=grid)
    shown = np.zeros(grid.padded_size, bool)
    for index in present:
        shown[grid.places[index].core.at()] = True
    shown = shown[: grid.height, : grid.width]
    assert (joined[~shown] == 200).all() and (joined[shown] < CLASSES).all()
    np.testing.assert_array_equal(joined[shown], fresh[shown])
    assert (last == 200).all()


def test_absent_neighbours_do_not_change_the_classes_at_the_edge() -> None:
    """The class of each place next to an absent region is one of those that its own logits interpolate to."""
    grid = Grid(1, 2, 64, 160)
    steady = np.zeros((CLASSES, 16, 40), np.float32)
    steady[:2] = [[[-2.0]], [[-1.0]]]
    steady[2:] = -3.0  # all below the zeros of absent places
    window = grid.places[0].window
    steady = steady[:, :, : window.width // 4]
    assert (class_map(merge({0: steady}, grid), 64, 160)[:, : window.width] == 1).all()


def test_masks_of_another_size_are_not_joined() -> None:
    mask = np.zeros((360, 480), np.uint8)
    with pytest.raises(ValueError, match="360x480"):
        onto_last(mask, mask[1:], present=[0], grid=Grid(2, 2, 360, 480))


def test_merging_can_be_warmed_up() -> None:
    warm_up_merging()
