"""Parameters and multiply-adds of a graph, against counts by hand."""

from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper, save

from benchmarks.onnx_cost import Cost, graph_cost, picture_size
from pipeline.errors import ConfigError


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """(B, 4, H, W) -> strided grouped convolution -> transposed convolution -> channels by a matrix, times a gain."""
    weights = {
        "conv": np.zeros((8, 2, 3, 3), np.float32),
        "bias": np.zeros(8, np.float32),
        "up": np.zeros((8, 5, 2, 2), np.float32),
        "mix": np.zeros((5, 7), np.float32),
        "gain": np.float32(2),
    }
    nodes = [
        helper.make_node("Conv", ["x", "conv", "bias"], ["a"], strides=[2, 2], pads=[1, 1, 1, 1], group=2),
        helper.make_node("ConvTranspose", ["a", "up"], ["b"], strides=[2, 2]),
        helper.make_node("Transpose", ["b"], ["c"], perm=[0, 2, 3, 1]),
        helper.make_node("MatMul", ["c", "mix"], ["d"]),
        helper.make_node("Mul", ["d", "gain"], ["y"]),
    ]
    described = helper.make_graph(
        nodes,
        "test",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", 4, "H", "W"]),
            helper.make_tensor_value_info("quality", TensorProto.INT64, ["B"]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    save(helper.make_model(described, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / "graph.onnx")
    return tmp_path / "graph.onnx"


def test_counts_are_those_by_hand(graph: Path) -> None:
    conv, up, mix = (5 * 6 * 8) * (2 * 9), (5 * 6 * 8) * (5 * 4), (10 * 12 * 7) * 5
    parameters = 8 * 2 * 9 + 8 + 8 * 5 * 4 + 5 * 7
    assert graph_cost(graph, size=(10, 12), axes=(2, 3)) == Cost(parameters, conv + up + mix)


def test_twice_the_picture_is_twice_the_work_and_the_same_parameters(graph: Path) -> None:
    one, two = (graph_cost(graph, size=(8, width), axes=(2, 3)) for width in (8, 16))
    assert (two.macs, two.parameters) == (2 * one.macs, one.parameters)


@pytest.mark.parametrize("shape", [[1, 360, 480, 3], ["B", 360, 480, 3]])
def test_a_graph_says_what_pictures_it_takes(shape: list[object], tmp_path: Path) -> None:
    save(_copying(shape), tmp_path / "whole.onnx")
    assert picture_size(tmp_path / "whole.onnx") == (360, 480)


@pytest.mark.parametrize("shape", [["B", "H", "W", 3], ["B", 64], [1, 3, 360, 480]])
def test_a_graph_that_takes_no_pictures_of_one_size_is_refused(shape: list[object], tmp_path: Path) -> None:
    save(_copying(shape), tmp_path / "open.onnx")
    with pytest.raises(ConfigError, match=r"open\.onnx: it takes no pictures"):
        picture_size(tmp_path / "open.onnx")


@pytest.mark.parametrize("content", [None, b"no graph"], ids=["missing", "damaged"])
def test_a_file_that_is_no_graph_is_refused(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "no.onnx").write_bytes(content)
    with pytest.raises(ConfigError, match=r"no\.onnx: cannot be read"):
        picture_size(tmp_path / "no.onnx")


def _copying(shape: list[object]) -> ModelProto:
    """A graph of one input of this shape."""
    ends = [helper.make_tensor_value_info(name, TensorProto.UINT8, shape) for name in ("image", "copy")]
    nodes = [helper.make_node("Identity", ["image"], ["copy"])]
    return helper.make_model(helper.make_graph(nodes, "test", ends[:1], ends[1:]))
