"""What a network costs: how many parameters it has, how many multiply-accumulates it needs."""

from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True, slots=True)
class Complexity:
    """Parameters, and multiply-accumulates (MACs) of one pass."""

    parameters: int
    macs: int


@torch.no_grad()
def complexity(network: nn.Module, *inputs: Tensor) -> Complexity:
    """Count a network in eval mode on these inputs, as it is: fold it first to count what runs.

    Convolutions and matrix products are counted; sums, activations and resampling are not.
    """
    network = deepcopy(network).eval()
    with FlopCounterMode(display=False) as counter:
        network(*inputs)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return Complexity(parameters, counter.get_total_flops() // 2)  # it counts a multiply-accumulate as two
