"""Draws MQTT against WebRTC link by link, and how rate control follows a link that changes.

python benchmarks/links_figure.py [LINKS.json] [STEPPING.json] [FIGURE.png]      draws both runs' figure again
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import matplotlib as mpl
import numpy as np
import typer
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from benchmarks.figure_style import FAINT, INK, NOTE, STYLE

# Okabe and Ito's colours, which people with any colour vision can tell apart; markers say the same again.
_LOOKS = {"mqtt": ("#D55E00", "s", "MQTT"), "webrtc": ("#0072B2", "o", "WebRTC")}
_DASHES: dict[str, Any] = {"off": (0, (1.5, 1.5)), "rule": "-", "bandit": (0, (5, 2))}
_LINK, _SENT, _QUEUE, _LEVEL = "#8A8A8A", "#0072B2", "#D55E00", "#009E73"
_BIN_S, _LATE_MS = 0.5, 300
Rows = Sequence[dict[str, Any]]


def draw(path: Path, *, compared: dict[str, Any] | None, followed: dict[str, Any] | None) -> None:
    """Write what was told of either run, or of both, as PNG."""
    told = [(part, _PARTS[name]) for name, part in (("compared", compared), ("followed", followed)) if part is not None]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 3.7 * len(told)), dpi=200, layout="constrained")
        parts = figure.subfigures(len(told), 1, squeeze=False)[:, 0]
        for part, (one, draw_part) in zip(parts, told, strict=True):
            part.suptitle(one["title"], x=0.01, ha="left", fontsize=9.5, color=INK)
            draw_part(part, one)
        figure.savefig(path)


def _compared(figure: SubFigure, told: dict[str, Any]) -> None:
    """The 95th percentile of the latency, the share in time and the accuracy, over all links."""
    rows = [row["setting"] | row["score"] for row in told["results"]]
    accuracy = "agreement" if rows[0]["miou"] is None else "miou"
    late, within, right = figure.subplots(1, 3)
    _lines(late, rows, lambda row: row["p95_ms"])
    _lines(within, rows, lambda row: 100 * row["within"])
    _lines(right, rows, lambda row: row[accuracy])
    late.set_yscale("log")
    late.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    late.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if str(value)[0] in "25" else ""))
    within.set_ylim(-4, 104)
    if accuracy == "miou":
        right.axhline(rows[0]["best"], color=FAINT, lw=1, ls=(0, (1.5, 2)), zorder=1)
    for axes, name in (
        (late, "p95 latency, ms"),
        (within, "own mask within 300 ms, %"),
        (right, _ACCURACIES[accuracy]),
    ):
        axes.set_title(name, loc="left", fontsize=9, color=INK, pad=15)
        _links_below(axes, rows)
        axes.grid(True, axis="y", color="#E6E6E6", lw=0.7)
    within.legend(loc="lower right", fontsize=8, frameon=False, labelcolor=INK)


_ACCURACIES = {"miou": "mIoU of what is shown, %", "agreement": "agreement of what is shown, %"}


def _links_of(rows: Rows) -> tuple[list[float], list[str]]:
    """All rates, and all links as they are written, in the order of the rows."""
    rates = sorted({row["rate_kbit_s"] for row in rows})
    return rates, list(dict.fromkeys(_link(row) for row in rows))


def _link(row: dict[str, Any]) -> str:
    return f"{row['rtt_ms']:g}/{100 * row['loss']:g}"


def _lines(axes: Axes, rows: Rows, of: Callable[[dict[str, Any]], float | None]) -> None:
    """A line for each uplink, control and rate, over the links."""
    rates, links = _links_of(rows)
    controls = list(dict.fromkeys(row["control"] for row in rows))
    for uplink, (colour, marker, name) in _LOOKS.items():
        for control in controls:
            for group, rate in enumerate(rates):
                ours = [r for r in rows if (r["uplink"], r["control"], r["rate_kbit_s"]) == (uplink, control, rate)]
                x = [group * (len(links) + 1) + links.index(_link(row)) for row in ours]
                y = [float("nan") if (value := of(row)) is None else value for row in ours]
                label = (name if len(controls) == 1 else f"{name}, {control}") if group == 0 and ours else None
                style = "-" if len(controls) == 1 else _DASHES.get(control, "-")
                axes.plot(
                    x, y, color=colour, marker=marker, ls=style, lw=1.6, ms=4.5, mec="white", mew=0.6, label=label
                )


def _links_below(axes: Axes, rows: Rows) -> None:
    """Round trip and loss below each point, the rate below each group."""
    rates, links = _links_of(rows)
    size = len(links) + 1
    places = [group * size + number for group in range(len(rates)) for number in range(len(links))]
    axes.set_xticks(places, links * len(rates), fontsize=7, rotation=60)
    for group, rate in enumerate(rates):
        x = group * size + (len(links) - 1) / 2
        above = axes.get_xaxis_transform()
        axes.text(x, 1.01, f"{rate:g} kbit/s", ha="center", va="bottom", fontsize=7, color=NOTE, transform=above)
    axes.set_xlabel("round trip ms / loss %", fontsize=8)


def _followed(figure: SubFigure, told: dict[str, Any]) -> None:
    """The link's rate and what was sent; the queueing delay; level and masks per second."""
    rate, queue, level = figure.subplots(3, 1, sharex=True, height_ratios=(1.3, 1, 1))
    samples, arrivals = told["samples"], told["arrivals"]
    times = np.array(samples["at_s"])
    rate.plot(times, samples["rate_kbit_s"], color=_LINK, lw=1.6, drawstyle="steps-post", label="link")
    edges = np.arange(0, times[-1] + _BIN_S / 2, _BIN_S)
    carried = np.interp(edges, times, samples["carried_bytes"])
    rate.step(edges[1:], np.diff(carried) * 8 / 1000 / _BIN_S, color=_SENT, lw=1.2, where="pre", label="carried")
    rate.set_yscale("log")
    rate.set_ylim(bottom=10)
    rate.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    queue.plot(times, samples["queue_ms"], color=_QUEUE, lw=1.2)
    queue.axhline(_LATE_MS, color=FAINT, lw=1, ls=(0, (1.5, 2)))
    level.plot(arrivals["at_s"], arrivals["level"], ".", color=_LEVEL, ms=2.5)
    level.set_ylim(-0.5, max(arrivals["level"], default=0) + 1.5)
    level.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    level.set_xlim(-0.02 * times[-1], 1.02 * times[-1])
    _masks_per_second(level.twinx(), told["shown"]["at_s"], times[-1])
    for axes, name in ((rate, "kbit/s"), (queue, "queue, ms"), (level, "level (dots)")):
        axes.set_ylabel(name, fontsize=8)
        axes.grid(True, color="#E6E6E6", lw=0.7)
    level.set_xlabel("seconds")
    rate.legend(loc="upper center", fontsize=8, frameon=False, labelcolor=INK)


def _masks_per_second(axes: Axes, times: Sequence[float], end_s: float) -> None:
    counts, edges = np.histogram(times, np.arange(0, end_s + 1))
    axes.step(edges[1:], counts, color=INK, lw=0.9, where="pre")
    axes.set_ylim(bottom=0)
    axes.set_ylabel("masks/s (line)", fontsize=8)


_PARTS: dict[str, Callable[[SubFigure, dict[str, Any]], None]] = {"compared": _compared, "followed": _followed}


def main(
    links: Annotated[Path, typer.Argument()] = Path("benchmarks/results/links.json"),
    stepping: Annotated[Path, typer.Argument()] = Path("benchmarks/results/links-stepping.json"),
    figure: Annotated[Path, typer.Argument()] = Path("docs/links.png"),
) -> None:
    draw(figure, compared=json.loads(links.read_text()), followed=json.loads(stepping.read_text()))


if __name__ == "__main__":
    typer.run(main)
