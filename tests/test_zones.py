"""Zones: which pixels are theirs, what is said of wrong ones, and how much of each a class covers."""

import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.zones import Polygon, read_zones, zone_share

SQUARE: Polygon = ((0.25, 0.25), (0.75, 0.25), (0.75, 0.75), (0.25, 0.75))


def picture(height: int = 40, width: int = 60) -> NDArray[np.uint8]:
    """Class 1 on the left half, 2 on the right."""
    classes = np.ones((height, width), np.uint8)
    classes[:, width // 2 :] = 2
    return classes


def test_a_zone_has_the_pixels_whose_centres_are_inside() -> None:
    classes = np.zeros((4, 4), np.uint8)
    classes[1:3, 1:3] = [[1, 2], [3, 3]]
    assert zone_share(classes, SQUARE, count=5).tolist() == [0, 0.25, 0.25, 0.5, 0]


def test_shares_are_those_of_the_zone_and_not_of_the_picture() -> None:
    left: Polygon = ((0, 0), (0.5, 0), (0.5, 1), (0, 1))
    most: Polygon = ((0, 0), (0.75, 0), (0.75, 1), (0, 1))
    assert zone_share(picture(), left, count=3).tolist() == [0, 1, 0]
    assert zone_share(picture(), most, count=3) == pytest.approx([0, 2 / 3, 1 / 3])


def test_the_whole_picture_is_a_zone_too() -> None:
    whole: Polygon = ((0, 0), (1, 0), (1, 1), (0, 1))
    assert zone_share(picture(), whole, count=3).tolist() == [0, 0.5, 0.5]


def test_zones_hold_at_any_size() -> None:
    roof: Polygon = ((0.1, 0.9), (0.5, 0.1), (0.9, 0.9))
    large, small = (zone_share(picture(*size), roof, count=3) for size in ((400, 600), (40, 60)))
    assert np.abs(large - small).max() < 0.02


def test_a_hollow_outline_leaves_out_what_it_turns_away_from() -> None:
    horseshoe: Polygon = ((0, 0), (1, 0), (1, 1), (0.75, 1), (0.75, 0.5), (0.25, 0.5), (0.25, 1), (0, 1))
    classes = np.zeros((8, 8), np.uint8)
    classes[4:, 2:6] = 1
    assert zone_share(classes, horseshoe, count=2).tolist() == [1, 0]


def test_a_zone_between_centres_has_no_share() -> None:
    sliver: Polygon = ((0, 0), (0.1, 0), (0.1, 0.1), (0, 0.1))
    assert zone_share(np.zeros((4, 4), np.uint8), sliver, count=2).tolist() == [0, 0]


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=3, max_size=32))
def test_shares_of_any_outline_are_none_or_sum_to_one(corners: list[tuple[float, float]]) -> None:
    share = zone_share(picture(), tuple(corners), count=3)
    assert share.sum() == pytest.approx(1) or not share.any()


@given(st.lists(st.floats(0.01, 0.99), min_size=1, max_size=6, unique=True), st.integers(1, 50), st.integers(1, 50))
def test_neighbouring_zones_share_no_pixel_and_leave_none(cuts: list[float], height: int, width: int) -> None:
    """Stripes from edge to edge: each pixel is in one of them, also where an outline runs through its centre."""
    numbers = np.arange(height * width).reshape(height, width) % 251
    found = np.zeros(251)
    for top, bottom in pairwise([0.0, *sorted(cuts), 1.0]):
        stripe: Polygon = ((0, top), (1, top), (1, bottom), (0, bottom))
        rows = sum(top * height <= row + 0.5 < bottom * height for row in range(height))
        found += zone_share(numbers.astype(np.uint8), stripe, count=251) * rows * width
    assert found == pytest.approx(np.bincount(numbers.ravel(), minlength=251))


def test_settings_and_states_name_zones_in_the_same_form() -> None:
    zones = {"door": [[0.1, 0.4], [0.3, 0.4], [0.3, 1]]}
    assert read_zones(zones) == read_zones(json.dumps(zones)) == {"door": ((0.1, 0.4), (0.3, 0.4), (0.3, 1.0))}
    assert read_zones({}) == {}


def test_corners_are_rounded_so_that_states_stay_small() -> None:
    third = 1 / 3
    zones = read_zones({f"zone-{number}": [[third, 0], [1, third], [third, 1]] * 10 for number in range(16)})
    assert zones["zone-0"][0] == (0.3333, 0.0)
    assert len(json.dumps(zones)) < 12_000


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("door", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ([[0, 0], [1, 0], [1, 1]], "names with their corners"),
        ({"Front Door": [[0, 0], [1, 0], [1, 1]]}, "'Front Door' is no name"),
        ({"door\n": [[0, 0], [1, 0], [1, 1]]}, "is no name"),
        ({5: [[0, 0], [1, 0], [1, 1]]}, "5 is no name"),
        ({"door": [[0, 0], [1, 1]]}, "door: write 3 to 32 corners"),
        ({"door": [[0, 0], [1, 0], [1, 1]] * 11}, "door: write 3 to 32 corners"),
        ({"door": [[0, 0], [1, 0], [1, 1.01]]}, "from 0 to 1"),
        ({"door": [[0, 0], [1, 0], [1, float("nan")]]}, "from 0 to 1"),
        ({"door": [[0, 0], [1, 0], [1, True]]}, "door: write"),
        ({"door": [[0, 0], [1, 0], [1]]}, "door: write"),
        ({"door": [0, 0, 1]}, "door: write"),
        ({"door": "abc"}, "door: write"),
        ({"door": None}, "door: write"),
        ({"door": [[0, 0], [0.5, 0.5], [1, 1]]}, "door: its corners enclose nothing"),
        ({f"zone-{number}": [[0, 0], [1, 0], [1, 1]] for number in range(17)}, "17 zones, 16 at most"),
    ],
)
def test_what_is_no_zone_is_said_in_a_sentence(value: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_zones(value)
