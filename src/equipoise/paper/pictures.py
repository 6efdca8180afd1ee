"""A PNG for each table and figure: panels side by side, a line for every arm, a band over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from io import BytesIO
from typing import Any

from equipoise.paper.plots import Line, Panel
from equipoise.reports.extras import require
from equipoise.reports.palette import BASELINE_LIGHT, LIGHT

DOTS_PER_INCH = 100
ACROSS = 3
_STYLES = ("-", "--", "-.", ":")


def picture(panels: Sequence[Panel], title: str, choice: str = "epochs") -> bytes:
    """Draws all panels of one table or figure.

    Args:
        panels: At least one.
        title: Above all of them, with the scale.
        choice: What it is drawn against.

    Returns:
        A PNG image.

    Raises:
        ImportError: The extra ``report`` is not installed.
    """
    require("matplotlib")
    from matplotlib import rc_context
    from matplotlib.figure import Figure  # no pyplot: no global state, no window

    across = min(ACROSS, len(panels))
    down = math.ceil(len(panels) / across)
    with rc_context({"text.parse_math": False, "font.size": 9}):
        figure = Figure(figsize=(max(6.0, 4.6 * across), 3.6 * down + 0.5), layout="constrained")
        figure.suptitle(title, fontsize=11)
        for place, panel in enumerate(panels):
            _draw(figure.add_subplot(down, across, place + 1), panel, choice)
        image = BytesIO()
        figure.savefig(image, format="png", dpi=DOTS_PER_INCH)
    return image.getvalue()


def color_of(line: Line, hues: Sequence[str] = LIGHT, neutral: str = BASELINE_LIGHT) -> str:
    """Hue of a line."""
    return neutral if line.color < 0 else hues[line.color % len(hues)]


def _draw(axes: Any, panel: Panel, choice: str) -> None:
    """One panel."""
    names = panel.choices[choice]
    axes.set_title(panel.title, fontsize=10)
    for line in panel.lines:
        x, y = list(line.columns[names.x]), list(line.columns[names.y])
        color = color_of(line)
        single = len(x) < 2
        style = ":" if line.printed else _STYLES[(line.color + 1) % 3]
        marker = "o" if single or len(x) <= 6 else None
        face = "none" if line.printed else color
        axes.plot(x, y, style, color=color, lw=1.6, marker=marker, mfc=face, label=line.label)
        low, high = line.columns[f"{names.y}_low"], line.columns[f"{names.y}_high"]
        if single:
            axes.errorbar(x, y, yerr=[[y[0] - low[0]], [high[0] - y[0]]], color=color, capsize=3)
        else:
            axes.fill_between(x, low, high, color=color, alpha=0.15, lw=0)
    axes.set_xlabel(names.x_title)
    axes.set_ylabel(names.y_title)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if panel.lines:
        axes.legend(fontsize=7, frameon=False)
    if panel.missing:
        words = "missing: " + ", ".join(panel.missing)
        axes.text(
            0.5, 1.0, words, transform=axes.transAxes, fontsize=7, ha="center", va="top", wrap=True
        )
