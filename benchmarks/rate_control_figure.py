"""Draws how rule and bandit follow a link whose rate steps: bits sent, queueing delay, reward."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from benchmarks.figure_style import FAINT, INK, STYLE

_COLOURS = {"rule": "#D55E00", "bandit": "#0072B2"}


@dataclass(frozen=True, slots=True, eq=False)
class Line:
    """One run: per second kbit/s and true reward; per frame of the source the target in kbit/s, queueing in ms."""

    name: str
    kbit_s: NDArray[np.float64]
    targets: NDArray[np.float64]
    queues_ms: NDArray[np.float64]
    rewards: NDArray[np.float64]


def draw(lines: Sequence[Line], path: Path, *, steps: Sequence[float], step_s: float) -> None:
    """Write the figure as PNG."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 5.4), dpi=200, layout="constrained")
        rate, queue, worth = figure.subplots(3, 1, sharex=True)
        edges = step_s * np.arange(len(steps) + 1)
        rate.stairs(steps, edges, color=FAINT, lw=1.2, label="link")
        for line in lines:
            colour, seconds = _COLOURS[line.name], np.arange(len(line.kbit_s)) + 0.5
            moments = np.arange(len(line.targets)) * len(line.kbit_s) / len(line.targets)
            rate.plot(moments, line.targets, color=colour, lw=0.9, ls=(0, (1.5, 1.5)))
            rate.plot(seconds, line.kbit_s, color=colour, lw=1.6, label=line.name)
            queue.plot(moments, line.queues_ms, color=colour, lw=1.2)
            worth.plot(seconds, line.rewards, color=colour, lw=1.6)
        rate.set_yscale("log")
        queue.axhline(300, color=FAINT, lw=0.8, ls=(0, (1.5, 2)))
        queue.set_ylim(0, 1500)
        worth.set_ylim(60, 100)
        names = ("kbit/s (dotted: allowed)", "queueing delay, ms", "reward, %")
        for axes, name in zip((rate, queue, worth), names, strict=True):
            axes.set_ylabel(name)
        worth.set_xlabel("seconds")
        rate.legend(loc="upper right", fontsize=8, frameon=False, labelcolor=INK, ncols=3)
        figure.savefig(path)
