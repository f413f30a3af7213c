"""Convolutions that are several in training and one afterwards.

Nazir et al., ECCV 2024, in the form of RepVGG (arXiv 2101.03697) and MobileOne (arXiv 2206.04040). Padding zeros is
linear and comes before every branch alike, so the one convolution is equal at the borders too.
"""

from copy import deepcopy
from functools import reduce
from typing import TypeVar

import torch
from torch import Tensor, nn

from pipeline.models.layers import affine, conv_bn, conv_bn_relu, fuse

_Module = TypeVar("_Module", bound=nn.Module)


class OverParameterisedConv(nn.Module):
    """(B, c_in, H, W) -> (B, c_out, H, W): the sum over k of BN_k(W_k * x), stride 1, zero padding.

    Beside the K equal branches stand a 1x1 one, if the kernel is larger, and the input itself, if shapes allow; each
    has its batch norm. The K kernels lie in one convolution, one batch norm: K small ones would be slower.
    """

    def __init__(self, c_in: int, c_out: int, kernel: int = 1, *, dilation: int = 1, branches: int = 1) -> None:
        super().__init__()
        if branches < 1 or kernel % 2 == 0:
            raise ValueError(f"branches {branches}, kernel {kernel}: need at least one branch and an odd kernel")
        self.count = branches
        self.wide = conv_bn(c_in, c_out * branches, kernel, dilation=dilation)
        self.pointwise = conv_bn(c_in, c_out) if kernel > 1 else None
        self.identity = nn.BatchNorm2d(c_in) if c_in == c_out else None
        self._share_scale()

    def _share_scale(self) -> None:
        """Begin with the variance of one branch: independent branches add their variances."""
        summands = self.count + (self.pointwise is not None) + (self.identity is not None)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.constant_(module.weight, summands**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.wide(x).chunk(self.count, 1))  # K times (B, c_out, H, W)
        if self.pointwise is not None:
            parts.append(self.pointwise(x))
        if self.identity is not None:
            parts.append(self.identity(x))
        y: Tensor = reduce(torch.add, parts)  # Tensor.sum would leave bf16 under autocast
        return y

    @torch.no_grad()
    def merge(self) -> nn.Conv2d:
        """The one convolution, with bias, that is equal in eval mode.

        W = sum_k (gamma_k / s_k) W_k and b = sum_k (beta_k - gamma_k mu_k / s_k), where s_k = sqrt(var_k + eps).
        """
        conv, norm = _pair(self.wide)
        weights, biases = fuse(conv, norm)
        weight = weights.unflatten(0, (self.count, -1)).sum(0)  # (c_out, c_in, k, k)
        bias = biases.unflatten(0, (self.count, -1)).sum(0)  # (c_out,)
        centre = weight[:, :, weight.shape[2] // 2, weight.shape[3] // 2]
        if self.pointwise is not None:
            kernel, shift = fuse(*_pair(self.pointwise))
            centre += kernel[:, :, 0, 0]
            bias += shift
        if self.identity is not None:
            gain, shift = affine(self.identity)
            centre += gain.diag()
            bias += shift
        return _conv_of(weight, bias, conv)


def _pair(layers: nn.Sequential) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    conv, norm = layers
    if not isinstance(conv, nn.Conv2d) or not isinstance(norm, nn.BatchNorm2d):
        raise TypeError("a branch is a convolution and its batch norm")
    return conv, norm


def _conv_of(weight: Tensor, bias: Tensor, like: nn.Conv2d) -> nn.Conv2d:
    """A convolution of this kernel (c_out, c_in, k, k) and bias, padded and dilated as another one is."""
    c_out, c_in, kernel, _ = weight.shape
    merged = nn.Conv2d(c_in, c_out, kernel, padding=like.padding, dilation=like.dilation)  # type: ignore[arg-type]
    merged.weight, merged.bias = nn.Parameter(weight), nn.Parameter(bias)
    return merged.train(like.training)


def branched_bn_relu(c_in: int, c_out: int, kernel: int = 1, *, dilation: int = 1, branches: int = 0) -> nn.Sequential:
    """As conv_bn_relu, with the convolution and its batch norm over-parameterised if there are branches."""
    if branches == 0:
        return conv_bn_relu(c_in, c_out, kernel, dilation=dilation)
    conv = OverParameterisedConv(c_in, c_out, kernel, dilation=dilation, branches=branches)
    return nn.Sequential(conv, nn.ReLU())  # not in place: one branch alone is a view of the wide one


def merge_branches(module: _Module) -> _Module:
    """A copy in which each over-parameterised convolution is a plain one; equal in eval mode."""
    merged = deepcopy(module)
    for parent in list(merged.modules()):
        for name, child in parent.named_children():
            if isinstance(child, OverParameterisedConv):
                setattr(parent, name, child.merge())
    return merged
