"""From the latents of training frames to the tables that camera and worker code with, a context per quality level.

Done once, at export, with the network as it is: what the entropy model of training estimates is not what is coded, and
rounded latents depend on one another in ways that it does not know.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.bundle import Tables
from pipeline.context import Context, expect, stored_context
from pipeline.frequency_tables import MAX_SYMBOL, SCALE_COUNT, SCALE_MIN, SCALE_STEP, laplace_tables, sealed
from pipeline.integer_prior import ACTIVATION_UNITS, IntegerPrior, Prediction
from pipeline.models.context_model import ContextModel, FrozenContext, Hints

_MARGIN = 4  # tables beyond the largest scale that training frames need


@dataclass(frozen=True, slots=True, eq=False)
class LevelLatents:
    """What the encode graph gives for N training frames at one quality level, scaled and not rounded."""

    y: NDArray[np.float32]  # (N, C, h, w)
    z: NDArray[np.float32]  # (N, Z, ceil(h/4), ceil(w/4)), Z = 0 where no hyper latent is sent


@dataclass(frozen=True, slots=True)
class Effort:
    """How long a context is fitted: steps of so many frames. The penalty is in bytes a frame per unit of weight."""

    steps: int = 400
    batch: int = 8
    learning_rate: float = 0.01
    penalty: float = 0.01
    seed: int = 0


DEFAULT_EFFORT = Effort()


def fit_tables(
    levels: Sequence[LevelLatents],
    prior: IntegerPrior | None,
    *,
    hyper_limit: int,
    effort: Effort = DEFAULT_EFFORT,
    start: Tables | None = None,
    device: str = "cpu",
) -> dict[str, NDArray[np.generic]]:
    """The arrays that `bundle.tables_from` reads, but for those of the prior; prior None: no hyper latent is sent.

    `start` is what to begin with instead of nothing: tables of as many levels of nearly the same network. Where it has
    frequencies for every scale that these latents need, they stay.
    """
    stored: dict[str, NDArray[np.generic]] = {"hyper_limit": np.array([hyper_limit], np.int32)}
    offsets: list[NDArray[np.int16]] = []
    largest = SCALE_MIN
    for i, level in enumerate(levels):
        hints: list[Prediction] | None = None
        offsets.append(_sixteenths(level.y))
        means = offsets[-1][:, None, None] / np.float32(ACTIVATION_UNITS)
        if prior is not None:
            hyper = rounded(level.z, hyper_limit)
            context = fit_context(hyper, None, effort=effort, start=start.hyper[i] if start else None, device=device)
            stored |= stored_context(context, f"hyper_{i}")
            largest = max(largest, _largest_scale(hyper, context, None))
            hints = [prior.predict(context.silenced(z), (level.y.shape[2], level.y.shape[3])) for z in hyper]
            means = np.stack([hint.means for hint in hints])
        symbols = rounded(level.y - means, MAX_SYMBOL)
        context = fit_context(symbols, hints, effort=effort, start=start.latent[i] if start else None, device=device)
        stored |= stored_context(context, f"latent_{i}")
        largest = max(largest, _largest_scale(symbols, context, hints))
    needed = math.floor(math.log(largest / SCALE_MIN) / SCALE_STEP + 0.5) + 1
    enough = start is not None and needed <= start.frequencies.scales
    tables = start.frequencies if start and enough else laplace_tables(min(needed + _MARGIN, SCALE_COUNT))
    if prior is None:
        stored["latent_offsets"] = np.stack(offsets)
    else:
        stored["scale_levels"] = np.array([prior.scale_levels], np.int32)
    return {**stored, "cumulative": tables.cumulative, "sizes": tables.sizes}


def fit_context(
    symbols: NDArray[np.int16],
    hints: Sequence[Prediction] | None,
    *,
    effort: Effort = DEFAULT_EFFORT,
    start: Context | None = None,
    device: str = "cpu",
) -> Context:
    """Fit to symbols (N, C, h, w) of N frames, given what the hyper decoder says of each, if there is one.

    Channels that are zero in all frames, and not in the context to start from, are left out: the encoder will keep
    them zero.
    """
    known_channels = () if start is None else start.channels
    channels = np.union1d(np.flatnonzero(symbols.any((0, 2, 3))), known_channels).astype(np.int32)
    torch.manual_seed(effort.seed)
    model = ContextModel(len(channels), symbols.shape[2]).to(device)
    if len(channels):
        seen = _on(symbols[:, channels], device)
        known = None if hints is None else _hints(hints, channels, device)
        model.start_from(seen, hinted=hints is not None)
        if start is not None:
            frozen = FrozenContext(start.bias, start.hint, start.spread)
            model.resume_from(frozen, np.searchsorted(channels, start.channels))
        with _one_thread():
            _descend(model, seen, known, effort)
    frozen = model.freeze()
    return Context(
        planes=symbols.shape[1],
        channels=sealed(channels, np.int32),
        bias=sealed(frozen.bias, np.int16),
        hint=sealed(frozen.hint, np.int16),
        spread=sealed(frozen.spread, np.int16),
    )


def rounded(latent: NDArray[np.float32], limit: int) -> NDArray[np.int16]:
    """The nearest whole numbers, of at most this magnitude."""
    whole: NDArray[np.float32] = np.floor(latent + np.float32(0.5)).clip(-limit, limit)
    return whole.astype(np.int16)


def _sixteenths(y: NDArray[np.float32]) -> NDArray[np.int16]:
    """Mean of each channel (C,) of y (N, C, h, w), in sixteenths."""
    means = y.mean((0, 2, 3), dtype=np.float64)
    whole: NDArray[np.float64] = np.round(means * ACTIVATION_UNITS).clip(-MAX_SYMBOL, MAX_SYMBOL)
    return whole.astype(np.int16)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep torch to one thread: on a busy machine, threads wait for each other at each of these small sums."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _descend(model: ContextModel, symbols: Tensor, hints: Hints | None, effort: Effort) -> None:
    """Fewer bytes a frame, step by step, at a falling rate."""
    # Each scale and mean is a sum of hundreds of weights: these move more slowly than the biases.
    slow, fast = effort.learning_rate, 3 * effort.learning_rate
    optimiser = torch.optim.Adam([{"params": [model.spread]}, {"params": [model.bias, model.hint]}])
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, [slow, fast], total_steps=effort.steps + 1, pct_start=0.1, cycle_momentum=False
    )
    draw = np.random.default_rng(effort.seed)
    for _ in range(effort.steps):
        chosen = torch.from_numpy(draw.choice(len(symbols), min(effort.batch, len(symbols)), replace=False))
        some = None if hints is None else Hints(hints.indexes[chosen], hints.means[chosen])
        payload_bytes = model(symbols[chosen], some).sum() / (8 * len(chosen))
        optimiser.zero_grad()
        (payload_bytes + effort.penalty * model.spread.abs().sum()).backward()
        optimiser.step()
        schedule.step()


def _hints(hints: Sequence[Prediction], channels: NDArray[np.int32], device: str) -> Hints:
    return Hints(
        indexes=_on(np.stack([hint.indexes[channels] for hint in hints]), device),
        means=_on(np.stack([hint.means[channels] for hint in hints]), device),
    )


def _on(array: NDArray[np.generic], device: str) -> Tensor:
    return torch.from_numpy(array.astype(np.float32)).to(device)


def _largest_scale(symbols: NDArray[np.int16], context: Context, hints: Sequence[Prediction] | None) -> float:
    known = [None] * len(symbols) if hints is None else hints
    return max(float(expect(one, context, hint)[0].max(initial=0)) for one, hint in zip(symbols, known, strict=True))
