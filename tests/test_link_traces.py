"""Links over time: steps, cuts, and random ones that are the same for the same seed."""

from itertools import pairwise

import pytest

from benchmarks.link_traces import Way, mobile, stepping, with_cut

WAY = Way(delay_ms=10, loss=0.01)


def test_steps_change_the_rate_up_and_nothing_else() -> None:
    trace = stepping([(0, 1000), (5, 40)], WAY)
    assert [(step.at_s, step.up.rate_kbit_s) for step in trace] == [(0, 1000), (5, 40)]
    assert all(step.up.delay_ms == step.down.delay_ms == 10 for step in trace)


def test_a_cut_holds_both_ways_and_the_link_goes_on_as_it_would_have() -> None:
    trace = with_cut(stepping([(0, 1000), (5, 40), (9, 400)], WAY), 4, 7)
    assert [(step.at_s, step.up.rate_kbit_s, step.up.cut) for step in trace] == [
        (0, 1000, False), (4, 1000, True), (5, 40, True), (7, 40, False), (9, 400, False),
    ]  # fmt: skip
    assert all(step.down.cut == step.up.cut for step in trace)


@pytest.mark.parametrize("begin_s", [0, 5])
def test_a_cut_may_begin_with_a_step(begin_s: float) -> None:
    trace = with_cut(stepping([(0, 1000), (5, 40)], WAY), begin_s, begin_s + 1)
    assert [step.at_s for step in trace if step.up.cut] == [begin_s]


@pytest.mark.parametrize("seed", range(20))
def test_a_mobile_link_stays_within_its_limits(seed: int) -> None:
    trace = mobile(seed, 120)
    assert trace[0].at_s == 0
    assert all(one.at_s <= other.at_s for one, other in pairwise(trace))
    assert all(30 <= step.up.rate_kbit_s <= 2000 and 0 <= step.up.loss <= 0.05 for step in trace)
    assert 15 <= trace[0].up.delay_ms <= 100


def test_a_mobile_link_is_its_seed() -> None:
    assert mobile(3, 60) == mobile(3, 60) != mobile(4, 60)


def test_mobile_links_differ_widely() -> None:
    rates = [step.up.rate_kbit_s for seed in range(20) for step in mobile(seed, 60)]
    assert min(rates) < 60
    assert max(rates) > 1000
