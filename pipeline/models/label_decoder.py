"""Label decoder: quantised latents straight to one score per class, "is it in the picture", with no image in between.

The other half of Ahuja et al., CVPR 2023 (Neural rate estimator and unsupervised learning for efficient distributed
image analytics in split-DNN models): the latents that a camera sends for segmentation are classified. Their classes
exclude one another; here each is asked for on its own, since a street shows many.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models.layers import conv_bn, conv_bn_relu

_LEAST = 1e-4  # a share of the picture below which there is nothing


class LabelDecoder(nn.Module):
    """Latents at stride 16, a picture of any size -> evidence for each class in each place -> one logit per class."""

    def __init__(self, latents: int, classes: int, *, width: int) -> None:
        super().__init__()
        self.widen = conv_bn_relu(latents, width, 3)
        self.refine = conv_bn(width, width, 3)
        self.surround = conv_bn(width, width, 3, dilation=2)
        self.classify = nn.Conv2d(width, classes, 1)
        self.peak = nn.Parameter(torch.ones(classes))
        self.extent = nn.Parameter(torch.zeros(classes))
        self.bias = nn.Parameter(torch.zeros(classes))

    def evidence(self, y_hat: Tensor) -> Tensor:
        """Latents (B, C, h, w) -> logits (B, K, h, w) of each place's share of the classes."""
        x = self.widen(y_hat)  # (B, width, h, w)
        x = F.relu(x + self.refine(x))
        x = F.relu(x + self.surround(x))
        places: Tensor = self.classify(x)
        return places

    def pool(self, evidence: Tensor) -> Tensor:
        """Evidence (B, K, h, w) -> logits (B, K): its maximum tells of what is small, its mean of what is large."""
        share = evidence.sigmoid().mean((2, 3))
        return self.peak * evidence.amax((2, 3)) + self.extent * (share + _LEAST).log() + self.bias

    def forward(self, y_hat: Tensor) -> Tensor:
        """Latents (B, C, h, w) -> logits (B, K); sigmoid makes them scores."""
        return self.pool(self.evidence(y_hat))
