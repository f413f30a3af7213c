"""Small ONNX segmentation graphs that the tests of teachers look through."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def light_meter(
    path: Path,
    classes: int,
    *,
    bright: int,
    dark: int,
    colours: int = 3,
    size: tuple[int, int] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write a graph that is sure of class `bright` where its input is above 0 and of `dark` below, at half size."""
    weights = np.zeros((classes, colours, 1, 1), np.float32)
    weights[bright], weights[dark] = 20, -20
    width, height = size or ("width", "height")
    graph = helper.make_graph(
        [
            helper.make_node("AveragePool", ["image"], ["half"], kernel_shape=[2, 2], strides=[2, 2]),
            helper.make_node("Conv", ["half", "weights"], ["logits"]),
        ],
        "light_meter",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, colours, height, width])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    helper.set_model_props(model, dict(metadata or {}))
    onnx.save(model, str(path))
    return path


def flat(path: Path) -> Path:
    """Write a graph that gives one number for a picture."""
    graph = helper.make_graph(
        [helper.make_node("ReduceMean", ["image"], ["mean"])],
        "flat",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, "height", "width"])],
        [helper.make_tensor_value_info("mean", TensorProto.FLOAT, None)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(path))
    return path
