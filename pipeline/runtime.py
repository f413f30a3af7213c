"""Inference engines behind one protocol; each library is imported when its first session is opened."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.engine_libraries import import_onnxruntime, import_openvino
from pipeline.errors import ConfigError

ENGINES = ("auto", "openvino", "onnxruntime")
Array = NDArray[Any]


class Session(Protocol):
    """One graph, loaded and ready; use it from one thread."""

    def run(self, *inputs: Array) -> list[Array]:
        """The graph's inputs, each (B, ...) -> its outputs (B, ...), both in the order of the graph.

        ValueError where it takes other inputs, in number or shape.
        """
        ...


class OnnxruntimeSession:
    """A graph run by onnxruntime in float32, on a GPU where the installed package has one."""

    def __init__(self, session: Any, refusal: type[Exception]) -> None:
        self._session, self._refusal = session, refusal
        self._inputs = [one.name for one in session.get_inputs()]

    def run(self, *inputs: Array) -> list[Array]:
        _check_count(inputs, self._inputs)
        try:
            outputs: list[Array] = self._session.run(None, dict(zip(self._inputs, inputs, strict=True)))
        except self._refusal as error:
            raise ValueError(f"inputs of {[each.shape for each in inputs]}, which the graph does not take") from error
        return outputs


class OpenvinoSession:
    """A graph run by OpenVINO, compiled once per batch size: fixed shapes are faster than open ones.

    To compile takes long, so the sizes are few: a batch is filled up to a power of two with copies of its last row.
    """

    def __init__(self, core: Any, model: Any, options: dict[str, Any]) -> None:
        self._core, self._model, self._options = core, model, options
        self._requests: dict[int, Any] = {}

    def run(self, *inputs: Array) -> list[Array]:
        _check_count(inputs, self._model.inputs)  # OpenVINO itself would take what lies in memory for the rest
        count = len(inputs[0])
        size = batch_sizes(count)[-1]
        filled = list(inputs)
        if size > count:
            filled = [np.concatenate([rows, np.repeat(rows[-1:], size - count, axis=0)]) for rows in inputs]
        request = self._requests.get(size) or self._compile([rows.shape for rows in filled])
        results = request.infer(filled, share_inputs=True)
        return [np.array(result[:count]) for result in results.values()]

    def _compile(self, shapes: list[tuple[int, ...]]) -> Any:
        model = self._model.clone()
        model.reshape({port: list(shape) for port, shape in enumerate(shapes)})
        request = self._core.compile_model(model, "CPU", self._options).create_infer_request()
        self._requests[shapes[0][0]] = request
        return request


def _check_count(inputs: Sequence[Array], wanted: Sequence[object]) -> None:
    if len(inputs) != len(wanted):
        raise ValueError(f"{len(inputs)} inputs; the graph takes {len(wanted)}")


def batch_sizes(most: int) -> list[int]:
    """The sizes that batches of 1 to `most` rows are run in: the powers of two up to the first that holds them."""
    return [1 << bit for bit in range((most - 1).bit_length() + 1)]


def open_session(graph: Path, *, engine: str = "auto", threads: int = 0, float32: bool = False) -> Session:
    """Load a graph; threads 0 lets the engine choose. ConfigError on an unknown or missing engine or a bad file.

    With `float32` no engine takes a shorter type, whatever the processor has.
    """
    chosen = _choose(engine)
    try:
        return _open_openvino(graph, threads, float32) if chosen == "openvino" else _open_onnxruntime(graph, threads)
    except (RuntimeError, ValueError) as error:  # what both libraries raise on a file that is not a graph
        raise ConfigError(f"graph {graph}: {chosen} cannot load it; export the bundle again") from error


def _choose(engine: str) -> str:
    """The engine meant; "auto" is OpenVINO where it is installed."""
    if engine not in ENGINES:
        raise ConfigError(f"engine {engine!r} is unknown; use one of {', '.join(ENGINES)}")
    has_openvino = importlib.util.find_spec("openvino") is not None
    if engine == "openvino" and not has_openvino:
        raise ConfigError("engine openvino is not installed; pip install 'maskcast[openvino]', or use onnxruntime")
    return "openvino" if has_openvino and engine != "onnxruntime" else "onnxruntime"


def _open_onnxruntime(graph: Path, threads: int) -> Session:
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Spinning threads would take the cores from the other nodes of a small box.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
    providers = [p for p in wanted if p in onnxruntime.get_available_providers()]
    errors = onnxruntime.capi.onnxruntime_pybind11_state
    try:
        session = onnxruntime.InferenceSession(str(graph), options, providers=providers)
    except (errors.Fail, errors.InvalidGraph, errors.InvalidProtobuf, errors.NoSuchFile) as error:
        raise RuntimeError(str(error)) from error
    return OnnxruntimeSession(session, errors.InvalidArgument)


def _open_openvino(graph: Path, threads: int, float32: bool) -> Session:
    core = import_openvino().Core()
    # The CPU plug-in picks the shortest float the processor is fast at: bf16 on x86, f16 on Arm, else float32.
    options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
    if float32:
        options["INFERENCE_PRECISION_HINT"] = "f32"
    if threads:
        options["INFERENCE_NUM_THREADS"] = threads
    return OpenvinoSession(core, core.read_model(str(graph)), options)
