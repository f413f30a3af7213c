"""Hysteresis: what a class must lead by, which classes it is for; masks flicker less for it and are right as often."""

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.class_map import class_map
from pipeline.hysteresis import BorderShares, held_back

HEIGHT, WIDTH = 96, 128
WIDE, OTHER, THIN = range(3)


def mask_of(places: NDArray[np.integer]) -> NDArray[np.uint8]:
    return np.kron(places, np.ones((4, 4))).astype(np.uint8)


def halves(thin_column: int | None = None) -> NDArray[np.uint8]:
    """Two halves, and a column of places of the thin class where one is named."""
    places = np.zeros((HEIGHT // 4, WIDTH // 4), np.uint8)
    places[:, WIDTH // 8 :] = OTHER
    if thin_column is not None:
        places[:, thin_column] = THIN
    return mask_of(places)


def shares_of(*masks: NDArray[np.uint8], classes: int = 3) -> BorderShares:
    shares = BorderShares(classes)
    for mask in masks:
        shares.add(mask)
    return shares


def leading(lead: float, class_: int) -> NDArray[np.float32]:
    """Logits of which one class leads by so much everywhere."""
    logits = np.zeros((3, HEIGHT // 4, WIDTH // 4), np.float32)
    logits[class_] = lead
    return logits


@pytest.mark.parametrize(("lead", "shown"), [(0.4, WIDE), (0.6, OTHER)])
def test_a_class_takes_a_pixel_only_where_it_leads_by_the_margin(lead: float, shown: int) -> None:
    before = np.full((HEIGHT, WIDTH), WIDE, np.uint8)
    logits = leading(lead, OTHER)
    found = class_map(held_back(logits, before, shares_of(halves()), 0.5), HEIGHT, WIDTH)
    assert (found == shown).all()
    np.testing.assert_array_equal(logits, leading(lead, OTHER))  # those of the key stay as they are


def test_nothing_is_held_against_what_is_thin_and_it_has_no_margin() -> None:
    shares = shares_of(halves(3))
    assert shares.weights.tolist() == [1, 1, 0]
    wide, thin = np.full((HEIGHT, WIDTH), WIDE, np.uint8), np.full((HEIGHT, WIDTH), THIN, np.uint8)
    for before, class_ in ((wide, THIN), (thin, WIDE)):
        found = class_map(held_back(leading(0.01, class_), before, shares, 0.5), HEIGHT, WIDTH)
        assert (found == class_).all()


def test_between_wide_and_thin_the_margin_shrinks() -> None:
    """Squares of 3 x 3 places, of which all but the middle are at the border, and bands four high, half at it."""
    places = np.zeros((24, 24), np.uint8)
    places[:, :3] = np.kron(np.arange(8) % 2, np.ones(3))[:, None]
    bands = np.kron(np.arange(6) % 2, np.ones(4)).astype(np.uint8)
    found = shares_of(mask_of(np.tile(bands[:, None], (1, 24))), classes=2).weights
    assert 0.2 < found.min() <= found.max() < 1


def test_shares_are_moving_means_that_a_class_out_of_sight_keeps() -> None:
    shares = shares_of(halves(3))
    for _ in range(3):
        shares.add(halves())
    assert shares.weights.tolist() == [1, 1, 0]
    blob = halves()
    blob[16:32, 16:32] = THIN  # as wide as high: no pole after all
    weights = []
    for _ in range(100):
        shares.add(blob)
        weights.append(shares.weights[THIN])
    assert weights[0] == 0
    assert weights == sorted(weights)


def test_what_was_never_seen_is_held_back_as_what_is_wide() -> None:
    assert shares_of(halves()).weights[THIN] == 1
    assert BorderShares(4).weights.tolist() == [1, 1, 1, 1]


def test_masks_flicker_less_and_are_right_as_often() -> None:
    draw = np.random.default_rng(3)
    truth, shares, before = halves(), BorderShares(3), halves()
    lead = np.linspace(-2, 2, WIDTH // 4)  # of OTHER, which is as likely in the middle
    plain: list[NDArray[np.uint8]] = []
    steady: list[NDArray[np.uint8]] = []
    for _ in range(30):
        logits = draw.normal(0, 0.2, (3, HEIGHT // 4, WIDTH // 4)).astype(np.float32)
        logits[:2] += np.stack([-lead / 2, lead / 2])[:, None, :]
        logits[THIN] -= 3
        plain.append(class_map(logits, HEIGHT, WIDTH))
        shares.add(before)
        before = class_map(held_back(logits, before, shares, 0.5), HEIGHT, WIDTH)
        steady.append(before)
    changes = [np.mean([np.mean(a != b) for a, b in zip(ones[1:], ones, strict=False)]) for ones in (plain, steady)]
    right = [np.mean(np.stack(ones) == truth) for ones in (plain, steady)]
    assert changes[1] < 0.5 * changes[0]
    assert right[1] > right[0] - 0.01


@pytest.mark.parametrize("size", [(45, 61), (48, 64), (46, 63)])
def test_sizes_that_four_does_not_divide(size: tuple[int, int]) -> None:
    logits = np.random.default_rng(0).normal(size=(3, 12, 16)).astype(np.float32)
    before = class_map(logits, *size)
    shares = shares_of(before)
    again = class_map(held_back(logits, before, shares, 0.5), *size)
    assert np.mean(again == before) > 0.97


def test_a_mask_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        held_back(leading(1, 0), np.zeros((HEIGHT + 4, WIDTH), np.uint8), BorderShares(3), 0.5)
