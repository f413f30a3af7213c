"""When a frame has to be a KEY, and of which level: by a threshold, fixed or moving, or by the best bargain.

A KEY costs bits once, and what it is worth lasts until the next one; a WARP costs few, and more accuracy the older its
key. So a key is due when going on costs more per frame than keys cost on average over the best life that they can have
(as a machine is best replaced): costs are percent of the pixels that disagree, and bits at a price in them.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.deciding import Candidate, Predictor

MAX_PRICE = 1000.0  # percent of the pixels for 1000 bytes
FALL, RISE = 1.0, 0.1  # percent, of a moving threshold: with each KEY, with each WARP (DVSNet, CVPR 2018)

Comparison = Callable[[Sequence[Candidate]], NDArray[np.float32]]
"""The predicted agreement (N,), 0 to 100, of N candidates that share one motion."""


class Trigger(Protocol):
    """One camera's; keep it on one thread."""

    @property
    def predicted(self) -> float | None:
        """The agreement, 0 to 100, that the last candidate promised; None where nothing predicts it."""
        ...

    def keyed(self, body_bytes: int) -> None:
        """Take note that a KEY was sent, with so large a body."""
        ...

    def key_level(self, candidate: Candidate) -> int | None:
        """The level of the KEY that the frame should be; None where a WARP will do."""
        ...


class Always:
    """A WARP, whatever it shows."""

    predicted: float | None = None

    def keyed(self, body_bytes: int) -> None: ...

    def key_level(self, candidate: Candidate) -> int | None:
        return None


class Threshold:
    """A KEY where less agreement than `least` is predicted; it may `fall` with each KEY and `rise` with each WARP."""

    def __init__(self, predict: Predictor, least: float, *, fall: float = 0.0, rise: float = 0.0) -> None:
        self._predict, self._least, self._fall, self._rise = predict, least, fall, rise
        self.predicted: float | None = None

    def keyed(self, body_bytes: int) -> None:
        self._least = max(self._least - self._fall, 0.0)

    def key_level(self, candidate: Candidate) -> int | None:
        self.predicted = self._predict(candidate)
        if not self.predicted >= self._least:  # what is not a number is no promise
            return candidate.quality
        self._least = min(self._least + self._rise, 100.0)
        return None


class Bargain:
    """A KEY where going on costs more than renewing, of the level that costs least over the key's life.

    `price`: percent of the pixels that 1000 bytes per frame are worth. `usual_bytes`: of a KEY at each level, 0
    first, of which only the ratios matter. No level is taken above the one that is asked for, nor below `cheapest`,
    unless that is what is asked for.
    """

    def __init__(self, compare: Comparison, usual_bytes: Sequence[float], *, price: float, cheapest: int = 0) -> None:
        self._compare, self._usual, self._price = compare, np.asarray(usual_bytes, np.float64), price / 1000
        self._cheapest = cheapest
        self.predicted: float | None = None
        self._frames = 0  # since the key, itself counted
        self._spent, self._best = np.zeros(0), np.zeros(0)  # by level: until now; on average, at the best age to renew

    def keyed(self, body_bytes: int) -> None:
        self._frames = 0

    def key_level(self, candidate: Candidate) -> int | None:
        bytes_at = candidate.key_bytes * self._usual / self._usual[candidate.key_quality]
        levels = range(min(self._cheapest, candidate.key_quality, candidate.quality), candidate.quality + 1)
        offers = [replace(candidate, key_quality=one, key_bytes=round(bytes_at[one])) for one in levels]
        if not self._frames:
            self._begin(offers)
        agreement = self._compare(offers)
        self.predicted = float(agreement[levels.index(candidate.key_quality)])
        costs = 100 - agreement + self._price * candidate.flow_bytes
        best = int(self._best.argmin())
        if not costs[levels.index(candidate.key_quality)] <= self._best[best]:
            return levels[best]
        self._frames += 1
        self._spent += costs
        self._best = np.minimum(self._best, self._spent / self._frames)
        return None

    def _begin(self, offers: Sequence[Candidate]) -> None:
        """What the key itself cost, and what it would have at the other levels."""
        found = offers[0].motion
        still = replace(found, flow=np.zeros_like(found.flow), residual=np.zeros_like(found.residual))
        lost = 100 - self._compare([replace(one, motion=still, age=0, flow_bytes=0) for one in offers])
        lost[-1] = 0.0  # the mask that the others are held against
        self._frames = 1
        self._spent = lost + self._price * np.array([one.key_bytes for one in offers])
        self._best = self._spent.copy()
