"""Integer frequencies of symbols, one table per scale and fraction of the predicted mean, the same on every machine.

Table `scale_index * FRACTIONS + fraction` is a Laplace distribution of the named scale, its mean fraction / 16 above
zero, integrated over the unit around each value. Its entries are the values in order of falling probability, 0, 1, -1,
2, -2, ... R, -R, and last the escape, which stands for all others. Means below zero are had by changing signs.

Floats appear where tables are made, once, at export; the integers travel in the bundle.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError

PRECISION = 16
TOTAL = 1 << PRECISION
MEAN_UNITS = 16
FRACTIONS = MEAN_UNITS // 2 + 1  # 0 to 1/2 in sixteenths
SCALE_MIN, SCALE_MAX, SCALE_COUNT = 0.04, 16.0, 64
SCALE_STEP = math.log(SCALE_MAX / SCALE_MIN) / (SCALE_COUNT - 1)
MAX_RADIUS = 127
MIN_RADIUS = 2  # an escape costs 32 bits, so that rare small values are better in the table
MAX_SYMBOL = (1 << 15) - 1
NEAR = 4


@dataclass(frozen=True, slots=True, eq=False)
class FrequencyTables:
    """T tables of at most L integer frequencies, each table summing to 2**16; made by check_tables only."""

    cumulative: NDArray[np.uint32]  # (T, L + 1), padded with 2**16
    sizes: NDArray[np.int32]  # (T,) entries of each table, the escape included
    near: NDArray[np.int32]  # (scales * MEAN_UNITS * NEAR,) first bounds, of fractions from -8/16 to 7/16

    @property
    def scales(self) -> int:
        """How many scales there are tables for."""
        return len(self.sizes) // FRACTIONS


def check_tables(cumulative: NDArray[np.generic], sizes: NDArray[np.generic]) -> FrequencyTables:
    """Seal the arrays of a bundle; raises ConfigError where they would lead the coder astray."""
    if cumulative.dtype != np.uint32 or sizes.dtype != np.int32:
        raise ConfigError("frequency tables: cumulative must be uint32, sizes int32")
    bounds, counts = cumulative.astype(np.int64), sizes.astype(np.int64)
    _check_shapes(bounds, counts)
    frequencies = np.diff(bounds, axis=1)  # (T, L)
    used = np.arange(frequencies.shape[1]) < counts[:, None]  # (T, L)
    if bounds[:, 0].any() or (frequencies[used] < 1).any() or frequencies[~used].any():
        raise ConfigError("frequency tables: frequencies must start at 0, be positive and padded with zero")
    if (bounds[:, -1] != TOTAL).any():
        raise ConfigError(f"frequency tables: each table must sum to {TOTAL}")
    return FrequencyTables(
        sealed(cumulative, np.uint32), sealed(sizes, np.int32), sealed(_near(bounds, counts), np.int32)
    )


def _near(cumulative: NDArray[np.int64], sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """What is read for nearly all symbols, close together; entries from the escape on are never near."""
    fractions = np.abs(np.arange(MEAN_UNITS) - MEAN_UNITS // 2)
    tables = (np.arange(0, len(sizes), FRACTIONS)[:, None] + fractions).ravel()
    entries = np.minimum(np.arange(NEAR), sizes[tables, None] - 1)
    near: NDArray[np.int64] = cumulative[tables[:, None], entries]  # (scales * MEAN_UNITS, NEAR)
    return near.ravel()


def _check_shapes(cumulative: NDArray[np.int64], sizes: NDArray[np.int64]) -> None:
    if cumulative.ndim != 2 or len(cumulative) not in range(FRACTIONS, FRACTIONS * SCALE_COUNT + 1, FRACTIONS):
        raise ConfigError(f"frequency tables: there must be {FRACTIONS} tables for each of 1 to {SCALE_COUNT} scales")
    if sizes.shape != (len(cumulative),):
        raise ConfigError("frequency tables: sizes must have one number per table")
    largest = min(2 * MAX_RADIUS + 2, cumulative.shape[1] - 1)
    if (sizes < 2).any() or (sizes > largest).any() or (sizes % 2).any():
        raise ConfigError(f"frequency tables: a table has an even number of entries, 2 to {largest} of them")


def sealed(array: NDArray[np.generic], dtype: type[np.generic]) -> NDArray[Any]:
    """A contiguous read-only copy, which later changes of the original cannot reach."""
    copy = np.array(array, dtype, order="C")
    copy.flags.writeable = False
    return copy


def laplace_tables(scales: int, *, tail_mass: float = 2.0**-16) -> FrequencyTables:
    """The tables of the first so many scales, each reaching as far as leaves at most tail_mass to the escape."""
    pmfs = [
        _table_pmf(scale, fraction / MEAN_UNITS, tail_mass)
        for scale in SCALE_MIN * np.exp(SCALE_STEP * np.arange(scales))
        for fraction in range(FRACTIONS)
    ]
    sizes = np.array([len(pmf) for pmf in pmfs], np.int32)
    cumulative = np.full((len(pmfs), sizes.max() + 1), TOTAL, np.uint32)
    for row, pmf in zip(cumulative, pmfs, strict=True):
        row[0] = 0
        row[1 : len(pmf) + 1] = np.cumsum(quantise_pmf(pmf))
    return check_tables(cumulative, sizes)


def _table_pmf(scale: float, mean: float, tail_mass: float) -> NDArray[np.float64]:
    """Probabilities (2R + 2,) of 0, 1, -1, ... R, -R and of the escape."""
    radius = min(max(math.ceil(-scale * math.log(tail_mass)), MIN_RADIUS), MAX_RADIUS)
    sides = np.arange(1, radius + 1)
    values = np.concatenate([[0], np.stack([sides, -sides], 1).ravel()])
    inside = laplace_mass(values - mean, scale)
    return np.append(inside, max(1 - inside.sum(), 0.0))


def laplace_mass(
    distances: NDArray[np.float64], scales: NDArray[np.float64] | np.float64 | float
) -> NDArray[np.float64]:
    """Mass of the unit around each distance from the mean of Laplace distributions of the given scales."""
    near, far = np.abs(distances) - 0.5, np.abs(distances) + 0.5
    beyond_far = np.exp(-far / scales)
    outside = np.exp(-np.maximum(near, 0) / scales) - beyond_far
    inside = 2 - np.exp(np.minimum(near, 0) / scales) - beyond_far
    mass: NDArray[np.float64] = np.where(near < 0, inside, outside) / 2
    return mass


def quantise_pmf(pmf: NDArray[np.float64], precision: int = PRECISION) -> NDArray[np.int64]:
    """Probabilities (L,) -> the integers (L,) >= 1, summing to 2**precision, that cost the fewest bits.

    The cost is a sum of convex functions, so the best is reached when no single move of one unit lowers it.
    """
    total = 1 << precision
    if pmf.ndim != 1 or not 1 <= pmf.size <= total:
        raise ValueError(f"a distribution needs 1..{total} probabilities, not {pmf.shape}")
    if not (np.isfinite(pmf).all() and (pmf >= 0).all() and pmf.sum() > 0):
        raise ValueError("probabilities must be finite, not negative, and not all zero")
    p = pmf / pmf.sum()
    f: NDArray[np.int64] = np.maximum(1, np.floor(p * total)).astype(np.int64)
    gain = p * np.log1p(1 / f)  # nats saved by one unit more
    while True:
        loss = np.where(f > 1, p * np.log1p(1 / np.maximum(f - 1, 1)), np.inf)  # nats lost by one unit less
        up, down, missing = int(gain.argmax()), int(loss.argmin()), total - int(f.sum())
        if missing == 0 and gain[up] <= loss[down] * (1 + 1e-9):
            return f
        if missing >= 0:
            f[up] += 1
            gain[up] = p[up] * math.log1p(1 / f[up])
        if missing <= 0:
            f[down] -= 1
            gain[down] = p[down] * math.log1p(1 / f[down])
