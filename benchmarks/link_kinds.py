"""The kinds of links that rate control is tried on: three that the bandit's first weights come from, two held out."""

import math
import random
from collections.abc import Callable

from benchmarks.link_traces import Step, Trace, Way, mobile, stepping

STEPS_KBIT_S = (1000.0, 100.0, 40.0, 400.0)
STEP_S = 15.0
Kind = Callable[[int, int], Trace]


def steps(seed: int, seconds: int) -> Trace:
    """The four rates of the figure in any order, 15 s each."""
    rng = random.Random(seed)
    rates = [(at * STEP_S, rng.choice(STEPS_KBIT_S)) for at in range(math.ceil(seconds / STEP_S))]
    return stepping(rates, Way(delay_ms=40, jitter_ms=5, loss=0.002, queue_kib=32))


def the_steps() -> Trace:
    """1000, 100, 40, 400 kbit/s, 15 s each."""
    rates = [(at * STEP_S, rate) for at, rate in enumerate(STEPS_KBIT_S)]
    return stepping(rates, Way(delay_ms=40, jitter_ms=5, queue_kib=32))


def walk(seed: int, seconds: int) -> Trace:
    """A rate that wanders by a fifth a second, between 40 and 800 kbit/s."""
    rng, rates = random.Random(seed), []
    rate = math.log(rng.uniform(60, 400))
    for at_s in range(seconds):
        rate = min(max(rate + rng.gauss(0, 0.2), math.log(40)), math.log(800))
        rates.append((float(at_s), math.exp(rate)))
    return stepping(rates, Way(delay_ms=50, jitter_ms=8, loss=0.005))


def fades(seed: int, seconds: int) -> Trace:
    """100 to 400 kbit/s for 4 to 10 s, then 15 to 40 for one or two."""
    rng, rates, at_s = random.Random(seed), [], 0.0
    while at_s < seconds:
        rates.append((at_s, rng.uniform(100, 400)))
        at_s += rng.uniform(4, 10)
        rates.append((at_s, rng.uniform(15, 40)))
        at_s += rng.uniform(1, 2)
    return stepping(rates, Way(delay_ms=40, jitter_ms=5, loss=0.005, queue_kib=32))


def phone(seed: int, seconds: int) -> Trace:
    """Held out: a moving phone's, with a round trip, loss and queue of its own."""
    return mobile(seed, seconds)


def crossed(seed: int, seconds: int) -> Trace:
    """Held out: a line of 300 to 600 kbit/s that others use now and then, with 80 ms one way and up to 3 % loss."""
    rng = random.Random(seed)
    line, way = rng.uniform(300, 600), Way(delay_ms=80, jitter_ms=10, loss=rng.uniform(0, 0.03), queue_kib=64)
    trace: list[Step] = []
    at_s = 0.0
    while at_s < seconds:
        share = rng.choice((1.0, 0.5, 0.33, 0.1))
        trace += stepping([(at_s, line * share)], way)
        at_s += rng.expovariate(1 / 6.0)
    return trace


TRAINING: dict[str, Kind] = {"steps": steps, "walk": walk, "fades": fades}
HELD_OUT: dict[str, Kind] = {"phone": phone, "crossed": crossed}
