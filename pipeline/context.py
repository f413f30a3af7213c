"""What symbols that are already known say about the next one: integer weights, one set per quality level.

Symbols stand position by position, row by row, and at each position channel by channel. What is expected of a symbol is
a sum: a bias of its row and channel, a hint of the hyper decoder if there is one, and a weight for each symbol that is
not zero at the same position (channels before it) and left, above, above right and above left of it (all channels).
One such sum names the scale of its table, another the mean. Channels that are always zero are left out.

Frequencies are looked up by these sums, so they are of integers; `expect` is the same in floats, for estimates.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError
from pipeline.frequency_tables import SCALE_COUNT, SCALE_MIN, SCALE_STEP, laplace_mass, sealed
from pipeline.integer_prior import ACTIVATION_UNITS, Prediction

SCALE_BITS = 4  # a scale's sum counts in 1/16 of a step of the table
MEAN_BITS = 7  # a mean's sum counts in 1/128
HINT_BITS = 5  # the weight of a hint has so many bits more
MAGNITUDE_LIMIT = 4  # a symbol counts as no larger than this for the scales of others,
VALUE_LIMIT = 8  # and than this for their means
INDEX_HINT_LIMIT, MEAN_HINT_LIMIT = 255, 511  # the mean's in sixteenths
PLACES = ((0, 0), (0, 1), (1, -1), (1, 0), (1, 1))  # (rows, columns) from a symbol to those that it speaks for
MAX_CHANNELS = 4096
LANES = 32  # a multiple of the vectors that the loops of the coder are made into
_LARGEST_SUM = 1 << 15
_CACHE_LINE = 64


@dataclass(frozen=True, slots=True, eq=False)
class Context:
    """The weights of one kind of latent at one quality level; first axis of the pairs: for the scale, for the mean."""

    planes: int  # channels C of the latent, n of which are coded
    channels: NDArray[np.int32]  # (n,) ascending
    bias: NDArray[np.int16]  # (2, rows, n)
    hint: NDArray[np.int16]  # (2, n) weights of the hyper decoder's scale index and mean
    spread: NDArray[np.int16]  # (2, n, PLACES, n) from a symbol's channel to those it speaks for
    told: NDArray[np.int16] = field(init=False, repr=False)  # the same as the coder's loops read it: see told_pairs
    starts: NDArray[np.int64] = field(init=False, repr=False)  # (n,) where each channel's begin in `told`

    def __post_init__(self) -> None:
        n = self.channels.size
        object.__setattr__(self, "told", told_pairs(self.spread))
        object.__setattr__(self, "starts", sealed(np.arange(n) * (self.told.size // max(n, 1)), np.int64))

    @property
    def rows(self) -> int:
        """Rows of the latent that the biases are for."""
        return self.bias.shape[1]

    def silenced(self, symbols: NDArray[np.int16]) -> NDArray[np.int16]:
        """Symbols (C, h, w) with zeros in the channels that are not coded."""
        kept = np.zeros_like(symbols)
        kept[self.channels] = symbols[self.channels]
        return kept


def told_pairs(spread: NDArray[np.int16]) -> NDArray[np.int16]:
    """Spread -> (n * PLACES * lanes * 2,), by symbol and place; scale and mean of a channel side by side.

    Places are in the order of columns, then rows. What a symbol would say to channels before its own, at the same
    place, is zero.
    """
    n = spread.shape[1]
    pairs = aligned(n * len(PLACES) * lanes_of(n) * 2).reshape(n, len(PLACES), lanes_of(n), 2)
    pairs[...] = 0
    for at, place in enumerate(sorted(range(len(PLACES)), key=lambda place: PLACES[place][::-1])):
        weights = np.triu(spread[:, :, place], 1) if PLACES[place] == (0, 0) else spread[:, :, place]
        pairs[:, at, :n] = weights.transpose(1, 2, 0)
    pairs.flags.writeable = False
    return pairs.reshape(-1)


def lanes_of(n: int) -> int:
    """Channels with those that make the loops over them even."""
    return -(-n // LANES) * LANES


def aligned(size: int) -> NDArray[np.int16]:
    """So many numbers, not set, from the start of a cache line: vectors across two of them are slow."""
    spare = np.empty(size + _CACHE_LINE // 2, np.int16)
    first = -spare.__array_interface__["data"][0] % _CACHE_LINE // 2
    return spare[first : first + size]


def stored_context(context: Context, name: str) -> dict[str, NDArray[np.generic]]:
    """The arrays of a context as a bundle's tables hold them."""
    parts: dict[str, NDArray[np.generic]] = {
        "planes": np.array([context.planes], np.int32),
        "channels": context.channels,
        "bias": context.bias,
        "hint": context.hint,
        "spread": context.spread,
    }
    return {f"{name}_{part}": array for part, array in parts.items()}


