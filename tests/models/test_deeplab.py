"""DeepLabv3's head: the layers of torchvision's, at the map's size."""

import pytest
import torch
from torch import nn
from torchvision.models.segmentation.deeplabv3 import DeepLabHead as Reference

from pipeline.models.deeplab import DeepLabHead


def kernels(network: nn.Module) -> list[tuple[torch.Size, tuple[int, ...]]]:
    return sorted((m.weight.shape, m.dilation) for m in network.modules() if isinstance(m, nn.Conv2d))


def test_convolutions_are_those_of_torchvision() -> None:
    assert kernels(DeepLabHead(320, 11, dilations=(3, 6, 9))) == kernels(Reference(320, 11, (3, 6, 9)))


def test_only_the_pooled_branch_has_a_bias_in_place_of_a_batch_norm() -> None:
    ours, theirs = DeepLabHead(320, 11), Reference(320, 11, (3, 6, 9))
    count = {network: sum(p.numel() for p in network.parameters()) for network in (ours, theirs)}
    assert count[ours] == count[theirs] - 256


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (23, 30)])
def test_logits_have_the_maps_size(size: tuple[int, int]) -> None:
    assert DeepLabHead(12, 5).eval()(torch.randn(2, 12, *size)).shape == (2, 5, *size)


def test_one_picture_alone_can_be_trained_on() -> None:
    DeepLabHead(12, 5).train()(torch.randn(1, 12, 3, 5)).sum().backward()


def test_dropout_acts_in_training_only() -> None:
    torch.manual_seed(0)
    head, x = DeepLabHead(12, 5, dropout=0.5), torch.randn(1, 12, 3, 5)
    for norm in [m for m in head.modules() if isinstance(m, nn.BatchNorm2d)]:
        norm.momentum = 0.0
    assert torch.equal(head.eval()(x), head.eval()(x))
    assert not torch.equal(head.train()(x), head.train()(x))
