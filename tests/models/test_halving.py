"""Depthwise convolution with stride 2: results and gradients are those of torch's own, in any type and order."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.models.backbone import same_conv_bn
from pipeline.models.halving import halving_depthwise
from pipeline.models.layers import HalvingSameConv

CHANNELS = 5
SIZES = [(3, 3), (4, 3), (5, 6), (9, 9), (10, 13), (47, 61)]


def inputs(size: tuple[int, int], dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(2, CHANNELS, *size, dtype=dtype, requires_grad=True)
    return x, torch.randn(CHANNELS, 1, 3, 3, dtype=dtype, requires_grad=True)


def plain(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x, weight, stride=2, groups=CHANNELS)


def gradients(x: Tensor, weight: Tensor, ours: Tensor, theirs: Tensor) -> list[tuple[Tensor, Tensor]]:
    """By input and by weight: of ours, and of torch's own."""
    gradient = torch.randn_like(theirs)
    found = (torch.autograd.grad(result, (x, weight), gradient) for result in (ours, theirs))
    return list(zip(*found, strict=True))


@pytest.mark.parametrize("size", SIZES)
def test_results_and_gradients_are_those_of_torch(size: tuple[int, int]) -> None:
    x, weight = inputs(size)
    ours, theirs = halving_depthwise(x, weight), plain(x, weight)
    assert torch.equal(ours, theirs)
    for mine, other in gradients(x, weight, ours, theirs):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_the_order_of_the_numbers_changes_nothing(order: torch.memory_format) -> None:
    x, weight = inputs((9, 12))
    (expected,) = torch.autograd.grad(plain(x, weight).square().sum(), x)
    (found,) = torch.autograd.grad(halving_depthwise(x.contiguous(memory_format=order), weight).square().sum(), x)
    torch.testing.assert_close(found, expected)


def test_only_what_is_asked_for_is_found() -> None:
    x, weight = inputs((9, 9))
    halving_depthwise(x.detach(), weight).sum().backward()
    assert weight.grad is not None
    halving_depthwise(x, weight.detach()).sum().backward()
    assert x.grad is not None


def test_under_autocast_it_counts_in_bfloat16_and_learns_in_float32() -> None:
    x, weight = inputs((17, 21), torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = halving_depthwise(x, weight), plain(x, weight)
    assert ours.dtype == theirs.dtype == torch.bfloat16
    assert torch.equal(ours, theirs)
    for mine, other in gradients(x, weight, ours, theirs):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, other, rtol=0.02, atol=0.02)


def test_backbones_use_it_where_they_halve_and_only_there() -> None:
    kinds = {
        (stride, groups): type(same_conv_bn(8, 8, 3, stride=stride, groups=groups)[0]) is HalvingSameConv
        for stride in (1, 2)
        for groups in (1, 8)
    }
    assert kinds == {(1, 1): False, (1, 8): False, (2, 1): False, (2, 8): True}


def test_a_layer_gives_the_same_in_training_and_after() -> None:
    torch.manual_seed(0)
    conv = same_conv_bn(CHANNELS, CHANNELS, 3, stride=2, groups=CHANNELS)[0]
    x = torch.randn(1, CHANNELS, 10, 14)
    learning = conv.train()(x)
    assert learning.shape == (1, CHANNELS, 5, 7)
    assert "Halving" in str(learning.grad_fn)
    assert torch.equal(learning, conv.eval()(x))
