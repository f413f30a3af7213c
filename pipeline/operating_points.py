"""Operating points of a camera, level of KEYs, threshold and frame rate: what each costs and is worth in this scene.

frames sent -> [CostModel] -> kbit/s and masks of each point -> [Ladder] -> the best one that the link takes
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from pipeline.bundle import Manifest, QualityLevel
from pipeline.deciding import usual_bytes
from pipeline.reward import AGE_POWER, Shown, reward

THRESHOLDS = (90.0, 94.0, 96.0, 98.0, 100.0)  # the last: every frame is a KEY
RATES = (5.0, 8.0, 12.5, 25.0)  # frames per second, beside the source's own
LONGEST_AGE = 30  # frames, as the camera's policy has it
HEADER_BYTES = 100  # of the protocols below, per packet

_LEVEL_LOSS = 270.0  # see level_losses
_SAME_RATE = 1.05
_USUAL_CHANGE, _USUAL_SPEED, _USUAL_WARP = 12.0, 50.0, 90.0  # until frames were sent; percent, px/s, bytes
_LEARN, _NEIGHBOUR = 0.1, 0.7  # weight of a new frame; how far it tells of the level beside its own
_SHARE_STEP, _SHARE_LIMIT = 0.15, 1.5
_LEAST_PART = 0.3
_LEAST_CHANGE, _MOST_CHANGE = 0.01, 200.0  # at 0 keys would last for ever
_SCENES = tuple(product((4.0, 10.0, 25.0), (0.0, 40.0, 120.0)))  # change and speed; what is best in none is left out


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """Level of KEYs, least predicted agreement in percent of a WARP, frames per second at most."""

    quality: int
    threshold: float
    fps: float


@dataclass(frozen=True, slots=True)
class Sent:
    """One frame that was sent, as far as it tells of the scene; `size_bytes` is the whole packet's.

    Where a WARP was tried, sent or not: its predicted agreement in percent with a fresh mask of its level, the age of
    its key and the mean flow; None where a KEY was due anyway.
    """

    quality: int
    keyed: bool
    size_bytes: int
    predicted: float | None = None
    age_s: float | None = None
    speed_px_s: float | None = None


def level_losses(manifest: Manifest) -> dict[int, float]:
    """Percent of the pixels by which masks of a level differ from those of the highest, by level.

    From the rates alone: in proportion to how much larger 1 / sqrt(bits per frame) is. Held against four videos, a
    street, a drive, a motorway and a car park: 5.2, 3.8, 2.8, 1.7, 0.7 percent of five levels of a bundle of 480x360,
    where 5.8, 3.7, 2.6, 1.9 and 1.1 were measured on average.
    """
    pixels = manifest.width * manifest.height
    roots = {level.index: 1 / math.sqrt(level.rate_bpp * pixels) for level in manifest.quality_levels}
    least = min(roots.values())
    return {index: _LEVEL_LOSS * (root - least) for index, root in roots.items()}


class CostModel:
    """Learns from each frame sent what KEYs and WARPs take, how often KEYs come, and how fast the scene changes."""

    def __init__(self, manifest: Manifest, *, header_bytes: int = HEADER_BYTES, longest_age: int = LONGEST_AGE) -> None:
        self.header_bytes, self._longest = header_bytes, longest_age
        self._losses = level_losses(manifest)
        self._usual = {level: usual_bytes(manifest, level) for level in self._losses}
        self._scale = dict.fromkeys(self._losses, 0.0)  # log of what KEYs take, as a share of the usual
        self._warp_bytes, self._change, self._speed = _USUAL_WARP, _USUAL_CHANGE, _USUAL_SPEED
        self._often = 0.0  # log of how much more often KEYs come than expected
        self._ages = np.arange(longest_age + 1, dtype=np.float64) ** AGE_POWER
        self._ages = np.cumsum(self._ages) / np.arange(1, longest_age + 2)  # means over a key's life in frames

    @property
    def change(self) -> float:
        """Errors, in percent, of a WARP whose key is one second old."""
        return self._change

    @property
    def speed_px_s(self) -> float:
        """Mean motion of the picture."""
        return self._speed

    def sent(self, frame: Sent, point: OperatingPoint) -> None:
        """Take note of one frame, and of the point that was set."""
        if frame.keyed:
            self._note_key(frame.quality, frame.size_bytes)
        else:
            self._warp_bytes += _LEARN * (frame.size_bytes - self._warp_bytes)
        if frame.predicted is not None and frame.age_s:
            change = self.moving(100 - frame.predicted, frame.quality) / math.pow(frame.age_s, AGE_POWER)
            self._change += _LEARN * (min(max(change, _LEAST_CHANGE), _MOST_CHANGE) - self._change)
            self._note_share(point, keyed=frame.keyed)
        if frame.speed_px_s is not None:
            self._speed += _LEARN * (min(frame.speed_px_s, 1000.0) - self._speed)

    def moving(self, loss: float, quality: int) -> float:
        """The part of a disagreement, in percent, that is the scene's; the rest is that of two masks of a low level."""
        return math.sqrt(max(loss**2 - 2 * self._losses[quality] ** 2, (_LEAST_PART * loss) ** 2))

    def _note_key(self, quality: int, size_bytes: int) -> None:
        seen = math.log(max(size_bytes, 1) / self._usual[quality])
        for level in self._scale:
            self._scale[level] += 2 * _LEARN * _NEIGHBOUR ** abs(level - quality) * (seen - self._scale[level])

    def _note_share(self, point: OperatingPoint, *, keyed: bool) -> None:
        step = _SHARE_STEP * (keyed - self.key_share(point))
        self._often = min(max(self._often + step, -_SHARE_LIMIT), _SHARE_LIMIT)

    def key_bytes(self, quality: int) -> float:
        """Of the packet, expected."""
        return self._usual[quality] * math.exp(self._scale[quality])

    def level_loss(self, quality: int) -> float:
        """Percent of the pixels by which its masks differ from those of the highest level."""
        return self._losses[quality]

    def key_share(self, point: OperatingPoint) -> float:
        """Of the frames, expected, 0 to 1."""
        least = 1 / (self._longest + 1)
        if point.threshold >= 100:
            return 1.0
        within = (100 - point.threshold) ** 2 - 2 * self._losses[point.quality] ** 2
        life_s = math.pow(math.sqrt(max(within, 0.0)) / self._change, 1 / AGE_POWER)
        often = math.exp(self._often)
        return min(max(often / (1 + life_s * point.fps), least), 1.0)

    def packet_bytes(self, point: OperatingPoint) -> float:
        """On average, headers counted in."""
        share = self.key_share(point)
        return share * self.key_bytes(point.quality) + (1 - share) * self._warp_bytes + self.header_bytes

    def expected_kbit_s(self, point: OperatingPoint) -> float:
        """Headers counted in."""
        return point.fps * self.packet_bytes(point) * 8 / 1000

    def expected(self, point: OperatingPoint, *, latency_s: float, link_kbit_s: float = math.inf) -> Shown:
        """What viewers would have, where packets of no size take so long, and the link gives so much."""
        packet_bytes, share = self.packet_bytes(point), self.key_share(point)
        late_s = latency_s + packet_bytes * 8 / 1000 / link_kbit_s
        warp = self._change * self._mean_age(1 / share) * math.pow(point.fps, -AGE_POWER)
        return Shown(
            level_loss=self._losses[point.quality],
            warp_loss=warp,
            stale_s=0.5 / point.fps + late_s,
            latency_s=late_s,
            change=self._change,
            speed_px_s=self._speed,
            kbit_s=point.fps * packet_bytes * 8 / 1000,
        )

    def _mean_age(self, frames: float) -> float:
        """Mean of (age in frames) ** AGE_POWER over the life of a key of so many frames, 1 and more."""
        below = min(int(frames), self._longest + 1) - 1
        above = min(below + 1, self._longest)
        return float(self._ages[below] + (frames - int(frames)) * (self._ages[above] - self._ages[below]))


