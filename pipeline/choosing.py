"""What chooses a camera's operating points: the rule, or what learns beside it; and what each second was worth.

every frame of the source -> update -> point          every frame sent -> sent          every second -> earned
"""

import math
from collections.abc import Sequence
from typing import Protocol

from pipeline.link import LinkState
from pipeline.operating_points import CostModel, Ladder, OperatingPoint, Sent
from pipeline.reward import Reward, Watch, reward

PERIOD_S = 1.0


class Chooser(Protocol):
    """One camera's; keep it on one thread."""

    @property
    def point(self) -> OperatingPoint:
        """That of the next frame."""
        ...

    @property
    def points(self) -> Sequence[OperatingPoint]:
        """All that there is to choose from."""
        ...

    @property
    def wanted_kbit_s(self) -> float | None:
        """What the link has to give for the next better point; None where there is none."""
        ...

    @property
    def earned(self) -> Reward | None:
        """What the last whole second was worth."""
        ...

    def update(self, link: LinkState | None, target_kbit_s: float, now_s: float, *, latency_s: float) -> OperatingPoint:
        """The point for the next frame; to be asked at every frame of the source.

        `target_kbit_s`: what the link takes, headers counted in; `latency_s`: from capture to mask, without queueing.
        """
        ...

    def sent(self, frame: Sent, now_s: float) -> None:
        """Take note of a frame that was sent."""
        ...

    def unchanged(self, now_s: float) -> None:
        """Take note that a frame was not sent since it shows nothing new."""
        ...

    def stood(self, seconds: float) -> None:
        """Take note that a KEY was lost, and for so long nothing of use came."""
        ...

    def choose_from(self, points: Sequence[OperatingPoint]) -> None:
        """Choose anew with the next frame, from these points of the same bundle; keep what was learned."""
        ...

    def begin_anew(self) -> None:
        """Take note that nothing was sent for reasons of others: the time until now is not held against any point."""
        ...


class Accounts:
    """What each second was worth, measured the same for all choosers."""

    def __init__(self, costs: CostModel) -> None:
        self._costs = costs
        self._watch = Watch()
        self._ends_s = -math.inf
        self.earned: Reward | None = None

    def look(self, link: LinkState | None, now_s: float, *, latency_s: float) -> bool:
        """Take note of a moment; says whether a second is over, and `earned` is new."""
        queue_s, loss = (link.queue_ms / 1000, link.loss) if link is not None else (0.0, 0.0)
        over = now_s >= self._ends_s
        if over:
            self._ends_s = now_s + PERIOD_S
            shown = self._watch.close(now_s, change=self._costs.change, speed_px_s=self._costs.speed_px_s)
            self.earned = None if shown is None else reward(shown)
        self._watch.look(now_s, latency_s=latency_s + queue_s, loss=loss)
        return over

    def sent(self, frame: Sent, now_s: float) -> None:
        """Take note of a frame that was sent."""
        costs, warp_loss = self._costs, 0.0
        if not frame.keyed and frame.predicted is not None:
            warp_loss = costs.moving(100 - frame.predicted, frame.quality)
        level_loss = costs.level_loss(frame.quality)
        self._watch.sent(now_s, frame.size_bytes + costs.header_bytes, level_loss=level_loss, warp_loss=warp_loss)

    def unchanged(self, now_s: float) -> None:
        """Take note of a frame that shows nothing new."""
        self._watch.unchanged(now_s)

    def stood(self, seconds: float) -> None:
        """Take note that the last mask stood on."""
        self._watch.stood(seconds)

    def begin_anew(self) -> None:
        """Leave the second that is not over, and all until the next look, out of account."""
        self._watch, self._ends_s, self.earned = Watch(), -math.inf, None


class Ruled:
    """Chooses by the rule alone."""

    def __init__(self, ladder: Ladder) -> None:
        self._ladder, self._accounts = ladder, Accounts(ladder.costs)

    @property
    def point(self) -> OperatingPoint:
        return self._ladder.point

    @property
    def points(self) -> Sequence[OperatingPoint]:
        return self._ladder.points

    @property
    def wanted_kbit_s(self) -> float | None:
        return self._ladder.wanted_kbit_s

    @property
    def earned(self) -> Reward | None:
        return self._accounts.earned

    def update(self, link: LinkState | None, target_kbit_s: float, now_s: float, *, latency_s: float) -> OperatingPoint:
        self._accounts.look(link, now_s, latency_s=latency_s)
        return self._ladder.update(target_kbit_s, now_s, latency_s=latency_s)

    def sent(self, frame: Sent, now_s: float) -> None:
        self._accounts.sent(frame, now_s)
        self._ladder.costs.sent(frame, self._ladder.point)

    def unchanged(self, now_s: float) -> None:
        self._accounts.unchanged(now_s)

    def stood(self, seconds: float) -> None:
        self._accounts.stood(seconds)

    def choose_from(self, points: Sequence[OperatingPoint]) -> None:
        self._ladder.choose_from(points)

    def begin_anew(self) -> None:
        self._accounts.begin_anew()
