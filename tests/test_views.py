"""Views: image, labels and soft labels stay on one another, whatever is cut, mirrored, relit or mixed."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.accuracy import VOID
from pipeline.views import (
    Augmentation,
    Batch,
    Cut,
    Frames,
    change_light,
    change_texture,
    cut_views,
    draw_cut,
    draw_light,
    draw_texture,
    mix_classes,
)

CLASSES, HEIGHT, WIDTH, STRIDE = 4, 48, 64, 2
COLOURS = torch.tensor([[250, 10, 10], [10, 250, 10], [10, 10, 250], [240, 240, 20]], dtype=torch.uint8)
LEVEL = torch.zeros(1, dtype=torch.int64)


def painted(labels: Tensor) -> Frames:
    """Frames whose colour and whose soft labels say the class, from labels (B, H, W)."""
    one_hot = F.one_hot(labels.long(), CLASSES).permute(0, 3, 1, 2)
    soft = F.avg_pool2d(255 * one_hot.float(), STRIDE).round().byte()
    return Frames(COLOURS[labels.long()].permute(0, 3, 1, 2), labels, soft)


def blocks(count: int = 1, side: int = 8, seed: int = 0) -> Tensor:
    """Squares of the four classes: labels (count, H, W)."""
    coarse = np.random.default_rng(seed).integers(0, CLASSES, (count, HEIGHT // side, WIDTH // side))
    return torch.from_numpy(coarse.repeat(side, 1).repeat(side, 2).astype(np.uint8))


def cut(share: tuple[float, float], centre: tuple[float, float] = (0, 0)) -> Cut:
    return Cut(torch.tensor([share], dtype=torch.float32), torch.tensor([centre], dtype=torch.float32))


def view(
    share: tuple[float, float], centre: tuple[float, float] = (0, 0), size: tuple[int, int] = (HEIGHT, WIDTH)
) -> Batch:
    return cut_views(painted(blocks()), cut(share, centre), size, LEVEL)


def classes_of(images: Tensor) -> Tensor:
    """The class (B, h, w) whose colour each pixel is nearest to."""
    apart = (images[:, None] - COLOURS.float()[None, :, :, None, None]).abs().sum(2)
    return apart.argmin(1)


def drawn(seed: int, *, scales: tuple[float, float] = (0.5, 2.0), size: tuple[int, int] = (32, 32)) -> Cut:
    augmentation = Augmentation(*scales, 0.0)
    return draw_cut((HEIGHT, WIDTH), size, augmentation, np.random.default_rng(seed), around=[None] * 16)


def test_a_cut_of_the_whole_frame_is_the_frame() -> None:
    frames, found = painted(blocks()), view((1, 1))
    assert torch.allclose(found.images, frames.images.float(), atol=1e-3)
    assert torch.equal(found.labels, frames.labels)
    assert found.soft is not None
    assert torch.allclose(found.soft * 255, frames.soft.float(), atol=1e-3)


def test_a_smaller_cut_at_scale_one_holds_the_pixels_that_lie_there() -> None:
    frames, found = painted(blocks()), view((0.5, 0.5), (0.25, -0.25), (24, 32))
    rows, columns = slice(6, 30), slice(24, 56)  # the centre lies at row 18, column 40
    assert torch.allclose(found.images, frames.images[..., rows, columns].float(), atol=1e-2)
    assert torch.equal(found.labels, frames.labels[:, rows, columns])


@pytest.mark.parametrize("share", [(1.0, 1.0), (0.5, 0.75), (0.8, 0.6), (1.6, 1.2)])
def test_a_mirrored_view_is_mirrored_in_image_labels_and_soft_labels_alike(share: tuple[float, float]) -> None:
    plain, mirrored = view(share, (0.1, 0.2)), view((-share[0], share[1]), (0.1, 0.2))
    assert torch.allclose(mirrored.images, plain.images.flip(3), atol=0.05)
    assert (mirrored.labels == plain.labels.flip(2)).float().mean() > 0.99  # ties between two pixels fall either way
    assert plain.soft is not None
    assert mirrored.soft is not None
    assert torch.allclose(mirrored.soft, plain.soft.flip(3), atol=1e-3)


def test_outside_the_frame_is_grey_void_and_has_no_soft_labels() -> None:
    found = view((2, 2))
    inside = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    inside[HEIGHT // 4 : -HEIGHT // 4, WIDTH // 4 : -WIDTH // 4] = True
    far = ~(F.max_pool2d(inside[None].float(), 5, 1, 2)[0] > 0)
    assert (found.labels[0][~inside] == VOID).all()
    assert (found.labels[0][inside] != VOID).all()
    assert torch.allclose(found.images[0][:, far], torch.tensor(128.0))
    assert found.soft is not None
    assert not found.soft[0][:, far[::STRIDE, ::STRIDE]].any()
    middle = inside & ~(F.max_pool2d((~inside)[None].float(), 5, 1, 2)[0] > 0)
    assert torch.allclose(found.soft.sum(1)[0][middle[::STRIDE, ::STRIDE]], torch.tensor(1.0), atol=1e-2)


@pytest.mark.parametrize("scale", [0.75, 1.0, 1.25, 1.5, 2.0])
def test_label_and_soft_label_are_those_of_the_picture_at_the_same_place(scale: float) -> None:
    frames = painted(blocks(16))
    augmentation = Augmentation(scale, scale, 0.0)
    where = draw_cut((HEIGHT, WIDTH), (32, 32), augmentation, np.random.default_rng(3), around=[None] * 16)
    found = cut_views(frames, where, (32, 32), torch.zeros(16, dtype=torch.int64))
    inside = found.labels != VOID
    colour = COLOURS.float()[found.labels.long().clamp_max(CLASSES - 1)].permute(0, 3, 1, 2)
    unmixed = (found.images - colour).abs().amax(1) < 100
    assert unmixed[inside].float().mean() > 0.85  # the rest lies on an edge between two classes
    assert torch.equal(classes_of(found.images)[unmixed & inside], found.labels.long()[unmixed & inside])
    assert found.soft is not None
    sure = found.soft.amax(1) > 0.9
    said = found.soft.argmax(1).repeat_interleave(STRIDE, 1).repeat_interleave(STRIDE, 2)
    where_sure = sure.repeat_interleave(STRIDE, 1).repeat_interleave(STRIDE, 2) & inside
    assert where_sure.float().mean() > 0.4
    assert (said == found.labels)[where_sure].float().mean() > 0.999


def test_labels_are_never_mixed() -> None:
    labels = torch.where(blocks(16) > 1, 7, 0).byte()
    labels[:, :5] = VOID
    frames = Frames(torch.zeros(16, 3, HEIGHT, WIDTH, dtype=torch.uint8), labels, None)
    for seed in range(4):
        found = cut_views(frames, drawn(seed), (32, 32), torch.zeros(16, dtype=torch.int64))
        assert set(found.labels.unique().tolist()) <= {0, 7, VOID}
        assert found.soft is None


def points_seen(where: Cut) -> tuple[Tensor, Tensor]:
    return where.centre - where.share.abs(), where.centre + where.share.abs()


@pytest.mark.parametrize("scales", [(0.5, 0.6), (0.75, 2.0), (2.0, 3.0)], ids=["smaller", "both", "larger"])
def test_a_view_holds_the_point_that_it_should(scales: tuple[float, float]) -> None:
    rng = np.random.default_rng(0)
    points = [tuple(point) for point in rng.uniform(-1, 1, (300, 2))] + [(-1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)]
    where = draw_cut((HEIGHT, WIDTH), (32, 32), Augmentation(*scales, 0.0), rng, around=points)
    low, high = points_seen(where)
    wanted = torch.tensor(points)
    assert ((low <= wanted + 1e-5) & (wanted <= high + 1e-5)).all()


def test_the_point_lies_anywhere_in_the_view_not_in_its_middle() -> None:
    where = draw_cut(
        (HEIGHT, WIDTH), (16, 16), Augmentation(1, 1, 0), np.random.default_rng(1), around=[(0.0, 0.0)] * 200
    )
    place = -where.centre / where.share.abs()  # -0.5..0.5 as it is drawn
    assert place.min() < -0.4
    assert place.max() > 0.4


@pytest.mark.parametrize("around", [None, (1.0, -1.0)], ids=["anywhere", "in a corner"])
def test_a_view_that_fits_lies_within_its_frame_and_a_larger_one_holds_all_of_it(
    around: tuple[float, float] | None,
) -> None:
    for scale, fits in ((1.5, True), (0.4, False)):
        where = draw_cut(
            (HEIGHT, WIDTH), (32, 32), Augmentation(scale, scale, 0), np.random.default_rng(2), around=[around] * 50
        )
        low, high = points_seen(where)
        if fits:
            assert low.min() >= -1 - 1e-5
            assert high.max() <= 1 + 1e-5
        else:
            assert low.max() <= -1 + 1e-5
            assert high.min() >= 1 - 1e-5


def test_scales_stay_in_their_range_and_keep_the_sides_in_proportion() -> None:
    share = torch.cat([drawn(seed, scales=(0.5, 2.0)).share for seed in range(20)])
    scale = 32 / WIDTH / share[:, 0].abs()
    assert scale.min() >= 0.5 - 1e-4
    assert scale.max() <= 2 + 1e-4
    assert scale.min() < 0.6
    assert scale.max() > 1.8
    assert torch.allclose(32 / HEIGHT / share[:, 1], scale)
    assert 0.4 < (scale < 1).float().mean() < 0.6  # even in its logarithm


def test_views_are_mirrored_about_half_of_the_time_and_never_upside_down() -> None:
    share = torch.cat([drawn(seed).share for seed in range(20)])
    assert 0.4 < (share[:, 0] < 0).float().mean() < 0.6
    assert (share[:, 1] > 0).all()


def test_the_same_chance_gives_the_same_cut_light_and_texture() -> None:
    def everything(seed: int) -> list[Tensor]:
        rng = np.random.default_rng(seed)
        where = draw_cut((HEIGHT, WIDTH), (32, 32), Augmentation(0.5, 2, 0), rng, around=[None, (0.2, 0.3)])
        return [where.share, where.centre, draw_light(2, 0.3, rng), draw_texture(2, 0.5, rng)]

    assert all(torch.equal(a, b) for a, b in zip(everything(4), everything(4), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(everything(4), everything(5), strict=True))


@pytest.fixture
def images() -> Tensor:
    """Noise of all values, black and white among them: (8, 3, 16, 24) in 0..255."""
    noise = torch.rand(8, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 255
    noise[0], noise[1] = 0, 255
    return noise


def test_no_jitter_and_no_texture_change_nothing(images: Tensor) -> None:
    rng = np.random.default_rng(0)
    assert torch.allclose(change_light(images, draw_light(8, 0.0, rng)), images, atol=1e-2)
    assert torch.allclose(change_texture(images, draw_texture(8, 0.0, rng), seed=0), images, atol=1e-3)


@pytest.mark.parametrize("strength", [0.2, 0.6, 0.99])
def test_light_and_texture_stay_between_black_and_white(images: Tensor, strength: float) -> None:
    for seed in range(5):
        rng = np.random.default_rng(seed)
        lit = change_light(images, draw_light(8, strength, rng))
        grainy = change_texture(images, draw_texture(8, strength, rng), seed=seed)
        for changed in (lit, grainy):
            assert changed.shape == images.shape
            assert changed.isfinite().all()
            assert changed.min() >= 0
            assert changed.max() <= 255
        assert (lit - images).abs().mean() > 1
        assert (grainy - images).abs().mean() > 1


def test_light_changes_each_picture_in_its_own_way(images: Tensor) -> None:
    same = images[2:3].repeat(3, 1, 1, 1)
    lit = change_light(same, draw_light(3, 0.4, np.random.default_rng(0)))
    assert not torch.allclose(lit[0], lit[1], atol=1)
    assert not torch.allclose(lit[1], lit[2], atol=1)


def test_a_dark_picture_is_not_turned_black_by_contrast() -> None:
    dusk = torch.rand(64, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 30 + 10
    lit = change_light(dusk, draw_light(64, 0.4, np.random.default_rng(0)))
    assert (lit.std((1, 2, 3)) > 1).all()


def test_the_noise_of_a_texture_is_that_of_its_seed(images: Tensor) -> None:
    texture = draw_texture(8, 0.5, np.random.default_rng(0))
    first = change_texture(images, texture, seed=3)
    torch.rand(5)  # whatever others draw in between
    assert torch.equal(change_texture(images, texture, seed=3), first)
    assert not torch.equal(change_texture(images, texture, seed=4), first)


def batch_of(count: int = 6, seed: int = 0) -> Batch:
    frames = painted(blocks(count, seed=seed))
    whole = Cut(torch.ones(count, 2), torch.zeros(count, 2))
    return cut_views(frames, whole, (HEIGHT, WIDTH), torch.arange(count))


def kept(count: int = 6, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).random((count, CLASSES)) < 0.5


def test_mixed_views_keep_image_labels_and_soft_labels_together() -> None:
    mixed = mix_classes(batch_of(), kept())
    assert torch.equal(classes_of(mixed.images), mixed.labels.long())
    assert mixed.soft is not None
    assert torch.equal(mixed.soft.argmax(1), mixed.labels.long()[:, ::STRIDE, ::STRIDE])
    assert torch.allclose(mixed.soft.sum(1), torch.tensor(1.0), atol=0.01)


def test_classes_that_are_kept_stay_and_the_rest_is_another_view() -> None:
    batch, keep = batch_of(), kept()
    mixed = mix_classes(batch, keep)
    stays = torch.from_numpy(keep)[torch.arange(6)[:, None, None], batch.labels.long()]
    assert 0.2 < stays.float().mean() < 0.8
    assert torch.equal(mixed.labels[stays], batch.labels[stays])
    assert torch.equal(mixed.labels[~stays], batch.labels.roll(1, 0)[~stays])
    assert torch.equal(mixed.quality, batch.quality)


def test_views_of_which_all_is_kept_are_as_they_were() -> None:
    batch = batch_of()
    same = mix_classes(batch, np.ones((6, CLASSES), bool))
    assert torch.equal(same.images, batch.images)
    assert torch.equal(same.labels, batch.labels)
    assert torch.equal(same.soft, batch.soft)


def test_views_without_labels_are_mixed_by_what_the_teacher_says() -> None:
    batch = batch_of()
    silent = replace(batch, labels=torch.full_like(batch.labels, VOID))
    by_labels, by_teacher = mix_classes(batch, kept()), mix_classes(silent, kept())
    assert torch.equal(by_teacher.images, by_labels.images)
    assert torch.equal(by_teacher.soft, by_labels.soft)
    assert (by_teacher.labels == VOID).all()


def test_void_without_a_teacher_stays() -> None:
    batch = replace(batch_of(), soft=None)
    batch.labels[:, :8] = VOID
    mixed = mix_classes(batch, np.zeros((6, CLASSES), bool))
    assert (mixed.labels[:, :8] == VOID).all()
    assert torch.equal(mixed.images[:, :, :8], batch.images[:, :, :8])
    assert torch.equal(mixed.labels[:, 8:], batch.labels.roll(1, 0)[:, 8:])
