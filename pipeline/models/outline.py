"""Outline network: where in a picture classes meet, from its latents; so small that a camera runs it beside a KEY."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_USUAL = -2.0  # the logit of 12 %, where the answer begins


class OutlineNetwork(nn.Module):
    """Latents y (B, C, h, w), not rounded, and levels (B,) -> the share of each place at an edge, 0 to 1: (B, h, w).

    Each level's latents are taken in units of their own spread; `settle_outline` measures it.
    """

    mean: Tensor
    spread: Tensor

    def __init__(self, latents: int, levels: int, *, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(levels, latents))
        self.register_buffer("spread", torch.ones(levels, latents))
        self.look = nn.Conv2d(latents, width, 3, padding=1)
        self.look_again = nn.Conv2d(width, width, 3, padding=1)
        self.answer = nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, y: Tensor, quality: Tensor) -> Tensor:
        """Latents (B, C, h, w) of levels (B,) -> (B, h, w)."""
        return self.logits(y, quality).sigmoid()

    def logits(self, y: Tensor, quality: Tensor) -> Tensor:
        """The same before the sigmoid."""
        x = (y - self.mean[quality][:, :, None, None]) / self.spread[quality][:, :, None, None]
        x = F.relu(self.look(x))  # (B, width, h, w)
        x = F.relu(self.look_again(x))
        answer: Tensor = self.answer(x)[:, 0]
        return answer + _USUAL


@torch.no_grad()
def settle_outline(network: OutlineNetwork, y: Tensor, quality: Tensor) -> None:
    """Take mean and spread, level by level, of latents (N, C, h, w) of levels (N,); where there are none of a level, of
    the nearest that has some."""
    least = 1e-3  # of a spread: what never varied in training counts as it is
    known = quality.unique()
    for level in range(len(network.mean)):
        nearest = known[(known - level).abs().argmin()]
        places = y[quality == nearest].transpose(0, 1).flatten(1)  # (C, n h w)
        network.mean[level], network.spread[level] = places.mean(1), places.std(1)
        network.spread[level][network.spread[level] < least] = 1
