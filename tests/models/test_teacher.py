"""FDDWNet against the network written out with plain functions, its counts, and its rule for sizes."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from written_out import State, batch_norm, counts, down, made_up, picture, up

from pipeline.models.teacher import EERM, Down, FDDWNet, Up, group_classes, normalise

STAGES = {
    # stage: entries in the file, trainable scalars
    "layer1": (6, 377),
    "layer2": (6, 7_008),
    "layer3_7": (180, 48_640),
    "layer8": (6, 36_992),
    "layer9_16": (288, 286_720),
    "layer17_24": (288, 286_720),
    "layer25": (7, 73_920),
    "layer26_27": (72, 19_456),
    "layer28": (7, 9_264),
    "layer29_30": (72, 1_792),
    "layer31": (7, 2_793),
}


def eerm(state: State, at: str, x: Tensor, dilation: int) -> Tensor:
    y = x
    for step, reach in enumerate((1, 1, 1, dilation, dilation, 1)):
        weight = state[f"{at}conv.{step}.0.weight"]
        tall, wide = weight.shape[2] // 2, weight.shape[3] // 2
        padding, groups = (reach * tall, reach * wide), len(weight) // weight.shape[1]
        y = F.conv2d(y, weight, padding=padding, dilation=reach, groups=groups)
        y = batch_norm(state, f"{at}conv.{step}.1", y)
        y = y.clamp_min(0) if step == 2 else y
    return (y + x).clamp_min(0)


def written_out(state: State, x: Tensor) -> Tensor:
    def residual(stage: str, x: Tensor, *dilations: int) -> Tensor:
        for block, dilation in enumerate(dilations):
            x = eerm(state, f"{stage}.{block}.", x, dilation)
        return x

    x = down(state, "layer2.", down(state, "layer1.", x))
    quarter = residual("layer3_7", x, 1, 1, 1, 1, 1)
    x = residual("layer9_16", down(state, "layer8.", quarter), 1, 2, 5, 9, 1, 2, 5, 9)
    x = up(state, "layer25.", residual("layer17_24", x, 2, 5, 9, 17, 2, 5, 9, 17))
    x = residual("layer26_27", x, 1, 1) + quarter
    x = residual("layer29_30", up(state, "layer28.", x), 1, 1)
    return up(state, "layer31.", x)


@pytest.mark.parametrize(
    ("block", "reference", "channels"),
    [
        (Down(3, 16), down, 3),
        (Down(16, 64), down, 16),
        (EERM(16, 1), lambda state, at, x: eerm(state, at, x, 1), 16),
        (EERM(16, 5), lambda state, at, x: eerm(state, at, x, 5), 16),
        (EERM(8, 17), lambda state, at, x: eerm(state, at, x, 17), 8),
        (Up(16, 4), up, 16),
    ],
    ids=["down-3-16", "down-16-64", "eerm-1", "eerm-5", "eerm-17", "up"],
)
def test_block_equals_the_one_written_out(
    block: nn.Module, reference: Callable[[State, str, Tensor], Tensor], channels: int
) -> None:
    network, x = made_up(block), picture(channels, 22, 38)
    with torch.no_grad():
        y = network(x)
    assert y.std() > 0.1
    assert torch.allclose(y, reference(network.state_dict(), "", x), atol=1e-9)


@torch.no_grad()
def test_network_equals_the_one_written_out() -> None:
    network, x = made_up(FDDWNet()), picture(3, 144, 160)  # 18 rows at 1/8, so that dilation 17 matters
    y = network(x)
    assert y.shape == (1, 19, 144, 160)
    assert y.std() > 0.1
    assert torch.allclose(y, written_out(network.state_dict(), x), atol=1e-9)


def test_entries_and_trainable_scalars_of_each_stage() -> None:
    assert counts(FDDWNet(), STAGES) == STAGES


def test_totals() -> None:
    network = FDDWNet()
    state, parameters = network.state_dict(), sum(p.numel() for p in network.parameters())
    assert len(state) == 939
    assert parameters == 773_682
    assert sum(t.numel() for t in state.values()) - parameters == 30_940


@pytest.mark.parametrize(
    ("stage", "shape"),
    [("layer1", (16, 32, 40)), ("layer2", (64, 16, 20)), ("layer8", (128, 8, 10)), ("layer31", (19, 64, 80))],
)
def test_stage_gives_its_channels_and_scale(stage: str, shape: tuple[int, ...]) -> None:
    seen: list[torch.Size] = []
    network = FDDWNet().eval()
    network.get_submodule(stage).register_forward_hook(lambda *call: seen.append(call[2].shape))
    with torch.no_grad():
        network(torch.zeros(1, 3, 64, 80))
    assert seen == [(1, *shape)]


def test_logits_are_never_negative() -> None:
    with torch.no_grad():
        assert made_up(FDDWNet())(picture(3, 32, 32)).min() == 0


@pytest.mark.parametrize(("length", "out"), [(8, 8), (24, 24), (7, 8), (14, 16), (29, 32)])
def test_length_is_rounded_up_to_a_multiple_of_8_where_it_runs(length: int, out: int) -> None:
    with torch.no_grad():
        assert FDDWNet().eval()(torch.zeros(1, 3, length, 16)).shape == (1, 19, out, 16)


@pytest.mark.parametrize("length", [12, 20, 28, 36, 60])
def test_other_lengths_fail_at_the_skip(length: int) -> None:
    with torch.no_grad(), pytest.raises(RuntimeError, match="size"):
        FDDWNet().eval()(torch.zeros(1, 3, 16, length))


def test_picture_is_normalised_with_the_imagenet_mean_and_deviation() -> None:
    image = torch.tensor([0.485, 0.456, 0.406])[None, :, None, None] * 255
    assert normalise(image.expand(1, 3, 2, 2)).abs().max() < 1e-6
    white = normalise(torch.full((1, 3, 1, 1), 255.0)).flatten()
    assert white.tolist() == pytest.approx([0.515 / 0.229, 0.544 / 0.224, 0.594 / 0.225], rel=1e-5)


def test_grouped_probabilities_are_sums_and_keep_the_total() -> None:
    probabilities = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(0)).softmax(1)
    grouped = group_classes(probabilities, torch.tensor([2, 0, 0, 2, 1]), 4)
    assert grouped.shape == (2, 4, 3, 4)
    assert torch.allclose(grouped[:, 0], probabilities[:, 1] + probabilities[:, 2])
    assert torch.allclose(grouped[:, 1], probabilities[:, 4])
    assert torch.allclose(grouped[:, 2], probabilities[:, 0] + probabilities[:, 3])
    assert not grouped[:, 3].any()
    assert torch.allclose(grouped.sum(1), torch.ones(2, 3, 4))