def points_of(
    manifest: Manifest,
    *,
    fps: float,
    max_quality: int | None = None,
    max_threshold: float = 100.0,
    min_fps: float = 5.0,
) -> list[OperatingPoint]:
    """The points worth having, for a source of so many frames per second: each the best of its rate in some scene.

    So are KEYs in every frame of each level: of a high threshold the model may think that it is the same, and be wrong.
    No level above `max_quality`, nor one that a better takes as few bits as; no threshold above `max_threshold`.
    """
    levels = _worthwhile([one for one in manifest.quality_levels if max_quality is None or one.index <= max_quality])
    rates = sorted({min(max(rate, min_fps), fps) for rate in (*RATES, fps)})
    thresholds = sorted({min(one, max_threshold) for one in THRESHOLDS})
    points = [OperatingPoint(*one) for one in product(levels, thresholds, rates)]
    kept = {point for point in points if point.threshold == thresholds[-1] and point.fps == rates[-1]}
    for change, speed in _SCENES:
        costs = CostModel(manifest)
        costs._change, costs._speed = change, speed
        kept.update(_pareto(points, costs))
    return [point for point in points if point in kept]


def _worthwhile(levels: Sequence[QualityLevel]) -> list[int]:
    found: list[QualityLevel] = []
    for level in sorted(levels, key=lambda one: one.index):
        while found and found[-1].rate_bpp * _SAME_RATE > level.rate_bpp:
            found.pop()
        found.append(level)
    return [level.index for level in found]


