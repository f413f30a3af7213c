"""Learns which operating points pay on this link, with the rule's choice as what it may not fall far below.

offers of the Ladder -> [features, with the link] -> expected reward + what was learned + doubt -> safe? -> point
                                       measured reward - expected reward, after a second -> learned

A contextual bandit (LinUCB: Li et al., WWW 2010) with one linear model for all points, of what the points' own model
gets wrong; conservative as in Kazerouni et al., NIPS 2017: it departs from the rule only while what it has earned stays
above a share of what the rule would have.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.choosing import PERIOD_S, Accounts
from pipeline.link import LinkState
from pipeline.operating_points import SLACK, Ladder, Offer, OperatingPoint, Sent, next_better
from pipeline.reward import Reward

FLOOR = 0.95  # of the rule's reward
_OWED = 5  # periods, of choices, that a reward is owed to
_MOST_MISSED = 20.0  # percent, of one reward
_LEAST = -100.0  # of a second's reward: whatever a receipt says, masks come again
_MEMORY = 20  # periods, of targets
_BUDGET_S = 30.0  # over which what was earned counts
_FORGET = 0.998  # per period, of what was learned, back to the prior
_NOISE = 2.0  # percent, of a second's reward
_DOUBT = 0.5  # how far the model is trusted beyond what is sure, in standard deviations
_SURE = 2.0  # standard deviations below the mean that a reward is taken to be at least
_APART_S = 0.1
_CHANGE_COST = 0.15  # percent; another point than now must be better by so much

FEATURES = (
    *("always", "queue", "unrest", "loss"),  # the same for all points: what none of them is to blame for
    *("use", "use, queue", "over", "over, unrest", "key time", "warps, loss", "frames, loss", "level"),
)
# Made by `python benchmarks/rate_control.py --fit --seeds 4`: means over 12 runs on the training links, the sample's.
PRIOR_WEIGHTS = (-2.90, -2.92, 1.09, -0.06, 2.58, -0.75, -0.46, -1.93, -4.89, -0.80, -0.31, -0.65)
PRIOR_DEVIATION = 1.0  # percent for a feature of 1


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the offers are weighed in: link, its rate now, least and most lately in kbit/s, and the point set now."""

    queue_s: float
    loss: float
    target_kbit_s: float
    least_kbit_s: float
    most_kbit_s: float
    point: OperatingPoint


def features(offer: Offer, around: Surroundings, *, key_share: float, key_bytes: float) -> NDArray[np.float64]:
    """What an offer's reward may differ by from what is expected, (F,), in the order of FEATURES."""
    use = min(offer.kbit_s / around.target_kbit_s, 1.5)
    over = min(max(math.log(offer.kbit_s / around.least_kbit_s), 0.0), 3.0)
    unrest = min(math.log(around.most_kbit_s / around.least_kbit_s), 3.0)
    queue, loss = min(5 * around.queue_s, 2.0), min(10 * around.loss, 2.0)
    return np.array(
        [
            1.0,
            queue,
            unrest,
            loss,
            use,
            use * queue,
            over,
            over * unrest,
            min(key_bytes * 8 / 1000 / around.least_kbit_s, 2.0),
            (1 - key_share) * loss,
            offer.point.fps / 25 * loss,
            float(offer.point.quality != around.point.quality),
        ]
    )


class Residuals:
    """A linear model, by recursive ridge regression, of what expectation misses; it forgets slowly, to its prior."""

    def __init__(self, prior: Sequence[float], *, deviation: float, noise: float, forget: float) -> None:
        self._prior, self._noise, self._forget = np.asarray(prior, np.float64), noise, forget
        self._ridge = np.eye(len(prior)) / deviation**2
        self.precision = self._ridge.copy()
        self.pull = np.zeros(len(prior))  # precision times (weights - prior)
        self._refresh()

    def _refresh(self) -> None:
        self.covariance = np.linalg.inv(self.precision)
        self.weights = self._prior + self.covariance @ self.pull

    def learn(self, seen: NDArray[np.float64], missed: float) -> None:
        """Take note that with these features (F,) so much was missed."""
        self.precision = self._forget * self.precision + (1 - self._forget) * self._ridge
        self.precision += np.outer(seen, seen) / self._noise**2
        self.pull = self._forget * self.pull + seen * (missed - float(seen @ self._prior)) / self._noise**2
        self._refresh()

    def mean(self, seen: NDArray[np.float64]) -> float:
        return float(seen @ self.weights)

    def deviation(self, seen: NDArray[np.float64]) -> float:
        return math.sqrt(float(seen @ self.covariance @ seen))


@dataclass(frozen=True, slots=True, eq=False)
class _Weighed:
    """An offer with its features (F,), its mean reward as learned, and how far that is in doubt, in percent."""

    offer: Offer
    seen: NDArray[np.float64]
    mean: float
    doubt: float


@dataclass(frozen=True, slots=True, eq=False)
class _Choice:
    """What was chosen for a period, and what the rule's choice was thought to earn."""

    weighed: _Weighed
    rule: float


