"""Padding, rounding and fusing, each against its definition."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pipeline.models.layers import (
    Float32SameConv,
    HalvingSameConv,
    SameConv,
    conv_bn,
    conv_bn_relu,
    fuse,
    round_through,
    short_floats,
)


def settled_bn(channels: int, seed: int = 0) -> nn.BatchNorm2d:
    """A batch norm in eval mode whose four vectors are anything but ones and zeros."""
    generator = torch.Generator().manual_seed(seed)
    bn = nn.BatchNorm2d(channels).eval()
    with torch.no_grad():
        bn.weight.copy_(torch.rand(channels, generator=generator) * 2 - 0.5)
        bn.bias.copy_(torch.randn(channels, generator=generator))
        bn.running_mean.copy_(torch.randn(channels, generator=generator))
        bn.running_var.copy_(torch.rand(channels, generator=generator) + 0.1)
    return bn


def ones_conv(kernel: int, stride: int) -> SameConv:
    conv = SameConv(1, 1, kernel, stride)
    nn.init.ones_(conv.weight)
    return conv


def test_same_padding_at_stride_2_is_added_at_bottom_and_right() -> None:
    """Sums of 3 x 3 windows that begin at (0, 0), (0, 2), ... of a 4 x 4 picture, worked out by hand."""
    x = torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12], [13, 14, 15, 16]])[None, None]
    expected = [[1 + 2 + 3 + 5 + 6 + 7 + 9 + 10 + 11, 3 + 4 + 7 + 8 + 11 + 12], [9 + 10 + 11 + 13 + 14 + 15, 54]]
    assert ones_conv(3, 2)(x)[0, 0].tolist() == expected


def test_same_padding_at_stride_1_is_even_on_all_sides() -> None:
    x = torch.arange(9.0).view(1, 1, 3, 3)
    assert torch.equal(ones_conv(3, 1)(x), F.conv2d(x, torch.ones(1, 1, 3, 3), padding=1))


def test_1x1_convolution_is_not_padded() -> None:
    x = torch.arange(16.0).view(1, 1, 4, 4)
    assert torch.equal(ones_conv(1, 1)(x), x)


@pytest.mark.parametrize(("stride", "size"), [(1, (7, 5)), (2, (6, 10))])
def test_same_padding_gives_the_size_divided_by_the_stride(stride: int, size: tuple[int, int]) -> None:
    y = SameConv(3, 8, 3, stride)(torch.zeros(2, 3, *size))
    assert y.shape == (2, 8, size[0] // stride, size[1] // stride)


def test_grouped_convolution_keeps_channels_apart() -> None:
    x = torch.zeros(1, 4, 6, 6)
    x[:, 2] = 1
    y = SameConv(4, 4, 3, groups=4)(x)
    assert not y[:, [0, 1, 3]].any()


def weight_gradient(layer: SameConv, x: torch.Tensor, *, bf16: bool) -> torch.Tensor:
    layer.weight.grad = None
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        y = layer(x)
    (y.float() * torch.randn(y.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    return layer.weight.grad


@pytest.mark.parametrize(("kernel", "dilation"), [(3, 2), (5, 2), (3, 9)])
def test_dilated_depthwise_weights_get_the_gradient_of_float32_under_autocast(kernel: int, dilation: int) -> None:
    torch.manual_seed(0)
    layer = Float32SameConv(32, 32, kernel, groups=32, dilation=dilation).to(memory_format=torch.channels_last)
    x = torch.randn(2, 32, 12, 15).bfloat16().to(memory_format=torch.channels_last)
    exact = weight_gradient(layer, x.float(), bf16=False)
    assert (weight_gradient(layer, x, bf16=True) - exact).norm() < 0.01 * exact.norm()


@pytest.mark.parametrize("dilation", [1, 2, 5])
def test_conv_bn_keeps_the_size(dilation: int) -> None:
    assert conv_bn(3, 4, 3, dilation=dilation)(torch.randn(2, 3, 9, 7)).shape == (2, 4, 9, 7)


def test_conv_bn_relu_is_conv_bn_and_relu() -> None:
    torch.manual_seed(0)
    layer, x = conv_bn_relu(3, 4, 3).eval(), torch.randn(2, 3, 9, 7)
    assert torch.equal(layer(x), layer[1](layer[0](x)).relu())


def test_rounding_is_half_up() -> None:
    x = torch.tensor([-1.5, -0.51, -0.5, 0.0, 0.49, 0.5, 1.5, 2.5])
    assert round_through(x).tolist() == [-1, -1, 0, 0, 0, 1, 2, 3]


def test_gradient_passes_rounding_unchanged() -> None:
    x = torch.randn(50, requires_grad=True)
    weights = torch.randn(50)
    (round_through(x) * weights).sum().backward()
    assert torch.equal(x.grad, weights)


@pytest.mark.parametrize(("groups", "stride"), [(1, 1), (1, 2), (8, 1)])
def test_fused_convolution_equals_convolution_and_batch_norm(groups: int, stride: int) -> None:
    torch.manual_seed(0)
    conv, bn = nn.Conv2d(8, 8, 3, stride, padding=1, groups=groups, bias=False), settled_bn(8)
    x = torch.randn(2, 8, 11, 9)
    weight, bias = fuse(conv, bn)
    fused = F.conv2d(x, weight, bias, stride, padding=1, groups=groups)
    assert torch.allclose(fused, bn(conv(x)), atol=1e-5)


def test_fusing_leaves_both_layers_untouched() -> None:
    conv, bn = nn.Conv2d(4, 4, 1, bias=False), settled_bn(4)
    before = [t.clone() for t in (conv.weight, bn.weight, bn.bias, bn.running_mean, bn.running_var)]
    fuse(conv, bn)
    after = [conv.weight, bn.weight, bn.bias, bn.running_mean, bn.running_var]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_batch_norm_without_statistics_cannot_be_fused() -> None:
    with pytest.raises(ValueError, match="running statistics"):
        fuse(nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4, track_running_stats=False))


@pytest.mark.parametrize(
    ("units", "expected"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, torch.bfloat16),
        ({"avx512_bf16": False, "amx_bf16": True}, torch.bfloat16),
        ({"architecture": "aarch64", "bf16": True}, torch.bfloat16),
        ({"avx2": True, "avx512_f": True, "avx512_bf16": False}, torch.float32),
        ({}, torch.float32),
    ],
)
def test_short_floats_are_for_processors_that_compute_in_them(units: dict[str, object], expected: torch.dtype) -> None:
    with short_floats(torch.device("cpu"), units):
        assert (torch.ones(1, 4) @ torch.ones(4, 4)).dtype == expected


@pytest.mark.parametrize("bf16", [False, True])
def test_a_halving_layer_with_a_bias_is_the_same_while_it_learns(bf16: bool) -> None:
    torch.manual_seed(0)
    layer = HalvingSameConv(8, 8, 3, 2, groups=8)
    layer.bias = torch.nn.Parameter(torch.randn(8))
    x = torch.randn(2, 8, 12, 16)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        learning, still = layer.train()(x), layer.eval()(x)
    assert learning.dtype == still.dtype
    torch.testing.assert_close(learning, still, atol=0.01, rtol=0.01)
    learning.sum().backward()
    assert layer.bias.grad is not None
