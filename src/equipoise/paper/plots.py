"""What is drawn of a table or figure: panels of lines, each with a band over seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from equipoise.analyses.theory import Parabola, variance_parabola
from equipoise.experiments.store import FoundCell
from equipoise.paper.evidence import Found
from equipoise.paper.published import PUBLISHED, Key
from equipoise.paper.reading import (
    BySeed,
    baseline_of,
    correlation_of,
    log_variance_of,
    losses,
)
from equipoise.paper.tables import reading_of
from equipoise.records import RunRecords
from equipoise.reports.curves import Axis, column, x_axes
from equipoise.reports.gains import accuracy_targets, cost_at_accuracy
from equipoise.reports.statistics import mean_and_deviation

COSTS = ("epochs", "passes", "flops", "seconds")
"""What curves can be drawn against."""
REACHING = ("figure-4", *(f"figure-{number}" for number in range(15, 22)))


@dataclass(frozen=True)
class Choice:
    """What is drawn when a cost is chosen.

    Args:
        x: Name of the column across.
        y: Of the column up; ``y_low`` and ``y_high`` with the same beginning are its band.
        x_title: Title of the axis.
        y_title: Title of the axis.
    """

    x: str
    y: str
    x_title: str
    y_title: str


@dataclass(frozen=True)
class Line:
    """One line.

    Args:
        label: Arm, with the number of runs.
        columns: Values by name; NaN where there is none.
        color: Place in the palette; -1 for the base, which is neutral.
        printed: Whether it is the paper's, and not ours.
    """

    label: str
    columns: Mapping[str, Sequence[float]]
    color: int
    printed: bool = False


@dataclass(frozen=True)
class Panel:
    """One panel.

    Args:
        title: As in the paper.
        choices: What is drawn, by the name of the cost that is chosen.
        lines: Those with values.
        missing: Arms without any.
    """

    title: str
    choices: Mapping[str, Choice]
    lines: tuple[Line, ...]
    missing: tuple[str, ...] = ()


def panels_of(found: Found) -> tuple[Panel, ...]:
    """All panels of one table or figure.

    Args:
        found: What there is of it.

    Returns:
        Panels that are planned but not measured have no lines.
    """
    name = found.experiment.name
    if name == "figure-2":
        return (parabola(),)
    if name in ("table-9", "figure-1"):
        return sparsity_panels(found)
    if name in PUBLISHED:
        return budget_panels(found)
    if name in REACHING:
        return tuple(_each(found, panel, _reach_line, _reach_choices) for panel in found.panels)
    if name == "figure-26":
        return tuple(
            _each(found, panel, _correlation_line, _correlation_choices) for panel in found.panels
        )
    if name == "figure-32":
        return tuple(_each(found, panel, _loss_line, _loss_choices) for panel in found.panels)
    return tuple(_each(found, panel, _accuracy_line, _accuracy_choices) for panel in found.panels)


def parabola() -> Panel:
    """Figure 2: variance of the corrected gradient by the coefficient, from the formula alone.

    Example:
        >>> [line.label for line in parabola().lines][1:]
        ['best', 'estimate', 'scaled']
    """
    drawn = Parabola()
    places = [step / 50 for step in range(51)]
    curve = [variance_parabola(drawn.a3, drawn.v, drawn.k, c) for c in places]
    lines = [_points("variance", places, curve, -1)]
    lines += [
        _points(label, [c], [value], place)
        for place, (label, (c, value)) in enumerate(drawn.points().items())
        if label != "none"
    ]
    choice = Choice("x", "y", "Coefficient c", "Variance of the corrected gradient")
    return Panel("From the formula", dict.fromkeys(COSTS, choice), tuple(lines))


def sparsity_panels(found: Found) -> tuple[Panel, ...]:
    """Figure 1 and table 9: correlation, and variance, against sparsity, by protocol."""
    quantities = [("Correlation of full gradients", correlation_of)]
    if found.experiment.name == "figure-1":
        quantities.insert(0, ("log10 of the variance of batch gradients", log_variance_of))
    published = PUBLISHED["table-9"]
    made = []
    for title, reading in quantities:
        for protocol, words in (
            ("active", "noise on active weights"),
            ("all", "noise on all weights"),
        ):
            lines: list[Line] = []
            missing: list[str] = []
            for place, panel in enumerate(found.panels):
                cells = [one for one in found.cells if one.cell.panel == panel]
                values = [reading(protocol).of(one) for one in cells]
                shares = [float(one.cell.arm.removesuffix(" %")) for one in cells]
                if any(values):
                    label = f"{panel} (n {max(map(len, values))})"
                    lines.append(Line(label, {"x": shares, **_band("y", values)}, place))
                else:
                    missing.append(panel)
                if reading is correlation_of:
                    printed = {
                        float(key.arm.removesuffix(" %")): number.value
                        for key, number in published.items()
                        if key.panel == panel
                    }
                    x, y = list(printed), list(printed.values())
                    lines.append(_printed(f"{panel}, paper", x, y, place))
            choice = Choice("x", "y", "Sparsity (%)", title)
            made.append(
                Panel(
                    f"{title.split(' of ')[0]}, {words}",
                    dict.fromkeys(COSTS, choice),
                    tuple(lines),
                    tuple(missing),
                )
            )
    return tuple(made)


def budget_panels(found: Found) -> tuple[Panel, ...]:
    """Tables: ours and the paper's against the share of training."""
    published = PUBLISHED[found.experiment.name]
    made = []
    cells = found.published_cells
    for panel in dict.fromkeys(cell.panel for cell in cells):
        arms = tuple(cell.arm for cell in cells if cell.panel == panel)
        for quantity in dict.fromkeys(key.quantity for key in published if key.panel == panel):
            lines: list[Line] = []
            missing: list[str] = []
            for arm in arms:
                keys = [Key(panel, arm, s, quantity) for s in found.experiment.budgets]
                color = _color(arm, arms)
                one = found.cell(panel, arm)
                values = [] if one is None else [_values(one, key, found) for key in keys]
                shares = [100 * key.share for key in keys]
                if any(values):
                    label = f"{arm} (n {max(map(len, values))})"
                    lines.append(Line(label, {"x": shares, **_band("y", values)}, color))
                else:
                    missing.append(arm)
                if any(key in published for key in keys):
                    numbers = [
                        published[key].value if key in published else math.nan for key in keys
                    ]
                    lines.append(_printed(f"{arm}, paper", shares, numbers, color))
            y_title = {
                "accuracy": "Test accuracy (%)",
                "robust": "Robust accuracy (%)",
                "norm": "Norm of the gradient",
            }[quantity]
            title = f"{panel}, robust" if quantity == "robust" else panel
            choice = Choice("x", "y", "Share of training (%)", y_title)
            made.append(Panel(title, dict.fromkeys(COSTS, choice), tuple(lines), tuple(missing)))
    return tuple(made)


