"""Losses: pure functions of tensors, each term named."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.models.entropy_model import Coded

VOID = 255


@dataclass(frozen=True, slots=True)
class Losses:
    """The terms of one step. What bits weigh by level is in `rate`, or in an image codec's `distortion`, alone."""

    segmentation: Tensor
    lovasz: Tensor
    distillation: Tensor
    taught_lovasz: Tensor  # with the teachers' likeliest classes
    squared_error: Tensor  # of the picture that an image codec rebuilds
    distortion: Tensor  # the same, each picture's over what bits weigh at its level
    rate: Tensor  # bits per pixel, each image's times what bits weigh at its level; an image codec's as they are
    rate_bpp: Tensor


def rate_bpp(coded: Coded, pixels: int) -> Tensor:
    """(R_y + R_z) / (H W) per image (B,), in bits per image pixel."""
    return (coded.y_bits + coded.z_bits) / pixels


def squared_error(rebuilt: Tensor, images: Tensor) -> Tensor:
    """Mean squared error of each RGB picture (B, 3, H, W) -> (B,), in squared grey levels of 0..255."""
    return (rebuilt - images).square().flatten(1).mean(1)


def segmentation(logits: Tensor, labels: Tensor, class_weights: Tensor) -> Tensor:
    """Class-weighted cross entropy of logits (B, K, H, W) with labels (B, H, W); void does not count."""
    target = labels.long()
    total = F.cross_entropy(logits, target, weight=class_weights, ignore_index=VOID, reduction="sum")
    padded = F.pad(class_weights, (0, VOID + 1 - len(class_weights)))  # void, and what is no class, weighs nothing
    return total / padded[target].sum().clamp_min(1)


def lovasz_softmax(logits: Tensor, labels: Tensor) -> Tensor:
    """Lovasz extension of one minus the mean IoU, over the classes in the batch; void does not count.

    Logits (B, K, h, w), labels (B, h, w). Berman et al., CVPR 2018 (algorithm 1, all images of the batch as one).
    """
    counted = labels.flatten() != VOID  # (N,)
    probabilities = logits.softmax(1).transpose(0, 1).flatten(1)  # (K, N)
    truth = (labels.flatten() == torch.arange(len(probabilities), device=labels.device)[:, None]) & counted  # (K, N)
    errors = (truth.float() - probabilities).abs() * counted
    errors, order = errors.sort(dim=1, descending=True)
    sorted_truth = truth.gather(1, order).float()
    sorted_counted = counted.expand_as(truth).gather(1, order).float()
    total = sorted_truth.sum(1, keepdim=True)
    intersection = total - sorted_truth.cumsum(1)
    union = total + (sorted_counted - sorted_truth).cumsum(1)
    jaccard = 1 - intersection / union.clamp_min(1)
    slope = torch.cat([jaccard[:, :1], jaccard[:, 1:] - jaccard[:, :-1]], 1)
    present = total[:, 0] > 0
    return ((errors * slope).sum(1) * present).sum() / present.sum().clamp_min(1)


def distillation(logits: Tensor, soft: Tensor, class_weights: Tensor, *, sharpness: float = 1.0) -> Tensor:
    """Class-weighted cross entropy of logits (B, K, h, w) with soft labels (B, K, h, w) that sum to 0 or 1.

    Pixels whose soft labels are all 0 lie outside the picture and do not count. Sharpness is the power that the
    teacher's probabilities are raised to.
    """
    inside = soft.sum(1, keepdim=True)
    powered = soft**sharpness
    target = powered / powered.sum(1, keepdim=True).clamp_min(1e-6) * inside
    weighted = target * class_weights[:, None, None]
    total = -(weighted * logits.log_softmax(1)).sum()
    return total / weighted.sum().clamp_min(1)


def likeliest(soft: Tensor, size: tuple[int, int]) -> Tensor:
    """Soft labels (B, K, h, w) that sum to 0 or 1 -> the class of more than half, void elsewhere (B, *size)."""
    sparse = F.interpolate(soft, size, mode="nearest-exact")
    share, labels = sparse.max(1)
    return torch.where(share > 0.5, labels, VOID).byte()


def class_shares(labels: Tensor, classes: int, size: tuple[int, int]) -> Tensor:
    """Labels (B, H, W) -> share (B, K, h, w) of each class in the pixels of each cell of a grid of `size` (h, w).

    Void counts as a pixel, so that a view that lies half outside its picture shows half as much of everything.
    """
    shown = labels[:, None] == torch.arange(classes, device=labels.device)[:, None, None]  # (B, K, H, W)
    return F.adaptive_avg_pool2d(shown.float(), size)


def presence(labels: Tensor, classes: int, *, least_share: float) -> Tensor:
    """Labels (B, H, W) -> 1.0 for each class (B, K) that at least this share of the pixels shows, else 0.0."""
    return (class_shares(labels, classes, (1, 1))[:, :, 0, 0] >= least_share).float()


def label_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross entropy of logits (B, K, ...) with targets of that shape in 0..1, the mean over all of them."""
    return F.binary_cross_entropy_with_logits(logits, targets)
