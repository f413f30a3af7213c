"""The rule as a camera uses it: its ladder's points, and what each second was worth."""

import pytest

from pipeline.bundle import default_bundle, load_bundle
from pipeline.choosing import Accounts, Ruled
from pipeline.link import LinkState
from pipeline.operating_points import CostModel, Ladder, OperatingPoint, Sent, points_of

POINT = OperatingPoint(5, 96.0, 10.0)


def costs() -> CostModel:
    return CostModel(load_bundle(default_bundle()).manifest)


def link(queue_ms: float) -> LinkState:
    return LinkState(
        queue_ms=queue_ms, rtt_ms=80.0, base_rtt_ms=80.0, loss=0.0, delivered_kbit_s=0.0, sent_kbit_s=0.0,
        in_flight_bytes=0,
    )  # fmt: skip


def seconds(accounts: Accounts, count: int, *, queue_ms: float) -> None:
    for frame in range(10 * count):
        accounts.look(link(queue_ms), frame / 10, latency_s=0.08)
        accounts.sent(Sent(5, False, 100, 97.0, 0.1, 20.0), frame / 10)


def test_a_second_is_worth_something_once_it_is_over() -> None:
    accounts = Accounts(costs())
    seconds(accounts, 1, queue_ms=0.0)
    assert accounts.earned is None
    assert accounts.look(link(0.0), 1.0, latency_s=0.08)
    assert accounts.earned is not None
    assert 80 < accounts.earned.quality < 99
    assert accounts.earned.bits == pytest.approx(0.016)
    assert not accounts.look(link(0.0), 1.1, latency_s=0.08)


def test_a_queue_makes_it_worth_less() -> None:
    worth = []
    for queue_ms in (0.0, 800.0):
        accounts = Accounts(costs())
        seconds(accounts, 2, queue_ms=queue_ms)
        assert accounts.earned is not None
        worth.append(accounts.earned)
    assert worth[1].quality < worth[0].quality
    assert (worth[0].lateness, worth[1].lateness > 5) == (0, True)


def test_the_rule_is_its_ladder_and_learns_from_what_is_sent() -> None:
    learned = costs()
    manifest = load_bundle(default_bundle()).manifest
    rungs = Ladder(points_of(manifest, fps=25.0), learned)
    rule, before = Ruled(rungs), learned.key_bytes(5)
    for frame in range(100):
        point = rule.update(link(0.0), 200.0, frame / 25, latency_s=0.08)
        rule.sent(Sent(5, True, round(2 * before)), frame / 25)
    assert point == rule.point == rungs.point
    assert rule.wanted_kbit_s == rungs.wanted_kbit_s
    assert rule.earned is not None
    assert learned.key_bytes(5) > 1.5 * before
