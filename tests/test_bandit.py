"""The bandit learns what the points' own model misses, keeps to what the link takes, and near the rule's reward."""

import math

import numpy as np
import pytest

from pipeline.bandit import FEATURES, PRIOR_WEIGHTS, Bandit, Residuals, Surroundings, features
from pipeline.bundle import Manifest, default_bundle, load_bundle
from pipeline.choosing import Chooser, Ruled
from pipeline.link import LinkState
from pipeline.operating_points import CostModel, Ladder, OperatingPoint, Sent, points_of

FPS = 25.0


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    return load_bundle(default_bundle()).manifest


def ladder(manifest: Manifest) -> Ladder:
    return Ladder(points_of(manifest, fps=FPS), CostModel(manifest))


def link(*, queue_ms: float = 0.0, loss: float = 0.0) -> LinkState:
    return LinkState(
        queue_ms=queue_ms, rtt_ms=80 + queue_ms, base_rtt_ms=80.0, loss=loss, delivered_kbit_s=100.0,
        sent_kbit_s=100.0, in_flight_bytes=0,
    )  # fmt: skip


class Line:
    """A link of one rate, as far as a chooser can tell: what is sent above it queues up, and queues cost."""

    def __init__(self, chooser: Chooser, costs: CostModel, *, true_kbit_s: float) -> None:
        self.chooser, self._costs, self._rate = chooser, costs, true_kbit_s
        self._queue_bits = 0.0
        self.points: list[OperatingPoint] = []
        self.rewards: list[float] = []

    def run(self, seconds: int, *, target_kbit_s: float, loss: float = 0.0) -> None:
        """Frames are all WARPs that just pass, of what the model thinks they take."""
        credit = 0.0
        for frame in range(len(self.points), len(self.points) + round(seconds * FPS)):
            now_s, queue_ms = frame / FPS, self._queue_bits / self._rate
            point = self.chooser.update(link(queue_ms=queue_ms, loss=loss), target_kbit_s, now_s, latency_s=0.08)
            self.points.append(point)
            credit += point.fps / FPS
            if credit >= 1:
                credit -= 1
                size = round(self._costs.packet_bytes(point) - self._costs.header_bytes)
                self.chooser.sent(Sent(point.quality, True, size), now_s)
                self._queue_bits += self._costs.packet_bytes(point) * 8
            self._queue_bits = max(self._queue_bits - self._rate * 1000 / FPS, 0.0)
            if self.chooser.earned is not None and frame % FPS == 0:
                self.rewards.append(self.chooser.earned.total)


def blank(manifest: Manifest) -> tuple[Bandit, CostModel]:
    rungs = ladder(manifest)
    return Bandit(rungs, prior=[0.0] * len(FEATURES)), rungs.costs


def test_a_linear_truth_is_learned_and_forgotten() -> None:
    rng, truth = np.random.default_rng(0), np.array([1.0, -2.0, 0.5])
    model = Residuals([0.0] * 3, deviation=1.0, noise=1.0, forget=0.99)
    for _ in range(400):
        seen = rng.uniform(-1, 1, 3)
        model.learn(seen, float(seen @ truth) + rng.normal(0, 0.1))
    assert model.weights == pytest.approx(truth, abs=0.2)
    assert model.deviation(np.ones(3)) < 0.5
    for _ in range(2000):
        model.learn(np.zeros(3), 0.0)
    assert model.weights == pytest.approx(np.zeros(3), abs=0.01)


def test_a_prior_is_where_learning_starts_and_where_it_ends_without_news() -> None:
    model = Residuals([1.0, -1.0], deviation=0.5, noise=1.0, forget=0.9)
    assert model.mean(np.array([1.0, 1.0])) == 0
    model.learn(np.array([1.0, 0.0]), 5.0)
    assert model.weights[0] > 1
    for _ in range(200):
        model.learn(np.zeros(2), 0.0)
    assert model.weights == pytest.approx([1.0, -1.0])


def test_there_is_a_weight_for_each_feature(manifest: Manifest) -> None:
    rungs = ladder(manifest)
    offer = rungs.look(100.0, latency_s=0.08)[0]
    around = Surroundings(0.1, 0.01, 100.0, 40.0, 400.0, offer.point)
    seen = features(offer, around, key_share=0.5, key_bytes=600.0)
    assert len(FEATURES) == len(PRIOR_WEIGHTS) == len(seen)
    assert np.isfinite(seen).all()


