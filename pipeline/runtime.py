"""Inference engines behind one protocol; each library is imported when its first session is opened."""

import importlib.util
import itertools
import platform
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import structlog
from numpy.typing import NDArray

from pipeline.engine_libraries import import_onnxruntime, import_openvino
from pipeline.errors import ConfigError

log = structlog.get_logger(__name__)

ENGINES = ("auto", "openvino", "onnxruntime")
Array = NDArray[Any]

_CUDA = "CUDAExecutionProvider"
_FIRST = 3  # convolutions from the input on that `Precision.ENDS` keeps in float32
_ALL_FLOAT32 = {"INFERENCE_PRECISION_HINT": "f32"}
_CONVOLUTIONS = ("Convolution", "GroupConvolution")

# Of OpenVINO's own file format: a graph that gives back its input, with the attribute that keeps a node out of shorter
# floats. OpenVINO's Python API cannot make such an attribute; it can read one and pass it on.
_PRECISE = """<net name="precise" version="11"><layers>
<layer id="0" name="in" type="Parameter" version="opset1"><data shape="1" element_type="f32"/>
<rt_info><attribute name="precise" version="0"/></rt_info>
<output><port id="0" precision="FP32"><dim>1</dim></port></output></layer>
<layer id="1" name="out" type="Result" version="opset1"><input><port id="0" precision="FP32"><dim>1</dim></port></input>
</layer></layers><edges><edge from-layer="0" from-port="0" to-layer="1" to-port="0"/></edges></net>"""


class Precision(Enum):
    """The floats that a graph is computed in, where the processor is quicker at shorter ones: bfloat16 or float16.

    ENDS is for graphs that encode: the first three convolutions, and the last one before each output, in float32. Those
    are where short floats cost accuracy and bits; those between them take most of the time. Which floats they are
    depends on the processor, and so may a few of the symbols that a camera sends.
    """

    SHORT = "short"
    ENDS = "ends"
    FLOAT32 = "float32"


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
            raise ValueError(_untaken(inputs)) from error
        return outputs


class OpenvinoSession:
    """A graph run by OpenVINO, compiled once per batch size: fixed shapes are faster than open ones.

    To compile takes long, so the sizes are few: a batch is filled up to a power of two with copies of its last row.
    If OpenVINO does not compute the nodes `in_float32` so, as it was asked to, all are.
    """

    def __init__(
        self, core: Any, model: Any, options: dict[str, Any], *, in_float32: frozenset[str] = frozenset()
    ) -> None:
        self._core, self._model, self._options, self._in_float32 = core, model, options, in_float32
        self._requests: dict[int, Any] = {}

    def run(self, *inputs: Array) -> list[Array]:
        _check_count(inputs, self._model.inputs)  # OpenVINO itself would take what lies in memory for the rest
        count = len(inputs[0])
        size = batch_sizes(count)[-1]
        filled = list(inputs)
        if size > count:
            filled = [np.concatenate([rows, np.repeat(rows[-1:], size - count, axis=0)]) for rows in inputs]
        request = self._requests.get(size)
        if request is None:
            # OpenVINO makes graphs anew for any shapes, also for those that are no longer what was exported.
            taken = [[str(side) for side in port.partial_shape][1:] for port in self._model.inputs]
            if any(_differ(rows.shape[1:], sides) for rows, sides in zip(inputs, taken, strict=True)):
                raise ValueError(_untaken(inputs))
            request = self._compile([rows.shape for rows in filled])
        results = request.infer(filled, share_inputs=True)
        return [np.array(result[:count]) for result in results.values()]

    def _compile(self, shapes: list[tuple[int, ...]]) -> Any:
        model = self._model.clone()
        model.reshape({port: list(shape) for port, shape in enumerate(shapes)})
        compiled = self._core.compile_model(model, "CPU", self._options)
        if self._in_float32 and not self._in_float32 <= float32_nodes(compiled):
            log.info(
                "all is computed in float32: this OpenVINO does not mix types", graph=self._model.get_friendly_name()
            )
            self._options, self._in_float32 = {**self._options, **_ALL_FLOAT32}, frozenset()
            compiled = self._core.compile_model(model, "CPU", self._options)
        request = compiled.create_infer_request()
        self._requests[shapes[0][0]] = request
        return request


