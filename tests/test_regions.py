"""Grids cover every frame, and merging undoes splitting."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.class_map import class_map
from pipeline.errors import ConfigError
from pipeline.regions import (
    Grid,
    Rectangle,
    merge,
    onto_last,
    parse_grid,
    split,
)

CLASSES = 5


@st.composite
def grids(draw: st.DrawFn, side: int = 8) -> Grid:
    try:
        return Grid(
            draw(st.integers(1, side)), draw(st.integers(1, side)), draw(st.integers(1, 400)),
            draw(st.integers(1, 500)), draw(st.sampled_from([0, 16, 32, 40, 64])),
        )  # fmt: skip
    except ConfigError:
        assume(False)
        raise


def logits_of(grid: Grid, seed: int) -> NDArray[np.float32]:
    height, width = grid.padded_size
    return np.random.default_rng(seed).normal(size=(CLASSES, height // 4, width // 4)).astype(np.float32)


def crops_of(logits: NDArray[np.float32], grid: Grid) -> dict[int, NDArray[np.float32]]:
    return {index: logits[:, *place.at(4)] for index, place in enumerate(grid.rectangles)}


@given(grids(side=15))
def test_regions_of_one_size_cover_the_padded_frame_and_stay_within_it(grid: Grid) -> None:
    height, width = grid.padded_size
    seen = np.zeros((height, width), int)
    for place in grid.rectangles:
        assert (place.height, place.width) == grid.region_size
        assert all(side % 16 == 0 for side in (place.top, place.left, place.height, place.width))
        assert place.top >= 0 and place.left >= 0
        assert place.top + place.height <= height and place.left + place.width <= width
        seen[place.at()] += 1
    assert len(set(grid.rectangles)) == grid.count
    assert seen.all()


@given(grids())
def test_neighbours_share_the_overlap_that_was_asked_for(grid: Grid) -> None:
    rows = [grid.rectangles[row * grid.columns] for row in range(grid.rows)]
    columns = grid.rectangles[: grid.columns]
    for above, below in pairwise(rows):
        assert above.top + above.height - below.top >= grid.overlap_px
    for left, right in pairwise(columns):
        assert left.left + left.width - right.left >= grid.overlap_px


def test_a_grid_is_numbered_row_by_row() -> None:
    assert Grid(2, 2, 360, 480).rectangles == (
        Rectangle(0, 0, 208, 256), Rectangle(0, 224, 208, 256), Rectangle(160, 0, 208, 256),
        Rectangle(160, 224, 208, 256),
    )  # fmt: skip
    assert Grid(1, 1, 360, 480).rectangles == (Rectangle(0, 0, 368, 480),)


def test_the_largest_grid_of_the_wire_fits_a_large_frame() -> None:
    assert Grid(8, 8, 360, 480).count == 64
    assert Grid(15, 4, 1080, 1920).count == 60


@pytest.mark.parametrize(
    ("rows", "columns", "height", "width", "overlap_px"),
    [(0, 1, 360, 480, 0), (16, 1, 4096, 4096, 0), (15, 15, 4096, 4096, 0), (15, 1, 360, 480, 160),
     (2, 1, 16, 480, 0), (1, 2, 360, 48, 48), (1, 1, 0, 480, 0), (2, 2, 360, 480, -16)],
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


@settings(max_examples=50)
@given(grids(), st.integers(0, 1 << 16))
def test_crops_are_the_frame_with_its_last_row_and_column_repeated(grid: Grid, seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (grid.height, grid.width, 3), np.uint8)
    height, width = grid.padded_size
    padded = np.pad(image, ((0, height - grid.height), (0, width - grid.width), (0, 0)), "edge")
    crops = split(image, grid)
    assert len(crops) == grid.count
    for crop, place in zip(crops, grid.rectangles, strict=True):
        np.testing.assert_array_equal(crop, padded[place.at()])


def test_an_image_of_another_size_is_not_split() -> None:
    with pytest.raises(ValueError, match="360x480"):
        split(np.zeros((480, 360, 3), np.uint8), Grid(2, 2, 360, 480))


@settings(max_examples=30, deadline=None)
@given(grids(), st.integers(0, 1 << 16))
def test_merging_the_crops_of_logits_gives_them_back(grid: Grid, seed: int) -> None:
    logits = logits_of(grid, seed)
    np.testing.assert_array_equal(merge(crops_of(logits, grid), grid), logits)


@settings(max_examples=30, deadline=None)
@given(grids(side=3), st.integers(0, 1 << 16), st.data())
def test_the_larger_maximum_gives_all_logits_of_a_place(grid: Grid, seed: int, data: st.DataObject) -> None:
    height, width = (side // 4 for side in grid.region_size)
    present = data.draw(st.sets(st.integers(0, grid.count - 1), min_size=1))
    random = np.random.default_rng(seed)
    logits = {index: random.integers(-9, 9, (CLASSES, height, width)).astype(np.float32) for index in present}
    expected = np.zeros_like(logits_of(grid, 0))
    largest = np.full(expected.shape[1:], -np.inf)
    for index in sorted(present):
        place = grid.rectangles[index].at(4)
        wins = logits[index].max(0) > largest[place]
        expected[:, *place][:, wins] = logits[index][:, wins]
        largest[place] = np.maximum(largest[place], logits[index].max(0))
    np.testing.assert_array_equal(merge(logits, grid), expected)


def test_logits_of_other_sizes_or_regions_are_not_merged() -> None:
    grid = Grid(2, 2, 360, 480)
    good = np.zeros((CLASSES, 52, 64), np.float32)
    for logits in ({}, {4: good}, {-1: good}, {0: good[:, :51]}, {0: good, 1: good[:4]}, {0: good[0]}):
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
    crops = {index: crop for index, crop in crops_of(logits, grid).items() if index in present}
    fresh = class_map(merge(crops, grid), grid.height, grid.width)
    joined = onto_last(fresh, last, present=present, grid=grid)
    shown = np.zeros(grid.padded_size, bool)
    for index in present:
        shown[grid.rectangles[index].at()] = True
    shown = shown[: grid.height, : grid.width]
    assert (joined[~shown] == 200).all() and (joined[shown] < CLASSES).all()
    np.testing.assert_array_equal(joined[shown], fresh[shown])
    assert (last == 200).all()


def test_absent_neighbours_do_not_change_the_classes_at_the_edge() -> None:
    """The class of each place next to an absent region is one of those that its own logits interpolate to."""
    grid = Grid(1, 2, 64, 160, 32)
    steady = np.zeros((CLASSES, 16, 24), np.float32)
    steady[:2] = [[[-2.0]], [[-1.0]]]
    steady[2:] = -3.0  # all below the zeros of absent places
    assert (class_map(merge({0: steady}, grid), 64, 160)[:, :96] == 1).all()


def test_masks_of_another_size_are_not_joined() -> None:
    mask = np.zeros((360, 480), np.uint8)
    with pytest.raises(ValueError, match="360x480"):
        onto_last(mask, mask[1:], present=[0], grid=Grid(2, 2, 360, 480))
