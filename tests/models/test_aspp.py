"""ASPP: sizes, and how far each branch sees."""

import pytest
import torch
from torch import Tensor

from pipeline.models.aspp import ASPP


def aspp(dilations: tuple[int, ...] = (1, 3)) -> ASPP:
    torch.manual_seed(0)
    return ASPP(6, 10, branch=4, dilations=dilations).eval()


def changed_by_one_pixel(network: ASPP) -> Tensor:
    """Where (H, W) the output differs when the middle of a 15 x 15 map does."""
    x = torch.randn(1, 6, 15, 15, generator=torch.Generator().manual_seed(1))
    touched = x.clone()
    touched[:, :, 7, 7] += 5
    with torch.no_grad():
        return (network(touched) - network(x)).abs().amax((0, 1)) > 1e-6


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (23, 30)])
def test_size_is_kept(size: tuple[int, int]) -> None:
    assert aspp()(torch.randn(2, 6, *size)).shape == (2, 10, *size)


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
