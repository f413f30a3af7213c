"""Decision network: how well a warped mask will agree with a fresh one, from what a camera knows of the motion.

After DVSNet (Xu et al., CVPR 2018, Dynamic video segmentation network), whose decision network regresses the same
agreement from features of its flow network. Ours sees the residual of a coarse flow instead, and has some 6000
weights: it runs on the camera, beside an encoder that it is to save.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_USUAL = 3.0  # the logit of 95 %, where the answer begins


class DecisionNetwork(nn.Module):
    """Maps (B, M, h, w) and facts (B, N) -> agreement in percent of the pixels (B, 1).

    Both are taken in units of their spread; `settle` measures it.
    """

    map_scale: Tensor
    fact_scale: Tensor

    def __init__(self, maps: int, facts: int, *, width: int) -> None:
        super().__init__()
        self.register_buffer("map_scale", torch.tensor([[0.0], [1.0]]).repeat(1, maps))  # mean and spread
        self.register_buffer("fact_scale", torch.tensor([[0.0], [1.0]]).repeat(1, facts))
        self.look = nn.Conv2d(maps, width, 3, padding=1)
        self.look_wider = nn.Conv2d(width, width, 3, stride=2, padding=1)
        self.weigh = nn.Linear(facts + maps + 2 * width, 2 * width)
        self.weigh_again = nn.Linear(2 * width, 2 * width)
        self.answer = nn.Linear(2 * width, 1)
        nn.init.constant_(self.answer.bias, _USUAL)

    def forward(self, maps: Tensor, facts: Tensor) -> Tensor:
        """Maps (B, M, h, w), facts (B, N) -> percent (B, 1)."""
        m = (maps - self.map_scale[0, :, None, None]) / self.map_scale[1, :, None, None]
        f = (facts - self.fact_scale[0]) / self.fact_scale[1]
        x = F.leaky_relu(self.look(m), 0.1)  # (B, width, h, w)
        x = F.leaky_relu(self.look_wider(x), 0.1)  # (B, width, h/2, w/2)
        x = torch.cat([f, m.mean((2, 3)), x.mean((2, 3)), x.amax((2, 3))], 1)
        x = F.leaky_relu(self.weigh(x), 0.1)  # (B, 2 width)
        x = F.leaky_relu(self.weigh_again(x), 0.1)
        percent: Tensor = 100 * self.answer(x).sigmoid()
        return percent


class Committee(nn.Module):
    """The mean answer of decision networks that began with other chances.

    One alone is off now here, now there: where the cheapest of several levels is looked for, that of its luckiest error
    would be found.
    """

    def __init__(self, members: Sequence[DecisionNetwork]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, maps: Tensor, facts: Tensor) -> Tensor:
        """Maps (B, M, h, w), facts (B, N) -> percent (B, 1)."""
        return torch.stack([member(maps, facts) for member in self.members]).mean(0)


@torch.no_grad()
def settle(network: DecisionNetwork, maps: Tensor, facts: Tensor) -> None:
    """Take mean and spread of maps (B, M, h, w) and facts (B, N) as the network's units."""
    least = 1e-3  # of a spread: what never varied in training must not become large later
    places = maps.transpose(0, 1).flatten(1)  # (M, B h w)
    network.map_scale.copy_(torch.stack([places.mean(1), places.std(1).clamp_min(least)]))
    network.fact_scale.copy_(torch.stack([facts.mean(0), facts.std(0).clamp_min(least)]))
