"""How graphs are stored: larger weights as float16, and nothing of the machine that made them."""

import numpy as np
import onnx
from numpy.typing import NDArray

_HALF = ".half"  # ends the name of a tensor stored as float16
_HALVED_FROM = 256  # weights; smaller tensors stay float32, and so do vectors: biases, scales


def without_sources(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that does not tell which lines of which files it came from: paths of the machine that made it."""
    plain = onnx.ModelProto()
    plain.CopyFrom(model)
    for part in (plain, plain.graph, *plain.graph.node, *plain.graph.value_info, *plain.graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
    return plain


def halve_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose larger float32 weights are stored as float16 and cast back where the graph begins."""
    halved = onnx.ModelProto()
    halved.CopyFrom(model)
    graph, casts = halved.graph, []
    for tensor in graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT or len(tensor.dims) < 2 or np.prod(tensor.dims) < _HALVED_FROM:
            continue
        name = tensor.name
        half = onnx.numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(onnx.numpy_helper.from_array(half, f"{name}{_HALF}"))
        casts.append(onnx.helper.make_node("Cast", [f"{name}{_HALF}"], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    return halved


def stored_weights(graph: onnx.GraphProto) -> dict[str, NDArray[np.generic]]:
    """The tensors that a graph holds, by the names they had before they were halved."""
    return {tensor.name.removesuffix(_HALF): onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