class Bandit:
    """Chooses an operating point once a second, and at once when the link no longer takes it.

    There is no chance in it: what is doubtful is tried because it is doubtful. One step takes a few milliseconds.
    """

    def __init__(
        self,
        ladder: Ladder,
        *,
        floor: float = FLOOR,
        prior: Sequence[float] = PRIOR_WEIGHTS,
        deviation: float = PRIOR_DEVIATION,
    ) -> None:
        self._ladder, self._floor = ladder, floor
        self._accounts = Accounts(ladder.costs)
        self.model = Residuals(prior, deviation=deviation, noise=_NOISE, forget=_FORGET)
        self._targets: deque[float] = deque(maxlen=_MEMORY)
        self._choices: deque[_Choice] = deque(maxlen=_OWED)  # newest last
        self._chosen_s = -math.inf
        self._budget = 0.0  # percent times seconds, earned above the floor
        self._point = ladder.point
        self._wanted: float | None = None

    @property
    def point(self) -> OperatingPoint:
        return self._point

    @property
    def points(self) -> Sequence[OperatingPoint]:
        return self._ladder.points

    @property
    def wanted_kbit_s(self) -> float | None:
        return self._wanted

    @property
    def earned(self) -> Reward | None:
        return self._accounts.earned

    def sent(self, frame: Sent, now_s: float) -> None:
        self._accounts.sent(frame, now_s)
        self._ladder.costs.sent(frame, self._point)

    def unchanged(self, now_s: float) -> None:
        self._accounts.unchanged(now_s)

    def stood(self, seconds: float) -> None:
        self._accounts.stood(seconds)

    def choose_from(self, points: Sequence[OperatingPoint]) -> None:
        """Choose from these points, with the next frame.

        What was learned is of features that every point has and of the link, not of single points, so it means the same
        for others: a point never tried is as doubtful as its features are rare. The budget is what was earned above the
        rule on whichever ladder both chose from, in one unit, and it fades in any case. Lately's targets are not kept:
        who sets a level may have pinned or let go the rate before, and then they tell nothing of the link.
        """
        self._ladder.choose_from(points)
        self._chosen_s = -math.inf
        self._targets.clear()
        if self._point not in points:
            self._point = self._ladder.point

    def begin_anew(self) -> None:
        self._accounts.begin_anew()
        self._choices.clear()

    def update(self, link: LinkState | None, target_kbit_s: float, now_s: float, *, latency_s: float) -> OperatingPoint:
        over = self._accounts.look(link, now_s, latency_s=latency_s)
        ruled = self._ladder.update(target_kbit_s, now_s, latency_s=latency_s)
        chosen = self._chosen_s > -math.inf  # from the points there are
        kept = chosen and self._ladder.costs.expected_kbit_s(self._point) * SLACK <= target_kbit_s
        if not over and (kept or now_s < self._chosen_s + _APART_S):
            return self._point
        if over:
            self._learn()
            self._targets.append(target_kbit_s)
        self._chosen_s = now_s
        queue_s, loss = (link.queue_ms / 1000, link.loss) if link is not None else (0.0, 0.0)
        targets = (*self._targets, target_kbit_s)
        around = Surroundings(queue_s, loss, target_kbit_s, min(targets), max(targets), self._point)
        offers = self._ladder.look(target_kbit_s, latency_s=latency_s)
        choice = self._choose([self._weigh(one, around) for one in offers], ruled, target_kbit_s)
        if not over and self._choices:
            self._choices.pop()
        self._choices.append(choice)
        self._point = choice.weighed.offer.point
        self._wanted = next_better(choice.weighed.offer, offers)
        return self._point

    def _learn(self) -> None:
        """What is earned in a second is owed to its choice and to those shortly before: queues last."""
        earned = self._accounts.earned
        if earned is None or not self._choices:
            return
        total = max(earned.total, _LEAST)
        for choice in self._choices:
            missed = total - choice.weighed.offer.value
            self.model.learn(choice.weighed.seen, max(min(missed, _MOST_MISSED), -_MOST_MISSED))
        kept = self._budget * math.exp(-PERIOD_S / _BUDGET_S)
        self._budget = kept + total - self._floor * max(self._choices[-1].rule, total)

    def _weigh(self, offer: Offer, around: Surroundings) -> _Weighed:
        costs, point = self._ladder.costs, offer.point
        seen = features(offer, around, key_share=costs.key_share(point), key_bytes=costs.key_bytes(point.quality))
        return _Weighed(offer, seen, offer.value + self.model.mean(seen), self.model.deviation(seen))

    def _choose(self, all_weighed: Sequence[_Weighed], ruled: OperatingPoint, target_kbit_s: float) -> _Choice:
        """The best of those that the link takes, doubt counted in its favour; the rule's where that is not safe."""
        rule = next(one for one in all_weighed if one.offer.point == ruled)
        fitting = [one for one in all_weighed if one.offer.kbit_s <= target_kbit_s]
        best = max([rule, *fitting], key=self._score)
        # One period below the floor must be paid for by what was earned before.
        safe = self._budget + best.mean - _SURE * best.doubt >= self._floor * rule.mean
        return _Choice(best if safe else rule, rule.mean)

    def _score(self, one: _Weighed) -> float:
        return one.mean + _DOUBT * one.doubt - _CHANGE_COST * (one.offer.point != self._point)
