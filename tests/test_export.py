"""A bundle holds the network it was made from: folded, traced and halved, in every engine, at every batch size."""

import json
import shutil
from copy import deepcopy
from pathlib import Path

import numpy as np
import onnx
import openvino
import pytest
import tiny
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from pipeline.bundle import MANIFEST, TABLES, Bundle, QualityLevel, load_bundle
from pipeline.errors import ConfigError
from pipeline.export import fold_batch_norms, halve_weights, write_manifest
from pipeline.models.entropy_model import HYPER_LIMIT, SCALE_LEVELS, freeze
from pipeline.models.split_segmenter import SplitSegmenter
from pipeline.runtime import open_session

Outputs = list[NDArray[np.float32]]


@pytest.fixture(scope="module")
def expected(tiny_network: SplitSegmenter) -> dict[str, Outputs]:
    """What the network itself makes of three pictures, by graph."""
    with torch.no_grad():
        y = tiny_network.encode(tiny.images(tiny.scenes(3)))
        coded = tiny_network.prior(y)
        logits = tiny_network.decoder(coded.y_hat)
        z = tiny_network.prior.hyper_encoder(y)
    return {"encode": [y.numpy(), z.numpy()], "decode": [logits.numpy()], "y_hat": [coded.y_hat.numpy()]}


def inputs(graph: str, expected: dict[str, Outputs]) -> NDArray[np.generic]:
    images = np.stack([one.image for one in tiny.scenes(3)])
    return {"encode": images, "decode": expected["y_hat"][0]}[graph]


