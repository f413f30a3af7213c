"""The last step of a decode graph: each class's logits smoothed over neighbouring places, so that masks flicker less.

logits -> [Gaussian, every class by itself] -> [+ what gives each class of each level its share back] -> logits

Upsampling by pixel shuffle makes each logit by weights of its own, so that neighbours differ by more than the street
does, and otherwise with every small change of the latents: borders fray, in each frame another way. A Gaussian of one
place or less takes most of that away. It takes from what is thin too; so each class gets a bias by which it keeps as
many pixels, in frames of training, as it had (as classifiers are brought to other shares: Saerens et al., Neural
Computation 2002). No labels are looked at.
"""

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from pipeline.bundle import Bundle, copy_content, seal
from pipeline.codec import DECODE_INT8
from pipeline.errors import ConfigError
from pipeline.runtime import open_session

MAX_SMOOTHING = 2.0  # logits; what is wider takes accuracy, and OpenVINO does not come to an end compiling it
SHARP = "sharp_logits"  # the tensor that is smoothed
_LOGITS, _BLURRED = "logits", "smoothing.blurred"
_ROUNDS, _CLOSE = 30, 0.002  # of bringing shares to what they were; the last: in logits

Latent = tuple[NDArray[np.float32], int]  # y_hat (C, h, w) and its quality level


def smooth(bundle: Bundle, sigma: float, latents: Iterable[Latent], folder: Path) -> Bundle:
    """Write the bundle with smoothed logits to a folder, which may be its own; load it again.

    `sigma` is the Gaussian's standard deviation in logits, 4 pixels each; 0 takes smoothing out again, and what was
    smoothed is not smoothed twice. `latents` are what workers read of frames that show what cameras will. Packets of
    the old bundle are not the new one's: the hash covers all graphs. ConfigError where sigma is out of range, or the
    bundle makes no masks.
    """
    if not 0 <= sigma <= MAX_SMOOTHING:
        raise ConfigError(f"smoothing {sigma}: must be 0 to {MAX_SMOOTHING:g} logits, of 4 pixels each")
    names = ["decode", *([DECODE_INT8] if bundle.has_graph(DECODE_INT8) else [])]
    sharp = {name: _without(onnx.load(bundle.graph(name))) for name in names}
    copy_content(bundle, folder)
    files = {name: folder / bundle.manifest.graphs[name] for name in sharp}
    biases = np.zeros((bundle.tables.levels, len(bundle.manifest.classes)), np.float32)
    if sigma:
        biases = _biases(sharp["decode"], _with(sharp["decode"], sigma, biases), latents, biases)
    for name, file in files.items():
        onnx.save(_with(sharp[name], sigma, biases) if sigma else sharp[name], str(file))
    return seal(bundle.manifest.model_copy(update={"smoothing": sigma or None}), folder)


def _with(sharp: onnx.ModelProto, sigma: float, biases: NDArray[np.float32]) -> onnx.ModelProto:
    """A copy that goes on to smoothed logits, the biases (L, K) of their level added."""
    model = onnx.ModelProto()
    model.CopyFrom(sharp)
    for node in model.graph.node:
        node.input[:] = [SHARP if name == _LOGITS else name for name in node.input]
        node.output[:] = [SHARP if name == _LOGITS else name for name in node.output]
    classes = biases.shape[1]
    line = np.tile(_gaussian(sigma), (classes, 1, 1, 1))  # (K, 1, 1, n)
    reach = line.shape[3] // 2
    held: dict[str, NDArray[np.generic]] = {
        "smoothing.pads": np.array([0, 0, reach, reach, 0, 0, reach, reach], np.int64),
        "smoothing.rows": line,
        "smoothing.columns": np.ascontiguousarray(line.swapaxes(2, 3)),
        "smoothing.bias": biases[:, :, None, None],
    }
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in held.items())
    padded, along, bias = "smoothing.padded", "smoothing.along", "smoothing.of_level"
    model.graph.node.extend(
        [
            helper.make_node("Pad", [SHARP, "smoothing.pads"], [padded], name="smoothing_pad", mode="edge"),
            helper.make_node("Conv", [padded, "smoothing.rows"], [along], name="smoothing_along", group=classes),
            helper.make_node("Conv", [along, "smoothing.columns"], [_BLURRED], name="smoothing_down", group=classes),
            helper.make_node(
                "Gather", ["smoothing.bias", model.graph.input[1].name], [bias], name="smoothing_level", axis=0
            ),
            helper.make_node("Add", [_BLURRED, bias], [_LOGITS], name="smoothing_add"),
        ]
    )
    return model


