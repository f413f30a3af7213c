"""Over-parameterised convolutions: equal to one convolution afterwards, at every border; each branch learns."""

import pytest
import torch
from torch import Tensor, nn

from pipeline.export import fold_batch_norms
from pipeline.models.joint_decoder import JointDecoder
from pipeline.models.over_parameterised import OverParameterisedConv, branched_bn_relu, merge_branches

SIZES = [(1, 1), (5, 3), (7, 8), (23, 30)]


def settle(network: nn.Module) -> None:
    """Batch norms as training leaves them: gains of both signs, means and variances far from zero and one."""
    generator = torch.Generator().manual_seed(1)
    for norm in [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]:
        with torch.no_grad():
            norm.weight.copy_(torch.rand(norm.num_features, generator=generator) * 2 - 0.5)
            norm.bias.copy_(torch.randn(norm.num_features, generator=generator))
            norm.running_mean.copy_(torch.randn(norm.num_features, generator=generator))
            norm.running_var.copy_(torch.rand(norm.num_features, generator=generator) * 2 + 0.1)


def conv(branches: int = 3, kernel: int = 3, *, c_in: int = 6, dilation: int = 1) -> OverParameterisedConv:
    torch.manual_seed(0)
    layer = OverParameterisedConv(c_in, 6, kernel, dilation=dilation, branches=branches).eval()
    settle(layer)
    return layer


def assert_equal_on_all_sizes(one: nn.Module, other: nn.Module, channels: int) -> None:
    for size in SIZES:
        x = torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(2))
        with torch.no_grad():
            assert torch.allclose(one(x), other(x), atol=1e-4), size


@pytest.mark.parametrize("c_in", [4, 6], ids=["other_channels", "same_channels"])
@pytest.mark.parametrize("dilation", [1, 3, 6, 9])
@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("branches", [1, 3])
def test_merged_is_equal_on_maps_smaller_than_the_dilation_too(
    branches: int, kernel: int, dilation: int, c_in: int
) -> None:
    layer = conv(branches, kernel, c_in=c_in, dilation=dilation)
    assert_equal_on_all_sizes(layer, layer.merge(), c_in)


def test_merged_is_one_plain_convolution() -> None:
    merged = conv(dilation=6).merge()
    assert type(merged) is nn.Conv2d
    assert (merged.in_channels, merged.out_channels, merged.kernel_size) == (6, 6, (3, 3))
    assert (merged.dilation, merged.padding) == ((6, 6), (6, 6))
    assert {name for name, _ in merged.named_parameters()} == {"weight", "bias"}
    assert all(p.requires_grad and p.is_leaf for p in merged.parameters())


def test_output_is_the_sum_of_each_branch_by_itself() -> None:
    """The formula written out: three 3x3 kernels, a 1x1 one and the input, each through its own batch norm."""
    layer, x = conv(3), torch.randn(2, 6, 5, 7)
    expected = torch.zeros(2, 6, 5, 7)
    wide, norm = layer.wide
    for k in range(3):
        part = slice(6 * k, 6 * k + 6)
        y = torch.conv2d(x, wide.weight[part], padding=1)
        y = (y - norm.running_mean[part, None, None]) / (norm.running_var[part, None, None] + norm.eps).sqrt()
        expected += y * norm.weight[part, None, None] + norm.bias[part, None, None]
    expected += layer.pointwise(x) + layer.identity(x)
    assert torch.allclose(layer(x), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("kernel", "c_in", "pointwise", "identity"), [(1, 6, False, True), (3, 4, True, False), (1, 4, False, False)]
)
def test_1x1_and_identity_branches_stand_where_shapes_allow(
    kernel: int, c_in: int, pointwise: bool, identity: bool
) -> None:
    layer = conv(2, kernel, c_in=c_in)
    assert (layer.pointwise is not None, layer.identity is not None) == (pointwise, identity)


@pytest.mark.parametrize("branches", [1, 3, 8])
@pytest.mark.parametrize("kernel", [1, 3])
def test_many_branches_begin_at_the_scale_of_one(kernel: int, branches: int) -> None:
    torch.manual_seed(0)
    layer = OverParameterisedConv(64, 64, kernel, branches=branches).train()
    assert 0.9 < layer(torch.randn(4, 64, 16, 16)).std() < 1.1


def test_gradient_reaches_every_branch() -> None:
    layer = conv(3).train()
    (layer(torch.randn(2, 6, 5, 7)) * torch.randn(2, 6, 5, 7)).sum().backward()
    assert layer.wide[0].weight.grad.view(3, -1).abs().amax(1).min() > 1e-3
    others = [p.grad.abs().max() for name, p in layer.named_parameters() if name != "wide.0.weight"]
    assert len(others) == 2 + 3 + 2
    assert min(others) > 1e-3


def test_bfloat16_stays_bfloat16_in_channels_last() -> None:
    layer = conv(3, dilation=9).train().to(memory_format=torch.channels_last)
    x = torch.randn(2, 6, 23, 30).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x.bfloat16())
    assert y.dtype == torch.bfloat16
    assert y.is_contiguous(memory_format=torch.channels_last)
    y.float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize(("branches", "kernel"), [(0, 3), (2, 2)])
def test_no_branches_and_even_kernels_are_rejected(branches: int, kernel: int) -> None:
    with pytest.raises(ValueError, match="need at least one branch and an odd kernel"):
        OverParameterisedConv(4, 4, kernel, branches=branches)


def decoder(branches: int) -> JointDecoder:
    torch.manual_seed(0)
    network = JointDecoder(5, 4, width=8, branch=8, dilations=(1, 3, 6, 9), branches=branches).eval()
    settle(network)
    return network


@pytest.mark.parametrize("branches", [0, 1, 3])
def test_merged_decoder_equals_the_trained_one(branches: int) -> None:
    network = decoder(branches)
    assert_equal_on_all_sizes(network, merge_branches(network), 5)


@pytest.mark.parametrize("branches", [0, 1, 3])
def test_folding_after_merging_leaves_no_batch_norm_and_no_branch(branches: int) -> None:
    network = decoder(branches)
    folded = fold_batch_norms(network)
    assert not any(isinstance(m, nn.BatchNorm2d | OverParameterisedConv) for m in folded.modules())
    assert_equal_on_all_sizes(network, folded, 5)


def shapes(network: nn.Module) -> list[torch.Size]:
    return [p.shape for p in fold_batch_norms(network).parameters()]


def test_branches_cost_nothing_after_folding() -> None:
    assert shapes(decoder(3)) == shapes(decoder(1)) == shapes(decoder(0))


def test_merging_leaves_the_trained_network_untouched() -> None:
    network = decoder(3)
    before: dict[str, Tensor] = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    merge_branches(network)
    after = network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_without_branches_it_is_convolution_batch_norm_and_relu() -> None:
    assert [type(m) for m in branched_bn_relu(3, 4, 3)] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]
