"""MobileNetEdgeTPU: against the network written out, its counts, and loading weights with the batch norms folded in.

The published weights are too large for a test; made-up ones of the same names and shapes show the same mistakes.
"""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.export import fold_batch_norms
from pipeline.models.backbone import Folded, MobileNetV2, MobileNetV2Tail, load_folded, unfold_batch_norm
from pipeline.models.mobilenet_edgetpu import DepthwiseResidual, EdgeTPUTail, FusedResidual, MobileNetEdgeTPU

torch.set_num_threads(1)  # too small to share out; waiting for a busy core costs more

Weights = dict[str, Tensor]

# As the published file describes the network, by number of the block: channels between and behind, size of the filter.
FUSED = {1: (128, 24), 2: (96, 24), 3: (96, 24), 4: (96, 24), 5: (192, 40), 6: (160, 40), 7: (160, 40), 8: (160, 40)}
DEPTHWISE = {
    9: (320, 72, 3),
    10: (288, 72, 3),
    11: (288, 72, 3),
    12: (288, 72, 3),
    13: (576, 72, 3),
    14: (288, 72, 3),
    15: (288, 72, 3),
    16: (288, 72, 3),
    17: (576, 120, 5),
    18: (480, 120, 5),
    19: (480, 120, 5),
    20: (480, 120, 5),
    21: (960, 144, 3),
}
WITHOUT_SHORTCUT = {1, 5, 9, 13, 17, 21}
HALVING = {1, 5, 9}
DILATED = {18, 19, 20, 21}


def shapes() -> dict[str, tuple[int, int, int, int]]:
    """Name -> shape of each kernel of the published file, up to the segmentation head."""
    named = {"Conv": (24, 3, 3, 3), "expanded_conv.project": (16, 24, 1, 1)}
    c_in = 16
    for number, (wide, c_out) in FUSED.items():
        named[f"expanded_conv_{number}.expand"] = (wide, c_in, 3, 3)
        named[f"expanded_conv_{number}.project"] = (c_out, wide, 1, 1)
        c_in = c_out
    for number, (wide, c_out, kernel) in DEPTHWISE.items():
        named[f"expanded_conv_{number}.expand"] = (wide, c_in, 1, 1)
        named[f"expanded_conv_{number}.depthwise"] = (wide, 1, kernel, kernel)
        named[f"expanded_conv_{number}.project"] = (c_out, wide, 1, 1)
        c_in = c_out
    return {**named, "Conv_1": (1280, 144, 1, 1)}


def made_up() -> Weights:
    """Random weights as the published file stores them: kernels float16, biases float32."""
    generator = torch.Generator().manual_seed(0)
    stored: Weights = {}
    for name, shape in shapes().items():
        kernel = torch.randn(shape, generator=generator) * (2 / (shape[1] * shape[2] * shape[3])) ** 0.5
        stored[f"MobilenetEdgeTPU.{name}.weight"] = kernel.half()
        stored[f"MobilenetEdgeTPU.{name}.bias"] = 0.1 * torch.randn(shape[0], generator=generator)
    return stored


@pytest.fixture(scope="module")
def weights() -> Weights:
    return made_up()


def loaded(weights: Weights) -> tuple[MobileNetEdgeTPU, EdgeTPUTail]:
    backbone, tail = MobileNetEdgeTPU().eval(), EdgeTPUTail().eval()
    load_folded(backbone, weights)
    load_folded(tail, weights)
    return backbone, tail


