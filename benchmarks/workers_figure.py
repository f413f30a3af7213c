"""Draws what more workers bring: masks per second, keys found where they are needed, bytes through the key buffer.

python benchmarks/workers_figure.py [RESULTS.json] [FIGURE.png]      draws a run's figure again
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import matplotlib as mpl
import typer
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from benchmarks.figure_style import FAINT, INK, NOTE, STYLE

# Okabe and Ito's colours, which people with any colour vision can tell apart; markers say the same again.
_LOOKS = {True: ("#0072B2", "o", "with affinity"), False: ("#D55E00", "s", "without")}


@dataclass(frozen=True, slots=True)
class Point:
    """One row of the table, as far as it is drawn; shares 0 to 1, bytes per mask."""

    workers: int
    affinity: bool
    rate: float
    local: float
    buffer_bytes: float
    logit_bytes: float


def draw(points: Sequence[Point], path: Path, *, title: str) -> None:
    """Write the figure as PNG; a single worker is on both lines."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 3.2), dpi=200, layout="constrained")
        speed, local, moved = figure.subplots(1, 3)
        _lines(speed, points, lambda one: one.rate)
        _ideal(speed, points)
        _lines(local, points, lambda one: 100 * one.local)
        _lines(moved, points, lambda one: one.buffer_bytes)
        _lines(moved, points, lambda one: one.logit_bytes, style=(0, (1.5, 1.5)))
        local.set_ylim(0, 104)
        moved.set_yscale("log")
        moved.set_ylim(min(one.buffer_bytes for one in points) / 3, max(one.logit_bytes for one in points) * 3)
        moved.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        _notes(moved, points)
        for axes, name in ((speed, "masks per second"), (local, "keys found here, %"), (moved, "buffer, bytes/mask")):
            _finish(axes, name)
        speed.legend(loc="upper left", fontsize=8, frameon=False, labelcolor=INK)
        figure.suptitle(title, x=0.01, ha="left", fontsize=9.5, color=INK)
        figure.savefig(path)


def _lines(axes: Axes, points: Sequence[Point], of: Callable[[Point], float], *, style: Any = "-") -> None:
    for affinity, (colour, marker, name) in _LOOKS.items():
        found = [one for one in points if one.affinity == affinity or one.workers == 1]
        x, y = [one.workers for one in found], [of(one) for one in found]
        axes.plot(x, y, color=colour, marker=marker, ls=style, lw=1.8, ms=5, mec="white", mew=0.6, label=name)


def _ideal(axes: Axes, points: Sequence[Point]) -> None:
    """As many times as fast as there are workers."""
    last, alone = max(one.workers for one in points), next(one.rate for one in points if one.workers == 1)
    axes.plot([1, last], [alone, last * alone], color=FAINT, lw=1, ls=(0, (1.5, 2)), label="in proportion", zorder=1)


def _notes(axes: Axes, points: Sequence[Point]) -> None:
    """Which bundle of lines is which, above each."""
    for text, height in (
        ("logits, float16 (dotted)", max(one.logit_bytes for one in points)),
        ("KEY bitstreams", max(one.buffer_bytes for one in points)),
    ):
        axes.text(1, 1.3 * height, text, color=NOTE, fontsize=8, va="bottom")


def _finish(axes: Axes, name: str) -> None:
    axes.set_title(name, loc="left", fontsize=9, color=INK)
    axes.set_xlabel("workers")
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.grid(True, color="#E6E6E6", lw=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(length=3)
    if axes.get_yscale() == "linear":
        axes.set_ylim(bottom=0)


def points_of(told: dict[str, Any]) -> list[Point]:
    """The rows of a JSON result that can be held against one another: those at the pace of the last."""
    pace = told["results"][-1]["setting"]["pace"]
    rows = [row | row["setting"] for row in told["results"] if row["setting"]["pace"] == pace]
    return [Point(**{name: row[name] for name in Point.__slots__}) for row in rows]


def main(
    results: Annotated[Path, typer.Argument()] = Path("benchmarks/results/workers.json"),
    figure: Annotated[Path, typer.Argument()] = Path("docs/workers.png"),
) -> None:
    told = json.loads(results.read_text())
    draw(points_of(told), figure, title=told["title"])


if __name__ == "__main__":
    typer.run(main)
