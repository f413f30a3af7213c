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


def test_rate_is_in_bits_per_pixel_of_one_image() -> None:
    coded = Coded(torch.zeros(2, 1, 2, 2), y_bits=torch.tensor([100.0, 300.0]), z_bits=torch.tensor([10.0, 30.0]))
    assert losses.rate_bpp(coded, pixels=1000).item() == pytest.approx((110 + 330) / 2 / 1000)


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
def test_distillation_from_certain_labels_equals_segmentation(weights: Tensor) -> None:
    hard = losses.segmentation(logits(), labels(), weights)
    assert losses.distillation(logits(), one_hot(labels()), weights).item() == pytest.approx(hard.item(), rel=1e-5)


def test_soft_labels_outside_the_picture_do_not_count() -> None:
    soft = one_hot(labels())
    soft[..., 4:] = 0
    seen = losses.distillation(logits()[..., :4], soft[..., :4], WEIGHTS)
    assert losses.distillation(logits(), soft, WEIGHTS).item() == pytest.approx(seen.item(), rel=1e-5)


def test_distillation_is_least_where_the_network_gives_the_soft_labels() -> None:
    soft = logits().softmax(1)
    at_best = losses.distillation(logits(), soft, EVEN)
    assert at_best < losses.distillation(logits() + 0.1 * torch.randn_like(soft), soft, EVEN)


def test_distillation_of_a_view_wholly_outside_is_zero() -> None:
    assert losses.distillation(logits(), torch.zeros(2, CLASSES, 6, 8), EVEN).item() == 0
