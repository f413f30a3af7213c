"""The systems that the joint decoder is held against: same interface, and the rest of the backbone inside."""

import math
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.engine_libraries import import_onnxruntime
from pipeline.export import fold_batch_norms
from pipeline.models.alternatives import (
    FeatureTaskDecoder,
    ImageAnalysis,
    ImageSynthesis,
    JSDEDecoder,
    SourceDecoder,
    SourceTaskDecoder,
    block_cosines,
)
from pipeline.models.backbone import FeatureSpec
from pipeline.models.layers import conv_bn_relu

CLASSES, LATENTS, CHANNELS = 5, 6, 10


class ShortTail(nn.Module):
    """The end of a very short backbone."""

    def __init__(self) -> None:
        super().__init__()
        self.out_channels = 12
        self.layers = conv_bn_relu(CHANNELS, 12, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return y


class Stages(nn.Module):
    """From a map at some stride to stride 16; remembers what it was given."""

    def __init__(self, channels: int, factor: int) -> None:
        super().__init__()
        self.layers = nn.Conv2d(channels, CHANNELS, factor, stride=factor)
        self.seen = torch.Size()

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x.shape
        y: Tensor = self.layers(x)
        return y


def features() -> FeatureTaskDecoder:
    torch.manual_seed(0)
    return FeatureTaskDecoder(ShortTail(), CLASSES)


def source() -> SourceTaskDecoder:
    return SourceTaskDecoder(LATENTS, channels=CHANNELS, width=8, blocks=2, task_decoder=features())


def latents(stride: int = 8, channels: int = 7) -> JSDEDecoder:
    return JSDEDecoder(
        LATENTS,
        joins=FeatureSpec(channels, stride),
        width=8,
        blocks=1,
        stages=Stages(channels, 16 // stride),
        task_decoder=features(),
    )


MAKERS: dict[str, Callable[[], nn.Module]] = {"features": features, "source": source, "latents": latents}
each = pytest.mark.parametrize("name", list(MAKERS))


def inputs(name: str, batch: int = 2, size: tuple[int, int] = (5, 7)) -> Tensor:
    channels = CHANNELS if name == "features" else LATENTS
    return torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(1))


def settled(name: str) -> nn.Module:
    """In eval mode, with the statistics of its own maps: else a fresh network's logits are little but its last bias."""
    network = MAKERS[name]()
    for norm in [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]:
        norm.momentum = 1.0
    with torch.no_grad():
        network.train()(inputs(name, 8))
    return network.eval()


@each
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (23, 30)])
def test_logits_are_four_times_as_large_as_the_latents(name: str, size: tuple[int, int]) -> None:
    logits = settled(name)(inputs(name, size=size))
    assert logits.shape == (2, CLASSES, 4 * size[0], 4 * size[1])
    assert logits.min() < 0 < logits.max()


@each
def test_gradient_reaches_every_parameter(name: str) -> None:
    network, x = MAKERS[name]().train(), inputs(name, 4).requires_grad_()
    logits = network(x)
    (logits * torch.randn_like(logits)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in network.parameters())
    assert x.grad is not None
    assert x.grad.abs().max() > 0


@each
def test_it_trains_in_bfloat16_and_channels_last(name: str) -> None:
    network = MAKERS[name]().train().to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(inputs(name, 4).to(memory_format=torch.channels_last))
    logits.float().square().mean().backward()
    norms = torch.stack([p.grad.norm() for p in network.parameters()])
    assert norms.isfinite().all()
    assert norms.max() < 1e3


@each
def test_a_pictures_result_does_not_depend_on_its_batch(name: str) -> None:
    network, x = settled(name), inputs(name, 3)
    with torch.no_grad():
        logits = network(x)
        assert logits.std() > 0.05
        assert torch.allclose(logits[1:2], network(x[1:2]), atol=1e-5)


@each
def test_every_convolution_is_dense(name: str) -> None:
    """Gradients of dilated depthwise ones are wrong in bfloat16 on some processors."""
    assert all(m.groups == 1 for m in MAKERS[name]().modules() if isinstance(m, nn.Conv2d))


@each
def test_graph_gives_what_the_network_gives_at_any_batch_size(name: str, tmp_path: Path) -> None:
    network, x = fold_batch_norms(settled(name)), inputs(name, 3)
    batch = torch.export.Dim("batch", min=1, max=64)
    path = tmp_path / "decode.onnx"
    torch.onnx.export(network, (x,), path, dynamic_shapes=({0: batch},), dynamo=True, verbose=False)
    session = import_onnxruntime().InferenceSession(path, providers=["CPUExecutionProvider"])
    for part in (x, x[:1]):
        found = session.run(None, {session.get_inputs()[0].name: part.numpy()})[0]
        with torch.no_grad():
            assert np.allclose(found, network(part).numpy(), atol=1e-4)


def test_source_decoder_rebuilds_features_and_the_task_decoder_reads_them() -> None:
    network, y_hat = source().eval(), inputs("source")
    rebuilt = network.source_decoder(y_hat)
    assert rebuilt.shape == (2, CHANNELS, 5, 7)
    assert torch.equal(network(y_hat), network.task_decoder(rebuilt))


