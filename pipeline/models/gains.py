"""Gains: one network for many rates, by a vector of factors per quality level on its latents.

Cui et al., "Asymmetric gained deep image compression with continuous rate adaptation", CVPR 2021: y is multiplied by
the level's gain before it is rounded and by an inverse gain, learned on its own, before it is decoded.
"""

import torch
from torch import Tensor, nn

_STEP = 1.6  # between the gains of two neighbouring levels at the start; the highest level starts at 1


class Gains(nn.Module):
    """Factors per quality level and channel, kept as logarithms; level 0 has the lowest rate."""

    def __init__(self, levels: int, latents: int, hyper_latents: int) -> None:
        super().__init__()
        start = (torch.arange(levels) - (levels - 1)) * torch.tensor(_STEP).log()  # (L,)
        self.log_gain = nn.Parameter(start[:, None].repeat(1, latents))
        self.log_inverse = nn.Parameter(-start[:, None].repeat(1, latents))
        self.log_hyper = nn.Parameter(torch.zeros(levels, hyper_latents))

    @property
    def levels(self) -> int:
        """How many quality levels there are."""
        return self.log_gain.shape[0]

    def scale(self, y: Tensor, quality: Tensor) -> Tensor:
        """y (B, C, h, w) in units of the quantiser's step at the levels quality (B,)."""
        return y * _per_image(self.log_gain, quality)

    def unscale(self, y_hat: Tensor, quality: Tensor) -> Tensor:
        """The inverse: what the decoder sees."""
        return y_hat * _per_image(self.log_inverse, quality)

    def hyper(self, quality: Tensor) -> Tensor:
        """Factors (B, Z, 1, 1) of the hyper latent."""
        return _per_image(self.log_hyper, quality)


def _per_image(table: Tensor, quality: Tensor) -> Tensor:
    return table.exp()[quality][:, :, None, None]
