"""Coefficients of motion survive coding exactly, in one form only; they mean the same on every machine."""

import hashlib
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline import entropy, flow_coding
from pipeline.context import load_context, stored_context
from pipeline.entropy import Writer
from pipeline.errors import BitstreamError
from pipeline.flow_coding import (
    GLOBAL_SHAPES,
    MAX_SIDE_PX,
    STEPS_PX,
    TABLES,
    FlowGrid,
    added,
    decode_flow,
    encode_flow,
    grid_of,
    node_flow,
    opposite,
)

SIZES = ((360, 480), (180, 240), (97, 131), (17, 300), (1, 1))
WHOLE = grid_of(360, 480)
GOLDEN = bytes.fromhex(
    "800000001f0924732c6730e6baf3b29b1fa8658dd1b7aece918e47972c32fca4c08651cf19cfc890f92f0e574792c16d0296"
    "3fd7745532a712907763e96c346cfca95195aac998f4d61c35728a56870bb2be66c96e59268c1f3b08cde9bbbf21f456fdf7"
    "5abe5efe5e2af001308132ef664404b91d70a3920447eb5649c6449285c8bc8941f9a589ad46a5dfae838ae97904e4abc259"
    "2cbbc18ac81e23"
)


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    entropy.warm_up()


def drawn(seed: int, grid: FlowGrid, *, share: float = 0.05, largest: int = 4) -> NDArray[np.int16]:
    """Coefficients of which about `share` are not zero."""
    rng = np.random.default_rng(seed)
    values = rng.integers(-largest, largest + 1, (2, grid.coefficients))
    return np.where(rng.random(values.shape) < share, values, 0).astype(np.int16)


def is_a_value_or_rejected(body: bytes, grid: FlowGrid) -> bool:
    """True where the bytes are those of some coefficients, and then of no others."""
    try:
        decoded = decode_flow(body, grid)
    except BitstreamError:
        return False
    assert encode_flow(decoded, grid) == body
    return True


@settings(deadline=None, max_examples=50)
@given(
    st.integers(0, 2**32 - 1), st.sampled_from(SIZES), st.sampled_from([0.0, 0.02, 0.3, 1.0]),
    st.sampled_from([1, 5, 300, 32767]),
)  # fmt: skip
def test_decoding_gives_back_what_was_encoded(seed: int, size: tuple[int, int], share: float, largest: int) -> None:
    grid = grid_of(*size)
    coefficients = drawn(seed, grid, share=share, largest=largest)
    np.testing.assert_array_equal(decode_flow(encode_flow(coefficients, grid), grid), coefficients)


def test_no_motion_costs_a_few_bytes() -> None:
    for size in SIZES:
        grid = grid_of(*size)
        assert len(encode_flow(np.zeros((2, grid.coefficients), np.int16), grid)) <= 6


def test_global_motion_costs_little_more() -> None:
    coefficients = np.zeros((2, WHOLE.coefficients), np.int16)
    coefficients[:, :GLOBAL_SHAPES] = [(5, -3, 1, 0, 2, -1), (2, 1, -4, 0, 0, 3)]
    assert len(encode_flow(coefficients, WHOLE)) <= 10


def test_golden_body_keeps_its_meaning() -> None:
    np.testing.assert_array_equal(decode_flow(GOLDEN, WHOLE), drawn(1, WHOLE))
    assert encode_flow(drawn(1, WHOLE), WHOLE) == GOLDEN


def test_tables_keep_their_meaning() -> None:
    digest = hashlib.sha256(TABLES.cumulative.astype("<u4").tobytes() + TABLES.sizes.astype("<i4").tobytes())
    assert digest.hexdigest()[:16] == "d703661d0d416cbe"


@pytest.mark.parametrize("size", SIZES)
def test_no_sum_of_the_contexts_passes_16_bits(size: tuple[int, int]) -> None:
    for one in (flow_coding._HEAD_CONTEXT, *(tents.context for tents in grid_of(*size).tents)):
        load_context(stored_context(one, "flow"), "flow")


def test_every_truncation_is_a_value_or_rejected() -> None:
    found = [is_a_value_or_rejected(GOLDEN[:size], WHOLE) for size in range(len(GOLDEN))]
    assert sum(found) < len(GOLDEN) / 4


