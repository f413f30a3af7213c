"""MiniNetV2 against the network written out with plain functions, its counts, and its rule for sizes."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models.mininetv2 import MiniNetV2, MultiDilation, Separable

State = dict[str, Tensor]
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


def made_up(network: nn.Module) -> nn.Module:
    """Fill each tensor in double precision by a formula of its name and index; variances stay positive."""
    network = network.double().eval()
    for number, (name, tensor) in enumerate(network.state_dict().items()):
        if not tensor.is_floating_point():
            continue
        wave = torch.sin(torch.arange(tensor.numel(), dtype=torch.float64) * 1.7 + number).view(tensor.shape)
        if name.endswith("running_var"):
            tensor.copy_(1 + 0.5 * wave)
        elif tensor.dim() == 4:
            tensor.copy_(wave * (3 / tensor[0].numel()) ** 0.5)
        else:
            tensor.copy_(0.8 * wave)
    return network


def picture(channels: int, height: int, width: int) -> Tensor:
    c = torch.arange(channels, dtype=torch.float64)[:, None, None]
    i = torch.arange(height, dtype=torch.float64)[:, None]
    j = torch.arange(width, dtype=torch.float64)
    return (2 * torch.sin(0.35 * i + 0.7 * c) * torch.cos(0.23 * j - 0.4 * c))[None]


def normed(state: State, at: str, x: Tensor) -> Tensor:
    """Batch norm, then ReLU."""
    w, b, mean, var = (state[f"{at}.{key}"][:, None, None] for key in ("weight", "bias", "running_mean", "running_var"))
    return (w * (x - mean) / (var + 1e-5).sqrt() + b).clamp_min(0)


def down(state: State, at: str, x: Tensor) -> Tensor:
    conv = F.conv2d(x, state[f"{at}.conv.0.weight"], stride=2, padding=1)
    return torch.cat([normed(state, f"{at}.conv.1", conv), F.max_pool2d(x, 3, 2, 1)], 1)


def up(state: State, at: str, x: Tensor) -> Tensor:
    weight, bias = state[f"{at}.up_conv.0.weight"], state[f"{at}.up_conv.0.bias"]
    y = F.conv_transpose2d(x, weight, bias, stride=2, padding=1, output_padding=1)
    return normed(state, f"{at}.up_conv.1", y)


def depthwise(state: State, at: str, x: Tensor, reach: int) -> Tensor:
    y = F.conv2d(x, state[f"{at}.0.weight"], padding=reach, dilation=reach, groups=x.shape[1])
    return normed(state, f"{at}.1", y)


def block(state: State, at: str, x: Tensor, reach: int) -> Tensor:
    y = depthwise(state, f"{at}dw_conv", x, 1)
    y = y + depthwise(state, f"{at}ddw_conv", x, reach) if reach > 1 else y
    y = F.conv2d(y, state[f"{at}pw_conv.0.weight"], state[f"{at}pw_conv.0.bias"])
    return normed(state, f"{at}pw_conv.1", y)


def written_out(state: State, x: Tensor) -> Tensor:
    def blocks(stage: str, x: Tensor, *dilations: int) -> Tensor:
        for number, reach in enumerate(dilations):
            x = block(state, f"{stage}.{number}.", x, reach)
        return x

    size = x.shape[2:]
    beside = down(state, "ref.1", down(state, "ref.0", x))
    x = down(state, "d1_2.1", down(state, "d1_2.0", x))
    x = down(state, "d3", blocks("m1_10", x, *[1] * 10))
    x = up(state, "up1", blocks("feature_extractor", x, *DILATIONS)) + beside
    x = up(state, "output", blocks("m26_29", x, 1, 1, 1, 1))
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
    network = MiniNetV2()
    entries = {name: sum(key.startswith(f"{name}.") for key in network.state_dict()) for name in STAGES}
    scalars = {name: sum(p.numel() for p in network.get_submodule(name).parameters()) for name in STAGES}
    assert {name: (entries[name], scalars[name]) for name in STAGES} == STAGES


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
