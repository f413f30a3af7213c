"""Joint decoder: quantised latents straight to mask logits, with no image and no features rebuilt in between.

Nazir et al., ECCV 2024 (arXiv 2407.11224): JD replaces the source decoder and all of the task network behind the split.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models.aspp import ASPP
from pipeline.models.layers import conv_bn, conv_bn_relu


class JointDecoder(nn.Module):
    """Latents at stride 16 -> logits at stride 4; in training the ASPP's convolutions have `branches` kernels each."""

    def __init__(
        self, latents: int, classes: int, *, width: int, branch: int, dilations: tuple[int, ...], branches: int = 0
    ) -> None:
        super().__init__()
        self.widen = conv_bn_relu(latents, width, 3)
        self.refine = conv_bn(width, width, 3)
        self.aspp = ASPP(width, width, branch=branch, dilations=dilations, branches=branches)
        self.lift = conv_bn_relu(width, width * 2)
        self.sharpen = conv_bn_relu(width // 2, width // 2, 3)
        self.classify = nn.Conv2d(width // 2, classes * 4, 1)

    def forward(self, y_hat: Tensor) -> Tensor:
        """Latents (B, C, h, w) -> logits (B, K, 4h, 4w)."""
        x = self.widen(y_hat)  # (B, width, h, w)
        x = F.relu(x + self.refine(x))
        x = x + self.aspp(x)
        x = F.pixel_shuffle(self.lift(x), 2)  # (B, width/2, 2h, 2w)
        x = x + self.sharpen(x)
        return F.pixel_shuffle(self.classify(x), 2)  # (B, K, 4h, 4w)
