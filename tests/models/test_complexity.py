"""Parameters and multiply-accumulates, against counts made by hand."""

import pytest
import torch
from torch import nn

from pipeline.models.complexity import Complexity, complexity


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        (nn.Conv2d(4, 6, 3, padding=1), Complexity(6 * 4 * 9 + 6, 6 * 4 * 9 * 35)),
        (nn.Conv2d(4, 6, 3, padding=2, dilation=2, bias=False), Complexity(6 * 4 * 9, 6 * 4 * 9 * 35)),
        (nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False), Complexity(4 * 9, 4 * 9 * 35)),
        (nn.Conv2d(4, 6, 1, stride=2, bias=False), Complexity(24, 24 * 3 * 4)),
        (nn.ConvTranspose2d(4, 6, 2, stride=2, bias=False), Complexity(96, 96 * 35)),
        (nn.Sequential(nn.Flatten(), nn.Linear(140, 3, bias=False)), Complexity(420, 420)),
        (nn.Sequential(nn.PixelShuffle(2), nn.ReLU()), Complexity(0, 0)),
    ],
    ids=["convolution", "dilated", "depthwise", "strided", "transposed", "linear", "shuffle"],
)
def test_counts_are_those_made_by_hand(network: nn.Module, expected: Complexity) -> None:
    assert complexity(network, torch.zeros(1, 4, 5, 7)) == expected


def test_macs_are_in_proportion_to_the_batch() -> None:
    network = nn.Conv2d(4, 6, 3)
    one, three = (complexity(network, torch.zeros(batch, 4, 5, 7)).macs for batch in (1, 3))
    assert three == 3 * one


def test_network_is_left_as_it_was() -> None:
    network = nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)).train()
    complexity(network, torch.randn(2, 4, 5, 7))
    assert network.training
    assert network[1].num_batches_tracked == 0
