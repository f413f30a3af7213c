"""Noise reduction: what stands still is averaged, what moves, comes or goes is given as it is."""

import cv2
import numpy as np
import pytest
from numba.core import event
from numpy.typing import NDArray

from pipeline.noise_reduction import NoiseReduction, compile_loops, picture_filter

HEIGHT, WIDTH = 144, 192
Image = NDArray[np.uint8]


def scene(seed: int = 0, *, height: int = HEIGHT, width: int = WIDTH) -> Image:
    """Blocks of all colours, textured everywhere."""
    blocks = np.random.default_rng(seed).integers(40, 216, (height // 8, width // 8, 3), np.uint8)
    return np.repeat(np.repeat(blocks, 8, axis=0), 8, axis=1)


def street() -> Image:
    """A scene with a smooth road across its lower half."""
    picture = scene()
    picture[80:128, 16:176] = 100
    return picture


def noisy(picture: NDArray[np.number], seed: int, *, sigma: float = 3.0) -> Image:
    noise = np.random.default_rng(seed).normal(0, sigma, picture.shape)
    return np.clip(picture + noise, 0, 255).round().astype(np.uint8)


def apart(one: Image, other: NDArray[np.number]) -> float:
    """Mean distance in grey levels."""
    return float(np.abs(one.astype(float) - other).mean())


def lighter(one: Image, other: NDArray[np.number]) -> float:
    """Mean of one minus the mean of the other, in grey levels."""
    return float((one.astype(float) - other).mean())


@pytest.mark.parametrize("sigma", [2.0, 4.0, 8.0])
def test_noise_goes_where_nothing_moves(sigma: float) -> None:
    still, reduce_noise = scene(), NoiseReduction()
    seen = [noisy(still, seed, sigma=sigma) for seed in range(60)]
    given = [reduce_noise(one) for one in seen]
    assert apart(given[-1], still) < 0.25 * apart(seen[-1], still)
    assert apart(given[-1], given[-2]) < 0.1 * apart(seen[-1], seen[-2])
    assert abs(lighter(given[-1], still)) < 0.1


def test_the_first_picture_and_pictures_that_do_not_change_are_given_as_they_are() -> None:
    still, reduce_noise = noisy(scene(), 1), NoiseReduction()
    assert all(np.array_equal(reduce_noise(still), still) for _ in range(5))


@pytest.mark.parametrize("share", [0.05, 0.3])
def test_noise_goes_where_a_mask_covers_part_of_the_picture(share: float) -> None:
    still, reduce_noise, rows = scene(), NoiseReduction(), round(share * HEIGHT)
    for number in range(60):
        picture = noisy(still, number, sigma=6)
        picture[:rows] = 0
        given = reduce_noise(picture)
    assert apart(given[rows:], still[rows:]) < 0.25 * apart(picture[rows:], still[rows:])


def test_pictures_that_have_nothing_in_common_are_given_as_they_are() -> None:
    reduce_noise = NoiseReduction()
    for seed in range(5):
        picture = np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
        assert np.array_equal(reduce_noise(picture), picture)


@pytest.mark.parametrize(
    ("height", "width", "grey", "sigma", "kept"),
    [
        (8, 4, 20, 2, 0.93),
        (24, 10, 12, 2, 0.9),
        (14, 6, -45, 2, 0.97),
        (24, 10, 20, 4, 0.9),
        (40, 16, 20, 8, 0.85),
        (40, 16, 12, 8, 0.6),
    ],
)
def test_a_small_thing_that_moves_keeps_its_contrast_and_leaves_no_trace(
    height: int, width: int, grey: int, sigma: float, kept: float
) -> None:
    background, reduce_noise, seen, behind = street().astype(float), NoiseReduction(), [], []
    for number in range(80):
        left = 24 + max(0, number - 20)
        picture = background.copy()
        picture[84 : 84 + height, left : left + width] += grey
        change = reduce_noise(noisy(picture, number, sigma=sigma)) - background
        if number > 40:
            seen.append(change[84 : 84 + height, left : left + width].mean() / grey)
            behind.append(change[84 : 84 + height, left - 12 : left - 1].mean() / grey)
    assert np.mean(seen) > kept
    assert abs(np.mean(behind)) < (1 - kept) / 1.2


def test_a_faint_walker_in_a_clean_picture_beside_trees_in_the_wind_keeps_its_contrast() -> None:
    background, reduce_noise = street(), NoiseReduction()
    for number in range(40):
        picture = background.copy()
        picture[:, :64] = np.roll(background, (number * 3, number * 5), (0, 1))[:, :64]
        left = 80 + number
        picture[84:108, left : left + 10] += 8
        given = reduce_noise(picture)
        assert lighter(given[84:108, left : left + 10], background[84:108, left : left + 10]) > 0.7 * 8


def test_what_is_fainter_than_noise_fades() -> None:
    background, reduce_noise, seen = street().astype(float), NoiseReduction(), []
    for number in range(80):
        picture = background.copy()
        picture[84:124, 24 + number : 40 + number] += 8
        change = reduce_noise(noisy(picture, number, sigma=8)) - background
        seen.append(change[84:124, 24 + number : 40 + number].mean() / 8)
    assert np.mean(seen[40:]) < 0.5


def test_what_stood_still_for_long_is_gone_when_it_goes() -> None:
    background, reduce_noise = street(), NoiseReduction()
    with_car = background.copy()
    with_car[90:114, 60:100] = (30, 60, 140)
    for number in range(60):
        reduce_noise(noisy(with_car, number))
    assert apart(reduce_noise(noisy(background, 99))[90:114, 60:100], background[90:114, 60:100]) < 4


def test_what_moves_is_given_as_it_is_to_its_edges() -> None:
    background, reduce_noise = scene(), NoiseReduction()
    for column in range(16, 96, 7):
        picture = background.copy()
        picture[40:64, column : column + 24] = (250, 10, 10)
        given = reduce_noise(picture)
        assert np.array_equal(given[40:64, column : column + 24], picture[40:64, column : column + 24])
        assert apart(given, picture) < 0.05


@pytest.mark.parametrize("rate", [0.1, 0.5, 2.0])
def test_light_that_comes_up_slowly_is_followed(rate: float) -> None:
    still, reduce_noise = 0.6 * street().astype(float), NoiseReduction()
    for number in range(90):
        picture = noisy(still + rate * max(0, number - 40), number)
        assert abs(lighter(reduce_noise(picture), picture)) < 0.3


@pytest.mark.parametrize("light", [(2.0, 3.0, 4.0), (10.0, 20.0, 30.0)])
def test_light_that_changes_at_once_is_followed_and_noise_stays_away(light: tuple[float, float, float]) -> None:
    still, reduce_noise = 0.6 * street().astype(float), NoiseReduction()
    for number in range(41):
        picture = noisy(still + np.array(light) * (number == 40), number)
        given = reduce_noise(picture)
    assert np.abs((given.astype(float) - picture).mean(axis=(0, 1))).max() < 0.3
    assert apart(given, still + np.array(light)) < 0.35 * apart(picture, still + np.array(light))


def test_a_lamp_that_flickers_does_not_keep_noise_in_the_picture() -> None:
    still, reduce_noise = 0.6 * street().astype(float) + 20, NoiseReduction()
    for number in range(60):
        light = still + 10 * (-1) ** number
        picture = noisy(light, number)
        given = reduce_noise(picture)
    assert apart(given, light) < 0.35 * apart(picture, light)


def panned(world: Image, column: int) -> Image:
    return np.ascontiguousarray(world[:, column : column + WIDTH])


def test_a_camera_that_moves_gets_its_pictures_back() -> None:
    world, reduce_noise = scene(width=2 * WIDTH), NoiseReduction()
    for column in range(0, 40, 2):
        picture = noisy(panned(world, column), column)
        assert apart(reduce_noise(picture), picture) < 0.05


@pytest.mark.parametrize("contrast", [1.0, 0.2])
def test_a_smooth_road_is_not_averaged_while_the_street_around_it_moves(contrast: float) -> None:
    world, reduce_noise = (contrast * (scene(width=2 * WIDTH) - 128.0) + 128).astype(np.uint8), NoiseReduction()
    for column in range(0, 120, 4):
        picture = panned(world, column)
        picture[48:96, 40:120] = 90 + (column // 8) % 2  # of it alone nobody could tell that it moves
        given = reduce_noise(picture)
        assert np.array_equal(given[48:96, 40:120], picture[48:96, 40:120])


@pytest.mark.parametrize("sigma", [0.0, 1.0, 3.0])
def test_a_wide_road_far_from_any_texture_is_not_averaged_while_the_camera_drives(sigma: float) -> None:
    world, reduce_noise = scene(height=360, width=960), NoiseReduction()
    for column in range(0, 80, 4):
        picture = world[:, column : column + 480].copy()
        picture[160:] = 100
        picture = noisy(picture, column, sigma=sigma)
        given = reduce_noise(picture)
        assert np.array_equal(given, picture)


def test_bold_lettering_that_stands_still_does_not_make_what_moves_around_it_still() -> None:
    faint, reduce_noise = scene(width=2 * WIDTH) // 5 + 80, NoiseReduction()
    for column in range(0, 80, 4):
        picture = noisy(panned(faint, column), column, sigma=1)
        picture[48:84] = np.repeat(np.array([0, 255] * 16, np.uint8), 6)[:, None]
        given = reduce_noise(picture)
        assert np.array_equal(given[96:], picture[96:])


def test_a_street_stays_still_beside_trees_in_the_wind() -> None:
    still, reduce_noise = street(), NoiseReduction()
    for number in range(50):
        picture = noisy(still, number)
        picture[:80, :64] = noisy(np.roll(still, (number * 3, number * 5), (0, 1))[:80, :64], number)
        given = reduce_noise(picture)
    calm = np.s_[88:124, 130:170]
    assert apart(given[calm], still[calm]) < 0.4 * apart(picture[calm], still[calm])


def test_what_differs_in_its_texture_alone_is_given_as_it_is() -> None:
    checks = np.kron(np.indices((12, 12)).sum(axis=0) % 2, np.ones((2, 2)))
    reduce_noise = NoiseReduction()
    for number in range(60):
        picture = street().astype(float)
        if number % 20 == 19:
            picture[92:116, 60:84, 0] += 60 * checks - 30  # of no other mean than the road
        picture = noisy(picture, number, sigma=2)
        given = reduce_noise(picture)
        if number % 20 == 19:
            assert np.array_equal(given[92:116, 60:84], picture[92:116, 60:84])


@pytest.mark.parametrize("colour", [0, 1, 2])
def test_what_comes_in_one_colour_and_at_the_edge_of_an_odd_size_is_given_as_it_is(colour: int) -> None:
    still, reduce_noise = np.full((145, 193, 3), 90.0), NoiseReduction()
    still[:128, :184] += scene()[:128, :184] // 4
    places = np.s_[40:64, 40:80, colour], np.s_[40:80, -1, colour], np.s_[-1, 40:80, colour]
    for number in range(20):
        picture = still.copy()
        if number == 19:
            for place in places:
                picture[place] += 10
        picture = noisy(picture, number, sigma=1)
        given = reduce_noise(picture)
    assert all(np.array_equal(given[place], picture[place]) for place in places)


def test_black_stays_black_and_white_stays_white_when_the_light_changes() -> None:
    reduce_noise = NoiseReduction()
    for number in range(20):
        picture = scene().astype(float) + 2 * (-1) ** number
        picture[16:48, 16:64], picture[16:48, 80:128] = 0, 255
        given = reduce_noise(picture.astype(np.uint8))
        assert given[16:48, 16:64].max() < 8
        assert given[16:48, 80:128].min() > 247


def test_a_camera_that_trembles_by_a_fraction_of_a_pixel_stands_still() -> None:
    still, reduce_noise = street().astype(np.float32), NoiseReduction()
    for number in range(60):
        shift = np.array([[1, 0, 0.15 * (-1) ** number], [0, 1, 0]], np.float32)
        picture = noisy(cv2.warpAffine(still, shift, (WIDTH, HEIGHT), borderMode=cv2.BORDER_REPLICATE), number)
        given = reduce_noise(picture)
    road = np.s_[88:120, 24:168]
    assert apart(given[road], still[road]) < 0.35 * apart(picture[road], still[road])


@pytest.mark.parametrize("size", [(96, 160), (30, 41), (3, 5), (1, 1)])
def test_pictures_of_any_size_and_of_a_new_size(size: tuple[int, int]) -> None:
    reduce_noise = NoiseReduction()
    reduce_noise(scene())
    still = np.random.default_rng(0).integers(40, 216, (*size, 3), np.uint8)
    pictures = [noisy(still, seed) for seed in range(4)]
    given = [reduce_noise(one) for one in pictures]
    assert np.array_equal(given[0], pictures[0])
    assert all(one.shape == (*size, 3) for one in given)
    assert all(apart(one, still) < 10 for one in given)


def test_nothing_is_compiled_any_more_for_pictures_of_whatever_size_that_lie_otherwise_in_memory() -> None:
    compile_loops()
    pictures = [noisy(scene(), seed) for seed in range(6)]
    one, other = NoiseReduction(), NoiseReduction()
    with event.install_recorder("numba:compile") as compiled:
        for number, picture in enumerate(pictures):
            padded = np.empty((HEIGHT, WIDTH + 8, 3), np.uint8)[:, :WIDTH]
            padded[:] = picture
            locked = picture.copy()
            locked.setflags(write=False)
            otherwise = (np.asfortranarray(picture), padded, locked)[number % 3]
            assert np.array_equal(other(otherwise), one(picture))
    assert not compiled.buffer


def test_what_was_given_is_not_changed_by_what_comes_after() -> None:
    reduce_noise = NoiseReduction()
    given = [reduce_noise(noisy(scene(), seed)) for seed in range(3)]
    kept = [one.copy() for one in given]
    reduce_noise(noisy(scene(), 9))
    assert all(np.array_equal(one, other) for one, other in zip(given, kept, strict=True))


def test_pictures_go_through_as_they_are_unless_noise_reduction_is_asked_for() -> None:
    pictures = [noisy(scene(), seed) for seed in range(3)]
    untouched = picture_filter(noise_reduction=False)
    assert all(untouched(one) is one for one in pictures)
    assert isinstance(picture_filter(noise_reduction=True), NoiseReduction)
