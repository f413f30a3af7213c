"""How the figures look: colours of lines and text, and matplotlib's settings."""

from typing import Any

INK, NOTE, FAINT = "#222222", "#666666", "#8A8A8A"
STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.linewidth": 0.8,
}