@pytest.mark.parametrize("target", [1e-3, 20.0, 1e6])
def test_features_stay_small_on_any_link(manifest: Manifest, target: float) -> None:
    for offer in ladder(manifest).look(target, latency_s=0.08):
        around = Surroundings(1e3, 1.0, target, target / 100, target * 100, offer.point)
        assert np.abs(features(offer, around, key_share=0.0, key_bytes=5000.0)).max() <= 10


@pytest.mark.parametrize("target", [40.0, 150.0, 800.0])
def test_what_is_chosen_fits_the_rate(manifest: Manifest, target: float) -> None:
    bandit, costs = blank(manifest)
    line = Line(bandit, costs, true_kbit_s=2 * target)
    line.run(20, target_kbit_s=target)
    sent = [costs.expected_kbit_s(point) for point in line.points[2 * round(FPS) :]]
    assert max(sent) <= target / 0.95


def test_a_rate_that_falls_is_followed_at_once(manifest: Manifest) -> None:
    bandit, costs = blank(manifest)
    Line(bandit, costs, true_kbit_s=1000.0).run(10, target_kbit_s=500.0)
    point = bandit.update(link(), 40.0, 10.2, latency_s=0.08)
    assert costs.expected_kbit_s(point) <= 40.0


def test_it_learns_to_leave_room_where_the_target_promises_too_much(manifest: Manifest) -> None:
    ruled = ladder(manifest)
    rule = Line(Ruled(ruled), ruled.costs, true_kbit_s=30.0)
    learning, costs = blank(manifest)
    bandit = Line(learning, costs, true_kbit_s=30.0)
    for line in (rule, bandit):
        for _ in range(10):  # 100 where only 30 pass, until the queue is seen; then little, until it is gone
            line.run(6, target_kbit_s=100.0)
            line.run(4, target_kbit_s=18.0)
    assert np.mean(bandit.rewards[30:]) > np.mean(rule.rewards[30:])


def test_it_stays_near_the_rule_where_there_is_nothing_to_learn(manifest: Manifest) -> None:
    ruled, (learning, costs) = ladder(manifest), blank(manifest)
    rule = Line(Ruled(ruled), ruled.costs, true_kbit_s=1000.0)
    bandit = Line(learning, costs, true_kbit_s=1000.0)
    for line in (rule, bandit):
        line.run(60, target_kbit_s=300.0)
    assert np.mean(bandit.rewards[5:]) > 0.99 * np.mean(rule.rewards[5:])


def test_without_trust_in_it_the_rule_is_followed(manifest: Manifest) -> None:
    rungs = ladder(manifest)
    bandit = Bandit(rungs, floor=2.0, prior=[5.0] * len(FEATURES))  # nothing is worth twice the rule's
    line = Line(bandit, rungs.costs, true_kbit_s=1000.0)
    line.run(10, target_kbit_s=300.0)
    assert bandit.point == rungs.point


def test_the_same_link_gives_the_same_choices(manifest: Manifest) -> None:
    lines = []
    for _ in range(2):
        bandit, costs = blank(manifest)
        lines.append(Line(bandit, costs, true_kbit_s=120.0))
        lines[-1].run(20, target_kbit_s=150.0, loss=0.02)
    assert lines[0].points == lines[1].points


def test_a_pause_is_held_against_no_point(manifest: Manifest) -> None:
    bandit, costs = blank(manifest)
    line = Line(bandit, costs, true_kbit_s=1000.0)
    line.run(30, target_kbit_s=300.0)
    learned, saved = bandit.model.weights.copy(), bandit._budget
    bandit.begin_anew()
    for frame in range(50):
        now_s = 500 + frame / FPS
        bandit.update(link(), 300.0, now_s, latency_s=0.08)
        bandit.sent(Sent(bandit.point.quality, True, 500), now_s)
    assert bandit.model.weights == pytest.approx(learned, abs=0.5)
    assert bandit._budget > 0.8 * saved


def test_a_link_that_says_nothing_and_one_that_stops_are_lived_through(manifest: Manifest) -> None:
    bandit, _ = blank(manifest)
    for frame in range(100):
        bandit.update(None, 200.0, frame / FPS, latency_s=0.08)
    for frame in range(100, 1000):
        bandit.stood(0.1)
        bandit.update(link(queue_ms=40.0 * frame, loss=1.0), 20.0, frame / FPS, latency_s=0.08)
    assert np.isfinite(bandit.model.weights).all()
    assert math.isfinite(bandit.point.fps)