def _values(one: FoundCell, key: Key, found: Found) -> BySeed:
    return reading_of(key, found.experiment.budgets).of(one)


_Drawer = Callable[[FoundCell, Sequence[Axis], Sequence[float]], Mapping[str, Sequence[float]]]


def _each(
    found: Found,
    panel: str,
    draw: _Drawer,
    choices: Callable[[Sequence[Axis]], Mapping[str, Choice]],
) -> Panel:
    """One panel with a line for every arm."""
    arms = found.arms(panel)
    cells = [one for one in found.cells if one.cell.panel == panel]
    runs = [run for one in cells for run in one.runs]
    axes = x_axes(runs)
    aims = accuracy_targets([run.epochs for run in runs])
    lines, missing = [], []
    for one in cells:
        arm = one.cell.arm
        columns = draw(one, axes, aims) if one.runs else {}
        if columns:
            label = f"{arm} (n {len(one.runs)})"
            lines.append(Line(label, columns, _color(arm, arms)))
        else:
            missing.append(arm)
    return Panel(panel, choices(axes), tuple(lines), tuple(missing))


def _accuracy_line(
    one: FoundCell, axes: Sequence[Axis], aims: Sequence[float]
) -> Mapping[str, Sequence[float]]:
    """Test accuracy and all costs, by epoch."""
    del aims
    values = [[100 * record.test_accuracy for record in run.epochs] for run in one.runs]
    return {**_costs(one.runs, axes), **_band_of("y", values)}


def _loss_line(
    one: FoundCell, axes: Sequence[Axis], aims: Sequence[float]
) -> Mapping[str, Sequence[float]]:
    """Validation loss, or test loss, and all costs, by epoch."""
    del aims
    return {**_costs(one.runs, axes), **_band_of("y", [losses(run) for run in one.runs])}


