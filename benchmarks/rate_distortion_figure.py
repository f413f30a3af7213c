"""Draws rate against accuracy: a curve for each system, and what the first one saves over the others.

python benchmarks/rate_distortion_figure.py [RESULTS.json] [FIGURE.png]      draws a run's figure again
"""

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import matplotlib as mpl
import numpy as np
import typer
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from benchmarks.bd_rate import NoOverlap, Point, pareto_front, rate_at
from benchmarks.figure_style import FAINT, INK, NOTE, STYLE
from benchmarks.onnx_cost import Cost
from benchmarks.systems import BUNDLE, CEILING, CODEC, Measured, System, Times, compare

# Okabe and Ito's colours, which people with any colour vision can tell apart; markers say the same again.
_LEARNED = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "D"), ("#F0E442", "p"))
_CODECS = (("#CC79A7", "^"), ("#56B4E9", "v"), ("#E69F00", "P"), ("#000000", "X"))


def draw(systems: Sequence[System], path: Path, *, title: str) -> None:
    """Write the figure as PNG: Pareto fronts as lines, points off them faint, the uncompressed network as a line."""
    learned = [one for one in systems if one.kind == BUNDLE]
    codecs = [one for one in systems if one.kind == CODEC]
    main, curves = learned[0], [*learned, *codecs]
    looks = dict(zip((one.name for one in learned), itertools.cycle(_LEARNED), strict=False))
    looks |= dict(zip((one.name for one in codecs), itertools.cycle(_CODECS), strict=False))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 4.3), dpi=200, layout="constrained")
        axes = figure.add_subplot()
        for system in curves:
            _curve(axes, system, looks[system.name], main=system is main)
        _axes(axes, curves)
        for ceiling in (one for one in systems if one.kind == CEILING):
            _ceiling(axes, ceiling)
        _legend(axes, curves, main)
        if codecs:
            _arrow(axes, main, codecs)
        axes.set_title(title, loc="left", fontsize=9.5, color=INK)
        figure.savefig(path)


def _curve(axes: Axes, system: System, look: tuple[str, str], *, main: bool) -> None:
    (colour, marker), curve = look, system.curve
    points = [point for variant in system.variants for point in variant]
    on, off = [p for p in points if p in curve], [p for p in points if p not in curve]
    style = "-" if system.kind == BUNDLE else (0, (4, 1.4))
    dots: dict[str, Any] = {"color": colour, "marker": marker, "mec": "white", "mew": 0.6, "ms": 6.5 if main else 5.5}
    x, y = _line(curve)
    axes.plot(x, y, color=colour, lw=2.4 if main else 1.4, ls=style, zorder=3 + main)
    axes.plot([p.rate_bpp for p in on], [100 * p.miou for p in on], **dots, ls="", zorder=4 + main)
    axes.plot([p.rate_bpp for p in off], [100 * p.miou for p in off], **(dots | {"ms": 4}), ls="", alpha=0.3, zorder=2)
    axes.plot([], [], **dots, lw=2.4 if main else 1.4, ls=style, label=system.name)  # for the legend


def _line(front: list[Point]) -> tuple[list[float], list[float]]:
    """The interpolated curve that BD-rate is taken over."""
    places = np.unique(np.concatenate([np.linspace(front[0].miou, front[-1].miou, 200), [p.miou for p in front]]))
    return [rate_at(front, float(place)) for place in places], [100 * float(place) for place in places]


def _axes(axes: Axes, curves: Sequence[System]) -> None:
    axes.set_xscale("log")
    rates = [point.rate_bpp for system in curves for point in system.points]
    low, high = min(rates) / 1.25, max(rates) * 1.25
    floor = min(point.miou for system in curves if system.kind == BUNDLE for point in system.points)
    axes.set_ylim(bottom=max(axes.get_ylim()[0], 100 * floor - 15))  # what is far below anything of use is cut off
    ticks = [base * 10.0**power for power in range(-4, 3) for base in (1, 2, 5)]
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.grid(True, color="#E6E6E6", lw=0.7)
    axes.set_axisbelow(True)
    axes.set_xlabel("rate in bits per pixel, all headers in (log)")
    axes.set_ylabel("mean IoU, %")
    axes.tick_params(length=3)


def _ceiling(axes: Axes, system: System) -> None:
    miou = 100 * system.points[0].miou
    axes.axhline(miou, color=FAINT, lw=1.1, ls=(0, (1.5, 2)), zorder=1)
    text = f"{system.name},\nuncompressed\n{miou:.1f}"
    axes.text(1.012, miou, text, transform=axes.get_yaxis_transform(), color=NOTE, fontsize=8, va="center")


def _legend(axes: Axes, curves: Sequence[System], main: System) -> None:
    """Names, each with the bits that the main system saves over it; the corner of high rate and low mIoU is empty."""
    saved = {one.against: _saved(main.name, one.rate_change) for one in compare(curves) if one.system == main.name}
    handles, names = axes.get_legend_handles_labels()
    labels = [name + saved.get(name, "") for name in names]
    legend = axes.legend(handles, labels, loc="lower right", fontsize=8, handlelength=3.2, labelcolor=INK)
    legend.get_frame().set(facecolor="white", edgecolor="none", alpha=0.9)


def _saved(main: str, change: float | None) -> str:
    if change is None:
        return ""
    return f"   ({main}: {'+' if change > 0 else chr(0x2212)}{100 * abs(change):.0f} % bits)"


def _arrow(axes: Axes, main: System, codecs: Sequence[System]) -> None:
    """From the best image codec to the main system, at the mIoU of one of its lower levels, with the ratio of bits."""
    front = pareto_front(main.curve)
    level = front[(len(front) - 1) // 3]
    rates = [rate for codec in codecs if (rate := _rate_or_none(codec, level.miou)) is not None]
    if not rates or min(rates) < 2 * level.rate_bpp:
        return
    best, miou = min(rates), 100 * level.miou
    arrow = {"arrowstyle": "->", "color": NOTE, "lw": 1, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", (level.rate_bpp * 1.1, miou), (best * 0.98, miou), arrowprops=arrow, zorder=1.5)
    text = f"1/{best / level.rate_bpp:.1f} of the bits"
    middle = (math.sqrt(level.rate_bpp * best), miou)
    below = {"xytext": (0, -4), "textcoords": "offset points", "ha": "center", "va": "top"}  # the curve may be flat
    axes.annotate(text, middle, fontsize=7.5, color=NOTE, **below)


def _rate_or_none(system: System, miou: float) -> float | None:
    try:
        return rate_at(system.curve, miou)
    except NoOverlap:
        return None


def _system(row: dict[str, Any]) -> System:
    points = tuple(Measured(**point) for point in row["points"])
    return System(**(row | {"points": points, "cost": Cost(**row["cost"]), "times": Times(**row["times"])}))


def main(
    results: Annotated[Path, typer.Argument()] = Path("benchmarks/results/rate_distortion.json"),
    figure: Annotated[Path, typer.Argument()] = Path("docs/rate_distortion.png"),
) -> None:
    found = json.loads(results.read_text())
    title = f"CamVid {found['split']}, {found['size'][1]}x{found['size'][0]}, {found['frames']} frames"
    draw([_system(row) for row in found["systems"]], figure, title=title)


if __name__ == "__main__":
    typer.run(main)
