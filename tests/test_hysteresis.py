"""Hysteresis: what a class must lead by, which classes it is for; masks flicker less for it and are right as often."""

import itertools

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.class_map import class_map
from pipeline.hysteresis import BorderShares, steadied

HEIGHT, WIDTH = 96, 128
WIDE, OTHER, THIN = range(3)


def steady_map(
    logits: NDArray[np.float32], before: NDArray[np.uint8], shares: BorderShares, margin: float
) -> NDArray[np.uint8]:
    return steadied(class_map(logits, *before.shape), logits, before, shares=shares, margin=margin)


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
    assert (steady_map(logits, before, shares_of(halves()), 0.5) == shown).all()
    np.testing.assert_array_equal(logits, leading(lead, OTHER))  # those of the key stay as they are


def test_it_is_what_bilinear_logits_and_the_margin_say_pixel_by_pixel() -> None:
    draw = np.random.default_rng(5)
    bands = np.tile((np.arange(HEIGHT // 4) // 4 % 2)[:, None], (1, WIDTH // 4))
    bands[:, 3] = THIN
    shares = shares_of(mask_of(bands))
    assert 0 < shares.weights[WIDE] < 1
    one, other = (draw.normal(0, 1, (3, HEIGHT // 4, WIDTH // 4)).astype(np.float32) for _ in range(2))
    before = class_map(one, HEIGHT, WIDTH)
    full = np.stack([cv2.resize(each, (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR) for each in other])
    plain = full.argmax(0)
    lead = full.max(0) - np.take_along_axis(full, before[None].astype(np.int64), 0)[0]
    margins = 0.5 * shares.weights[plain] * shares.weights[before]
    clear = np.abs(lead - margins) > 1e-4  # where rounding does not decide
    wanted = np.where((plain != before) & (lead >= margins), plain, before)
    assert 0.2 < np.mean(wanted != before) < 0.99 * np.mean(plain != before)
    np.testing.assert_array_equal(steady_map(other, before, shares, 0.5)[clear], wanted[clear])


def test_nothing_is_held_against_what_is_thin_and_it_has_no_margin() -> None:
    shares = shares_of(halves(3))
    assert shares.weights.tolist() == [1, 1, 0]
    wide, thin = np.full((HEIGHT, WIDTH), WIDE, np.uint8), np.full((HEIGHT, WIDTH), THIN, np.uint8)
    for before, class_ in ((wide, THIN), (thin, WIDE)):
        assert (steady_map(leading(0.01, class_), before, shares, 0.5) == class_).all()


@pytest.mark.parametrize("high", [1, 2, 3, 4, 5, 6])
def test_between_wide_and_thin_the_margin_shrinks(high: int) -> None:
    """Bands of so many places, of which two are at the border."""
    bands = np.arange(10 * high) // high % 2
    share = (20 - 2) / (10 * high) if high > 1 else 1  # the picture's own edges are none
    wanted = np.clip((0.7 - share) / 0.3, 0, 1)
    found = shares_of(mask_of(np.tile(bands[:, None], (1, 12))), classes=2).weights
    np.testing.assert_allclose(found, [wanted] * 2, atol=0.01)


def test_shares_are_moving_means_that_a_class_out_of_sight_keeps() -> None:
    shares = shares_of(halves(3))
    for _ in range(3):
        shares.add(halves())
    assert shares.weights.tolist() == [1, 1, 0]
    blob = halves()
    blob[16:64, 16:64] = THIN  # 44 of 144 places at its border: no pole after all
    weights = []
    for _ in range(100):
        shares.add(blob)
        weights.append(float(shares.weights[THIN]))
    means = 44 / 144 + 100 / 144 * 0.95 ** np.arange(1, 101)
    np.testing.assert_allclose(weights, np.clip((0.7 - means) / 0.3, 0, 1), atol=1e-4)


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
        before = steady_map(logits, before, shares, 0.5)
        steady.append(before)
    changes = [np.mean([np.mean(a != b) for a, b in itertools.pairwise(ones)]) for ones in (plain, steady)]
    right = [np.mean(np.stack(ones) == truth) for ones in (plain, steady)]
    assert changes[1] < 0.4 * changes[0]
    assert right[1] > right[0]


@pytest.mark.parametrize("size", [(45, 61), (48, 64), (46, 63), (40, 60)])
@pytest.mark.parametrize("seed", range(3))
def test_what_stands_still_stays(size: tuple[int, int], seed: int) -> None:
    """Also borders between the places of the logits, and where logits reach beyond the picture."""
    logits = np.random.default_rng(seed).normal(size=(3, 12, 16)).astype(np.float32)
    before = class_map(logits, *size)
    np.testing.assert_array_equal(steady_map(logits, before, shares_of(before), 0.5), before)


@pytest.mark.parametrize(
    ("column", "challenger"), [(column, challenger) for column in range(32, 37) for challenger in (WIDE, OTHER)]
)
@pytest.mark.parametrize("height", [HEIGHT, HEIGHT - 8, HEIGHT - 6])
def test_what_leads_by_less_gains_nothing_wherever_the_border_lies(column: int, challenger: int, height: int) -> None:
    """Within a place of the logits too, and where these reach below the picture."""
    before = np.full((height, WIDTH), WIDE, np.uint8)
    before[:, column:] = OTHER
    np.testing.assert_array_equal(steady_map(leading(0.4, challenger), before, BorderShares(3), 0.5), before)


def test_a_mask_of_another_size_is_refused() -> None:
    logits, other = leading(1, 0), np.zeros((HEIGHT + 4, WIDTH), np.uint8)
    with pytest.raises(ValueError, match=r"a mask of \(100, 128\) before one of \(96, 128\)"):
        steadied(halves(), logits, other, shares=BorderShares(3), margin=0.5)
