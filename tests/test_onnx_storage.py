"""Graphs as they are stored: larger weights in half the bytes, nothing told of the machine that made them."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pipeline.onnx_storage import halve_weights, stored_weights, without_sources
from pipeline.runtime import open_session


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
    kinds = {tensor.name: tensor.data_type for tensor in halved.graph.initializer}
    assert kinds == {"a.half": TensorProto.FLOAT16, "b": TensorProto.FLOAT}
    onnx.save(model, tmp_path / "full.onnx")
    onnx.save(halved, tmp_path / "half.onnx")
    x = np.random.default_rng(1).normal(size=(5, 16)).astype(np.float32)
    full, half = (open_session(tmp_path / f"{name}.onnx", engine="onnxruntime").run(x)[0] for name in ("full", "half"))
    assert 0 < np.abs(half - full).max() < 1e-2 * full.std()


def test_halving_leaves_the_original_untouched() -> None:
    model = small_graph()
    before = model.SerializeToString()
    halve_weights(model)
    assert model.SerializeToString() == before


def test_weights_are_found_by_the_names_they_had_and_vectors_are_never_halved() -> None:
    model, scale = small_graph(), np.linspace(0, 1e-6, 300, dtype=np.float32)
    model.graph.initializer.append(numpy_helper.from_array(scale, "scale"))
    weights = stored_weights(halve_weights(model).graph)
    assert {name: array.dtype for name, array in weights.items()} == {
        "a": "float16",
        "b": "float32",
        "scale": "float32",
    }
    np.testing.assert_array_equal(weights["scale"], scale)


def test_what_tells_of_the_maker_is_left_out() -> None:
    model = small_graph()
    model.doc_string = model.graph.doc_string = model.graph.node[0].doc_string = "/home/someone/graph.py"
    model.graph.node[1].metadata_props.add(key="from", value="/home/someone/graph.py")
    assert b"someone" not in without_sources(model).SerializeToString()
    assert b"someone" in model.SerializeToString()
