"""MiniNetV2 against the network written out with plain functions, its counts, and its rule for sizes."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from written_out import State, batch_norm, counts, down, made_up, picture, up

from pipeline.models.mininetv2 import MiniNetV2, MultiDilation, Separable

STAGES = {
    # stage: entries in the file, trainable scalars
    "d1_2": (12, 7_385),
    "ref": (12, 7_385),
    "m1_10": (130, 49_920),
    "d3": (6, 36_992),
    "feature_extractor": (250, 300_672),
    "up1": (7, 73_920),
    "m26_29": (52, 19_968),
    "output": (7, 11_001),
}
DILATIONS = (1, 2, 1, 4, 1, 8, 1, 16, 1, 1, 1, 2, 1, 4, 1, 8)


def depthwise(state: State, at: str, x: Tensor, reach: int) -> Tensor:
    y = F.conv2d(x, state[f"{at}.0.weight"], padding=reach, dilation=reach, groups=x.shape[1])
    return batch_norm(state, f"{at}.1", y).clamp_min(0)


def block(state: State, at: str, x: Tensor, reach: int) -> Tensor:
    y = depthwise(state, f"{at}dw_conv", x, 1)
    y = y + depthwise(state, f"{at}ddw_conv", x, reach) if reach > 1 else y
    y = F.conv2d(y, state[f"{at}pw_conv.0.weight"], state[f"{at}pw_conv.0.bias"])
    return batch_norm(state, f"{at}pw_conv.1", y).clamp_min(0)


def written_out(state: State, x: Tensor) -> Tensor:
    def blocks(stage: str, x: Tensor, *dilations: int) -> Tensor:
        for number, reach in enumerate(dilations):
            x = block(state, f"{stage}.{number}.", x, reach)
        return x

    size = x.shape[2:]
    beside = down(state, "ref.1.", down(state, "ref.0.", x))
    x = down(state, "d1_2.1.", down(state, "d1_2.0.", x))
    x = down(state, "d3.", blocks("m1_10", x, *[1] * 10))
    x = up(state, "up1.", blocks("feature_extractor", x, *DILATIONS)) + beside
    x = up(state, "output.", blocks("m26_29", x, 1, 1, 1, 1))
    return F.interpolate(x, size, mode="bilinear", align_corners=True)


@pytest.mark.parametrize(
    ("network", "reach"), [(Separable(16), 1), (MultiDilation(16, 4), 4), (MultiDilation(8, 16), 16)]
)
def test_block_equals_the_one_written_out(network: nn.Module, reach: int) -> None:
    channels = network.get_submodule("dw_conv")[0].in_channels
    network, x = made_up(network), picture(channels, 22, 38)
    with torch.no_grad():
        y = network(x)
    assert y.std() > 0.1
    assert torch.allclose(y, block(network.state_dict(), "", x, reach), atol=1e-9)


@torch.no_grad()
def test_network_equals_the_one_written_out() -> None:
    network, x = made_up(MiniNetV2()), picture(3, 144, 160)  # 18 rows at 1/8, so that dilation 16 matters
    y = network(x)
    assert y.shape == (1, 19, 144, 160)
    assert y.std() > 0.1
    assert torch.allclose(y, written_out(network.state_dict(), x), atol=1e-9)


def test_entries_and_trainable_scalars_of_each_stage() -> None:
    assert counts(MiniNetV2(), STAGES) == STAGES


def test_totals() -> None:
    network = MiniNetV2()
    assert len(network.state_dict()) == 476
    assert sum(p.numel() for p in network.parameters()) == 507_243


@torch.no_grad()
def test_logits_are_never_negative_and_the_same_each_time() -> None:
    network, x = made_up(MiniNetV2(classes=11)), picture(3, 32, 48)
    first = network(x)
    assert first.shape == (1, 11, 32, 48)
    assert first.min() >= 0
    assert torch.equal(network(x), first)


@pytest.mark.parametrize("length", [12, 20, 36])
def test_lengths_that_8_does_not_divide_may_fail_at_the_skip(length: int) -> None:
    with torch.no_grad(), pytest.raises(RuntimeError, match="size"):
        MiniNetV2().eval()(torch.zeros(1, 3, 16, length))