def _without(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that ends with the logits as they were before they were smoothed, if they are."""
    plain = onnx.ModelProto()
    plain.CopyFrom(model)
    if not any(SHARP in node.output for node in plain.graph.node):
        return plain
    kept = [node for node in plain.graph.node if not node.name.startswith("smoothing_")]
    held = [tensor for tensor in plain.graph.initializer if not tensor.name.startswith("smoothing.")]
    for node in kept:
        node.input[:] = [_LOGITS if name == SHARP else name for name in node.input]
        node.output[:] = [_LOGITS if name == SHARP else name for name in node.output]
    for part, left in ((plain.graph.node, kept), (plain.graph.initializer, held)):
        del part[:]
        part.extend(left)
    return plain


def _gaussian(sigma: float) -> NDArray[np.float32]:
    """One line of the kernel (n,), which reaches three standard deviations; its weights sum to one.

    Applied one way and then the other, which is a third of the work.
    """
    reach = max(1, int(np.ceil(3 * sigma)))
    line = np.exp(-0.5 * np.square(np.arange(-reach, reach + 1) / sigma))
    return np.asarray(line / line.sum(), np.float32)


def _biases(
    sharp: onnx.ModelProto, smoothed: onnx.ModelProto, latents: Iterable[Latent], nothing: NDArray[np.float32]
) -> NDArray[np.float32]:
    """What brings the classes' shares at each level (L, K) back to those of the sharp masks."""
    levels, classes = nothing.shape
    wanted, seen = np.zeros((levels, classes), np.int64), [[np.zeros((classes, 0), np.float32)] for _ in range(levels)]
    for level, before, after in _logits_of(sharp, smoothed, latents):
        wanted[level] += np.bincount(before.argmax(0), minlength=classes)
        seen[level].append(after)
    return np.stack([_fair(np.concatenate(some, 1), shares) for some, shares in zip(seen, wanted, strict=True)])


def _logits_of(
    sharp: onnx.ModelProto, smoothed: onnx.ModelProto, latents: Iterable[Latent]
) -> Iterator[tuple[int, NDArray[np.float32], NDArray[np.float32]]]:
    """Of each latent its level, and what both graphs make of it (K, h w)."""
    with tempfile.TemporaryDirectory() as scratch:
        files = [Path(scratch) / name for name in ("sharp.onnx", "smoothed.onnx")]
        for file, model in zip(files, (sharp, smoothed), strict=True):
            onnx.save(model, str(file))
        sessions = [open_session(file, engine="onnxruntime") for file in files]
        for y_hat, level in latents:
            inputs = y_hat[None], np.array([level], np.int64)
            before, after = (session.run(*inputs)[0][0] for session in sessions)
            yield level, before.reshape(len(before), -1), after.reshape(len(after), -1)


def _fair(logits: NDArray[np.float32], wanted: NDArray[np.int64]) -> NDArray[np.float32]:
    """The bias of each class (K,) by which, of logits (K, n), so many have it as their largest.

    Class by class, as far as it takes against the others as they stand, until none moves.
    """
    bias = np.zeros(len(wanted), np.float32)
    for _ in range(_ROUNDS):
        before = bias.copy()
        for k in np.flatnonzero(wanted):
            missing = (logits + bias[:, None])[np.arange(len(bias)) != k].max(0) - logits[k]  # what it takes, by place
            last = min(int(wanted[k]), len(missing) - 1)
            bias[k] = np.partition(missing, (last - 1, last))[last - 1 : last + 1].mean()
        if np.abs(bias - before).max() < _CLOSE:
            break
    return bias - np.median(bias)
