"""Bjontegaard deltas between two curves of (bits per pixel, mIoU): how many bits one system saves at equal mIoU.

Measured points are noisy, and where more bits no longer help they wander. So each curve is first reduced to its Pareto
front: a point stays only where no other point has at least its mIoU at no more bits. Log rate over mIoU (or mIoU over
log rate) is then interpolated by monotone piecewise cubic Hermite polynomials, which, unlike the cubic fit of the first
method, do not swing between points, and the difference is averaged over the interval that both curves cover. Nothing is
extrapolated: curves that share no interval raise NoOverlap. A curve may be one point; it is compared at that point.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_DENSE = 500


@dataclass(frozen=True, slots=True)
class Point:
    """One measured working point: bits per pixel above 0, mIoU 0..1."""

    rate_bpp: float
    miou: float


@dataclass(frozen=True, slots=True)
class Delta:
    """Mean difference of two curves over what both cover: mIoU `low` to `high` for rates, bpp for accuracies."""

    value: float
    low: float
    high: float


class NoOverlap(ValueError):
    """Two curves have no mIoU, or no rate, in common; the message says where each lies."""


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """The points that no other matches or beats at no more bits, by rising rate and rising mIoU; ValueError if none."""
    if not points:
        raise ValueError("a curve needs at least one point")
    if any(not (math.isfinite(p.rate_bpp) and math.isfinite(p.miou) and p.rate_bpp > 0) for p in points):
        raise ValueError("a curve's rates must be above 0, and rates and mIoU finite")
    front: list[Point] = []
    for point in sorted(points, key=lambda p: (p.rate_bpp, -p.miou)):
        if not front or point.miou > front[-1].miou:
            front.append(point)
    return front


def bd_rate(anchor: Sequence[Point], tested: Sequence[Point]) -> Delta:
    """Mean change of rate from anchor to tested at equal mIoU, as a fraction: -0.9 is 90 % fewer bits."""
    log_ratio = _mean_difference(_rate_of_miou(anchor), _rate_of_miou(tested), show=lambda miou: f"mIoU {miou:.4f}")
    return Delta(math.expm1(log_ratio.value), log_ratio.low, log_ratio.high)


def bd_miou(anchor: Sequence[Point], tested: Sequence[Point]) -> Delta:
    """Mean change of mIoU from anchor to tested at equal rate, over the logarithm of the rate."""
    mean = _mean_difference(
        _miou_of_rate(anchor), _miou_of_rate(tested), show=lambda log_rate: f"{math.exp(log_rate):.4f} bpp"
    )
    return Delta(mean.value, math.exp(mean.low), math.exp(mean.high))


def rate_at(curve: Sequence[Point], miou: float) -> float:
    """Bits per pixel the curve needs for this mIoU; NoOverlap outside it."""
    cubic = _rate_of_miou(curve)
    if not cubic.x[0] <= miou <= cubic.x[-1]:
        raise NoOverlap(f"mIoU {miou:.4f} lies outside the curve, {cubic.x[0]:.4f} to {cubic.x[-1]:.4f}")
    return float(np.exp(cubic.at(np.array([miou])))[0])


def envelope(curves: Sequence[Sequence[Point]]) -> list[Point]:
    """What a choice between several curves is worth: the least rate for each mIoU, as a dense curve.

    The front of all points together would be worse: between two points of one curve, a point of another that this
    curve passes above would count.
    """
    if len(curves) == 1:
        return pareto_front(curves[0])
    return pareto_front([point for curve in curves for point in _dense(pareto_front(curve))])


def _dense(front: list[Point]) -> list[Point]:
    """The points of a front and many between."""
    cubic = _rate_of_miou(front)
    places = np.linspace(front[0].miou, front[-1].miou, _DENSE)[1:-1]
    rates = np.exp(cubic.at(places))
    return [*front, *(Point(float(rate), float(place)) for rate, place in zip(rates, places, strict=True))]


def bits_saved(anchor: Sequence[Point], tested: Sequence[Point], miou: float) -> float:
    """Share of the anchor's bits that tested does without at this mIoU: 0.9 is a tenth of the bits."""
    return 1 - rate_at(tested, miou) / rate_at(anchor, miou)


