"""ASPP: sizes, and how far each branch sees."""

import pytest
import torch
from torch import Tensor, nn

from pipeline.models.aspp import ASPP
from pipeline.models.over_parameterised import OverParameterisedConv


def aspp(dilations: tuple[int, ...] = (1, 3), branches: int = 0) -> ASPP:
    torch.manual_seed(0)
    return ASPP(6, 10, branch=4, dilations=dilations, branches=branches).eval()


def changed_by_one_pixel(network: ASPP) -> Tensor:
    """Where (H, W) the output differs when the middle of a 15 x 15 map does."""
    x = torch.randn(1, 6, 15, 15, generator=torch.Generator().manual_seed(1))
    touched = x.clone()
    touched[:, :, 7, 7] += 5
    with torch.no_grad():
        return (network(touched) - network(x)).abs().amax((0, 1)) > 1e-6


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (23, 30)])
@pytest.mark.parametrize("branches", [0, 1, 3])
def test_size_is_kept(size: tuple[int, int], branches: int) -> None:
    assert aspp(branches=branches)(torch.randn(2, 6, *size)).shape == (2, 10, *size)


def test_one_branch_per_dilation_beside_a_1x1_and_a_pooled_one() -> None:
    network = aspp((2, 4, 6))
    assert [branch[0].dilation for branch in network.branches] == [(1, 1), (2, 2), (4, 4), (6, 6)]
    assert network.project[0].in_channels == 5 * 4


def test_each_dilation_reaches_as_far_as_it_says() -> None:
    network = aspp((3,))
    torch.nn.init.zeros_(network.pooled[0].weight)
    offsets = {(int(i) - 7, int(j) - 7) for i, j in changed_by_one_pixel(network).nonzero()}
    assert offsets <= {(i, j) for i in (-3, 0, 3) for j in (-3, 0, 3)}
    assert (3, 3) in offsets


def test_pooled_branch_tells_every_place_of_the_whole() -> None:
    assert changed_by_one_pixel(aspp((1,))).all()


def test_each_convolution_on_the_map_has_as_many_kernels_as_asked_for() -> None:
    network = aspp((3, 6, 9), branches=3)
    found = [m for m in network.modules() if isinstance(m, OverParameterisedConv)]
    assert len(found) == 1 + 3 + 1
    assert {m.count for m in found} == {3}


def test_gradient_reaches_every_parameter_of_every_branch() -> None:
    network = aspp((3, 6), branches=3).train()
    (network(torch.randn(4, 6, 7, 9)) * torch.randn(4, 10, 7, 9)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in network.parameters())


def test_without_branches_the_names_of_weights_are_those_of_plain_convolutions() -> None:
    names = {name for name, m in aspp((3,)).named_modules() if isinstance(m, nn.Conv2d)}
    assert names == {"branches.0.0", "branches.1.0", "pooled.0", "project.0"}
