"""MobileNetV2: its shapes, its count of weights, and loading weights with the batch norms folded in."""

from pathlib import Path

import pytest
import tiny
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.models.backbone import InvertedResidual, MobileNetV2, load_folded, unfold_batch_norm


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.backbone_weights(tmp_path_factory.mktemp("backbone") / "backbone.safetensors")


def loaded(weights: Path) -> MobileNetV2:
    backbone = MobileNetV2().eval()
    load_folded(backbone, load_file(weights))
    return backbone


def pictures(count: int = 4) -> Tensor:
    return tiny.images(tiny.scenes(count))


def folded_by_hand(weights: dict[str, Tensor], image: Tensor) -> list[Tensor]:
    """The network of the paper's table 2 with folded weights, written out; outputs of all blocks, the stem first."""

    def conv(x: Tensor, name: str, *, stride: int = 1, groups: int = 1) -> Tensor:
        weight, bias = weights[f"MobileNetV2.{name}.weight"], weights[f"MobileNetV2.{name}.bias"]
        if weight.shape[-1] == 3:
            x = F.pad(x, (0, 1, 0, 1) if stride == 2 else (1, 1, 1, 1))
        return F.conv2d(x, weight, bias, stride, groups=groups)

    outputs = [conv(image / 127.5 - 1, "Conv2d_0_0", stride=2).clamp(0, 6)]
    strides = [1, 2, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1, 1]
    for number, stride in enumerate(strides, start=1):
        x, block = outputs[-1], f"expanded_conv_{number}"
        wide = x if number == 1 else conv(x, f"{block}.expand").clamp(0, 6)
        wide = conv(wide, f"{block}.depthwise", stride=stride, groups=wide.shape[1]).clamp(0, 6)
        y = conv(wide, f"{block}.project")
        outputs.append(x + y if x.shape == y.shape else y)
    return outputs


def test_features_have_the_channels_and_strides_they_declare() -> None:
    found = MobileNetV2().eval()(pictures(2))
    for feature, spec in zip(found, MobileNetV2.features, strict=True):
        assert feature.shape == (2, spec.channels, tiny.HEIGHT // spec.stride, tiny.WIDTH // spec.stride)


def test_it_is_mobilenet_v2_up_to_stride_16() -> None:
    backbone = MobileNetV2()
    assert sum(isinstance(m, InvertedResidual) for m in backbone.modules()) == 13
    assert len(backbone.units()) == 1 + 2 + 12 * 3
    assert sum(conv.weight.numel() for conv, _ in backbone.units().values()) == 526_400


def test_folded_weights_give_the_network_written_out(weights: Path) -> None:
    image = pictures()
    expected = folded_by_hand(load_file(weights), image)
    with torch.no_grad():
        x4, x8, x16 = loaded(weights)(image)
    for feature, block in ((x4, expected[3]), (x8, expected[6]), (x16, expected[13])):
        assert (feature - block).abs().max() < 1e-4 * block.abs().max()


def test_unfolding_keeps_the_function(weights: Path) -> None:
    folded, unfolded = loaded(weights), loaded(weights)
    unfold_batch_norm(unfolded, pictures(3))
    with torch.no_grad():
        for a, b in zip(folded(pictures(6)), unfolded(pictures(6)), strict=True):
            assert (a - b).abs().max() < 1e-4 * a.abs().max()


def test_unfolded_batch_norms_have_the_statistics_of_their_input(weights: Path) -> None:
    """So training begins from the same function: batch statistics equal running ones on the same images."""
    backbone = loaded(weights)
    unfold_batch_norm(backbone, pictures(3))
    with torch.no_grad():
        settled = backbone(pictures(3))
        training = backbone.train()(pictures(3))
    for a, b in zip(settled, training, strict=True):
        assert (a - b).abs().mean() < 0.02 * a.abs().mean()
    assert all(norm.weight.std() > 0 for _, norm in backbone.units().values())


def test_unfolding_leaves_no_hooks(weights: Path) -> None:
    backbone = loaded(weights)
    unfold_batch_norm(backbone, pictures(2))
    assert not any(m._forward_pre_hooks for m in backbone.modules())


def test_unfolding_works_on_any_network_of_folded_batch_norms() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 5, 3, bias=False), nn.BatchNorm2d(5)).eval()
    with torch.no_grad():
        network[1].bias.normal_()
        network[1].running_var.fill_(1 - network[1].eps)
        expected = network(pictures(2))
        unfold_batch_norm(network, pictures(2))
        assert torch.allclose(network(pictures(2)), expected, rtol=1e-4, atol=1e-3)


def test_shortcut_is_taken_where_shapes_allow() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 8, 6, 6)
    block = InvertedResidual(8, 8, expansion=2, stride=1).eval()
    nn.init.zeros_(block.project[0].weight)
    assert torch.equal(block(x), x)
    assert InvertedResidual(8, 8, expansion=2, stride=2).eval()(x).shape == (1, 8, 3, 3)
    assert InvertedResidual(8, 12, expansion=2, stride=1).eval()(x).shape == (1, 12, 6, 6)


def test_projection_is_linear() -> None:
    torch.manual_seed(0)
    block = InvertedResidual(8, 12, expansion=2, stride=1).eval()
    assert (block(torch.randn(1, 8, 6, 6)) < 0).any()