def test_every_flipped_byte_is_a_value_or_rejected() -> None:
    found = []
    for place in range(len(GOLDEN)):
        for flip in (1, 16, 128, 255):
            damaged = GOLDEN[:place] + bytes([GOLDEN[place] ^ flip]) + GOLDEN[place + 1 :]
            found.append(is_a_value_or_rejected(damaged, WHOLE))
            assert not found[-1] or (decode_flow(damaged, WHOLE) != drawn(1, WHOLE)).any()
    assert sum(found) < len(found) / 4


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=90), st.sampled_from(SIZES))
def test_any_bytes_are_a_value_or_rejected(body: bytes, size: tuple[int, int]) -> None:
    is_a_value_or_rejected(body, grid_of(*size))


def test_bytes_for_another_region_do_not_lead_astray() -> None:
    for size in SIZES[1:]:
        is_a_value_or_rejected(GOLDEN, grid_of(*size))


@pytest.mark.parametrize("grids", [-1, 8, 200])
def test_a_number_of_grids_that_there_is_not_is_rejected(grids: int) -> None:
    with pytest.raises(BitstreamError, match=f"flow: {grids} grids"):
        decode_flow(crafted(grids), WHOLE)


def test_an_empty_last_grid_is_rejected() -> None:
    with pytest.raises(BitstreamError, match="nothing in the last of 2 grids"):
        decode_flow(crafted(2), WHOLE)


def crafted(grids: int) -> bytes:
    """A body that names so many grids, all of them empty."""
    head = np.zeros((1 + 2 * GLOBAL_SHAPES, 1, 1), np.int16)
    head[0] = grids - flow_coding._USUAL_GRIDS
    writer = Writer(10_000)
    writer.put(head, flow_coding._HEAD_CONTEXT, TABLES)
    activity = flow_coding._flat(WHOLE)
    for tents in WHOLE.tents[: max(grids, 0)]:
        activity = flow_coding._refined(activity, tents.axis)
        nothing = np.zeros((2, *tents.shape), np.int16)
        writer.put(nothing, tents.context, TABLES, flow_coding._hint(activity, tents.axis))
    return writer.finish()


@pytest.mark.parametrize("size", [(0, 10), (10, MAX_SIDE_PX + 1)])
def test_impossible_sizes_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="sides must be 1 to"):
        grid_of(*size)


def test_coefficients_of_another_grid_are_refused() -> None:
    with pytest.raises(ValueError, match="the grid has"):
        encode_flow(np.zeros((2, 5), np.int16), WHOLE)


def test_nodes_lie_about_15_pixels_apart() -> None:
    assert (WHOLE.rows, WHOLE.columns) == (25, 33)
    for height, width in ((360, 480), (180, 240), (200, 130)):
        grid = grid_of(height, width)
        for side, nodes in ((height, grid.rows), (width, grid.columns)):
            assert 10 <= side / (nodes - 1) <= 24


def test_translation_is_one_coefficient() -> None:
    coefficients = np.zeros((2, WHOLE.coefficients), np.int16)
    coefficients[:, 0] = 7, -3
    flow = node_flow(coefficients, WHOLE)
    assert flow.dtype == np.float32
    assert (flow == np.array([7, -3])[:, None, None] * STEPS_PX[0]).all()


def test_zoom_is_one_coefficient_each_way() -> None:
    coefficients = np.zeros((2, WHOLE.coefficients), np.int16)
    coefficients[0, 1], coefficients[1, 2] = 4, 4
    flow = node_flow(coefficients, WHOLE)
    np.testing.assert_allclose(flow[0], np.broadcast_to(np.linspace(-4, 4, 33), (25, 33)), atol=4 / 64)
    np.testing.assert_allclose(flow[1], np.broadcast_to(np.linspace(-4, 4, 25)[:, None], (25, 33)), atol=4 / 64)


