"""One figure of a set of runs: curves against epochs, FLOPs and seconds, and where time went."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from typing import Any

from equipoise.records import RunRecords
from equipoise.reports.curves import (
    COEFFICIENT,
    EPOCHS,
    EXPLORATION,
    SECONDS,
    TEST_ACCURACY,
    TRAIN_LOSS,
    Axis,
    column,
    flops_axis,
    is_available,
    is_constant,
    mean_column,
    part_seconds,
)
from equipoise.reports.extras import require
from equipoise.reports.palette import PARTS, arm_dash, color_arms

DOTS_PER_INCH = 130
MAX_LABEL = 28
LOG_FROM_RATIO = 30
_LINE_STYLES = {"solid": "-", "dashed": "--", "dotdash": "-.", "dotted": ":"}


@dataclass(frozen=True)
class _Arm:
    """One arm as it is drawn."""

    label: str
    runs: Sequence[RunRecords]
    color: str
    line_style: str


def figure_png(arms: Mapping[str, Sequence[RunRecords]], baseline: str | None) -> bytes:
    """Draws test accuracy, training loss, cost by part, coefficient and exploration.

    Args:
        arms: Runs by label, in the order of the legend.
        baseline: Label of the neutral arm; None without a comparison.

    Returns:
        A PNG image: a thick line is the mean over the seeds, a thin line one seed. Coefficient
        and exploration have panels only where they change.

    Raises:
        ImportError: The extra ``report`` is not installed.
    """
    require("matplotlib")
    from matplotlib import rc_context

    # Labels come from records: a dollar sign in one must not start a formula.
    with rc_context({"text.parse_math": False, "font.size": 10}):
        return _draw(_styled(arms, baseline))


def _draw(arms: Sequence[_Arm]) -> bytes:
    """Lays the panels out and renders them."""
    from matplotlib.figure import Figure  # no pyplot: no global state, no window

    figure = Figure(figsize=(14, 12), layout="constrained")
    grid = figure.add_gridspec(3, 6, height_ratios=(1, 1, 0.9))
    flops = flops_axis([run for arm in arms for run in arm.runs])
    for row, y in enumerate((TEST_ACCURACY, TRAIN_LOSS)):
        for place, x in enumerate((EPOCHS, flops, SECONDS)):
            _curves(figure.add_subplot(grid[row, 2 * place : 2 * place + 2]), arms, x, y)
    for panel, draw in zip(*_last_row(figure, grid, arms), strict=True):
        draw(panel)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False, fontsize=11)
    figure.supxlabel(
        "Thick: mean over seeds, as far as all have come. Thin: single seeds.", fontsize=9
    )
    image = BytesIO()
    figure.savefig(image, format="png", dpi=DOTS_PER_INCH)
    return image.getvalue()


def _last_row(
    figure: Any, grid: Any, arms: Sequence[_Arm]
) -> tuple[list[Any], list[Callable[[Any], None]]]:
    """The cost panel and, where they change, coefficient and exploration."""
    draws: list[Callable[[Any], None]] = [partial(_cost, arms=arms)]
    for y in (COEFFICIENT, EXPLORATION):
        changing = [arm for arm in arms if _changes(arm.runs, y)]
        if changing:
            draws.append(partial(_curves, arms=changing, x=EPOCHS, y=y))
    width = 6 // len(draws)
    panels = [
        figure.add_subplot(grid[2, place * width : (place + 1) * width])
        for place in range(len(draws))
    ]
    return panels, draws


def _styled(arms: Mapping[str, Sequence[RunRecords]], baseline: str | None) -> list[_Arm]:
    """Gives every arm its colour and dash."""
    colors = color_arms(list(arms), baseline)
    return [
        _Arm(_shorten(label), runs, colors[label][0], _LINE_STYLES[arm_dash(place)])
        for place, (label, runs) in enumerate(arms.items())
    ]


def _curves(panel: Any, arms: Sequence[_Arm], x: Axis, y: Axis) -> None:
    """Means and seeds of all arms in one panel."""
    for arm in arms:
        for run in arm.runs:
            panel.plot(column(run, x), column(run, y), color=arm.color, lw=0.7, alpha=0.45)
        panel.plot(
            mean_column(arm.runs, x),
            mean_column(arm.runs, y),
            color=arm.color,
            ls=arm.line_style,
            lw=2.2,
            marker="o" if max((len(run.epochs) for run in arm.runs), default=0) < 2 else None,
            label=arm.label,
        )
    if y is TRAIN_LOSS and _spans_decades([arm.runs for arm in arms]):
        panel.set_yscale("log")
        panel.yaxis.set_major_formatter("{x:g}")  # the usual one writes formulas
        panel.yaxis.set_minor_formatter("")
    panel.xaxis.get_major_locator().set_params(integer=x is EPOCHS)
    panel.set_xlabel(x.title)
    panel.set_ylabel(y.title)
    panel.grid(alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)


def _cost(panel: Any, arms: Sequence[_Arm]) -> None:
    """Stacked bars of the seconds per epoch by part."""
    costs = [(arm.label, part_seconds(arm.runs)) for arm in arms]
    costs = [(label, parts) for label, parts in costs if parts]
    starts = [0.0] * len(costs)
    places = list(range(len(costs)))
    for field, name, color in PARTS:
        widths = [parts[field] for _, parts in costs]
        if field == "attack_seconds" and not any(widths):
            continue  # most runs know no attacks
        panel.barh(places, widths, left=starts, color=color, label=name, height=0.6)
        starts = [start + width for start, width in zip(starts, widths, strict=True)]
    panel.set_yticks(places, [label for label, _ in costs])
    panel.invert_yaxis()
    panel.set_xlabel("Training time per epoch (s)")
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2, fontsize=8, frameon=False
    )


def _changes(runs: Sequence[RunRecords], y: Axis) -> bool:
    """Whether a quantity is worth a panel."""
    return is_available(runs, y) and not is_constant(runs, y)


def _spans_decades(arms: Sequence[Sequence[RunRecords]]) -> bool:
    """Whether the losses differ so much that a linear axis would show the first epochs only."""
    values = [value for runs in arms for run in runs for value in column(run, TRAIN_LOSS)]
    positive = [value for value in values if value > 0.0]
    return bool(positive) and max(positive) > LOG_FROM_RATIO * min(positive)


def _shorten(label: str) -> str:
    """A label that fits a legend; a leading underscore would hide it from matplotlib."""
    short = label if len(label) <= MAX_LABEL else label[: MAX_LABEL - 3] + "..."
    return f" {short}" if short.startswith("_") else short
