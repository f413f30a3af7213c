"""MobileNetV2 and its tail: shapes, counts of weights, and loading weights with the batch norms folded in."""

from pathlib import Path

import pytest
import tiny
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.models.backbone import (
    InvertedResidual,
    MobileNetV2,
    MobileNetV2Tail,
    load_folded,
    same_conv_bn,
    unfold_batch_norm,
    unit_of,
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("backbone") / "backbone.safetensors"
    save_file(tiny.folded_weights(MobileNetV2()), path)
    return path


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


def tail() -> MobileNetV2Tail:
    made = MobileNetV2Tail().eval()
    load_folded(made, tiny.folded_weights(made))
    return made


def classifier(weights: dict[str, Tensor], x16: Tensor) -> Tensor:
    """The rest of the classifier with folded weights, at its own stride of 32: features (B, 1280, h/2, w/2)."""

    def conv(x: Tensor, name: str, *, stride: int = 1, groups: int = 1) -> Tensor:
        weight, bias = weights[f"MobileNetV2.{name}.weight"], weights[f"MobileNetV2.{name}.bias"]
        if weight.shape[-1] == 3:
            x = F.pad(x, (0, 1, 0, 1) if stride == 2 else (1, 1, 1, 1))
        return F.conv2d(x, weight, bias, stride, groups=groups)

    x = x16
    for number, stride in enumerate((2, 1, 1, 1), start=14):
        block = f"expanded_conv_{number}"
        wide = conv(x, f"{block}.expand").clamp(0, 6)
        wide = conv(wide, f"{block}.depthwise", stride=stride, groups=wide.shape[1]).clamp(0, 6)
        y = conv(wide, f"{block}.project")
        x = x + y if x.shape == y.shape else y
    return conv(x, "Conv2d_18_1").clamp(0, 6)


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


def test_tail_keeps_stride_16() -> None:
    x16 = torch.randn(2, MobileNetV2.features[-1].channels, 3, 5)
    assert MobileNetV2Tail().eval()(x16).shape == (2, MobileNetV2Tail.out_channels, 3, 5)


def test_backbone_and_tail_are_the_whole_of_mobilenet_v2() -> None:
    """Without the classes, its convolutions have 2,189,760 weights in 52 layers (table 2 of the paper)."""
    units = {**MobileNetV2().units(), **MobileNetV2Tail().units()}
    assert len(units) == len(MobileNetV2().units()) + len(MobileNetV2Tail().units()) == 52
    assert sum(conv.weight.numel() for conv, _ in units.values()) == 2_189_760


def test_dilated_tail_gives_the_classifiers_features_where_the_classifier_has_them() -> None:
    """With the odd row last, the classifier's maps at stride 32 lie on the odd rows and columns of stride 16."""
    made = tail()
    x16 = torch.randn(2, 96, 6, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = classifier(tiny.folded_weights(made), x16)
        assert (made(x16)[..., 1::2, 1::2] - expected).abs().max() < 1e-4 * expected.abs().max()


def test_unfolding_keeps_the_function_of_the_tail() -> None:
    x16 = torch.randn(2, 96, 4, 6, generator=torch.Generator().manual_seed(0))
    folded, unfolded = tail(), tail()
    unfold_batch_norm(unfolded, x16)
    with torch.no_grad():
        expected = folded(x16)
        assert (unfolded(x16) - expected).abs().max() < 1e-4 * expected.abs().max()


def test_weights_of_a_part_are_refused_by_name(weights: Path) -> None:
    """The backbone's weights alone are not enough for the tail."""
    with pytest.raises(
        ConfigError, match=r"no MobileNetV2\.expanded_conv_14\.expand\.weight of shape \(576, 96, 1, 1\)"
    ):
        load_folded(MobileNetV2Tail(), load_file(weights))


def test_misshapen_weights_are_refused_and_nothing_is_taken(weights: Path) -> None:
    name = "MobileNetV2.expanded_conv_13.project.weight"
    stored = load_file(weights)
    backbone = MobileNetV2()
    before = backbone.stem[0].weight.clone()
    with pytest.raises(ConfigError, match=r"need MobileNetV2\.expanded_conv_13\.project\.weight of shape .*, found"):
        load_folded(backbone, {**stored, name: stored[name][:10]})
    assert torch.equal(backbone.stem[0].weight, before)


def test_half_precision_weights_are_taken_as_float32(weights: Path) -> None:
    stored = {name: tensor.half() for name, tensor in load_file(weights).items()}
    backbone = MobileNetV2()
    load_folded(backbone, stored)
    assert backbone.stem[0].weight.dtype == torch.float32
    assert torch.equal(backbone.stem[0].weight, stored["MobileNetV2.Conv2d_0_0.weight"].float())


@pytest.mark.parametrize(("kernel", "dilation"), [(1, 1), (3, 1), (3, 2), (5, 2)])
def test_same_padding_keeps_the_size_at_stride_1(kernel: int, dilation: int) -> None:
    layers = same_conv_bn(4, 6, kernel, dilation=dilation)
    assert layers(torch.randn(2, 4, 7, 5)).shape == (2, 6, 7, 5)


def test_only_a_convolution_with_its_batch_norm_is_a_unit() -> None:
    with pytest.raises(TypeError, match="begins with a convolution and its batch norm"):
        unit_of(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()))