def pictures(height: int = 64, width: int = 96, *, count: int = 2) -> Tensor:
    """Smooth random RGB (count, 3, height, width) in 0..255."""
    coarse = torch.rand(count, 3, height // 8, width // 8, generator=torch.Generator().manual_seed(1))
    return 255 * F.interpolate(coarse, size=(height, width), mode="bilinear")


def same(x: Tensor, size: int, *, stride: int, dilation: int) -> Tensor:
    """TensorFlow's "same" padding, from its definition: enough for ceil(n / stride) outputs, the odd one last."""
    margins = []
    for n in (x.shape[-1], x.shape[-2]):
        total = max((-(-n // stride) - 1) * stride + dilation * (size - 1) + 1 - n, 0)
        margins += [total // 2, total - total // 2]
    return F.pad(x, margins)


def convolution(weights: Weights) -> Callable[..., Tensor]:
    def apply(x: Tensor, name: str, *, stride: int = 1, dilation: int = 1) -> Tensor:
        kernel = weights[f"MobilenetEdgeTPU.{name}.weight"].float()
        bias = weights[f"MobilenetEdgeTPU.{name}.bias"]
        padded = same(x, kernel.shape[-1], stride=stride, dilation=dilation)
        groups = x.shape[1] // kernel.shape[1]
        return F.conv2d(padded, kernel, bias, stride, dilation=dilation, groups=groups)

    return apply


def written_out(weights: Weights, image: Tensor) -> dict[int, Tensor]:
    """The published graph in plain functions: block number -> its output; 22 is what the segmentation head takes."""
    conv = convolution(weights)
    x = conv(F.relu(conv(image / 128 - 1, "Conv", stride=2)), "expanded_conv.project")
    outputs = {}
    for number in range(1, 22):
        name, stride = f"expanded_conv_{number}", 2 if number in HALVING else 1
        if number in FUSED:
            wide = F.relu(conv(x, f"{name}.expand", stride=stride))
        else:
            wide = F.relu(conv(x, f"{name}.expand"))
            dilation = 2 if number in DILATED else 1
            wide = F.relu(conv(wide, f"{name}.depthwise", stride=stride, dilation=dilation))
        y = conv(wide, f"{name}.project")
        x = y if number in WITHOUT_SHORTCUT else y + x
        outputs[number] = x
    outputs[22] = F.relu(conv(x, "Conv_1"))
    return outputs


@pytest.mark.parametrize(("height", "width"), [(64, 96), (48, 80), (16, 16)])
def test_features_have_the_channels_and_strides_they_declare(height: int, width: int) -> None:
    with torch.no_grad():
        found = MobileNetEdgeTPU().eval()(pictures(height, width))
        behind = EdgeTPUTail().eval()(found[-1])
    for feature, spec in zip(found, MobileNetEdgeTPU.features, strict=True):
        assert feature.shape == (2, spec.channels, height // spec.stride, width // spec.stride)
    assert behind.shape == (2, EdgeTPUTail.out_channels, height // 16, width // 16)


def test_units_are_those_of_the_published_file() -> None:
    units = {**MobileNetEdgeTPU().units(), **EdgeTPUTail().units()}
    assert {name: tuple(conv.weight.shape) for name, (conv, _) in units.items()} == shapes()


@pytest.mark.parametrize(("height", "width"), [(64, 96), (48, 80)])
def test_folded_weights_give_the_network_written_out(weights: Weights, height: int, width: int) -> None:
    backbone, tail = loaded(weights)
    expected = written_out(weights, pictures(height, width))
    with torch.no_grad():
        x4, x8, x16 = backbone(pictures(height, width))
        found = {4: x4, 8: x8, 16: x16, 22: tail(x16)}
    for number, feature in found.items():
        assert (feature - expected[number]).abs().max() < 1e-4 * expected[number].abs().max()


def test_activations_are_not_cut_at_six(weights: Weights) -> None:
    backbone, tail = loaded(weights)
    with torch.no_grad():
        assert tail(backbone(pictures())[-1]).max() > 6


def test_loaded_weights_are_float32_in_units_that_can_be_trained(weights: Weights) -> None:
    backbone, _ = loaded(weights)
    assert {tensor.dtype for tensor in backbone.parameters()} == {torch.float32}
    assert all(conv.bias is None for conv, _ in backbone.units().values())


def test_a_picture_gives_the_same_alone_and_in_a_batch(weights: Weights) -> None:
    backbone, tail = loaded(weights)
    images = pictures(count=3)
    with torch.no_grad():
        together, alone = tail(backbone(images)[-1])[1:2], tail(backbone(images[1:2])[-1])
    assert (together - alone).abs().max() < 1e-4 * alone.abs().max()


def test_gradient_reaches_every_parameter(weights: Weights) -> None:
    backbone, tail = loaded(weights)
    tail.train()(backbone.train()(pictures())[-1]).square().mean().backward()
    for module in (backbone, tail):
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())


def test_unfolding_keeps_the_function(weights: Weights) -> None:
    folded, unfolded = loaded(weights)[0], loaded(weights)[0]
    unfold_batch_norm(unfolded, pictures())
    with torch.no_grad():
        for a, b in zip(folded(pictures(48, 80)), unfolded(pictures(48, 80)), strict=True):
            assert (a - b).abs().max() < 1e-4 * a.abs().max()
    assert all(norm.weight.std() > 0 for _, norm in unfolded.units().values())


def test_backbone_and_tail_unfold_as_one_network(weights: Weights) -> None:
    folded, unfolded = nn.Sequential(*last_only(weights)), nn.Sequential(*last_only(weights))
    unfold_batch_norm(unfolded, pictures())
    with torch.no_grad():
        expected, found = folded(pictures(48, 80)), unfolded(pictures(48, 80))
    assert (expected - found).abs().max() < 1e-4 * expected.abs().max()


class LastMap(nn.Module):
    """The backbone, its finer maps thrown away."""

    def __init__(self, backbone: MobileNetEdgeTPU) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, image: Tensor) -> Tensor:
        last: Tensor = self.backbone(image)[-1]
        return last


def last_only(weights: Weights) -> tuple[nn.Module, nn.Module]:
    backbone, tail = loaded(weights)
    return LastMap(backbone).eval(), tail


def test_export_folds_every_batch_norm_and_keeps_the_function(weights: Weights) -> None:
    backbone, tail = last_only(weights)
    network = nn.Sequential(backbone, tail).eval()
    unfold_batch_norm(network, pictures())
    folded = fold_batch_norms(network)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    with torch.no_grad():
        expected, found = network(pictures(48, 80)), folded(pictures(48, 80))
    assert (expected - found).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("network", [MobileNetV2, MobileNetV2Tail])
def test_weights_of_another_network_are_refused_by_name(weights: Weights, network: Callable[[], Folded]) -> None:
    with pytest.raises(ConfigError, match=r"no MobileNetV2\.\S+\.weight of shape .*name the weights file"):
        load_folded(network(), weights)


def test_weights_of_another_width_are_refused_and_nothing_is_taken(weights: Weights) -> None:
    name = "MobilenetEdgeTPU.expanded_conv_9.project.weight"
    backbone = MobileNetEdgeTPU()
    before = backbone.stem[0].weight.clone()
    with pytest.raises(
        ConfigError, match=r"need \S+expanded_conv_9\.project\.weight of shape \(72, 320, 1, 1\), found"
    ):
        load_folded(backbone, {**weights, name: weights[name][:64]})
    assert torch.equal(backbone.stem[0].weight, before)


def test_a_missing_bias_is_named(weights: Weights) -> None:
    part = {name: tensor for name, tensor in weights.items() if name != "MobilenetEdgeTPU.Conv_1.bias"}
    load_folded(MobileNetEdgeTPU(), part)
    with pytest.raises(ConfigError, match=r"no MobilenetEdgeTPU\.Conv_1\.bias of shape \(1280,\)"):
        load_folded(EdgeTPUTail(), part)


@pytest.mark.parametrize("block", [FusedResidual, DepthwiseResidual])
def test_shortcut_adds_the_input(block: Callable[..., nn.Module]) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 8, 6, 6)
    inside, entry = block(8, 8, shortcut=True).eval(), block(8, 8, shortcut=False).eval()
    for made in (inside, entry):
        nn.init.zeros_(made.project[0].weight)
    assert torch.equal(inside(x), x)
    assert torch.equal(entry(x), torch.zeros_like(x))
