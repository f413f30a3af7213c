"""Atrous spatial pyramid pooling: one feature map seen at several dilations at once (Chen and others, 2017)."""

import torch
from torch import Tensor, nn

from pipeline.models.over_parameterised import branched_bn_relu


class ASPP(nn.Module):
    """(B, C_in, h, w) -> (B, C_out, h, w): a 1x1 branch, one 3x3 branch per dilation, a pooled branch, a projection.

    `branch` is the width of each of them; `branches` is K, how many kernels each local convolution and the projection
    has in training (Nazir et al. 2024: 1 on COCO, 3 on Cityscapes); 0 is a plain convolution.
    """

    def __init__(self, c_in: int, c_out: int, *, branch: int, dilations: tuple[int, ...], branches: int = 0) -> None:
        super().__init__()
        # Dense convolutions: bf16 gradients of depthwise ones with large dilation are wrong on some CPUs.
        local = [branched_bn_relu(c_in, branch, 3, dilation=d, branches=branches) for d in dilations]
        self.branches = nn.ModuleList([branched_bn_relu(c_in, branch, branches=branches), *local])
        self.pooled = nn.Sequential(nn.Conv2d(c_in, branch, 1), nn.ReLU(inplace=True))
        self.project = branched_bn_relu(branch * (len(dilations) + 2), c_out, branches=branches)

    def forward(self, x: Tensor) -> Tensor:
        local = [branch(x) for branch in self.branches]  # each (B, branch, h, w)
        whole = self.pooled(x.mean((2, 3), keepdim=True)).expand_as(local[0])
        y: Tensor = self.project(torch.cat([*local, whole], 1))
        return y
