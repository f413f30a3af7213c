"""Depthwise 3x3 convolution with stride 2, with a gradient that CPUs are quick at.

torch's own gradient by the input is the slowest part of a training step there, in bfloat16 above all: for MobileNetV2
it takes longer than the gradients of all other convolutions together. By phases it is the same, in a fraction of it.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_EVEN, _ODD = [2, 0], [1]  # taps of the kernel that a row (or column) of even and of odd number is seen by


def halving_depthwise(x: Tensor, weight: Tensor) -> Tensor:
    """(B, C, H, W), weight (C, 1, 3, 3) -> (B, C, (H - 1) // 2, (W - 1) // 2); in autocast's type where that is on."""
    kind = x.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        x, weight = x.to(dtype), weight.to(dtype)
    with torch.autocast(kind, enabled=False):
        y: Tensor = _HalvingDepthwise.apply(x, weight)
    return y


class _HalvingDepthwise(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor) -> Tensor:
        context.save_for_backward(x, weight)
        return F.conv2d(x, weight, stride=2, groups=len(weight))

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = context.saved_tensors
        by_x = by_weight = None
        if context.needs_input_grad[0]:
            by_x = _by_input(gradient, weight, x.shape)
        if context.needs_input_grad[1]:
            by_weight = torch.ops.aten.convolution_backward(
                gradient, x, weight, None, [2, 2], [0, 0], [1, 1], False, [0, 0], len(weight), [False, True, False]
            )[1]
        return by_x, by_weight


def _by_input(gradient: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
    """Gradient (B, C, h, w) of the result -> (B, C, H, W) of the input.

    Pixels of even row are seen by the kernel's first and last row, those of odd row by the middle one; columns
    likewise. So each of the four phases is a small convolution with stride 1.
    """
    channels, (rows, columns) = len(weight), gradient.shape[-2:]
    around = F.pad(gradient, (1, 1, 1, 1))
    made = torch.empty(
        (shape[0], channels, 2 * rows + 2, 2 * columns + 2),
        dtype=gradient.dtype,
        device=gradient.device,
        memory_format=torch.channels_last,
    )
    for down, taps in enumerate((_EVEN, _ODD)):
        for right, others in enumerate((_EVEN, _ODD)):
            part = weight[:, :, taps][:, :, :, others]
            made[:, :, down::2, right::2] = F.conv2d(around[:, :, down:, right:], part, groups=channels)
    return made[:, :, : shape[2], : shape[3]]
