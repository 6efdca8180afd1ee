"""A picture of a few panels with lines, for measurements that are no curves of a training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from equipoise.reports.extras import require
from equipoise.reports.palette import arm_dash, color_arms

DOTS_PER_INCH = 130
_STYLES = {"solid": "-", "dashed": "--", "dotdash": "-.", "dotted": ":"}


@dataclass(frozen=True)
class Line:
    """One line of a panel.

    Args:
        label: In the legend; lines of one label look alike in all panels.
        x: Places, ascending.
        y: As many numbers; None leaves a gap.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float | None]


@dataclass(frozen=True)
class Panel:
    """One panel.

    Args:
        title: Above it.
        x: Title of the horizontal axis, with its unit.
        y: Title of the vertical axis.
        lines: In the order of the legend.
        logarithmic: Whether the vertical axis is.
    """

    title: str
    x: str
    y: str
    lines: Sequence[Line]
    logarithmic: bool = False


def panels_png(panels: Sequence[Panel], note: str = "") -> bytes:
    """Draws panels side by side with one legend.

    Args:
        panels: At least one.
        note: A sentence below.

    Returns:
        A PNG image.

    Raises:
        ImportError: The extra ``report`` is not installed.
    """
    require("matplotlib")
    from matplotlib import rc_context
    from matplotlib.figure import Figure  # no pyplot: no global state, no window

    labels = list(dict.fromkeys(line.label for panel in panels for line in panel.lines))
    # Labels come from records: a dollar sign in one must not start a formula.
    with rc_context({"text.parse_math": False, "font.size": 10}):
        figure = Figure(figsize=(2.0 + 5.0 * len(panels), 4.6), layout="constrained")
        for axes, panel in zip(
            figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
        ):
            _draw(axes, panel, labels)
        handles: dict[str, Any] = {}
        for axes in figure.axes:
            found, names = axes.get_legend_handles_labels()
            handles |= dict(zip(names, found, strict=True))
        figure.legend(
            handles.values(),
            handles,
            loc="outside upper center",
            ncols=2 * len(panels),
            frameon=False,
        )
        figure.supxlabel(note, fontsize=9)
        image = BytesIO()
        figure.savefig(image, format="png", dpi=DOTS_PER_INCH)
    return image.getvalue()


def _draw(axes: Any, panel: Panel, labels: Sequence[str]) -> None:
    """One panel."""
    colors = color_arms(labels, None)
    for line in panel.lines:
        shown = f" {line.label}" if line.label.startswith("_") else line.label
        axes.plot(
            line.x,
            [float("nan") if value is None else value for value in line.y],
            color=colors[line.label][0],
            ls=_STYLES[arm_dash(labels.index(line.label))],
            marker="o" if len(line.x) < 12 else None,
            lw=2.0,
            label=shown,
        )
    if panel.logarithmic and any(v for line in panel.lines for v in line.y if v and v > 0.0):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")  # the usual one writes formulas
        axes.yaxis.set_minor_formatter("")
    if panel.x == "Epoch":
        axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_title(panel.title, fontsize=10)
    axes.set_xlabel(panel.x)
    axes.set_ylabel(panel.y)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