def _check_count(inputs: Sequence[Array], wanted: Sequence[object]) -> None:
    if len(inputs) != len(wanted):
        raise ValueError(f"{len(inputs)} inputs; the graph takes {len(wanted)}")


def _differ(shape: Sequence[int], sides: Sequence[str]) -> bool:
    """Whether a shape is none that a graph takes, whose sides are numbers, or ? for any."""
    fixed = list(zip(shape, sides, strict=False))
    return len(shape) != len(sides) or any(side.isdigit() and int(side) != size for size, side in fixed)


def _untaken(inputs: Sequence[Array]) -> str:
    return f"inputs of {[each.shape for each in inputs]}, which the graph does not take"


def batch_sizes(most: int) -> list[int]:
    """The sizes that batches of 1 to `most` rows are run in: the powers of two up to the first that holds them."""
    return [1 << bit for bit in range((most - 1).bit_length() + 1)]


def open_session(
    graph: Path, *, engine: str = "auto", threads: int = 0, precision: Precision = Precision.SHORT
) -> Session:
    """Load a graph; threads 0 lets the engine choose. ConfigError on an unknown or missing engine or a bad file.

    onnxruntime computes in float32, whatever the precision.
    """
    chosen = _choose(engine)
    try:
        if chosen == "openvino":
            return _open_openvino(graph, threads, precision)
        return _open_onnxruntime(graph, threads)
    except (RuntimeError, ValueError) as error:  # what both libraries raise on a file that is not a graph
        raise ConfigError(f"graph {graph}: {chosen} cannot load it; export the bundle again") from error


def is_quick_at_int8(engine: str = "auto") -> bool:
    """Whether convolutions in 8-bit integers are quicker than others here: on x86, unless a GPU does the work."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return False
    return _choose(engine) == "openvino" or _CUDA not in import_onnxruntime().get_available_providers()


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
    wanted = (_CUDA, "CPUExecutionProvider")
    providers = [p for p in wanted if p in onnxruntime.get_available_providers()]
    errors = onnxruntime.capi.onnxruntime_pybind11_state
    try:
        session = onnxruntime.InferenceSession(str(graph), options, providers=providers)
    except (errors.Fail, errors.InvalidGraph, errors.InvalidProtobuf, errors.NoSuchFile) as error:
        raise RuntimeError(str(error)) from error
    return OnnxruntimeSession(session, errors.InvalidArgument)


def _open_openvino(graph: Path, threads: int, precision: Precision) -> Session:
    core = import_openvino().Core()
    # The CPU plug-in picks the shortest float the processor is fast at: bf16 on x86, f16 on Arm, else float32.
    options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
    if precision is Precision.FLOAT32:
        options |= _ALL_FLOAT32
    if threads:
        options["INFERENCE_NUM_THREADS"] = threads
    model = core.read_model(str(graph))
    ends = _keep_ends(core, model) if precision is Precision.ENDS else frozenset()
    return OpenvinoSession(core, model, options, in_float32=ends)


def _keep_ends(core: Any, model: Any) -> frozenset[str]:
    """Ask for the first convolutions, and the last before each output, in float32; gives their names."""
    convolutions = [node for node in model.get_ordered_ops() if node.get_type_name() in _CONVOLUTIONS]
    ends = (*convolutions[:_FIRST], *_last_convolutions(model))
    (bearer,) = core.read_model(_PRECISE.encode()).get_parameters()
    info = bearer.get_rt_info()
    for node, name in itertools.product(ends, info):
        node.set_rt_info(info[name], name)
    return frozenset(node.get_friendly_name() for node in ends)


def _last_convolutions(model: Any) -> list[Any]:
    """Those from which an output is found without another one."""
    found: list[Any] = []
    seen: set[str] = set()
    ahead = list(model.get_results())
    while ahead:
        for source in ahead.pop().input_values():
            node = source.get_node()
            if node.get_friendly_name() in seen:
                continue
            seen.add(node.get_friendly_name())
            (found if node.get_type_name() in _CONVOLUTIONS else ahead).append(node)
    return found


def float32_nodes(compiled: Any) -> frozenset[str]:
    """The names of the nodes of its model that a compiled graph computes in float32."""
    facts = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
    in_float32 = [fact for fact in facts if fact["runtimePrecision"].astype(str) == "f32"]
    return frozenset(itertools.chain(*(fact["originalLayersNames"].astype(str).split(",") for fact in in_float32)))