def _pareto(points: Iterable[OperatingPoint], costs: CostModel) -> Iterator[OperatingPoint]:
    best = -math.inf
    for point in sorted(points, key=costs.expected_kbit_s):
        value = reward(costs.expected(point, latency_s=0.1)).quality
        if value > best:
            best = value
            yield point


_GAIN = 0.1  # percent; less is not worth a change, which as a rule costs a KEY
_ROOM = 1.05  # for what is better
_WAIT_S = 0.75  # that it has to stay better for
_STRIDE = 1.5  # of the rate, to ask the link for: with smaller steps it takes long to fill one that grew
_FILL = 0.5  # percent for e times the bits: what the link has to spare may as well be used
_KEY_S = 0.1  # that the link takes for a KEY at most, where there is a choice
SLACK = 0.95  # a target so much lower than what is expected is still kept to: it sways
_LOOK_S = 0.25


@dataclass(frozen=True, slots=True)
class Offer:
    """A point, what it is expected to take and to show, what that is worth, and its rank in the rule's order.

    `needed_kbit_s`: what it takes, and what its KEYs need to be prompt; who waits for less would wait for ever.
    """

    point: OperatingPoint
    kbit_s: float
    needed_kbit_s: float
    shown: Shown
    value: float
    rank: float


class Ladder:
    """The rule's choice: the best masks that the link has room for; worse at once when it has less, better in time.

    It fills the link, as video calls do: that larger packets take longer, and what bits are worth, it leaves to those
    who learn. Looks at all points four times a second; `point` holds in between. A change of level costs a KEY, so
    that small gains are left alone.
    """

    def __init__(self, points: Sequence[OperatingPoint], costs: CostModel) -> None:
        self.costs = costs
        self.offers: list[Offer] = []
        self.point = points[0]
        self.wanted_kbit_s: float | None = None
        self.choose_from(points)

    def choose_from(self, points: Sequence[OperatingPoint]) -> None:
        """Choose from these points from now on, and the next time without waiting for what is better to stay so.

        What was learned of costs holds for all levels of the bundle, on this ladder or not, and is kept.
        """
        self.points = points
        self._looked_s = self._better_s = -math.inf  # when it was last looked; since when something is better
        if self.point not in points:
            self.point = points[0]

    def update(self, target_kbit_s: float, now_s: float, *, latency_s: float) -> OperatingPoint:
        """The point for the next frame, by what the link takes and how long a packet of no size is on its way."""
        kept = self.costs.expected_kbit_s(self.point) * SLACK <= target_kbit_s
        if kept and now_s < self._looked_s + _LOOK_S:
            return self.point
        self._looked_s = now_s
        self.offers = self.look(target_kbit_s, latency_s=latency_s)
        current = next(one for one in self.offers if one.point == self.point)
        if not kept:
            current = self._within(target_kbit_s)
        else:
            best = self._within(target_kbit_s / _ROOM)
            if best.rank < current.rank + _GAIN:
                self._better_s = math.inf
            self._better_s = min(self._better_s, now_s)
            if best.rank >= current.rank + _GAIN and now_s >= self._better_s + _WAIT_S:
                current = best
        if current.point != self.point:
            self.point, self._better_s = current.point, math.inf
        self.wanted_kbit_s = next_better(current, self.offers)
        return self.point

    def look(self, target_kbit_s: float, *, latency_s: float) -> list[Offer]:
        """All points as they are now."""
        return [self._offer(point, target_kbit_s, latency_s) for point in self.points]

    def _offer(self, point: OperatingPoint, target_kbit_s: float, latency_s: float) -> Offer:
        shown = self.costs.expected(point, latency_s=latency_s, link_kbit_s=target_kbit_s)
        at_once = reward(self.costs.expected(point, latency_s=latency_s))
        needed_kbit_s = max(shown.kbit_s, self.costs.key_bytes(point.quality) / (125 * _KEY_S))
        rank = at_once.quality + _FILL * math.log(shown.kbit_s)
        return Offer(point, shown.kbit_s, needed_kbit_s, shown, reward(shown).total, rank)

    def _within(self, kbit_s: float) -> Offer:
        """The first in rank that takes no more, else the one that takes least."""
        fitting = [one for one in self.offers if one.kbit_s <= kbit_s]
        prompt = [one for one in fitting if one.needed_kbit_s <= kbit_s]
        if not fitting:
            return min(self.offers, key=lambda one: one.kbit_s)
        return max(prompt or fitting, key=lambda one: one.rank)


def next_better(current: Offer, offers: Iterable[Offer]) -> float | None:
    """What the link has to give, in kbit/s, for the next clear step up; None where there is none."""
    better = [one.needed_kbit_s for one in offers if one.rank >= current.rank + _GAIN and one.kbit_s > current.kbit_s]
    clear = [kbit_s for kbit_s in better if kbit_s >= _STRIDE * current.kbit_s]
    return _ROOM * min(clear, default=max(better)) if better else None
