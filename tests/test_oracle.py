"""The best sequence of KEYs and WARPs is the best of all, and what it gains is told beside fixed intervals."""

import itertools

import numpy as np
import pytest

from benchmarks.oracle import Choice, Cost, Costs, at_interval, best, packet_bytes


def costs(seed: int, frames: int = 5, levels: int = 2, longest_age: int = 3) -> Costs:
    rng = np.random.default_rng(seed)
    return [
        {
            Choice(age, level): Cost(
                int(rng.integers(50, 90) if age else rng.integers(200, 900)), float(rng.random() * 5)
            )
            for age, level in itertools.product(range(min(frame, longest_age) + 1), range(levels))
        }
        for frame in range(frames)
    ]


def possible(choices: tuple[Choice, ...]) -> bool:
    """Whether each WARP is of the KEY before it."""
    return all(
        now.age == 0 or (now.age == before.age + 1 and now.level == before.level)
        for before, now in itertools.pairwise(choices)
    )


def spent(choices: tuple[Choice, ...] | list[Choice], of: Costs, price: float) -> float:
    found = [own[choice] for own, choice in zip(of, choices, strict=True)]
    return sum(one.differing + price * one.sent_bytes / 1000 for one in found)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("price", [0.1, 3.0, 30.0])
def test_no_sequence_is_better(seed: int, price: float) -> None:
    of = costs(seed)
    chosen = best(of, price)
    assert possible(tuple(chosen))
    everything = [one for one in itertools.product(*of) if possible(one)]
    assert spent(chosen, of, price) == pytest.approx(min(spent(one, of, price) for one in everything))


def test_dear_bytes_give_warps_and_cheap_ones_keys() -> None:
    of = [{Choice(age, 0): Cost(50 if age else 500, float(age)) for age in range(frame + 1)} for frame in range(6)]
    assert best(of, 0.01) == [Choice(0, 0)] * 6
    assert best(of, 1000.0) == [Choice(age, 0) for age in range(6)]


def test_a_fixed_interval_counts_ages_from_each_key() -> None:
    assert [one.age for one in at_interval(7, 3, 1)] == [0, 1, 2, 0, 1, 2, 0]


def test_a_packets_overhead_is_counted() -> None:
    assert packet_bytes(100) == 129
    assert packet_bytes(1000) == 1030
