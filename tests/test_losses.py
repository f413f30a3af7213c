"""The terms of the loss: what counts, what does not, and in which units."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline import losses
from pipeline.losses import VOID
from pipeline.models.entropy_model import Coded

CLASSES = 4


def logits() -> Tensor:
    return torch.randn(2, CLASSES, 6, 8, generator=torch.Generator().manual_seed(0))


def labels() -> Tensor:
    return torch.randint(0, CLASSES, (2, 6, 8), generator=torch.Generator().manual_seed(1)).byte()


def one_hot(classes: Tensor) -> Tensor:
    return F.one_hot(classes.long(), CLASSES).permute(0, 3, 1, 2).float()


EVEN = torch.ones(CLASSES)
WEIGHTS = torch.tensor([0.5, 1.0, 2.0, 4.0])
HALVES = ((0, 4), (4, 8))  # columns


def test_rate_is_in_bits_per_pixel_of_each_image() -> None:
    coded = Coded(torch.zeros(2, 1, 2, 2), y_bits=torch.tensor([100.0, 300.0]), z_bits=torch.tensor([10.0, 30.0]))
    assert losses.rate_bpp(coded, pixels=1000).tolist() == pytest.approx([0.11, 0.33])


def test_segmentation_is_in_nats_per_pixel() -> None:
    even = torch.zeros(1, CLASSES, 2, 2)
    assert losses.segmentation(even, torch.zeros(1, 2, 2).byte(), EVEN).item() == pytest.approx(math.log(CLASSES))


def test_void_pixels_change_neither_segmentation_loss_nor_gradient() -> None:
    scores, truth = logits().requires_grad_(), labels()
    truth[:, :3] = VOID
    loss = losses.segmentation(scores, truth, WEIGHTS)
    loss.backward()
    seen = losses.segmentation(scores[:, :, 3:], truth[:, 3:], WEIGHTS)
    assert loss.item() == pytest.approx(seen.item())
    assert not scores.grad[:, :, :3].any()


def test_class_weight_scales_a_pixels_share_of_the_mean() -> None:
    scores = torch.zeros(1, 2, 1, 2)
    scores[0, :, 0, 1] = torch.tensor([3.0, 0.0])
    truth = torch.tensor([[[0, 1]]], dtype=torch.uint8)
    each = F.cross_entropy(scores, truth.long(), reduction="none")[0, 0]
    weighted = losses.segmentation(scores, truth, torch.tensor([1.0, 3.0]))
    assert weighted.item() == pytest.approx(((each[0] + 3 * each[1]) / 4).item())


@pytest.mark.parametrize("weights", [EVEN, WEIGHTS], ids=["even", "weighted"])
def test_segmentation_is_torchs_cross_entropy_where_all_is_labelled(weights: Tensor) -> None:
    expected = F.cross_entropy(logits(), labels().long(), weight=weights)
    assert losses.segmentation(logits(), labels(), weights).item() == pytest.approx(expected.item(), rel=1e-5)
    some = labels()
    some[0, :2] = VOID
    expected = F.cross_entropy(logits(), some.long(), weight=weights, ignore_index=VOID)
    assert losses.segmentation(logits(), some, weights).item() == pytest.approx(expected.item(), rel=1e-5)


def test_nothing_labelled_gives_no_loss_and_no_gradient() -> None:
    nothing = torch.full((2, 6, 8), VOID, dtype=torch.uint8)
    for loss_of in (lambda x: losses.segmentation(x, nothing, WEIGHTS), lambda x: losses.lovasz_softmax(x, nothing)):
        scores = logits().requires_grad_()
        loss = loss_of(scores)
        loss.backward()
        assert loss.item() == 0
        assert not scores.grad.any()


def slow_lovasz(scores: Tensor, truth: Tensor) -> float:
    """Berman et al. 2018, algorithm 1 and equation 11, class by class and pixel by pixel."""
    counted = truth.flatten() != VOID
    probabilities = scores.softmax(1).permute(0, 2, 3, 1).reshape(-1, CLASSES)[counted]
    flat, found = truth.flatten()[counted], []
    for index in flat.unique().tolist():
        foreground = (flat == index).double().tolist()
        errors = [abs(t - p) for t, p in zip(foreground, probabilities[:, index].tolist(), strict=True)]
        order = sorted(range(len(errors)), key=lambda i: -errors[i])
        total, missed, wrong, before, loss = sum(foreground), 0.0, 0.0, 0.0, 0.0
        for i in order:
            missed, wrong = missed + foreground[i], wrong + 1 - foreground[i]
            jaccard = 1 - (total - missed) / (total + wrong)
            loss += errors[i] * (jaccard - before)
            before = jaccard
        found.append(loss)
    return sum(found) / len(found)


@pytest.mark.parametrize("void", [0, 3], ids=["all labelled", "half void"])
@pytest.mark.parametrize("classes", [CLASSES, 2], ids=["all classes", "two of them"])
def test_lovasz_term_is_that_of_the_paper(void: int, classes: int) -> None:
    truth = labels() % classes
    truth[:, :void] = VOID
    assert losses.lovasz_softmax(logits(), truth).item() == pytest.approx(slow_lovasz(logits(), truth), rel=1e-5)


def test_lovasz_term_of_certain_answers_is_one_minus_the_mean_iou() -> None:
    truth, guess = labels(), labels().roll(1, 2)
    ious = [((truth == k) & (guess == k)).sum() / ((truth == k) | (guess == k)).sum() for k in range(CLASSES)]
    found = losses.lovasz_softmax(100 * one_hot(guess), truth)
    assert found.item() == pytest.approx(1 - float(sum(ious)) / CLASSES, abs=1e-5)
    assert losses.lovasz_softmax(100 * one_hot(truth), truth).item() == pytest.approx(0, abs=1e-5)


def test_void_pixels_change_neither_lovasz_term_nor_gradient() -> None:
    scores, truth = logits().requires_grad_(), labels()
    truth[:, :3] = VOID
    loss = losses.lovasz_softmax(scores, truth)
    loss.backward()
    assert loss.item() == pytest.approx(losses.lovasz_softmax(scores[:, :, 3:], truth[:, 3:]).item())
    assert not scores.grad[:, :, :3].any()


@pytest.mark.parametrize("scale", [0.0, 1.0, 1000.0])
def test_gradients_are_finite_for_any_logits(scale: float) -> None:
    scores = (scale * logits()).requires_grad_()
    soft = one_hot(labels())
    soft[..., 4:] = 0
    total = losses.lovasz_softmax(scores, labels()) + losses.segmentation(scores, labels(), WEIGHTS)
    (total + losses.distillation(scores, soft, WEIGHTS, sharpness=2.0)).backward()
    assert scores.grad.isfinite().all()
    assert scores.grad.any()


def test_descending_the_lovasz_term_teaches_the_labels() -> None:
    scores, truth = logits().requires_grad_(), labels()
    assert (scores.argmax(1) == truth).float().mean() < 0.4
    for _ in range(100):
        (gradient,) = torch.autograd.grad(losses.lovasz_softmax(scores, truth), scores)
        scores = (scores - 20 * gradient).detach().requires_grad_()
    assert (scores.argmax(1) == truth).float().mean() > 0.95


@pytest.mark.parametrize("weights", [EVEN, WEIGHTS], ids=["even", "weighted"])
def test_distillation_from_certain_labels_equals_segmentation(weights: Tensor) -> None:
    hard = losses.segmentation(logits(), labels(), weights)
    assert losses.distillation(logits(), one_hot(labels()), weights).item() == pytest.approx(hard.item(), rel=1e-5)


def test_soft_labels_outside_the_picture_do_not_count() -> None:
    soft = one_hot(labels())
    soft[..., 4:] = 0
    seen = losses.distillation(logits()[..., :4], soft[..., :4], WEIGHTS)
    assert losses.distillation(logits(), soft, WEIGHTS).item() == pytest.approx(seen.item(), rel=1e-5)


@pytest.mark.parametrize("sharpness", [1.0, 2.0])
def test_a_pixel_half_outside_the_picture_counts_half(sharpness: float) -> None:
    soft = logits().roll(1, 0).softmax(1)
    left, right = (
        losses.distillation(logits()[..., i:j], soft[..., i:j], EVEN, sharpness=sharpness) for i, j in HALVES
    )
    edge = soft.clone()
    edge[..., 4:] /= 2
    found = losses.distillation(logits(), edge, EVEN, sharpness=sharpness)
    assert found.item() == pytest.approx(((left + right / 2) / 1.5).item(), rel=1e-5)


def test_distillation_is_least_where_the_network_gives_the_soft_labels() -> None:
    soft = logits().softmax(1)
    at_best = losses.distillation(logits(), soft, EVEN)
    assert at_best < losses.distillation(logits() + 0.1 * torch.randn_like(soft), soft, EVEN)


def test_sharpened_distillation_is_that_of_the_power_of_the_soft_labels() -> None:
    soft = (2 * logits().roll(1, 0)).softmax(1)
    powered = soft**1.7 / (soft**1.7).sum(1, keepdim=True)
    plain = losses.distillation(logits(), powered, WEIGHTS)
    assert losses.distillation(logits(), soft, WEIGHTS, sharpness=1.7).item() == pytest.approx(plain.item(), rel=1e-5)


def test_a_sharper_teacher_asks_for_surer_answers() -> None:
    soft, surer = logits().softmax(1), (2 * logits()).softmax(1)
    sharp = losses.distillation(logits(), soft, EVEN, sharpness=2.0)
    assert losses.distillation(2 * logits(), soft, EVEN, sharpness=2.0) < sharp
    assert torch.allclose(losses.distillation(logits(), surer, EVEN), sharp)


def test_certain_soft_labels_are_not_changed_by_sharpness() -> None:
    soft = one_hot(labels())
    soft[..., 4:] = 0
    plain = losses.distillation(logits(), soft, WEIGHTS)
    assert losses.distillation(logits(), soft, WEIGHTS, sharpness=3.0).item() == pytest.approx(plain.item())


def test_distillation_of_a_view_wholly_outside_is_zero() -> None:
    assert losses.distillation(logits(), torch.zeros(2, CLASSES, 6, 8), EVEN).item() == 0


def test_a_class_is_in_the_picture_from_its_least_share_of_all_pixels_on() -> None:
    shown = torch.tensor([[[0, 0, 1, VOID]], [[VOID, VOID, VOID, 2]]], dtype=torch.uint8)
    assert losses.presence(shown, 3, least_share=0.25).tolist() == [[1, 1, 0], [0, 0, 1]]
    assert losses.presence(shown, 3, least_share=0.3).tolist() == [[1, 0, 0], [0, 0, 0]]


def test_shares_of_a_place_are_of_its_own_pixels() -> None:
    shown = torch.tensor([[[0, 1, 1, VOID], [0, 0, VOID, VOID]]], dtype=torch.uint8)
    assert losses.class_shares(shown, 2, (1, 2)).tolist() == [[[[0.75, 0.0]], [[0.25, 0.25]]]]
    assert losses.class_shares(shown, 2, (1, 1)).flatten().tolist() == [0.375, 0.25]


def test_the_label_loss_asks_for_each_class_on_its_own() -> None:
    targets = torch.tensor([[1.0, 0.0, 1.0]])
    assert losses.label_loss(torch.zeros(1, 3), targets).item() == pytest.approx(math.log(2))
    sure = torch.tensor([[20.0, -20.0, 20.0]])
    assert losses.label_loss(sure, targets).item() == pytest.approx(0, abs=1e-6)
    assert losses.label_loss(-sure, targets).item() == pytest.approx(20, rel=1e-3)


def test_the_likeliest_class_has_more_than_half_and_all_else_is_void() -> None:
    soft = 0.7 * one_hot(labels()) + 0.3 / CLASSES
    assert torch.equal(losses.likeliest(soft, (6, 8)), labels())
    assert torch.equal(losses.likeliest(soft, (3, 4)), labels()[:, 1::2, 1::2])
    unsure = torch.full((2, CLASSES, 6, 8), 1 / CLASSES)
    for none in (unsure, torch.zeros_like(unsure)):  # the second lies outside the picture
        assert (losses.likeliest(none, (6, 8)) == VOID).all()
