"""Made-up tables for the tests of the coder: contexts of all shapes, priors, symbols that fit them."""

import numpy as np
from numpy.typing import NDArray

from pipeline.context import PLACES, Context, load_context, stored_context
from pipeline.frequency_tables import laplace_tables
from pipeline.integer_prior import Prediction

Stored = dict[str, NDArray[np.generic]]
LEVELS, LATENTS, HYPER, ROWS, WIDTH = 3, 12, 4, 6, 4
TABLES = laplace_tables(64)


def context(seed: int, *, planes: int, rows: int, live: int | None = None) -> Context:
    """Weights that matter; `live` channels of `planes` are coded, all where it is not given."""
    rng = np.random.default_rng(seed)
    channels = np.sort(rng.permutation(planes)[: planes if live is None else live])
    n = len(channels)
    bias = np.stack([rng.integers(100, 500, (rows, n)), rng.integers(-100, 100, (rows, n))])
    hint = np.stack([rng.integers(-600, 600, n), rng.integers(-300, 300, n)])
    spread = rng.integers(-40, 41, (2, n, len(PLACES), n)) // max(n // 8, 1)
    made = Context(
        planes, channels.astype(np.int32), bias.astype(np.int16), hint.astype(np.int16), spread.astype(np.int16)
    )
    return load_context(stored_context(made, "made_up"), "made_up")


def symbols(seed: int, shape: tuple[int, int, int], one: Context, spread: float = 1.0) -> NDArray[np.int16]:
    """Whole numbers (C, h, w), zero in the channels that are not coded."""
    drawn = np.random.default_rng(seed).laplace(0, spread, shape).round().clip(-(1 << 15), (1 << 15) - 1)
    return one.silenced(drawn.astype(np.int16))


def prediction(seed: int, shape: tuple[int, int, int]) -> Prediction:
    """Means in sixteenths and scale indexes (C, h, w)."""
    rng = np.random.default_rng(seed)
    means = (rng.integers(-40, 40, shape) / 16).astype(np.float32)
    return Prediction(means, rng.integers(0, 64, shape).astype(np.uint8))


def stored_prior(seed: int = 0) -> Stored:
    """The arrays of an integer prior from HYPER to LATENTS channels."""
    rng = np.random.default_rng(seed)
    shapes = [(4 * WIDTH, HYPER, 3, 3), (4 * WIDTH, WIDTH, 3, 3), (2 * LATENTS, WIDTH, 1, 1)]
    stored: Stored = {}
    for i, shape in enumerate(shapes):
        stored[f"weight_{i}"] = rng.integers(-60, 61, shape).astype(np.int8)
        stored[f"bias_{i}"] = rng.integers(-900, 4000, shape[0]).astype(np.int32)
    return stored


def stored_tables(*, prior: bool, rows: int = ROWS) -> Stored:
    """The arrays of a bundle's tables, LEVELS quality levels of so many rows."""
    stored: Stored = {
        "cumulative": TABLES.cumulative, "sizes": TABLES.sizes, "hyper_limit": np.array([63], np.int32),
    }  # fmt: skip
    for level in range(LEVELS):
        stored |= stored_context(context(level, planes=LATENTS, rows=rows, live=4 * (level + 1)), f"latent_{level}")
    if prior:
        stored |= stored_prior() | {"scale_levels": np.array([64], np.int32)}
        for level in range(LEVELS):
            stored |= stored_context(context(9 + level, planes=HYPER, rows=-(-rows // 4)), f"hyper_{level}")
    else:
        stored["latent_offsets"] = np.arange(LEVELS * LATENTS, dtype=np.int16).reshape(LEVELS, LATENTS) - 16
    return stored
