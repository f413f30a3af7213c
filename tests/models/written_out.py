"""Layers written out with plain functions, which networks with published weights are held against.

Those weights are too large for a test; made-up ones in every tensor show the same mistakes.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

State = Mapping[str, Tensor]


def made_up(network: nn.Module) -> nn.Module:
    """Fill each tensor in double precision by a formula of its name and index; variances stay positive."""
    network = network.double().eval()
    for number, (name, tensor) in enumerate(network.state_dict().items()):
        if not tensor.is_floating_point():
            continue
        wave = torch.sin(torch.arange(tensor.numel(), dtype=torch.float64) * 1.7 + number).view(tensor.shape)
        if name.endswith("running_var"):
            tensor.copy_(1 + 0.5 * wave)
        elif tensor.dim() == 4:
            tensor.copy_(wave * (3 / tensor[0].numel()) ** 0.5)
        else:
            tensor.copy_(0.8 * wave)
    return network


def picture(channels: int, height: int, width: int) -> Tensor:
    """Waves in double precision (1, C, H, W), each channel its own."""
    c = torch.arange(channels, dtype=torch.float64)[:, None, None]
    i = torch.arange(height, dtype=torch.float64)[:, None]
    j = torch.arange(width, dtype=torch.float64)
    return (2 * torch.sin(0.35 * i + 0.7 * c) * torch.cos(0.23 * j - 0.4 * c))[None]


def batch_norm(state: State, at: str, x: Tensor) -> Tensor:
    """What the layer's running statistics, weight and bias make of x (B, C, H, W)."""
    w, b, mean, var = (state[f"{at}.{key}"][:, None, None] for key in ("weight", "bias", "running_mean", "running_var"))
    return w * (x - mean) / (var + 1e-5).sqrt() + b


def down(state: State, at: str, x: Tensor) -> Tensor:
    """Half the size: a strided convolution beside the largest of each window."""
    conv = F.conv2d(x, state[f"{at}conv.0.weight"], stride=2, padding=1)
    return torch.cat([batch_norm(state, f"{at}conv.1", conv).clamp_min(0), F.max_pool2d(x, 3, 2, 1)], 1)


def up(state: State, at: str, x: Tensor) -> Tensor:
    """Twice the size: a transposed convolution."""
    weight, bias = state[f"{at}up_conv.0.weight"], state[f"{at}up_conv.0.bias"]
    y = F.conv_transpose2d(x, weight, bias, stride=2, padding=1, output_padding=1)
    return batch_norm(state, f"{at}up_conv.1", y).clamp_min(0)


def counts(network: nn.Module, stages: Mapping[str, object]) -> dict[str, tuple[int, int]]:
    """By stage: its entries in the file of weights, and its trainable scalars."""
    entries = {name: sum(key.startswith(f"{name}.") for key in network.state_dict()) for name in stages}
    return {name: (entries[name], sum(p.numel() for p in network.get_submodule(name).parameters())) for name in stages}
