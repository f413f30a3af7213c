"""Motion is found as it is, costs little, and carries logits to where things have moved."""

import itertools
from collections.abc import Sequence

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline import entropy, motion
from pipeline.flow_coding import added, decode_flow, encode_flow, grid_of, node_flow, opposite
from pipeline.motion import Motion, MotionTracker, fuse, warp
from pipeline.streets import StreetFrame, render_street

ODD_SIZES = ((97, 131), (181, 243), (17, 300), (1, 1))
K = 5


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    entropy.warm_up()
    motion.warm_up_tracking()
    motion.warm_up_warping()


@pytest.fixture(scope="module")
def street() -> list[StreetFrame]:
    """Two thirds of a second of a moving camera, 6 frames per second."""
    return list(render_street(3, width=320, height=240, frames=17, fps=6))[12:]


def textured(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """RGB (H, W, 3) with something to hold on to everywhere."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.float32)
    soft = cv2.GaussianBlur(noise, (0, 0), 3)
    return ((soft - soft.min()) / (np.ptp(soft) + 1e-6) * 255).astype(np.uint8)


def tracked(images: Sequence[NDArray[np.uint8]]) -> Motion:
    """The motion from the first to the last, all between them followed."""
    tracker = MotionTracker(*images[0].shape[:2])
    tracker.start(images[0])
    return [tracker.track(image, age) for age, image in enumerate(images[1:], 1)][-1]


def at_pixels(flow: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Flow at the nodes (2, R, C) -> (H, W, 2)."""
    y, x = ((np.arange(n) + 0.5) / n * (nodes - 1) for n, nodes in ((height, flow.shape[1]), (width, flow.shape[2])))
    places = np.meshgrid(x.astype(np.float32), y.astype(np.float32))
    return cv2.remap(np.ascontiguousarray(flow.transpose(1, 2, 0)), *places, cv2.INTER_LINEAR)


def logits_of(height: int, width: int, seed: int = 0) -> NDArray[np.float32]:
    """(K, h, w) at stride 4, padded as the decoder's are to a multiple of 16 pixels."""
    shape = (K, 4 * -(-height // 16), 4 * -(-width // 16))
    return np.random.default_rng(seed).normal(0, 3, shape).astype(np.float32)


def even_flow(height: int, width: int, dx: float, dy: float) -> NDArray[np.float32]:
    grid = grid_of(height, width)
    return np.broadcast_to(np.array((dx, dy), np.float32)[:, None, None], (2, grid.rows, grid.columns)).copy()


def test_exact_flow_of_a_street_is_found(street: list[StreetFrame]) -> None:
    errors, motions = [], []
    for before, now in itertools.pairwise(street):
        found = at_pixels(tracked([before.image, now.image]).flow, 240, 320)
        errors.append(np.linalg.norm(found - now.flow, axis=2)[now.visible])
        motions.append(np.linalg.norm(now.flow, axis=2)[now.visible])
    error, motion = np.concatenate(errors), np.concatenate(motions)
    assert np.median(error) < 1.5
    assert error.mean() < motion.mean() / 2


def test_motion_since_an_older_key_is_followed(street: list[StreetFrame]) -> None:
    images = [frame.image for frame in street[:5]]
    followed, jumped = tracked(images), tracked([images[0], images[-1]])
    assert followed.residual.mean() < jumped.residual.mean() * 1.05
    assert len(encode_flow(followed.coefficients, grid_of(240, 320))) < 300


def test_a_shifted_picture_has_the_shift_as_its_flow() -> None:
    large = textured(200, 260)
    key, picture = large[20:180, 20:240], large[14:174, 29:249]
    motion = tracked([key, picture])
    inside = motion.flow[:, 2:-2, 2:-2]
    assert np.abs(inside - np.array((9, -6))[:, None, None]).max() < 1.5
    assert motion.residual[1:-1, 1:-1].max() < 8


def test_a_still_picture_costs_a_few_bytes(street: list[StreetFrame]) -> None:
    motion = tracked([street[0].image, street[0].image])
    assert not motion.coefficients.any() and not motion.flow.any()
    assert motion.residual.max() == 0
    assert len(encode_flow(motion.coefficients, grid_of(240, 320))) <= 6


@pytest.mark.parametrize("rate_weight", [motion.RATE_WEIGHT, 20.0])
def test_motion_that_is_fitted_later_is_the_same(street: list[StreetFrame], rate_weight: float) -> None:
    grid, edges = grid_of(240, 320), np.random.default_rng(2).random((15, 20), np.float32)
    at_once, later = (MotionTracker(240, 320, rate_weight=rate_weight) for _ in range(2))
    for tracker in (at_once, later):
        tracker.start(street[0].image, edges)
    for age, frame in enumerate(street[1:4], 1):
        found, traced = at_once.track(frame.image, age), later.trace(frame.image, age)
        assert traced.age == age
        fitted = traced.fitted(grid, rate_weight=rate_weight)
        np.testing.assert_array_equal(fitted.coefficients, found.coefficients)
        np.testing.assert_array_equal(fitted.flow, found.flow)
        for measured, again in zip(measures(fitted), measures(found), strict=True):
            np.testing.assert_allclose(measured, again, rtol=1e-5, atol=1e-5)  # OpenCV's sums depend on alignment


def measures(found: Motion) -> list[NDArray[np.float32]]:
    assert found.outline is not None
    return [found.residual, found.detail, found.outline]


def test_beyond_what_is_expected_only_the_rest_is_coded(street: list[StreetFrame]) -> None:
    """Of a picture between two keys: what the motion to one of them leads to expect of that to the other."""
    grid = grid_of(240, 320)
    before, after = MotionTracker(240, 320), MotionTracker(240, 320)
    before.start(street[0].image)
    after.start(street[2].image)
    near, far = (tracker.trace(street[1].image, 1) for tracker in (before, after))
    alone = far.fitted(grid).coefficients
    np.testing.assert_array_equal(far.beyond(np.zeros_like(alone), grid), alone)
    expected = opposite(near.fitted(grid).coefficients, 1, 1)
    more = far.beyond(expected, grid)
    assert len(encode_flow(more, grid)) < len(encode_flow(alone, grid))
    told = [node_flow(one, grid) for one in (alone, expected, added(expected, more))]
    own, guessed, both = (np.abs(far.flow - at_cells(flow)).mean() for flow in told)
    assert both < guessed
    assert both < 1.25 * own


def at_cells(flow: NDArray[np.float32]) -> NDArray[np.float32]:
    """Flow at the nodes (2, R, C) -> its means over the cells (R - 1, C - 1, 2)."""
    rows = (flow[:, 1:] + flow[:, :-1]) / 2
    return ((rows[:, :, 1:] + rows[:, :, :-1]) / 2).transpose(1, 2, 0)


def test_the_worker_has_the_flow_of_the_camera(street: list[StreetFrame]) -> None:
    motion, grid = tracked([frame.image for frame in street[:3]]), grid_of(240, 320)
    sent = encode_flow(motion.coefficients, grid)
    np.testing.assert_array_equal(node_flow(decode_flow(sent, grid), grid), motion.flow)


def test_the_same_pictures_give_the_same_motion(street: list[StreetFrame]) -> None:
    images = [frame.image for frame in street[:3]]
    np.testing.assert_array_equal(tracked(images).coefficients, tracked(images).coefficients)


def test_a_new_key_forgets_the_old_one(street: list[StreetFrame]) -> None:
    tracker = MotionTracker(240, 320)
    tracker.start(street[0].image)
    tracker.track(street[1].image, 1)
    tracker.start(street[2].image)
    again = tracker.track(street[3].image, 1)
    np.testing.assert_array_equal(again.coefficients, tracked([street[2].image, street[3].image]).coefficients)


def test_motion_is_more_exact_where_the_mask_has_edges(street: list[StreetFrame]) -> None:
    left = np.zeros((15, 20), np.float32)
    left[:, :10] = 0.5
    errors = []
    for outline in (left, left[:, ::-1].copy()):
        tracker = MotionTracker(240, 320)
        tracker.start(street[0].image, outline)
        found = tracker.track(street[1].image, 1)
        off = np.linalg.norm(at_pixels(found.flow, 240, 320) - street[1].flow, axis=2)
        errors.append([np.median(half[seen]) for half, seen in _halves(off, street[1].visible)])
    at_left, at_right = errors
    assert at_left[0] < at_right[0]
    assert at_right[1] < at_left[1]


def _halves(off: NDArray[np.float32], seen: NDArray[np.bool_]) -> list[tuple[NDArray[np.float32], NDArray[np.bool_]]]:
    return [(off[:, part], seen[:, part]) for part in (slice(None, 160), slice(160, None))]


def test_the_outline_moves_with_the_picture() -> None:
    large = textured(200, 260)
    key, picture = large[20:180, 20:228], large[20:180, 36:244]
    outline = np.zeros((10, 13), np.float32)
    outline[:, 8] = 1.0  # its middle 136 px from the left, and in the picture 16 px less
    tracker = MotionTracker(160, 208)
    tracker.start(key, outline)
    found = tracker.track(picture, 1).outline
    assert found is not None
    middles = (np.arange(found.shape[1]) + 0.5) * 208 / found.shape[1]
    assert (found.mean(0) * middles).sum() / found.mean(0).sum() == pytest.approx(120, abs=3)


@pytest.mark.parametrize("size", [(97, 131), (180, 243), (17, 300)])
def test_an_outline_covers_pictures_of_any_size_and_no_other(size: tuple[int, int]) -> None:
    first, second = (textured(*size, seed) for seed in (0, 1))
    tracker, shape = MotionTracker(*size), (-(-size[0] // 16), -(-size[1] // 16))
    tracker.start(first, np.full(shape, 0.25, np.float32))
    found = tracker.track(second, 1)
    assert found.outline is not None
    assert found.outline.shape == found.residual.shape
    np.testing.assert_allclose(found.outline, 0.25, atol=1e-6)
    with pytest.raises(ValueError, match="outline"):
        tracker.start(first, np.zeros((shape[0] + 1, shape[1]), np.float32))


def test_a_higher_rate_weight_gives_smaller_bodies(street: list[StreetFrame]) -> None:
    sizes = []
    for rate_weight in (0.1, 20.0):
        tracker = MotionTracker(240, 320, rate_weight=rate_weight)
        tracker.start(street[0].image)
        sizes.append(len(encode_flow(tracker.track(street[1].image, 1).coefficients, grid_of(240, 320))))
    assert sizes[1] < sizes[0]


@pytest.mark.parametrize("size", ODD_SIZES)
def test_regions_of_any_size_pass_through(size: tuple[int, int]) -> None:
    motion = tracked([textured(*size), textured(*size, seed=1), textured(*size)])
    grid = grid_of(*size)
    decoded = decode_flow(encode_flow(motion.coefficients, grid), grid)
    moved = warp(logits_of(*size), node_flow(decoded, grid), *size)
    assert moved.shape == logits_of(*size).shape and np.isfinite(moved).all()


def test_without_a_key_there_is_no_motion(street: list[StreetFrame]) -> None:
    tracker = MotionTracker(240, 320)
    with pytest.raises(ValueError, match="there must be one"):
        tracker.track(street[0].image, 1)
    tracker.start(street[0].image)
    with pytest.raises(ValueError, match="0 frames ago"):
        tracker.track(street[0].image, 0)


def test_pictures_of_another_size_are_refused(street: list[StreetFrame]) -> None:
    with pytest.raises(ValueError, match="expected 90x120x3"):
        MotionTracker(90, 120).start(street[0].image)


@pytest.mark.parametrize("size", [(360, 480), *ODD_SIZES])
def test_no_flow_leaves_logits_as_they_are(size: tuple[int, int]) -> None:
    logits = logits_of(*size)
    np.testing.assert_allclose(warp(logits, even_flow(*size, 0, 0), *size), logits, atol=1e-4)


def test_flow_of_whole_places_moves_logits_by_them() -> None:
    logits = logits_of(96, 128)
    moved = warp(logits, even_flow(96, 128, 8, -12), 96, 128)
    np.testing.assert_allclose(moved[:, 3:, :-2], logits[:, :-3, 2:], atol=1e-4)


def test_flow_between_places_blends_logits() -> None:
    logits = logits_of(96, 128)
    moved = warp(logits, even_flow(96, 128, 2, 0), 96, 128)
    np.testing.assert_allclose(moved[:, :, :-1], (logits[:, :, :-1] + logits[:, :, 1:]) / 2, atol=1e-4)


def test_places_from_outside_the_key_take_the_nearest_class_and_lose_to_any_other_region() -> None:
    logits = logits_of(96, 128)
    moved = warp(logits, even_flow(96, 128, 40, 0), 96, 128)
    np.testing.assert_array_equal(moved[:, :, 22:].argmax(0), logits[:, :, -1:].argmax(0).repeat(10, 1))
    assert moved[:, :, 22:].max() < logits.min()
    assert moved[:, :, :22].max() > 0


def uncovering() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """An object (class 1) on the ground (class 0) and the flow of its going 24 px to the right: logits, flow."""
    logits = np.zeros((2, 96, 128), np.float32)
    logits[1, 30:60, 40:70], logits[0] = 5, 2
    flow = even_flow(384, 512, 0, 0)
    across, down = 512 / (flow.shape[2] - 1), 384 / (flow.shape[1] - 1)
    flow[0, round(120 / down) : round(240 / down) + 1, round(176 / across) : round(304 / across) + 1] = -24
    return logits, flow


def test_an_uncovered_place_is_not_smeared_but_less_sure() -> None:
    logits, flow = uncovering()
    moved = warp(logits, flow, 384, 512)
    classes = moved.argmax(0)
    assert (classes[33:57, 48:74] == 1).all()  # the object where it went
    assert (classes[33:57, 30:39] == 0).all() and (classes[33:57, 80:] == 0).all()
    assert 0.8 * 900 < (classes == 1).sum() < 1.35 * 900  # it has not grown by its way of 6 places
    gap = moved.max(0)[36:54, 40:46]
    assert gap.min() < 0 < moved.max(0)[36:54, 50:70].min()


def test_flow_beyond_all_reason_is_survived() -> None:
    grid = grid_of(96, 128)
    for number in (-32768, 32767):
        flow = node_flow(np.full((2, grid.coefficients), number, np.int16), grid)
        assert np.isfinite(warp(logits_of(96, 128), flow, 96, 128)).all()


def test_logits_that_do_not_cover_the_region_are_refused() -> None:
    with pytest.raises(ValueError, match="do not cover"):
        warp(logits_of(96, 128), even_flow(100, 128, 0, 0), 100, 128)


@pytest.mark.parametrize("share", [0.0, 0.004, 0.5, 0.996, 1.0])
def test_two_masks_that_are_the_same_stay_as_they_are(share: float) -> None:
    logits = logits_of(96, 128)
    np.testing.assert_array_equal(fuse(logits, logits, share), logits)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.996, 1.0])
def test_where_both_are_as_sure_the_share_decides(share: float) -> None:
    one = logits_of(96, 128)
    other = one[[1, 2, 3, 4, 0]]  # other classes, with the same largest logit everywhere
    fused = fuse(one, other, share)
    assert fused.dtype == np.float32
    np.testing.assert_allclose(fused, share * one + (1 - share) * other, atol=1e-5)


def test_a_share_of_all_or_nothing_leaves_the_other_out_however_sure_it_is() -> None:
    one, other = logits_of(96, 128), 20 * logits_of(96, 128, seed=1)
    np.testing.assert_allclose(fuse(one, other, 1.0), one, atol=1e-4)
    np.testing.assert_array_equal(fuse(one, other, 0.0), other)


def test_the_surer_of_two_counts_more() -> None:
    one, other = (np.zeros((2, 1, 3), np.float32) for _ in range(2))
    one[0], other[1] = (2, 6, 10), 6
    fused = fuse(one, other, 0.5)
    assert fused.argmax(0).tolist() == [[1, 0, 0]]
    leads = fused[0] - fused[1]
    assert (np.diff(leads[0]) > 0).all()
    weights = np.exp(0.25 * np.array([-4, 0, 4]))
    np.testing.assert_allclose(fused[0, 0], weights / (weights + 1) * (2, 6, 10), rtol=1e-5)


@pytest.mark.parametrize("first", [True, False])
def test_what_one_key_did_not_see_is_told_by_the_other(first: bool) -> None:
    logits, seen = logits_of(96, 128), logits_of(96, 128, seed=1)
    moved = warp(logits, even_flow(96, 128, 40, 0), 96, 128)  # the last 10 places of a row are outside
    fused = fuse(moved, seen, 0.99) if first else fuse(seen, moved, 0.01)
    np.testing.assert_array_equal(fused[:, :, 22:].argmax(0), seen[:, :, 22:].argmax(0))
    np.testing.assert_allclose(fused[:, :, 22:], seen[:, :, 22:], atol=0.05)


def test_what_was_hidden_from_one_key_is_told_by_the_other() -> None:
    logits, flow = uncovering()
    moved, later = warp(logits, flow, 384, 512), np.zeros_like(logits)
    later[1] = 3  # it says class 1 everywhere, and is sure
    fused = fuse(moved, later, 0.5)
    assert moved[:, 36:54, 40:46].argmax(0).min() == 0
    assert (fused[:, 36:54, 41:45].argmax(0) == 1).all()


@pytest.mark.parametrize("size", [1e4, 1e30])
def test_however_much_two_masks_differ_the_mean_is_finite_and_between_them(size: float) -> None:
    one, other = np.full((3, 4, 5), size, np.float32), np.full((3, 4, 5), -size, np.float32)
    for share in (0.0, 0.5, 1.0):
        for fused in (fuse(one, other, share), fuse(other, one, share)):
            assert np.isfinite(fused).all()
            assert (np.abs(fused) <= size * np.float32(1.0001)).all()


def test_masks_of_one_class_and_of_any_size_are_fused() -> None:
    for shape in ((1, 4, 4), (2, 1, 1), (11, 3, 7)):
        one, other = (np.random.default_rng(seed).normal(size=shape).astype(np.float32) for seed in (0, 1))
        kept = one.copy(), other.copy()
        fused = fuse(one, other, 0.4)
        assert fused.shape == shape
        assert ((np.minimum(one, other) - 1e-5 <= fused) & (fused <= np.maximum(one, other) + 1e-5)).all()
        np.testing.assert_array_equal(np.stack([one, other]), np.stack(kept))  # keys are not changed