def test_rebuilt_features_take_both_signs() -> None:
    rebuilt = SourceDecoder(LATENTS, CHANNELS, width=8, blocks=2).eval()(inputs("source"))
    assert (rebuilt.amin((0, 2, 3)) < rebuilt.amax((0, 2, 3))).all()
    assert rebuilt.min() < 0 < rebuilt.max()


@pytest.mark.parametrize(("stride", "channels"), [(16, 9), (8, 7), (4, 3)])
def test_stages_get_the_map_that_they_begin_with(stride: int, channels: int) -> None:
    network = latents(stride, channels).eval()
    assert network(inputs("latents")).shape == (2, CLASSES, 20, 28)
    assert network.stages.seen == (2, channels, 5 * 16 // stride, 7 * 16 // stride)


def analysis() -> ImageAnalysis:
    torch.manual_seed(0)
    return ImageAnalysis(6, width=16)


def pictures() -> Tensor:
    coarse = torch.rand(2, 3, 6, 8, generator=torch.Generator().manual_seed(1))
    return F.interpolate(coarse, scale_factor=16, mode="bicubic").clamp(0, 1) * 255


@pytest.mark.parametrize("size", [(16, 16), (48, 80), (368, 480)])
def test_an_image_codecs_latents_are_at_stride_16(size: tuple[int, int]) -> None:
    assert analysis()(torch.zeros(2, 3, *size)).shape == (2, 6, size[0] // 16, size[1] // 16)


@torch.no_grad()
def test_an_image_codec_begins_as_a_transform_of_blocks_that_its_decoder_undoes() -> None:
    torch.manual_seed(0)
    whole, some = 3 * 16 * 16, 192
    picture = pictures()
    rebuilt = ImageSynthesis(whole, width=4)(ImageAnalysis(whole, width=4)(picture))
    torch.testing.assert_close(rebuilt, picture, atol=1e-2, rtol=0)
    most = ImageSynthesis(some, width=4)(ImageAnalysis(some, width=4)(picture))
    assert 0 < (most - picture).square().mean() < 0.05 * (picture - picture.mean()).square().mean()


def test_the_first_blocks_are_the_slowest_waves_of_a_cosine_transform() -> None:
    for block, place in zip(block_cosines(5), [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2)], strict=True):
        only = np.zeros((16, 16), np.float32)
        only[place] = 1
        wave = torch.from_numpy(cv2.idct(only)) / math.sqrt(3)
        torch.testing.assert_close(block, wave.expand(3, -1, -1), atol=1e-5, rtol=0)


def test_cosines_of_blocks_are_orthonormal_and_there_are_as_many_as_values() -> None:
    flat = block_cosines(768).flatten(1)
    torch.testing.assert_close(flat @ flat.T, torch.eye(768), atol=1e-4, rtol=0)
    assert torch.equal(block_cosines(7), block_cosines(768)[:7])
    for count in (0, 769):
        with pytest.raises(ValueError, match=f"{count} cosines of blocks with 768 values"):
            block_cosines(count)


def test_colours_have_few_of_the_blocks() -> None:
    coloured = [bool(one[:, 0, 0].sum().abs() < 1e-6) for one in block_cosines(192)]
    assert not any(coloured[:3])
    assert 20 < sum(coloured) < 64


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (23, 30)])
def test_an_image_codec_rebuilds_pictures_of_16_pixels_a_latent(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        rebuilt = ImageSynthesis(6, width=16)(torch.zeros(2, 6, *size))
    assert rebuilt.shape == (2, 3, 16 * size[0], 16 * size[1])
    assert rebuilt.mean().item() == pytest.approx(127.5, abs=10)  # nothing known: middle grey


@pytest.mark.parametrize("kind", [ImageAnalysis, ImageSynthesis])
def test_an_image_codecs_bfloat16_gradients_are_those_of_float32(kind: type[nn.Module]) -> None:
    x = pictures() if kind is ImageAnalysis else ImageAnalysis(6, width=16)(pictures()).detach()
    gradients = []
    for enabled in (False, True):
        torch.manual_seed(0)
        network = kind(6, width=16).to(memory_format=torch.channels_last)
        nn.init.normal_(network.add.weight, std=0.01)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            y = network(x.to(memory_format=torch.channels_last))
        y.float().square().mean().backward()
        gradients.append({name: p.grad for name, p in network.named_parameters()})
    for name, exact in gradients[0].items():
        assert exact.any(), name
        assert (gradients[1][name] - exact).norm() < 0.1 * exact.norm(), name


def test_jsde_sees_latents_of_any_size_alike() -> None:
    """Those of an image codec are of very different sizes: brightness is a hundred times as large as a quick wave."""
    torch.manual_seed(0)
    network, y_hat = latents().train(), inputs("latents", 4)
    sizes = torch.logspace(-1, 2, LATENTS)[:, None, None]
    found = []
    for one in (y_hat, y_hat * sizes + 30):
        torch.manual_seed(1)  # of the dropout
        found.append(network(one))
    torch.testing.assert_close(*found, atol=1e-2, rtol=1e-2)
