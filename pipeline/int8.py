"""A second graph that decodes, its large convolutions in 8-bit integers: the same masks in less of a worker's time.

decode.onnx -> constants folded -> [onnxruntime's static quantisation] -> weights halved -> decode_int8.onnx
                                     ^ ranges of what latents of a few frames, of all levels, give inside

Post-training, and no labels are looked at. The 3 x 3 convolutions past the first take most of the time and bear it; the
first, which reads the latents, and what is near the logits do not. Whether masks stay what they are is measured, and
where they do not the bundle goes without.
"""

import importlib
import io
import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from pipeline.bundle import Bundle, copy_content, seal
from pipeline.class_map import class_map
from pipeline.codec import DECODE_INT8
from pipeline.engine_libraries import import_onnxruntime
from pipeline.errors import ConfigError
from pipeline.onnx_storage import halve_weights, without_sources
from pipeline.runtime import open_session

TOLERANCE = 0.005  # share of the pixels that may get another class
Latent = tuple[NDArray[np.float32], int]  # y_hat (C, h, w) and its quality level

_TOGETHER = 16 * 8 * 27 * 36  # places of latents; what more give inside is not kept in memory, but counted in parts
_PRECISION = f"; {DECODE_INT8}: large convolutions in 8-bit integers"  # what a manifest's `precision` says besides


class _Inputs:
    """What onnxruntime asks for inputs, one after the other, all or those of a range."""

    def __init__(self, latents: Sequence[Latent]) -> None:
        self._latents, self._left = latents, iter(latents)

    def __len__(self) -> int:
        return len(self._latents)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Those of these numbers come next."""
        self._left = iter(self._latents[start_index:end_index])

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        """The next inputs of the graph, or None."""
        found = next(self._left, None)
        return None if found is None else {"y_hat": found[0][None], "quality": np.array([found[1]], np.int64)}


def add_int8(
    bundle: Bundle, latents: Sequence[Latent], folder: Path, *, tolerance: float = TOLERANCE
) -> tuple[Bundle, float | None]:
    """Write the bundle with an 8-bit decode graph to a folder, which may be its own; load it again.

    `latents` are what workers read of frames that show what cameras will. Gives the share (0..1) of their pixels that
    get another class too: where that is more than the tolerance, or None since the network has no such convolutions,
    the bundle gets no such graph, and keeps none. Packets of the old bundle are not the new one's: the hash covers all
    graphs.
    """
    copy_content(bundle, folder)
    file = folder / f"{DECODE_INT8}.onnx"
    file.unlink(missing_ok=True)
    graphs = {name: path for name, path in bundle.manifest.graphs.items() if name != DECODE_INT8}
    precision, moved = bundle.manifest.precision.removesuffix(_PRECISION), None
    large = large_convolutions(onnx.load(bundle.graph("decode")))
    if large:
        onnx.save(_quantised(bundle.graph("decode"), large, latents), str(file))
        moved = _moved(bundle, file, latents)
        if moved <= tolerance:
            graphs, precision = {**graphs, DECODE_INT8: file.name}, precision + _PRECISION
        else:
            file.unlink()
    return seal(bundle.manifest.model_copy(update={"graphs": graphs, "precision": precision}), folder), moved


def _moved(bundle: Bundle, graph: Path, latents: Sequence[Latent]) -> float:
    """The share of the pixels whose class another graph changes."""
    plain, other = (open_session(path, engine="onnxruntime") for path in (bundle.graph("decode"), graph))
    size = bundle.manifest.height, bundle.manifest.width
    changed = []
    for y_hat, level in latents:
        inputs = y_hat[None], np.array([level], np.int64)
        masks = [class_map(session.run(*inputs)[0][0], *size) for session in (plain, other)]
        changed.append(np.mean(masks[0] != masks[1]))
    return float(np.mean(changed))


def large_convolutions(model: onnx.ModelProto) -> list[str]:
    """The names of the 3 x 3 convolutions, depthwise ones left out, but for the first convolution of the graph."""
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    return [
        node.name
        for node in convolutions[1:]
        if _numbers(node, "kernel_shape") == [3, 3] and _numbers(node, "group") in ([], [1])
    ]


def _numbers(node: onnx.NodeProto, name: str) -> list[int]:
    """Those of an attribute, none if it is not given."""
    return next((list(one.ints) or [one.i] for one in node.attribute if one.name == name), [])


def _quantised(graph: Path, names: list[str], latents: Sequence[Latent]) -> onnx.ModelProto:
    onnxruntime = import_onnxruntime()
    quantization = importlib.import_module("onnxruntime.quantization")
    shapes = importlib.import_module("onnxruntime.quantization.shape_inference")
    with tempfile.TemporaryDirectory() as scratch, _quiet():
        folded, made = (str(Path(scratch) / name) for name in ("folded.onnx", "made.onnx"))
        shapes.quant_pre_process(str(graph), folded, skip_symbolic_shape=True)
        quantization.quantize_static(
            folded,
            made,
            _Inputs(latents),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            nodes_to_quantize=names,
            per_channel=True,
            reduce_range=True,  # to 7 bits: sums of products of 8 overflow on processors without VNNI
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=quantization.CalibrationMethod.Percentile,  # 99.999; what lies beyond is clipped
            extra_options={"QuantizeBias": False, "CalibStridedMinMax": _together(latents)},
        )
        model = onnx.load(made)
    kernels = [one for one in model.graph.initializer if one.data_type == onnx.TensorProto.INT8 and len(one.dims) == 4]
    if len(kernels) != len(names):
        found = f"made 8-bit integers of {len(kernels)} convolutions where {len(names)} were named"
        raise ConfigError(f"onnxruntime {onnxruntime.__version__} {found}; install another version")
    return without_sources(halve_weights(model))


def _together(latents: Sequence[Latent]) -> int | None:
    """How many are counted at once, a divisor of them all; None where it is all."""
    count, places = len(latents), latents[0][0][0].size
    parts = next(n for n in range(1, count + 1) if count % n == 0 and (count // n * places <= _TOGETHER or n == count))
    return None if parts == 1 else count // parts


@contextmanager
def _quiet() -> Iterator[None]:
    """For a library that prints its steps, and warns of what is meant so."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