@dataclass(frozen=True, slots=True, eq=False)
class _Cubic:
    """A piecewise cubic through (x, y) with these slopes; x rises strictly."""

    x: Floats
    y: Floats
    slopes: Floats

    def at(self, x: Floats) -> Floats:
        """Values at places within the knots."""
        if len(self.x) == 1:
            return np.full_like(x, self.y[0])
        left = np.clip(np.searchsorted(self.x, x, side="right") - 1, 0, len(self.x) - 2)
        width = self.x[left + 1] - self.x[left]
        t = (x - self.x[left]) / width
        value = (1 + 2 * t) * (1 - t) ** 2 * self.y[left] + t**2 * (3 - 2 * t) * self.y[left + 1]
        tilt = t * (1 - t) ** 2 * self.slopes[left] - t**2 * (1 - t) * self.slopes[left + 1]
        result: Floats = value + width * tilt
        return result


def _rate_of_miou(curve: Sequence[Point]) -> _Cubic:
    """The curve's front as log rate over mIoU."""
    front = pareto_front(curve)
    return _cubic([p.miou for p in front], [math.log(p.rate_bpp) for p in front])


def _miou_of_rate(curve: Sequence[Point]) -> _Cubic:
    """The curve's front as mIoU over log rate."""
    front = pareto_front(curve)
    return _cubic([math.log(p.rate_bpp) for p in front], [p.miou for p in front])


def _cubic(x: Sequence[float], y: Sequence[float]) -> _Cubic:
    """The interpolant of Fritsch and Butland (1984): monotone wherever the points are."""
    xs, ys = np.array(x, np.float64), np.array(y, np.float64)
    if len(xs) == 1:
        return _Cubic(xs, ys, np.zeros(1))
    widths = np.diff(xs)
    secants = np.diff(ys) / widths
    if len(xs) == 2:
        return _Cubic(xs, ys, np.repeat(secants, 2))
    before, after = 2 * widths[1:] + widths[:-1], widths[1:] + 2 * widths[:-1]
    same_way = secants[:-1] * secants[1:] > 0
    safe = np.where(same_way, secants[:-1], 1.0), np.where(same_way, secants[1:], 1.0)
    inner = np.where(same_way, (before + after) / (before / safe[0] + after / safe[1]), 0.0)
    first = _end_slope(widths[0], widths[1], secants[0], secants[1])
    last = _end_slope(widths[-1], widths[-2], secants[-1], secants[-2])
    return _Cubic(xs, ys, np.concatenate([[first], inner, [last]]))


def _end_slope(near: float, far: float, secant: float, next_secant: float) -> float:
    """The slope at an end by a three-point formula, held where it would break monotony."""
    slope = ((2 * near + far) * secant - near * next_secant) / (near + far)
    if slope * secant <= 0:
        return 0.0
    return 3 * secant if secant * next_secant < 0 and abs(slope) > 3 * abs(secant) else slope


def _mean_difference(anchor: _Cubic, tested: _Cubic, *, show: Callable[[float], str]) -> Delta:
    """Mean of tested less anchor over the interval both cover; NoOverlap where there is none."""
    low, high = max(anchor.x[0], tested.x[0]), min(anchor.x[-1], tested.x[-1])
    if low > high:
        spans = [f"{show(curve.x[0])} to {show(curve.x[-1])}" for curve in (anchor, tested)]
        raise NoOverlap(f"nothing in common: {spans[0]} against {spans[1]}")
    if low == high:
        place = np.array([low])
        return Delta(float((tested.at(place) - anchor.at(place))[0]), float(low), float(high))
    knots = np.concatenate([anchor.x, tested.x])
    edges = np.unique(np.concatenate([[low, high], knots[(knots > low) & (knots < high)]]))
    middles = (edges[:-1] + edges[1:]) / 2
    at_edges, at_middles = tested.at(edges) - anchor.at(edges), tested.at(middles) - anchor.at(middles)
    # Between two knots the difference is one cubic, and Simpson's rule is exact on cubics.
    area = (np.diff(edges) * (at_edges[:-1] + 4 * at_middles + at_edges[1:]) / 6).sum()
    return Delta(float(area / (high - low)), float(low), float(high))
