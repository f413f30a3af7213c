"""A bundle holds the network it was made from: folded, traced and halved, in every engine, at every batch size."""

import json
import shutil
from copy import deepcopy
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny
import torch
from numpy.typing import NDArray
from onnx import TensorProto
from torch import nn

from pipeline.bitstream import pack, unpack
from pipeline.bundle import MANIFEST, TABLES, Bundle, QualityLevel, load_bundle
from pipeline.codec import open_decoder, open_encoder
from pipeline.errors import ConfigError
from pipeline.export import export_whole, fold_batch_norms, write_manifest
from pipeline.latent_coding import decode_latents
from pipeline.messages import Decoded, Frame, FrameId, Packet
from pipeline.models.entropy_model import ACTIVATION_UNITS, HYPER_LIMIT, SCALE_LEVELS, MeanScaleHyperprior, freeze
from pipeline.models.over_parameterised import OverParameterisedConv
from pipeline.models.split_segmenter import SplitSegmenter, levels_like, upsample
from pipeline.runtime import Precision, open_session

Outputs = list[NDArray[np.float32]]


COUNT = 3  # pictures
NO_OFFSETS = np.zeros((1, tiny.CLASSES), np.float32)


@pytest.fixture(scope="module")
def bare_bundle(tiny_network: SplitSegmenter, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle of tiny_network that sends no hyper latent."""
    return tiny.bundle(tiny_network, tmp_path_factory.mktemp("bare"), hyper=False)


def images() -> NDArray[np.uint8]:
    return np.stack([one.image for one in tiny.scenes(COUNT)])


def at(level: int, count: int = COUNT) -> NDArray[np.int64]:
    return np.full(count, level, np.int64)


@torch.no_grad()
def expected(network: SplitSegmenter, graph: str, quality: NDArray[np.int64]) -> Outputs:
    """What the network itself makes of the pictures, each at its level."""
    levels = torch.from_numpy(quality)
    y = network.encode(tiny.images(tiny.scenes(COUNT)))
    if graph == "encode":
        return [part.numpy() for part in network.prior.analyse(y, levels)]
    return [network.decoder(network.prior(y, levels).y_hat).numpy()]


@torch.no_grad()
def inputs(network: SplitSegmenter, graph: str, quality: NDArray[np.int64]) -> NDArray[np.generic]:
    """The pictures, or their latents as they are coded: in units of the quantiser's step."""
    if graph == "encode":
        return images()
    levels = torch.from_numpy(quality)
    y_hat = network.prior(network.encode(tiny.images(tiny.scenes(COUNT))), levels).y_hat
    return (y_hat / network.prior.gains.unscale(torch.ones_like(y_hat), levels)).numpy()


def difference(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Root mean square, relative to the spread of b."""
    return float(np.sqrt(np.mean((a - b) ** 2)) / b.std())


@torch.no_grad()
def test_folded_network_equals_the_trained_one(tiny_network: SplitSegmenter) -> None:
    folded, shown = fold_batch_norms(tiny_network), tiny.images(tiny.scenes(COUNT))
    assert torch.allclose(folded.encode(shown), tiny_network.encode(shown), atol=1e-3)
    y_hat = tiny_network(shown, torch.arange(COUNT)).coded.y_hat
    assert torch.allclose(folded.decoder(y_hat), tiny_network.decoder(y_hat), atol=1e-3)


@torch.no_grad()
def test_branches_are_merged_into_one_convolution_that_does_the_same() -> None:
    network = tiny.network(over_parameters=3)
    branched = [m for m in network.modules() if isinstance(m, OverParameterisedConv)]
    for norm in [m for m in network.decoder.modules() if isinstance(m, nn.BatchNorm2d)]:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, std=0.2)
    folded, y_hat = fold_batch_norms(network), torch.randn(2, 16, 4, 6)
    assert len(branched) == 4  # one without dilation, two with, the projection
    assert not any(isinstance(m, OverParameterisedConv | nn.BatchNorm2d) for m in folded.modules())
    assert torch.allclose(folded.decoder(y_hat), network.decoder(y_hat), atol=1e-3)


def test_no_batch_norm_is_left_and_nothing_else_moves(tiny_network: SplitSegmenter) -> None:
    folded = fold_batch_norms(tiny_network)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    convolutions = [n for n, m in tiny_network.named_modules() if isinstance(m, nn.Conv2d)]
    assert [n for n, m in folded.named_modules() if isinstance(m, nn.Conv2d)] == convolutions


def test_folding_leaves_the_trained_network_untouched(tiny_network: SplitSegmenter) -> None:
    before = deepcopy(tiny_network.state_dict())
    fold_batch_norms(tiny_network)
    after = tiny_network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


class Nest(nn.Module):
    """Convolutions and batch norms in sequences within sequences, one pair behind a ReLU, one conv without a norm."""

    def __init__(self) -> None:
        super().__init__()
        inner = nn.Sequential(nn.Conv2d(4, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.layers = nn.Sequential(
            nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4)),
            nn.Sequential(nn.ReLU(), nn.Sequential(inner, nn.Conv2d(4, 4, 1)), nn.ReLU()),
            nn.Conv2d(4, 2, 1, groups=2, bias=False),
            nn.BatchNorm2d(2),
        )


def test_nested_sequences_are_folded() -> None:
    torch.manual_seed(0)
    nest = Nest()
    for norm in [m for m in nest.modules() if isinstance(m, nn.BatchNorm2d)]:
        for tensor in (norm.weight, norm.bias, norm.running_mean):
            nn.init.normal_(tensor)
        nn.init.uniform_(norm.running_var, 0.2, 2)
    folded, x = fold_batch_norms(nest), torch.randn(2, 3, 9, 7)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    with torch.no_grad():
        assert torch.allclose(folded.layers(x), nest.eval().layers(x), atol=1e-5)


@pytest.mark.parametrize("level", range(tiny.LEVELS))
@pytest.mark.parametrize("graph", ["encode", "decode"])
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_engine_gives_what_the_network_gives_at_every_level(
    tiny_bundle: Bundle, tiny_network: SplitSegmenter, engine: str, graph: str, level: int
) -> None:
    """In float32: OpenVINO computes in bfloat16 otherwise, where the processor can."""
    session = open_session(tiny_bundle.graph(graph), engine=engine, threads=1, precision=Precision.FLOAT32)
    found = session.run(inputs(tiny_network, graph, at(level)), at(level))
    wanted = expected(tiny_network, graph, at(level))
    assert len(found) == len(wanted)
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.shape == theirs.shape
        assert difference(ours, theirs) < 0.02  # weights in float16


@pytest.mark.parametrize("graph", ["encode", "decode"])
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_each_picture_of_a_batch_has_its_own_level(
    tiny_bundle: Bundle, tiny_network: SplitSegmenter, engine: str, graph: str
) -> None:
    quality = np.array([2, 0, 1], np.int64)
    session = open_session(tiny_bundle.graph(graph), engine=engine, threads=1, precision=Precision.FLOAT32)
    shown = inputs(tiny_network, graph, quality)
    together = session.run(shown, quality)
    for i in range(COUNT):
        for ours, alone in zip(together, session.run(shown[i : i + 1], quality[i : i + 1]), strict=True):
            assert difference(ours[i : i + 1], alone) < 1e-4
    for ours, theirs in zip(together, expected(tiny_network, graph, quality), strict=True):
        assert difference(ours, theirs) < 0.02


@pytest.mark.parametrize("graph", ["encode", "decode"])
def test_openvino_as_it_runs_by_itself_is_near_onnxruntime(
    tiny_bundle: Bundle, tiny_network: SplitSegmenter, graph: str
) -> None:
    """It may compute in bfloat16, which shows in a network with made-up weights."""
    shown = inputs(tiny_network, graph, at(1))
    ours, theirs = (
        open_session(tiny_bundle.graph(graph), engine=engine, threads=1).run(shown, at(1))
        for engine in ("openvino", "onnxruntime")
    )
    for one, other in zip(ours, theirs, strict=True):
        assert difference(one, other) < 0.35


@pytest.mark.parametrize("graph", ["encode", "decode"])
def test_graphs_store_large_weights_halved_and_name_an_open_batch(tiny_bundle: Bundle, graph: str) -> None:
    model = onnx.load(tiny_bundle.graph(graph))
    kinds = {(len(t.dims) > 1, t.data_type) for t in model.graph.initializer if np.prod(t.dims) >= 256}
    assert (True, TensorProto.FLOAT16) in kinds
    assert not kinds & {(True, TensorProto.FLOAT), (False, TensorProto.FLOAT16)}  # vectors stay as they are
    assert [one.name for one in model.graph.input] == [{"encode": "image", "decode": "y_hat"}[graph], "quality"]
    assert all(one.type.tensor_type.shape.dim[0].dim_param for one in model.graph.input)


def test_no_graph_holds_a_batch_norm_or_a_branch(tiny_bundle: Bundle) -> None:
    for graph in ("encode", "decode"):
        kinds = {node.op_type for node in onnx.load(tiny_bundle.graph(graph)).graph.node}
        assert "BatchNormalization" not in kinds


def coded(bundle: Bundle, level: int) -> tuple[list[Packet], list[NDArray[np.uint8]]]:
    """Packets of the pictures, and the class maps that come of their bytes."""
    encoder = open_encoder(bundle, engine="onnxruntime", quality=level)
    packets = [encoder.encode(Frame(FrameId(1, i), 0, one.image)) for i, one in enumerate(tiny.scenes(COUNT))]
    received = [unpack(pack(packet)) for packet in packets]
    results = open_decoder(bundle, engine="onnxruntime").decode(received)
    assert all(isinstance(one, Decoded) for one in results)
    return packets, [one.mask.classes for one in results]


@torch.no_grad()
@pytest.mark.parametrize("level", range(tiny.LEVELS))
@pytest.mark.parametrize("hyper", [True, False], ids=["with z", "without z"])
def test_bytes_carry_the_networks_latents_and_its_mask_is_made_of_them(
    tiny_bundle: Bundle, bare_bundle: Bundle, tiny_network: SplitSegmenter, hyper: bool, level: int
) -> None:
    bundle, quality = tiny_bundle if hyper else bare_bundle, torch.from_numpy(at(level))
    packets, maps = coded(bundle, level)
    assert {packet.quality for packet in packets} == {level}
    decoder, channels = open_decoder(bundle, engine="onnxruntime"), bundle.tables.latent[level].channels.tolist()
    y_hat = torch.from_numpy(np.stack([decoder.y_hat(packet) for packet in packets]))
    scaled = tiny_network.prior.analyse(tiny_network.encode(tiny.images(tiny.scenes(COUNT))), quality)[0]
    near = (y_hat - scaled)[:, channels].abs() < 0.5 + 1 / 16  # the encoder's weights are in float16
    assert near.float().mean() > 0.98
    if hyper:
        sent = [decode_latents(p.regions[0].body, bundle.tables, bundle.latent_size, level) for p in packets]
        z_hat = torch.from_numpy(np.stack([one.hyper for one in sent])).float()
        z = tiny_network.prior.analyse(tiny_network.encode(tiny.images(tiny.scenes(COUNT))), quality)[1]
        assert ((z_hat - z)[:, bundle.tables.hyper[level].channels.tolist()].abs() < 0.5 + 1 / 16).float().mean() > 0.98
        means = tiny_network.prior.hyper_decoder(z_hat, y_hat.shape[-2:])[0] / ACTIVATION_UNITS
        assert torch.equal((y_hat - means), (y_hat - means).round())
    logits = tiny_network.decoder(tiny_network.prior.gains.unscale(y_hat, quality))
    classes = upsample(logits, tiny.HEIGHT, tiny.WIDTH).argmax(1).numpy()
    assert np.mean(np.stack(maps) == classes) > 0.97


@pytest.mark.parametrize("hyper", [True, False], ids=["with z", "without z"])
def test_higher_levels_have_larger_packets(tiny_bundle: Bundle, bare_bundle: Bundle, hyper: bool) -> None:
    bundle = tiny_bundle if hyper else bare_bundle
    sizes = [sum(len(pack(packet)) for packet in coded(bundle, level)[0]) for level in range(tiny.LEVELS)]
    assert sizes[0] < sizes[1] < sizes[2]


def test_without_hyper_latent_the_graph_gives_y_alone_and_there_is_no_prior(
    bare_bundle: Bundle, tiny_bundle: Bundle
) -> None:
    assert bare_bundle.tables.prior is None
    assert bare_bundle.tables.hyper == ()
    assert bare_bundle.tables.levels == tiny.LEVELS
    (y,) = open_session(bare_bundle.graph("encode"), engine="onnxruntime").run(images(), at(1))
    same, z = open_session(tiny_bundle.graph("encode"), engine="onnxruntime").run(images(), at(1))
    assert difference(y, same) < 1e-5
    assert z.shape[1] == tiny.MODEL["hyper_latents"]
    assert load_bundle(bare_bundle.path).manifest == bare_bundle.manifest
    assert bare_bundle.id != tiny_bundle.id


def test_without_hyper_latent_y_is_rounded_about_its_mean(bare_bundle: Bundle, tiny_network: SplitSegmenter) -> None:
    with torch.no_grad():
        y = tiny_network.encode(tiny.images(tiny.scenes(12)))
        for level in range(tiny.LEVELS):
            means = tiny_network.prior.analyse(y, levels_like(y, level))[0].mean((0, 2, 3)).numpy()
            assert bare_bundle.tables.offsets[level] / ACTIVATION_UNITS == pytest.approx(means, abs=0.05)


@torch.no_grad()
def test_a_network_without_bottleneck_is_one_graph(tmp_path: Path) -> None:
    network = tiny.network(bottleneck="none", over_parameters=2)
    export_whole(
        network, tmp_path / "deep" / "whole.onnx", width=tiny.WIDTH, height=tiny.HEIGHT, class_offsets=NO_OFFSETS
    )
    session = open_session(tmp_path / "deep" / "whole.onnx", engine="onnxruntime")
    for batch in (1, COUNT):
        (found,) = session.run(images()[:batch])
        shown = tiny.images(tiny.scenes(COUNT))[:batch]
        assert difference(found, network(shown, levels_like(shown, 0)).output.numpy()) < 0.02


@torch.no_grad()
def test_a_network_with_a_bottleneck_is_one_graph_that_codes_nothing(
    tiny_network: SplitSegmenter, tmp_path: Path
) -> None:
    path, network = tmp_path / "whole.onnx", deepcopy(tiny_network)
    prior = network.prior
    assert isinstance(prior, MeanScaleHyperprior)
    prior.gains.log_inverse.add_(
        torch.linspace(-1, 1, prior.gains.log_inverse.numel()).view_as(prior.gains.log_inverse)
    )
    offsets = np.arange(tiny.LEVELS * tiny.CLASSES, dtype=np.float32).reshape(tiny.LEVELS, tiny.CLASSES)
    export_whole(network, path, width=tiny.WIDTH, height=tiny.HEIGHT, class_offsets=offsets)
    (found,) = open_session(path, engine="onnxruntime").run(images()[:1])
    shown = tiny.images(tiny.scenes(1))
    highest = levels_like(shown, tiny.LEVELS - 1)
    y, _ = prior.analyse(network.encode(shown), highest)
    expected = network.decoder(prior.gains.unscale(y, highest))
    assert difference(found - offsets[-1][:, None, None], expected.numpy()) < 0.02


def test_what_has_no_bottleneck_has_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--whole"):
        tiny.bundle(tiny.network(bottleneck="none"), tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_exporting_leaves_the_network_as_it_was(tiny_network: SplitSegmenter, tiny_bundle: Bundle) -> None:
    assert tiny_bundle.tables.levels == tiny.LEVELS
    fresh = tiny.network().state_dict()
    assert all(torch.equal(value, fresh[name]) for name, value in tiny_network.state_dict().items())


def test_manifest_says_what_it_was_told(tiny_bundle: Bundle) -> None:
    manifest, told = tiny_bundle.manifest, tiny.description()
    assert (manifest.name, manifest.created_by, manifest.dataset) == (told.name, told.created_by, told.dataset)
    assert (manifest.width, manifest.height) == (tiny.WIDTH, tiny.HEIGHT)
    assert manifest.classes == told.classes
    assert np.array_equal(tiny_bundle.palette, tiny.PALETTE)
    assert set(manifest.graphs) == {"encode", "decode"}


def test_there_is_a_level_in_the_manifest_for_each_of_the_network(tiny_bundle: Bundle) -> None:
    levels = tiny_bundle.manifest.quality_levels
    assert [level.index for level in levels] == list(range(tiny.LEVELS))
    assert [level.default for level in levels] == [True, False, False]


def test_prior_of_the_tables_is_that_of_the_network(tiny_bundle: Bundle, tiny_network: SplitSegmenter) -> None:
    tables, frozen = tiny_bundle.tables, freeze(tiny_network.prior)
    assert tables.hyper_limit == HYPER_LIMIT
    assert tables.prior is not None
    assert tables.prior.scale_levels == SCALE_LEVELS
    assert tables.prior.latents == tables.latents == tiny.MODEL["latents"]
    assert len(tables.hyper) == len(tables.latent) == tiny.LEVELS
    assert not tables.offsets.any()
    for layer, weight, bias in zip(tables.prior.layers, frozen.weights, frozen.biases, strict=True):
        assert np.array_equal(layer.matrix.T.reshape(weight.shape), weight)
        assert np.array_equal(layer.bias, bias)


def test_tables_can_be_read_by_everybody(tiny_bundle: Bundle) -> None:
    """A container's user is not the one who exported."""
    for path in tiny_bundle.path.iterdir():
        assert path.stat().st_mode & 0o044 == 0o044


def test_loaded_bundle_equals_the_exported_one(tiny_bundle: Bundle) -> None:
    again = load_bundle(tiny_bundle.path)
    assert again.manifest == tiny_bundle.manifest
    assert again.id == tiny_bundle.id == bytes.fromhex(tiny_bundle.manifest.hash)[:4]


@pytest.mark.parametrize("name", ["encode.onnx", "decode.onnx", TABLES])
@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_byte_changed_in_any_file_is_noticed(tiny_bundle: Bundle, tmp_path: Path, name: str, place: str) -> None:
    copy = shutil.copytree(tiny_bundle.path, tmp_path / "copy")
    content = bytearray((copy / name).read_bytes())
    content[{"first": 0, "middle": len(content) // 2, "last": -1}[place]] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(ConfigError, match="hash"):
        load_bundle(copy)


def test_hash_changed_in_the_manifest_is_noticed(tiny_bundle: Bundle, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_bundle.path, tmp_path / "copy")
    manifest = json.loads((copy / MANIFEST).read_text())
    manifest["hash"] = manifest["hash"][::-1]
    (copy / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ConfigError, match="hash"):
        load_bundle(copy)


def test_measurements_in_the_manifest_leave_the_hash_as_it_is(tiny_bundle: Bundle, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_bundle.path, tmp_path / "copy")
    level = QualityLevel(index=0, rate_bpp=0.1, miou=0.7, default=True)
    written = write_manifest(copy, tiny.description(), [level])
    assert written.hash == tiny_bundle.manifest.hash
    assert load_bundle(copy).manifest.quality_levels == (level,)
