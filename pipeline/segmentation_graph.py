"""Any segmentation network as an ONNX graph: pictures in, logits out, run by onnxruntime (imported when one is opened).

The graph's input is RGB float32 (N, 3, h, w), its first output logits (N, C, h', w'). Pictures are normalised with
ImageNet's mean and deviation, or with the `mean` and `std` of the graph's metadata: JSON lists, for pixels in 0..1.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.engine_libraries import import_onnxruntime
from pipeline.errors import ConfigError

_IMAGENET = {"mean": "[0.485, 0.456, 0.406]", "std": "[0.229, 0.224, 0.225]"}


class SegmentationGraph:
    """A graph, loaded and tried on one grey picture; `size` (width, height) is its own if it has a fixed one.

    Raises ConfigError, which names the file, when onnxruntime is missing or the graph is of another kind.
    """

    def __init__(self, path: Path, *, size: tuple[int, int]) -> None:
        self._path = path
        self._session = _open(path)
        self._input, *others = self._session.get_inputs()
        if others:
            raise self._refusal(f"it has {1 + len(others)} inputs, {', '.join(one.name for one in others)} among them")
        self._mean, self._std = (self._setting(name) for name in ("mean", "std"))
        height, width = self._input.shape[-2:] if len(self._input.shape) == 4 else (None, None)
        self.size = (width, height) if isinstance(width, int) and isinstance(height, int) else size
        self.classes = self.logits(np.full((1, 3, self.size[1], self.size[0]), 128, np.float32)).shape[1]

    def logits(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """RGB in 0..255 (B, 3, h, w) -> logits (B, C, h', w'), one picture at a time: some graphs take no more."""
        x = (images / np.float32(255) - self._mean) / self._std
        try:
            seen = [self._session.run(None, {self._input.name: one[None]})[0] for one in x]
        except _errors() as error:
            raise self._refusal(" ".join(str(error).split())[:200]) from error
        logits: NDArray[np.generic] = np.concatenate(seen)
        if logits.ndim != 4 or logits.dtype.kind != "f" or logits.shape[1] < 2:
            raise self._refusal(f"its output is {logits.dtype} {logits.shape}")
        return np.asarray(logits, np.float32)

    def _setting(self, name: str) -> NDArray[np.float32]:
        """Three numbers (3, 1, 1) of the metadata."""
        text = self._session.get_modelmeta().custom_metadata_map.get(name, _IMAGENET[name])
        try:
            return np.array(json.loads(text), np.float32).reshape(3, 1, 1)
        except (ValueError, TypeError) as error:
            said = f"teacher {self._path}: metadata {name} is {text!r}; write it as [0.5, 0.5, 0.5]"
            raise ConfigError(said) from error

    def _refusal(self, what: str) -> ConfigError:
        return ConfigError(f"teacher {self._path}: not RGB (1, 3, h, w) to float logits (1, C, h, w): {what}")


def _open(path: Path) -> Any:
    try:
        onnxruntime = import_onnxruntime()
    except ImportError as error:
        raise ConfigError(f"teacher {path}: needs onnxruntime; install it, or name a file of weights") from error
    wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(
            str(path), options, providers=[p for p in wanted if p in onnxruntime.get_available_providers()]
        )
    except _errors() as error:
        raise ConfigError(f"teacher {path}: onnxruntime cannot load it; name an ONNX segmentation network") from error


def _errors() -> tuple[type[Exception], ...]:
    """What onnxruntime raises on a graph it cannot load or run; its exceptions share no parent of their own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as raised

    return (
        raised.Fail,
        raised.InvalidArgument,
        raised.InvalidGraph,
        raised.InvalidProtobuf,
        raised.NotImplemented,
        raised.RuntimeException,
    )
