"""Layers shared by the networks: convolutions with batch norm, and rounding that lets gradients through."""

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models.halving import halving_depthwise


def short_floats(device: torch.device, units: Mapping[str, object] | None = None) -> torch.autocast:
    """A context for forward passes: bfloat16 on GPUs and on processors that compute in it, float32 on others.

    Processors without it convert each number: a convolution and its gradients took 11 times as long as in float32.
    `units` is what the processor has, as torch names it.
    """
    found = torch.cpu.get_capabilities() if units is None else units
    native = device.type != "cpu" or any(found.get(unit) for unit in ("avx512_bf16", "amx_bf16", "bf16"))
    return torch.autocast(device.type, torch.bfloat16, enabled=native)


def conv_bn(c_in: int, c_out: int, kernel: int = 1, *, dilation: int = 1) -> nn.Sequential:
    """(B, c_in, H, W) -> (B, c_out, H, W): convolution without bias, then batch norm; stride 1, zero padding."""
    padding = dilation * (kernel - 1) // 2
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, kernel, padding=padding, dilation=dilation, bias=False),
        nn.BatchNorm2d(c_out),
    )


def conv_bn_relu(c_in: int, c_out: int, kernel: int = 1, *, dilation: int = 1) -> nn.Sequential:
    """As conv_bn, then ReLU."""
    return nn.Sequential(*conv_bn(c_in, c_out, kernel, dilation=dilation), nn.ReLU(inplace=True))


class SameConv(nn.Conv2d):
    """Convolution with TensorFlow's "same" rule: at stride 2 the odd row and column are added at bottom and right.

    The ImageNet weights were trained so; symmetric padding would shift every feature map by half a pixel.
    Sizes must be divisible by the stride.
    """

    def __init__(
        self, c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1, *, dilation: int = 1
    ) -> None:
        super().__init__(c_in, c_out, kernel, stride, dilation=dilation, groups=groups, bias=False)
        total = max(dilation * (kernel - 1) + 1 - stride, 0)
        self.margins = (total // 2, total - total // 2) * 2  # left, right, top, bottom

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, self.margins))


class Float32SameConv(SameConv):
    """The same, in float32 under autocast too: for depthwise kernels with dilation.

    On CPUs torch's bf16 gradients of their weights are wrong in channels_last, at a dilation of 2 already.
    """

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())


class HalvingSameConv(SameConv):
    """The same, for depthwise 3x3 kernels with stride 2: on a CPU they learn with a gradient of their own."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or not self.training:  # a graph is traced in eval mode
            return super().forward(x)
        y = halving_depthwise(F.pad(x, self.margins), self.weight)
        return y if self.bias is None else y + self.bias.to(y.dtype)[:, None, None]  # where batch norms are folded in


class _RoundThrough(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return torch.floor(x + 0.5)

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        return gradient


def round_through(x: Tensor) -> Tensor:
    """Round half up; the gradient passes unchanged (straight-through estimator, Bengio et al. 2013)."""
    result: Tensor = _RoundThrough.apply(x)
    return result


def affine(bn: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Gain and shift (C,) of a batch norm in eval mode: bn(x) = gain * x + shift."""
    if bn.running_mean is None or bn.running_var is None:
        raise ValueError("a batch norm without running statistics cannot be fused")
    gain = bn.weight / (bn.running_var + bn.eps).sqrt()
    return gain, bn.bias - bn.running_mean * gain


def normed(network: nn.Module) -> Iterator[tuple[str, nn.Conv2d, nn.BatchNorm2d]]:
    """Each convolution with a batch norm behind it, by name; the batch norm's has the next number."""
    for name, layers in network.named_modules():
        for i, (conv, norm) in enumerate(pairwise(layers) if isinstance(layers, nn.Sequential) else ()):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                yield f"{name}.{i}", conv, norm


def fuse(conv: nn.Conv2d, bn: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Kernel and bias of the one convolution equal to bn(conv(x)) in eval mode; conv has no bias."""
    gain, bias = affine(bn)  # (C_out,)
    return conv.weight * gain[:, None, None, None], bias
