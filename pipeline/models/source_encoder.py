"""Source encoder: backbone features to the latent y, and y to the hyper latent z."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models.backbone import FeatureSpec
from pipeline.models.layers import conv_bn_relu


class SourceEncoder(nn.Module):
    """Features at strides 4, 8 and 16 -> latent y at stride 16.

    The finer features are rearranged (space to depth), not pooled: poles and signs are thinner than 16 pixels.
    """

    def __init__(self, features: tuple[FeatureSpec, ...], *, width: int, latents: int) -> None:
        super().__init__()
        stride = features[-1].stride
        self.factors = tuple(stride // f.stride for f in features)
        self.reduce = nn.ModuleList(
            conv_bn_relu(f.channels * factor**2, width) for f, factor in zip(features, self.factors, strict=True)
        )
        self.mix = nn.Sequential(
            conv_bn_relu(width * len(features), width), conv_bn_relu(width, width, 3), nn.Conv2d(width, latents, 1)
        )

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        """Feature maps, finest first -> y (B, C, H/16, W/16)."""
        parts = [
            reduce(F.pixel_unshuffle(x, factor))
            for reduce, x, factor in zip(self.reduce, features, self.factors, strict=True)
        ]
        y: Tensor = self.mix(torch.cat(parts, 1))
        return y


class HyperEncoder(nn.Module):
    """y (B, C, h, w) -> z (B, Z, ceil(h/4), ceil(w/4)); Balle et al. 2018, h_a."""

    def __init__(self, latents: int, hyper_latents: int) -> None:
        super().__init__()
        self.down = nn.Sequential(
            nn.Conv2d(latents, latents, 3, stride=2, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(latents, hyper_latents, 3, stride=2, padding=1),
        )

    def forward(self, y: Tensor) -> Tensor:
        z: Tensor = self.down(y)
        return z
