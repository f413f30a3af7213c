"""Parameters and multiply-adds of an ONNX graph, counted from its weights and inferred shapes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import numpy_helper

from pipeline.errors import ConfigError

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Cost:
    """What one run of a graph on one picture needs."""

    parameters: int  # numbers in its float tensors; single constants do not count
    macs: int  # multiply-adds of convolutions and matrix products


def graph_cost(path: Path, *, size: tuple[int, int], axes: tuple[int, int]) -> Cost:
    """Count a graph whose first input has `size` along `axes`, batch 1; ConfigError where shapes cannot be inferred."""
    model = _at_size(onnx.load(path), size, axes)
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    weights = {one.name: tuple(one.dims) for one in inferred.initializer if _is_float(one.data_type)}
    constants = {node.output[0]: numpy_helper.to_array(a.t) for node in inferred.node for a in node.attribute
                 if node.op_type == "Constant" and a.name == "value"}  # fmt: skip
    weights |= {name: value.shape for name, value in constants.items() if value.dtype.kind == "f"}
    shapes = weights | {
        value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in [*inferred.value_info, *inferred.input, *inferred.output]
    }
    try:
        macs = sum(_macs(node, shapes) for node in inferred.node)
    except KeyError as error:
        raise ConfigError(f"graph {path}: the shape of {error} cannot be inferred; export it again") from error
    return Cost(sum(n for n in map(math.prod, weights.values()) if n > 1), macs)


def picture_size(path: Path) -> tuple[int, int]:
    """Height and width of the pictures (B, H, W, 3) that a graph takes.

    ConfigError where it is no graph, takes something else, or leaves the size open.
    """
    try:
        stored = onnx.load(path).graph
    except (OSError, DecodeError) as error:
        raise ConfigError(f"graph {path}: cannot be read; name what export --whole wrote") from error
    dims = [one.dim_value for one in stored.input[0].type.tensor_type.shape.dim]
    if len(dims) != 4 or 0 in dims[1:3] or dims[3] != 3:
        raise ConfigError(
            f"graph {path}: it takes no pictures (B, H, W, 3) of one size; name what export --whole wrote"
        )
    return dims[1], dims[2]


def _at_size(model: onnx.ModelProto, size: tuple[int, int], axes: tuple[int, int]) -> onnx.ModelProto:
    """The model with its first input's size set and every other open dimension 1."""
    stored = {one.name for one in model.graph.initializer}
    inputs = [one for one in model.graph.input if one.name not in stored]
    for one in inputs:
        for dim in one.type.tensor_type.shape.dim:
            if not dim.dim_value:
                dim.dim_value = 1
    for axis, length in zip(axes, size, strict=True):
        inputs[0].type.tensor_type.shape.dim[axis].dim_value = length
    del model.graph.value_info[:]  # they may name the open dimensions
    for one in model.graph.output:
        one.type.tensor_type.ClearField("shape")
    return model


def _is_float(kind: int) -> bool:
    return kind in (
        onnx.TensorProto.FLOAT,
        onnx.TensorProto.FLOAT16,
        onnx.TensorProto.BFLOAT16,
        onnx.TensorProto.DOUBLE,
    )


def _macs(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> int:
    if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return 0
    source, result = shapes[node.input[0]], shapes[node.output[0]]
    if 0 in source + result:
        raise KeyError(node.output[0])
    if node.op_type == "Conv":  # each output sums over one weight (in/groups, kernel)
        return math.prod(result) * math.prod(shapes[node.input[1]][1:])
    if node.op_type == "ConvTranspose":  # each input spreads over one weight (out/groups, kernel)
        return math.prod(source) * math.prod(shapes[node.input[1]][1:])
    flipped = any(a.name == "transA" and a.i for a in node.attribute)
    return math.prod(result) * (source[0] if flipped else source[-1])
