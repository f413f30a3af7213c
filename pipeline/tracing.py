"""A network as an ONNX graph: open batch size, larger weights stored as float16."""

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

_HALF = ".half"  # ends the name of a tensor stored as float16
_HALVED_FROM = 256  # weights; smaller tensors, all biases among them, stay float32
_MOST = 64  # rows of a batch


def trace(
    network: nn.Module, examples: Sequence[Tensor], path: Path, *, inputs: Sequence[str], outputs: Sequence[str]
) -> None:
    """Write the graph of a network that takes these examples, each a batch of one, under these names."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    batch = torch.export.Dim("batch", min=1, max=_MOST)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network.eval(),
            tuple(torch.cat([example, example]) for example in examples),  # of one, the size would become a constant
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=tuple({0: batch} for _ in examples),
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("the exporter gave no graph")
    model = without_sources(halve_weights(program.model_proto))
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


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
        if tensor.data_type != onnx.TensorProto.FLOAT or np.prod(tensor.dims) < _HALVED_FROM:
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
    """The tensors that a graph of `trace` holds, by the names they had before they were halved."""
    return {tensor.name.removesuffix(_HALF): onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
