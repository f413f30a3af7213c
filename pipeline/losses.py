"""Losses: pure functions of tensors, each term named."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from pipeline.models.entropy_model import Coded

VOID = 255


@dataclass(frozen=True, slots=True)
class Losses:
    """The terms of one step, unweighted: cross entropies in nats per pixel, rate in bits per pixel."""

    segmentation: Tensor
    distillation: Tensor
    rate: Tensor


def rate_bpp(coded: Coded, pixels: int) -> Tensor:
    """Mean over the batch of (R_y + R_z) / (H W), in bits per image pixel."""
    return (coded.y_bits + coded.z_bits).mean() / pixels


def segmentation(logits: Tensor, labels: Tensor, class_weights: Tensor) -> Tensor:
    """Class-weighted cross entropy of logits (B, K, H, W) with labels (B, H, W); void does not count."""
    return F.cross_entropy(logits, labels.long(), weight=class_weights, ignore_index=VOID)


def distillation(logits: Tensor, soft: Tensor, class_weights: Tensor) -> Tensor:
    """Class-weighted cross entropy of logits (B, K, H, W) with soft labels (B, K, H, W) that sum to 0 or 1.

    Pixels whose soft labels are all 0 lie outside the picture and do not count.
    """
    weighted = soft * class_weights[:, None, None]
    total = -(weighted * logits.log_softmax(1)).sum()
    return total / weighted.sum().clamp_min(1)