def _reach_line(
    one: FoundCell, axes: Sequence[Axis], aims: Sequence[float]
) -> Mapping[str, Sequence[float]]:
    """Costs until an accuracy, as far as all runs of the arm reach it."""
    columns: dict[str, Sequence[float]] = {}
    reached = [
        target
        for target in aims
        if all(cost_at_accuracy(run.epochs, target, "epoch") is not None for run in one.runs)
    ]
    if not reached:
        return columns
    columns["x"] = [100 * target for target in reached]
    for axis in axes:
        rows = [
            [
                axis.scale * (cost_at_accuracy(run.epochs, target, axis.field) or 0.0)
                for target in reached
            ]
            for run in one.runs
        ]
        columns |= _band_of(axis.name, rows)
    return columns


def _correlation_line(
    one: FoundCell, axes: Sequence[Axis], aims: Sequence[float]
) -> Mapping[str, Sequence[float]]:
    """Correlation of full gradients, and all costs, at the epochs that have one."""
    del aims
    measured = one.measured("gradient_correlation")
    runs = [run for run in one.runs if run.seed in measured]
    if not runs:
        return {}
    by_epoch = [{row["epoch"]: _number(row["full"]) for row in measured[run.seed]} for run in runs]
    epochs = sorted(set.intersection(*(set(rows) for rows in by_epoch)))
    values = [[rows[epoch] for epoch in epochs] for rows in by_epoch]
    costs = _costs(runs, axes)
    kept = {name: [column[epoch - 1] for epoch in epochs] for name, column in costs.items()}
    return {**kept, **_band_of("y", values)}


def _curve_choices(axes: Sequence[Axis], y_title: str) -> Mapping[str, Choice]:
    return {axis.name: Choice(axis.name, "y", axis.title, y_title) for axis in axes}


def _accuracy_choices(axes: Sequence[Axis]) -> Mapping[str, Choice]:
    return _curve_choices(axes, "Test accuracy (%)")


def _loss_choices(axes: Sequence[Axis]) -> Mapping[str, Choice]:
    return _curve_choices(axes, "Validation loss (test loss without a split)")


def _correlation_choices(axes: Sequence[Axis]) -> Mapping[str, Choice]:
    return _curve_choices(axes, "Correlation of successive full gradients")


def _reach_choices(axes: Sequence[Axis]) -> Mapping[str, Choice]:
    return {
        axis.name: Choice("x", axis.name, "Test accuracy (%)", f"{axis.title} until then")
        for axis in axes
    }


def _costs(runs: Sequence[RunRecords], axes: Sequence[Axis]) -> dict[str, Sequence[float]]:
    """Mean costs by epoch."""
    return {
        axis.name: [
            math.fsum(values) / len(values)
            for values in zip(*(column(run, axis) for run in runs), strict=False)
        ]
        for axis in axes
    }


def _band_of(name: str, rows: Sequence[Sequence[float]]) -> dict[str, Sequence[float]]:
    """Mean and band of numbers by run, then place."""
    return _band(name, [dict(enumerate(values)) for values in zip(*rows, strict=False)])


def _band(name: str, values: Sequence[BySeed]) -> dict[str, Sequence[float]]:
    """Mean, and mean less and plus the deviation, of numbers by place, then seed."""
    means, low, high = [], [], []
    for numbers in values:
        spread = mean_and_deviation(numbers.values())
        mean = math.nan if spread.mean is None else spread.mean
        deviation = spread.deviation or 0.0
        means.append(mean)
        low.append(mean - deviation)
        high.append(mean + deviation)
    return {name: means, f"{name}_low": low, f"{name}_high": high}


def _printed(label: str, x: Sequence[float], y: Sequence[float], color: int) -> Line:
    """A line of published numbers."""
    return replace(_points(label, x, y, color), printed=True)


def _points(label: str, x: Sequence[float], y: Sequence[float], color: int) -> Line:
    """A line without a band."""
    return Line(label, {"x": x, "y": y, "y_low": y, "y_high": y}, color)


def _color(arm: str, arms: Sequence[str]) -> int:
    """Place in the palette; -1 for an arm that is a base."""
    bases = [one for one in arms if baseline_of(one, arms) is None]
    others = [one for one in arms if one not in bases]
    # A panel with two bases, as that of table 11, needs a hue for the second one.
    if arm in bases:
        return -1 if arm == bases[0] else len(others) + bases.index(arm) - 1
    return others.index(arm)


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
