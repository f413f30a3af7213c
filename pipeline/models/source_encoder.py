"""Source encoder: backbone features to the latent y, and y to the hyper latent z."""

import torch
from torch import Tensor, nn

from pipeline.models.backbone import FeatureSpec
from pipeline.models.layers import conv_bn_relu


class SourceEncoder(nn.Module):
    """Features at strides 4, 8 and 16 -> latent y at stride 16.

    Of the finer features each place of the latent sees all that lies in it, by convolutions as large as their steps
    (space to depth, and weights), and nothing is pooled: poles and signs are thinner than 16 pixels.
    """

    def __init__(self, features: tuple[FeatureSpec, ...], *, width: int, latents: int) -> None:
        super().__init__()
        stride = features[-1].stride
        self.reduce = nn.ModuleList(_reduction(f.channels, width, stride // f.stride) for f in features)
        self.mix = nn.Sequential(
            conv_bn_relu(width * len(features), width), conv_bn_relu(width, width, 3), nn.Conv2d(width, latents, 1)
        )

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        """Feature maps, finest first -> y (B, C, H/16, W/16)."""
        parts = [reduce(x) for reduce, x in zip(self.reduce, features, strict=True)]
        y: Tensor = self.mix(torch.cat(parts, 1))
        return y


def _reduction(c_in: int, c_out: int, step: int) -> nn.Sequential:
    """(B, c_in, H, W) -> (B, c_out, H/step, W/step), by convolution without overlap, batch norm and ReLU."""
    conv = nn.Conv2d(c_in, c_out, step, stride=step, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out), nn.ReLU(inplace=True))


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
