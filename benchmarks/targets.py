"""What video is to cost and to lose, and what a family of policies loses there at least."""

import itertools
from collections.abc import Iterable

TARGETS = ((0.40, 0.5), (0.27, 1.0), (0.15, 2.5))  # share of the bits, loss in percent


def least_at(points: Iterable[tuple[float, float]], share: float) -> float | None:
    """The least loss for at most this share of the bits, of points of share and loss; None where all take more.

    Of one point alone, or of two that take turns, as the line between them: found with hindsight, as if a user had
    tried all settings on this very video.
    """
    known = sorted(points)
    within = [loss for at, loss in known if at <= share]
    mixed = [
        low[1] + (high[1] - low[1]) * (share - low[0]) / (high[0] - low[0])
        for low, high in itertools.combinations(known, 2)
        if low[0] <= share < high[0]
    ]
    return min((*within, *mixed), default=None)
