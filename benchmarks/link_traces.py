"""What a link does over time, to try rate control on: given steps, cuts, and random traces like a moving phone's."""

import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from benchmarks.netlab_link import Way

__all__ = ["Step", "Trace", "Way"]

_STATES = 5  # of a mobile link, from a dead corner to a good cell
_LEAST_KBIT_S, _MOST_KBIT_S = 30.0, 2000.0
_SPREAD = 0.25  # of the logarithm of the rate within a state
_WITHIN_S = 1.0  # that a rate stays on average before another of the same state
_DWELL_S = 1.0, 15.0
_FADE_CHANCE, _FADE, _FADE_S = 0.15, 0.2, (0.5, 3.0)  # at the beginning of a state; of its rate; seconds
_RTT_MS, _LOSS, _QUEUES_KIB = (30.0, 200.0), 0.05, (16.0, 32.0, 64.0, 128.0, 256.0)
_RTT_JITTER = 0.05  # of the round trip
_DOWN_KBIT_S = 2000.0


@dataclass(frozen=True, slots=True)
class Step:
    """What the link is from a moment on."""

    at_s: float
    up: Way
    down: Way


Trace = Sequence[Step]
"""In order of time; the first step is at 0."""


def stepping(rates: Iterable[tuple[float, float]], way: Way) -> Trace:
    """A link like `way`, both ways, whose rate up is (from s, kbit/s); the way down has room enough."""
    down = replace(way, rate_kbit_s=_DOWN_KBIT_S)
    return [Step(at_s, replace(way, rate_kbit_s=rate), down) for at_s, rate in rates]


def with_cut(trace: Trace, begin_s: float, end_s: float) -> Trace:
    """The same, but nothing passes for a while."""
    before = [step for step in trace if step.at_s <= begin_s]
    after = replace([step for step in trace if step.at_s <= end_s][-1], at_s=end_s)
    within = [replace(before[-1], at_s=begin_s), *(step for step in trace if begin_s < step.at_s < end_s)]
    cut = [replace(step, up=replace(step.up, cut=True), down=replace(step.down, cut=True)) for step in within]
    return [*(step for step in before if step.at_s < begin_s), *cut, after, *(s for s in trace if s.at_s > end_s)]


def mobile(seed: int, seconds: float) -> Trace:
    """A link that wanders: its state changes as in a Markov chain, its rate is log-normal around that of the state.

    From 30 to 2000 kbit/s, 1 to 15 s in a state, with fades to a fifth; round trip, loss (0 to 5 %) and queue are
    drawn once. Such chains are the usual model of what a moving phone sees (Winstein et al., Sprout, NSDI 2013, fit a
    like one to recordings).
    """
    rng = random.Random(seed)
    delay_ms = rng.uniform(*_RTT_MS) / 2
    way = Way(
        delay_ms=delay_ms,
        jitter_ms=delay_ms * 2 * _RTT_JITTER,
        loss=rng.uniform(0, _LOSS),
        queue_kib=rng.choice(_QUEUES_KIB),
    )
    return stepping(_wandering(rng, seconds), way)


def _wandering(rng: random.Random, seconds: float) -> Iterator[tuple[float, float]]:
    """(from s, kbit/s)."""
    at_s, state = 0.0, rng.randrange(_STATES)
    while at_s < seconds:
        end_s = at_s + rng.uniform(*_DWELL_S)
        middle = _LEAST_KBIT_S * (_MOST_KBIT_S / _LEAST_KBIT_S) ** ((state + 0.5) / _STATES)
        if rng.random() < _FADE_CHANCE:
            yield at_s, max(_LEAST_KBIT_S, middle * _FADE)
            at_s += rng.uniform(*_FADE_S)
        while at_s < end_s:
            rate = middle * math.exp(rng.gauss(0, _SPREAD))
            yield at_s, min(max(rate, _LEAST_KBIT_S), _MOST_KBIT_S)
            at_s = min(at_s + rng.expovariate(1 / _WITHIN_S), end_s)
        state = min(max(state + rng.choice((-2, -1, -1, 1, 1, 2)), 0), _STATES - 1)