def difference(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Root mean square, relative to the spread of b."""
    return float(np.sqrt(np.mean((a - b) ** 2)) / b.std())


def test_folded_network_equals_the_trained_one(tiny_network: SplitSegmenter) -> None:
    folded, images = fold_batch_norms(tiny_network), tiny.images(tiny.scenes(3))
    with torch.no_grad():
        assert torch.allclose(folded.encode(images), tiny_network.encode(images), atol=1e-3)
        y_hat = tiny_network(images).coded.y_hat
        assert torch.allclose(folded.decoder(y_hat), tiny_network.decoder(y_hat), atol=1e-3)


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


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("graph", ["encode", "decode"])
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_engine_gives_what_the_network_gives(
    tiny_bundle: Bundle, expected: dict[str, Outputs], engine: str, graph: str, batch: int
) -> None:
    """OpenVINO may compute in bfloat16, which shows in a network with made-up weights."""
    session = open_session(tiny_bundle.graph(graph), engine=engine, threads=1)
    found = session.run(inputs(graph, expected)[:batch])
    assert len(found) == len(expected[graph])
    for ours, theirs in zip(found, expected[graph], strict=True):
        assert ours.shape == theirs[:batch].shape
        assert difference(ours, theirs[:batch]) < (0.02 if engine == "onnxruntime" else 0.35)


@pytest.mark.parametrize("graph", ["encode", "decode"])
def test_openvino_in_float32_gives_what_onnxruntime_gives(
    tiny_bundle: Bundle, expected: dict[str, Outputs], graph: str
) -> None:
    core = openvino.Core()
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = core.compile_model(core.read_model(tiny_bundle.graph(graph)), "CPU", options)
    batch = inputs(graph, expected)
    for theirs, ours in zip(
        compiled([batch]).values(), open_session(tiny_bundle.graph(graph), engine="onnxruntime").run(batch), strict=True
    ):
        assert difference(theirs, ours) < 1e-4


@pytest.mark.parametrize("graph", ["encode", "decode"])
def test_a_pictures_result_does_not_depend_on_its_batch(
    tiny_bundle: Bundle, expected: dict[str, Outputs], graph: str
) -> None:
    session = open_session(tiny_bundle.graph(graph), engine="onnxruntime", threads=1)
    batch = inputs(graph, expected)
    for together, alone in zip(session.run(batch), session.run(batch[1:2]), strict=True):
        assert difference(together[1:2], alone) < 1e-4


@pytest.mark.parametrize("graph", ["encode", "decode"])
def test_graphs_store_large_weights_halved_and_name_an_open_batch(tiny_bundle: Bundle, graph: str) -> None:
    model = onnx.load(tiny_bundle.graph(graph))
    kinds = {t.data_type for t in model.graph.initializer if np.prod(t.dims) >= 256}
    assert TensorProto.FLOAT16 in kinds
    assert TensorProto.FLOAT not in kinds
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param


def small_graph() -> onnx.ModelProto:
    """y = (x A) B with A (16, 16), which is halved, and B (16, 4), which is not."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(16, 16)).astype(np.float32), rng.normal(size=(16, 4)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "a"], ["h"]), helper.make_node("MatMul", ["h", "b"], ["y"])],
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(a, "a"), numpy_helper.from_array(b, "b")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def test_halving_changes_outputs_little_and_small_weights_not_at_all(tmp_path: Path) -> None:
    model = small_graph()
    halved = halve_weights(model)
    onnx.checker.check_model(halved)
    assert {t.name: t.data_type for t in halved.graph.initializer} == {
        "a.half": TensorProto.FLOAT16,
        "b": TensorProto.FLOAT,
    }
    onnx.save(model, tmp_path / "full.onnx")
    onnx.save(halved, tmp_path / "half.onnx")
    x = np.random.default_rng(1).normal(size=(5, 16)).astype(np.float32)
    full, half = (open_session(tmp_path / f"{name}.onnx", engine="onnxruntime").run(x)[0] for name in ("full", "half"))
    assert 0 < difference(half, full) < 1e-3


def test_halving_leaves_the_original_untouched() -> None:
    model = small_graph()
    before = model.SerializeToString()
    halve_weights(model)
    assert model.SerializeToString() == before


def test_manifest_says_what_it_was_told(tiny_bundle: Bundle) -> None:
    manifest, told = tiny_bundle.manifest, tiny.description()
    assert (manifest.name, manifest.created_by, manifest.dataset) == (told.name, told.created_by, told.dataset)
    assert (manifest.width, manifest.height) == (tiny.WIDTH, tiny.HEIGHT)
    assert manifest.classes == told.classes
    assert np.array_equal(tiny_bundle.palette, tiny.PALETTE)
    assert set(manifest.graphs) == {"encode", "decode"}


def test_tables_are_those_of_the_prior(tiny_bundle: Bundle, tiny_network: SplitSegmenter) -> None:
    tables, frozen = tiny_bundle.tables, freeze(tiny_network.prior)
    assert tables.hyper_limit == HYPER_LIMIT
    assert len(tables.latent.sizes) == SCALE_LEVELS
    assert len(tables.hyper.sizes) == tiny.SIZES["hyper_latents"]
    assert tables.prior.latents == tiny.SIZES["latents"]
    assert np.array_equal(tables.scales, frozen.scales)
    for layer, weight, bias in zip(tables.prior.layers, frozen.weights, frozen.biases, strict=True):
        assert np.array_equal(layer.matrix.T.reshape(weight.shape), weight)
        assert np.array_equal(layer.bias, bias)


def test_hyper_tables_hold_the_likely_values(tiny_bundle: Bundle, tiny_network: SplitSegmenter) -> None:
    tables, pmf = tiny_bundle.tables.hyper, freeze(tiny_network.prior).hyper_pmf
    for channel, row in enumerate(pmf):
        size, offset = int(tables.sizes[channel]), int(tables.offsets[channel])
        frequencies = np.diff(tables.cumulative[channel, : size + 1].astype(np.int64)) / (1 << 16)
        values = np.arange(offset, offset + size - 1)
        assert np.abs(frequencies[:-1] - row[values + HYPER_LIMIT]).max() < 0.01
        assert row[values + HYPER_LIMIT].sum() > 0.99 * row.sum()


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