def test_a_tent_falls_evenly_to_zero_at_its_neighbours() -> None:
    coefficients = np.zeros((2, WHOLE.coefficients), np.int16)
    coefficients[0, GLOBAL_SHAPES + 5 + 2] = 1  # second row, third column of the coarsest grid
    fall = 1 - np.abs(np.arange(-8, 9)) / 8
    expected = np.zeros((25, 33))
    expected[:17, 8:25] = STEPS_PX[1] * np.outer(fall, fall)
    np.testing.assert_array_equal(node_flow(coefficients, WHOLE)[0], expected)


def test_flows_add_up_exactly() -> None:
    one, other = drawn(3, WHOLE), drawn(4, WHOLE)
    total = node_flow(one, WHOLE) + node_flow(other, WHOLE)
    np.testing.assert_array_equal(node_flow(one + other, WHOLE), total)


def test_largest_coefficients_give_finite_flow() -> None:
    assert np.isfinite(node_flow(np.full((2, WHOLE.coefficients), -32768, np.int16), WHOLE)).all()


def pair(*values: int) -> NDArray[np.int16]:
    """Coefficients (2, N) that are the same for dx and dy."""
    return np.array([values, values], np.int16)


@pytest.mark.parametrize(
    ("there", "age", "other_age", "expected"),
    [
        ((6, -6, 0), 1, 1, (-6, 6, 0)),
        ((6, -6), 1, 3, (-18, 18)),
        ((6, -6), 3, 1, (-2, 2)),
        ((5, -5), 3, 2, (-3, 3)),  # 10 / 3
        ((4, -4), 3, 2, (-3, 3)),  # 8 / 3
        ((1, -1, 3, -3), 2, 1, (-1, 0, -2, 1)),  # halves, rounded upwards before the sign changes
        ((1, -1, 5, -5), 6, 3, (-1, 0, -3, 2)),
        ((1, -1, 127, -127, 128, -128), 255, 1, (0, 0, 0, 0, -1, 1)),
    ],
)
def test_motion_to_the_other_side_is_as_much_as_its_frames_are_many(
    there: tuple[int, ...], age: int, other_age: int, expected: tuple[int, ...]
) -> None:
    found = opposite(pair(*there), age, other_age)
    assert found.dtype == np.int16
    np.testing.assert_array_equal(found, pair(*expected))


INT16 = st.integers(-(1 << 15), (1 << 15) - 1)


@settings(deadline=None)
@given(st.lists(INT16, min_size=1, max_size=8), st.integers(1, 255), st.integers(1, 255))
def test_the_opposite_of_any_coefficients_is_a_number_of_16_bits(values: list[int], age: int, other_age: int) -> None:
    exact = [-math.floor(Fraction(value * other_age, age) + Fraction(1, 2)) for value in values]
    within = [min(max(number, -(1 << 15)), (1 << 15) - 1) for number in exact]
    np.testing.assert_array_equal(opposite(pair(*values), age, other_age), pair(*within))


@settings(deadline=None)
@given(st.lists(st.integers(-32767, 32767), min_size=1, max_size=8), st.integers(1, 255))
def test_with_keys_that_are_as_far_the_opposite_is_the_negative(values: list[int], age: int) -> None:
    other = opposite(pair(*values), age, age)
    np.testing.assert_array_equal(other, -pair(*values))
    np.testing.assert_array_equal(opposite(other, age, age), pair(*values))


def test_what_does_not_fit_into_16_bits_stops_at_the_border() -> None:
    np.testing.assert_array_equal(opposite(pair(-32768, 32767, 130, -130), 1, 255), pair(32767, -32768, -32768, 32767))
    np.testing.assert_array_equal(opposite(pair(-32768), 1, 1), pair(32767))
    np.testing.assert_array_equal(added(pair(32767, -32768, 32767), pair(1, -1, 32767)), pair(32767, -32768, 32767))


@settings(deadline=None)
@given(st.lists(st.tuples(INT16, INT16), min_size=1, max_size=8))
def test_of_two_sets_each_coefficient_is_added(pairs: list[tuple[int, int]]) -> None:
    one, more = (pair(*values) for values in zip(*pairs, strict=True))
    found = added(one, more)
    assert found.dtype == np.int16
    np.testing.assert_array_equal(found, pair(*(min(max(a + b, -(1 << 15)), (1 << 15) - 1) for a, b in pairs)))