def load_context(stored: Mapping[str, NDArray[np.generic]], name: str) -> Context:
    """Mirror of stored_context; raises ConfigError where an array is missing, misshapen or too large for its sums."""
    planes, channels, bias, hint, spread = (
        _part(stored, f"{name}_{part}", dtype)
        for part, dtype in (
            ("planes", np.int32), ("channels", np.int32), ("bias", np.int16), ("hint", np.int16), ("spread", np.int16),
        )
    )  # fmt: skip
    n = channels.size
    if planes.shape != (1,) or not n <= planes[0] <= MAX_CHANNELS or channels.shape != (n,):
        raise ConfigError(f"context {name}: planes and channels do not fit together")
    if (np.diff(channels) < 1).any() or (channels < 0).any() or (channels >= planes[0]).any():
        raise ConfigError(f"context {name}: channels must rise from 0 to below {planes[0]}")
    if bias.ndim != 3 or bias.shape != (2, bias.shape[1], n) or not 1 <= bias.shape[1] <= MAX_CHANNELS:
        raise ConfigError(f"context {name}: bias {bias.shape} is not one pair per row and channel")
    if hint.shape != (2, n) or spread.shape != (2, n, len(PLACES), n):
        raise ConfigError(f"context {name}: hint {hint.shape} or spread {spread.shape} is not for {n} channels")
    _check_sums(name, bias.astype(np.int64), hint.astype(np.int64), spread.astype(np.int64))
    return Context(
        int(planes[0]), sealed(channels, np.int32), sealed(bias, np.int16), sealed(hint, np.int16),
        sealed(spread, np.int16),
    )  # fmt: skip


def _part(stored: Mapping[str, NDArray[np.generic]], key: str, dtype: type[np.generic]) -> NDArray[np.int64]:
    if key not in stored or stored[key].dtype != dtype:
        raise ConfigError(f"context: {key} is missing or not {dtype.__name__}")
    return stored[key].astype(np.int64)


def _check_sums(name: str, bias: NDArray[np.int64], hint: NDArray[np.int64], spread: NDArray[np.int64]) -> None:
    """16 bits hold every sum, in any order of its terms."""
    limits = np.array([MAGNITUDE_LIMIT, VALUE_LIMIT])[:, None]
    hints = np.array([INDEX_HINT_LIMIT, MEAN_HINT_LIMIT])[:, None]
    hinted = (np.abs(hint) * hints >> HINT_BITS) + 1
    largest = np.abs(bias).max(1) + hinted + np.abs(spread).sum((1, 2)) * limits  # (2, n)
    if (largest >= _LARGEST_SUM).any():
        raise ConfigError(f"context {name}: sums may reach 2**15")


def estimated_bits(symbols: NDArray[np.int16], context: Context, hints: Prediction | None = None) -> float:
    """Bits of symbols (C, h, w) by the float formula: Laplace, scale and mean neither rounded nor tabulated."""
    scales, means = expect(symbols, context, hints)
    mass = laplace_mass(symbols[context.channels] - means, scales)
    return float(-np.log2(np.maximum(mass, 2.0**-32)).sum())


def expect(
    symbols: NDArray[np.int16], context: Context, hints: Prediction | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Scale and mean (n, h, w) that each symbol of (C, h, w) is expected to have, given those before it."""
    seen = symbols[context.channels].astype(np.float64)  # (n, h, w)
    features = (np.minimum(np.abs(seen), MAGNITUDE_LIMIT), seen.clip(-VALUE_LIMIT, VALUE_LIMIT))
    sums = [_sums(feature, context, kind) for kind, feature in enumerate(features)]
    if hints is not None:
        sixteenths = (hints.means[context.channels] * ACTIVATION_UNITS).clip(-MEAN_HINT_LIMIT, MEAN_HINT_LIMIT)
        for total, hint, weight in zip(sums, (hints.indexes[context.channels], sixteenths), context.hint, strict=True):
            total += hint * (weight / (1 << HINT_BITS))[:, None, None]
    steps = (sums[0] / (1 << SCALE_BITS)).clip(0, SCALE_COUNT - 1)
    return SCALE_MIN * np.exp(SCALE_STEP * steps), sums[1] / (1 << MEAN_BITS)


def _sums(feature: NDArray[np.float64], context: Context, kind: int) -> NDArray[np.float64]:
    """Bias and contributions (n, h, w) of one kind, 0: scale, 1: mean."""
    n, height, width = feature.shape
    total = np.repeat(context.bias[kind].T[:, :, None].astype(np.float64), width, axis=2)
    padded = np.pad(feature, ((0, 0), (1, 0), (1, 1)))
    for place, (down, right) in enumerate(PLACES):
        weight = context.spread[kind, :, place].astype(np.float64)  # (n from, n to)
        weight = np.triu(weight, 1) if place == 0 else weight
        shifted = padded[:, 1 - down : 1 - down + height, 1 - right : 1 - right + width]
        total += (weight.T @ shifted.reshape(n, height * width)).reshape(n, height, width)
    return total
