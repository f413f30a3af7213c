"""A network as an ONNX graph: open batch size, larger weights stored as float16."""

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from pipeline.onnx_storage import halve_weights, without_sources

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
