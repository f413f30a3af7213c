"""The hyper decoder as camera and worker run it: integers in, integers out, the same on every machine.

Sums are taken by float32 matrix products, which are exact here in any order and on any hardware: load_prior
proves that no sum of a layer can reach 2**24. Trained by `models/entropy_model.py`, which draws the arithmetic.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.compiled import compiled
from pipeline.errors import BitstreamError, ConfigError

LAYERS = 3
ACTIVATION_UNITS = 16  # a mean of 16 is one step of the latent
_ACTIVATION_MAX = 255
_SHIFT = 128
_EXACT = 1 << 24


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """Means float32 (C, h, w), multiples of 1/16, and scale indexes uint8 (C, h, w)."""

    means: NDArray[np.float32]
    indexes: NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class _Layer:
    matrix: NDArray[np.float32]  # (C_in * k * k, C_out)
    bias: NDArray[np.float32]  # (C_out,)
    kernel: int
    folded: NDArray[np.float32]  # (C_out, C_in * k * k + 1) both, the bias last, and the shift: see _folded

    @property
    def inputs(self) -> int:
        """Channels that it takes."""
        return len(self.matrix) // self.kernel**2

    def __call__(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Integers (C_in, h, w) -> sums (C_out, h, w), to be rounded down."""
        channels, height, width = x.shape
        margin, reach = self.kernel // 2, range(self.kernel)
        padded = x
        if margin:
            padded = np.zeros((channels, height + 2 * margin, width + 2 * margin), np.float32)
            padded[:, margin : margin + height, margin : margin + width] = x
        columns = np.empty((self.folded.shape[1], height * width), np.float32)
        columns[-1] = 1  # the bias's
        places = columns[:-1].reshape(channels, self.kernel, self.kernel, height, width)
        for i, j in itertools.product(reach, reach):
            places[:, i, j] = padded[:, i : i + height, j : j + width]
        total: NDArray[np.float32] = self.folded @ columns
        return total.reshape(-1, height, width)


def _folded(matrix: NDArray[np.float32], bias: NDArray[np.float32]) -> NDArray[np.float32]:
    """Weights whose sums, rounded down, are (sum + 64) // 128; powers of two change nothing in a float's digits."""
    return np.vstack([matrix, bias + _SHIFT // 2]).T / np.float32(_SHIFT)


@dataclass(frozen=True, slots=True, eq=False)
class IntegerPrior:
    """Hyper latents to what is known of the latents before they are read."""

    layers: tuple[_Layer, ...]
    scale_levels: int

    @property
    def latents(self) -> int:
        """Channels C of the latent."""
        return len(self.layers[-1].bias) // 2

    @property
    def hyper_latents(self) -> int:
        """Channels Z of the hyper latent."""
        return self.layers[0].inputs

    def predict(self, z: NDArray[np.int16], size: tuple[int, int]) -> Prediction:
        """Integer z (Z, ceil(h/4), ceil(w/4)) and the latent's size (h, w) -> means and scale indexes."""
        height, width = size
        half = np.empty((self.layers[1].inputs, -(-height // 2), -(-width // 2)), np.float32)
        _shuffle(self.layers[0](z.astype(np.float32)), half)
        whole = np.empty((self.layers[2].inputs, height, width), np.float32)
        _shuffle(self.layers[1](half), whole)
        shape = (self.latents, height, width)
        prediction = Prediction(np.empty(shape, np.float32), np.empty(shape, np.uint8))
        _split(self.layers[2](whole), self.scale_levels, prediction.means, prediction.indexes)
        return prediction


@compiled
def _shuffle(sums: NDArray[np.float32], activations: NDArray[np.float32]) -> None:
    """Sums (4C, h, w) -> activations (C, 2h, 2w), cut to size: four channels become a 2 x 2 block of one."""
    channels, height, width = activations.shape
    for c in range(channels):
        for y in range(height):
            for x in range(width):
                rounded = np.floor(sums[4 * c + 2 * (y & 1) + (x & 1), y >> 1, x >> 1])
                activations[c, y, x] = min(max(rounded, np.float32(0)), np.float32(_ACTIVATION_MAX))


@compiled
def _split(
    sums: NDArray[np.float32], scale_levels: int, means: NDArray[np.float32], indexes: NDArray[np.uint8]
) -> None:
    """Sums (2C, h, w) -> means and scale indexes (C, h, w)."""
    channels, height, width = means.shape
    unit, last = np.float32(1 / ACTIVATION_UNITS), np.float32(scale_levels - 1)
    for c in range(channels):
        for y in range(height):
            for x in range(width):
                means[c, y, x] = np.floor(sums[c, y, x]) * unit
                index = min(max(np.floor(sums[channels + c, y, x]), np.float32(0)), last)
                indexes[c, y, x] = np.uint8(index)


def load_prior(tables: Mapping[str, NDArray[np.generic]], *, hyper_limit: int, scale_levels: int) -> IntegerPrior:
    """Build the prior from `weight_i` int8 (C_out, C_in, k, k) and `bias_i` int32 (C_out,), i = 0..2.

    Raises ConfigError where a layer is missing, misshapen or of other types, or where a sum might be inexact.
    """
    layers: list[_Layer] = []
    largest = hyper_limit
    for i in range(LAYERS):
        try:
            stored = tables[f"weight_{i}"], tables[f"bias_{i}"]
        except KeyError as error:
            raise ConfigError(f"integer prior: {error} is missing") from error
        if stored[0].dtype != np.int8 or stored[1].dtype != np.int32:
            raise ConfigError(f"integer prior: layer {i} has types {stored[0].dtype} and {stored[1].dtype}")
        weight, bias = stored[0].astype(np.int64), stored[1].astype(np.int64)
        if not _fits(weight, bias, layers):
            raise ConfigError(f"integer prior: layer {i} has shapes {weight.shape} and {bias.shape}")
        if (np.abs(weight).sum((1, 2, 3)) * largest + np.abs(bias) + _SHIFT // 2 >= _EXACT).any():
            raise ConfigError(f"integer prior: sums of layer {i} may reach 2**24 and be inexact")
        matrix = weight.reshape(len(weight), -1).T.astype(np.float32)
        biases = bias.astype(np.float32)
        layers.append(_Layer(matrix, biases, weight.shape[2], _folded(matrix, biases)))
        largest = _ACTIVATION_MAX
    return IntegerPrior(tuple(layers), scale_levels)


def _fits(weight: NDArray[np.int64], bias: NDArray[np.int64], before: Sequence[_Layer]) -> bool:
    """Whether a layer has a known kernel, takes what the layers before it give, and gives what is split after it."""
    if weight.ndim != 4 or weight.shape[2:] not in {(1, 1), (3, 3)} or bias.shape != weight.shape[:1]:
        return False
    split = 2 if len(before) == LAYERS - 1 else 4  # means and indexes, or 2 x 2 blocks
    return len(bias) % split == 0 and (not before or 4 * weight.shape[1] == len(before[-1].bias))


def check_hyper(z: NDArray[np.int16], limit: int) -> None:
    """Raise BitstreamError when a decoded hyper latent is beyond what an encoder sends."""
    largest = max(-int(z.min(initial=0)), int(z.max(initial=0)))
    if largest > limit:
        raise BitstreamError(f"hyper latent {largest} is beyond {limit}")
