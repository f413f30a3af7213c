"""What a second of a camera was worth to its viewers: percent of the pixels that are right, less late and costly ones.

A mask errs because its KEY was of a low level, because it is a WARP, and because the scene moves on while it is shown:
three causes that err at different places, so their errors add as squares. In percent of the pixels, against masks of
the highest level that are always new.
"""

import math
from dataclasses import dataclass

AGE_POWER = 0.55  # errors of a WARP grow with the age of its key to this power
BORDER_LOSS = 0.3  # percent of the pixels, for each pixel that the scene has moved since
WORST_LOSS = 60.0
LATE_S, LATE_PRICE = 0.3, 20.0  # from so late on a mask is worth less by so many percent a second
BITS_PRICE = 1.0  # percent for 1000 kbit/s


@dataclass(frozen=True, slots=True)
class Shown:
    """What viewers had for a while, measured or expected.

    `level_loss`, `warp_loss`: mean errors of the masks, in percent, for their level and as WARPs. `stale_s`: mean age
    of what stood on the screen, `latency_s`: of a mask as it came, both since capture. `change`: errors in percent
    of a WARP whose key is one second old; `speed_px_s`: mean motion. `blind`: share of the time without a mask of use.
    """

    level_loss: float
    warp_loss: float
    stale_s: float
    latency_s: float
    change: float
    speed_px_s: float
    kbit_s: float
    blind: float = 0.0


@dataclass(frozen=True, slots=True)
class Reward:
    """Percent of the pixels that were right, and what is taken off for lateness and for bits, in the same unit."""

    quality: float
    lateness: float
    bits: float

    @property
    def total(self) -> float:
        return self.quality - self.lateness - self.bits


def stale_loss(stale_s: float, *, change: float, speed_px_s: float) -> float:
    """Percent of the pixels that a mask gets wrong because the scene went on for so long."""
    return math.hypot(change * math.pow(stale_s, AGE_POWER), BORDER_LOSS * speed_px_s * stale_s)


def reward(shown: Shown) -> Reward:
    """The same for every way to choose operating points."""
    stale = stale_loss(shown.stale_s, change=shown.change, speed_px_s=shown.speed_px_s)
    loss = min(math.hypot(shown.level_loss, shown.warp_loss, stale), WORST_LOSS)
    return Reward(
        quality=(1 - shown.blind) * (100 - loss),
        lateness=LATE_PRICE * max(shown.latency_s - LATE_S, 0.0),
        bits=BITS_PRICE * shown.kbit_s / 1000,
    )


class Watch:
    """Measures what viewers have, from one look per frame of the source and from what is sent; then begins anew."""

    def __init__(self) -> None:
        self._last_s: float | None = None  # when a frame was sent
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._since_s: float | None = None
        self._ages_s: list[float] = []
        self._latencies_s: list[float] = []
        self._level: list[float] = []
        self._warp: list[float] = []
        self._sent_bytes, self._stood = 0.0, 0.0  # bytes; seconds of age times seconds
        self._blind = 0  # looks before there was anything to see

    def look(self, now_s: float, *, latency_s: float, loss: float) -> None:
        """Take note of a moment: how late masks come now, and what share of the packets is lost."""
        self._since_s = now_s if self._since_s is None else self._since_s
        last_s = self._since_s if self._last_s is None else self._last_s
        self._blind += self._last_s is None
        self._ages_s.append((now_s - last_s) / (1 - min(loss, 0.9)))
        self._latencies_s.append(latency_s)

    def sent(self, now_s: float, size_bytes: float, *, level_loss: float, warp_loss: float) -> None:
        """Take note of a frame that was sent, and of how its mask errs, in percent."""
        self._last_s = now_s
        self._sent_bytes += size_bytes
        self._level.append(level_loss)
        self._warp.append(warp_loss)

    def unchanged(self, now_s: float) -> None:
        """Take note that a frame was not sent since it shows nothing new: what stands is as good as its mask."""
        self._last_s = now_s if self._last_s is not None else None

    def stood(self, seconds: float) -> None:
        """Take note that for so long no packet was of use, because a KEY was lost: the last mask stood on."""
        self._stood += seconds**2 / 2

    def close(self, now_s: float, *, change: float, speed_px_s: float) -> Shown | None:
        """All since the last time; None where there was nothing to see."""
        if self._since_s is None or now_s <= self._since_s:
            return None
        passed_s, latency_s = now_s - self._since_s, _mean(self._latencies_s)
        shown = Shown(
            level_loss=_mean(self._level),
            warp_loss=_mean(self._warp),
            stale_s=_mean(self._ages_s) + (0.5 * passed_s**2 / len(self._ages_s) + self._stood) / passed_s + latency_s,
            latency_s=latency_s,
            change=change,
            speed_px_s=speed_px_s,
            kbit_s=self._sent_bytes * 8 / 1000 / passed_s,
            blind=self._blind / len(self._ages_s),
        )
        self._begin_anew()
        return shown


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0
