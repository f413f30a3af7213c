"""What was measured of each system, and how bundles compare with what comes after them."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, combinations

from benchmarks.bd_rate import NoOverlap, Point, bd_miou, bd_rate, envelope
from benchmarks.onnx_cost import Cost

BUNDLE, CODEC, CEILING = "bundle", "image codec", "uncompressed"


@dataclass(frozen=True, slots=True)
class Measured:
    """One system at one setting: mIoU 0..1, and bits per pixel; `alone_bpp` has all headers in every frame.

    Points of one variant make one curve.
    """

    setting: str
    miou: float
    rate_bpp: float
    alone_bpp: float
    variant: str = ""


@dataclass(frozen=True, slots=True)
class Times:
    """Medians in ms; the edge's is None where nothing is encoded."""

    cloud_ms: float
    network_ms: float
    edge_ms: float | None


@dataclass(frozen=True, slots=True)
class System:
    """One system: its kind, what made it, what its cloud graph costs, its points by rising rate."""

    name: str
    kind: str
    made_by: str
    cost: Cost
    points: tuple[Measured, ...]
    times: Times

    @property
    def variants(self) -> list[list[Point]]:
        """One curve for each variant."""
        names = dict.fromkeys(point.variant for point in self.points)
        return [[Point(p.rate_bpp, p.miou) for p in self.points if p.variant == name] for name in names]

    @property
    def curve(self) -> list[Point]:
        """The best variant for each mIoU."""
        return envelope(self.variants)


@dataclass(frozen=True, slots=True)
class Comparison:
    """One system against another: mean changes over what both curves cover; None, with the reason, where nothing is.

    rate_change -0.9: 90 % fewer bits at equal mIoU, over `miou_range`; miou_change 0.01: a point more at equal bits.
    parameter_share and time_share 0.1: its cloud has a tenth of the parameters, and takes a tenth of the time.
    """

    system: str
    against: str
    rate_change: float | None
    miou_range: tuple[float, float] | None
    miou_change: float | None
    parameter_share: float | None
    time_share: float | None
    why: str


def compare(systems: Sequence[System]) -> list[Comparison]:
    """The first system against every other that sends bits, and against the best of the newer image codecs.

    Then each of the other bundles against those after it.
    """
    main, *others = [one for one in systems if one.kind != CEILING]
    found = [_comparison(main, one.name, one.curve, one) for one in others]
    newer = [one for one in others if one.kind == CODEC and one.name != "JPEG"]
    if len(newer) > 1:
        best = envelope(list(chain(*(one.variants for one in newer))))
        found.append(_comparison(main, f"best of {', '.join(one.name for one in newer)}", best))
    bundles = [one for one in others if one.kind == BUNDLE]
    return [*found, *(_comparison(one, other.name, other.curve, other) for one, other in combinations(bundles, 2))]


def _comparison(main: System, name: str, curve: list[Point], other: System | None = None) -> Comparison:
    why = []
    try:
        rate = bd_rate(curve, main.curve)
    except NoOverlap as error:
        rate, why = None, [str(error)]
    try:
        miou = bd_miou(curve, main.curve)
    except NoOverlap as error:
        miou, why = None, [*why, str(error)]
    return Comparison(
        system=main.name,
        against=name,
        rate_change=rate.value if rate else None,
        miou_range=(rate.low, rate.high) if rate else None,
        miou_change=miou.value if miou else None,
        parameter_share=main.cost.parameters / other.cost.parameters if other and other.cost.parameters else None,
        time_share=main.times.cloud_ms / other.times.cloud_ms if other and other.times.cloud_ms else None,
        why="; ".join(why),
    )
