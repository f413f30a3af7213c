"""A second graph that decodes, its large convolutions in 8-bit integers: the same masks in less of a worker's time.

decode.onnx -> constants folded -> [onnxruntime's static quantisation] -> weights halved -> decode_int8.onnx
                                     ^ ranges of what latents of a few frames, of all levels, give inside

Post-training and label-free. The 3 x 3 convolutions past the first take two thirds of the time and bear it; the first,
which reads the latents, and those at the logits' end do not: with them a hundredth of the pixels change class.
"""

import importlib
import io
import logging
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from pipeline.bundle import Bundle, copy_content, seal
from pipeline.codec import DECODE_INT8
from pipeline.engine_libraries import import_onnxruntime
from pipeline.onnx_storage import halve_weights, without_sources


class _Latents:
    """What onnxruntime asks for inputs, one after the other."""

    def __init__(self, latents: Iterable[tuple[NDArray[np.float32], int]]) -> None:
        self._left = iter(latents)

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        """The next inputs of the graph, or None."""
        found = next(self._left, None)
        return None if found is None else {"y_hat": found[0][None], "quality": np.array([found[1]], np.int64)}


def add_int8(bundle: Bundle, latents: Iterable[tuple[NDArray[np.float32], int]], folder: Path) -> Bundle:
    """Write the bundle with an 8-bit decode graph to a folder, which may be its own; load it again.

    `latents` are what workers read, y_hat (C, h, w) and its quality level, of frames that show what cameras will. A
    network without 3 x 3 convolutions past its first gets no such graph. Packets of the old bundle are not the new
    one's: the hash covers all graphs.
    """
    large = large_convolutions(onnx.load(bundle.graph("decode")))
    if not large:
        return bundle
    copy_content(bundle, folder)
    file = f"{DECODE_INT8}.onnx"
    onnx.save(_quantised(bundle.graph("decode"), large, _Latents(latents)), str(folder / file))
    graphs = {**bundle.manifest.graphs, DECODE_INT8: file}
    return seal(bundle.manifest.model_copy(update={"graphs": graphs}), folder)


def large_convolutions(model: onnx.ModelProto) -> list[str]:
    """The names of the 3 x 3 convolutions but for the first one of the graph."""
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    return [node.name for node in convolutions[1:] if _kernel(node) == [3, 3]]


def _kernel(node: onnx.NodeProto) -> list[int]:
    return next((list(one.ints) for one in node.attribute if one.name == "kernel_shape"), [])


def _quantised(graph: Path, names: list[str], latents: _Latents) -> onnx.ModelProto:
    import_onnxruntime()
    quantization = importlib.import_module("onnxruntime.quantization")
    shapes = importlib.import_module("onnxruntime.quantization.shape_inference")
    with tempfile.TemporaryDirectory() as scratch, _quiet():
        folded, made = (str(Path(scratch) / name) for name in ("folded.onnx", "made.onnx"))
        shapes.quant_pre_process(str(graph), folded, skip_symbolic_shape=True)
        quantization.quantize_static(
            folded,
            made,
            latents,
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            nodes_to_quantize=names,
            per_channel=True,
            reduce_range=True,  # to 7 bits: sums of products of 8 overflow on processors without VNNI
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=quantization.CalibrationMethod.Percentile,  # 99.999; what lies beyond is clipped
            extra_options={"QuantizeBias": False},
        )
        return without_sources(halve_weights(onnx.load(made)))


@contextmanager
def _quiet() -> Iterator[None]:
    """For a library that prints its steps, and warns of what is meant so."""
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)
