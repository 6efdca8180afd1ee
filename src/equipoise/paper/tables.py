"""Each table of the paper: ours beside the published numbers, and what it cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from io import StringIO

from rich.console import Console
from rich.table import Table as TerminalTable

from equipoise.experiments.store import FoundCell
from equipoise.paper.evidence import Found
from equipoise.paper.published import PUBLISHED, Key, Number, Quantity
from equipoise.paper.reading import (
    Reading,
    accuracy_after,
    baseline_of,
    correlation_of,
    norm_until,
    paired,
    relative_passes,
    robust_after,
)
from equipoise.records import epoch_after
from equipoise.reports.numbers import MISSING, effect, magnitude
from equipoise.reports.statistics import mean_and_deviation
from equipoise.reports.tables import Table

WIDTH = 80
_SHORT: dict[Quantity, str] = {
    "accuracy": "Test accuracy (%)",
    "robust": "Robust accuracy (%)",
    "norm": "Norm of the gradient, mean of the phase that ends there",
    "correlation": "Correlation of full gradients",
}


def tables_of(found: Found) -> list[Table]:
    """All tables about one experiment: ours beside published ones where there are any, then cost.

    Args:
        found: What there is of it.
    """
    name = found.experiment.name
    if name == "table-9":
        made = correlation_tables(found)
    elif name in PUBLISHED:
        made = beside_published(found)
    else:
        made = []
    return [*made, cost_table(found)] if found.cells else made


def beside_published(found: Found) -> list[Table]:
    """One table for every panel and quantity; rows are budgets, within them arms.

    Args:
        found: What there is of a table of the paper.
    """
    published = PUBLISHED[found.experiment.name]
    made = []
    cells = found.published_cells
    for panel in dict.fromkeys(cell.panel for cell in cells):
        arms = tuple(cell.arm for cell in cells if cell.panel == panel)
        quantities = dict.fromkeys(key.quantity for key in published if key.panel == panel)
        for quantity in quantities:
            shares = dict.fromkeys(
                key.share for key in published if key.panel == panel and key.quantity == quantity
            )
            rows = [
                _row(found, arms, Key(panel, arm, share, quantity))
                for share in shares
                for arm in arms
            ]
            made.append(
                Table(
                    title=f"{panel}: {_SHORT[quantity]}",
                    columns=("After", "Arm", "Ours", "n", "Paper", "Ours less base", "Paper's"),
                    rows=tuple(rows),
                    notes=(_bases(arms),),
                )
            )
    return made


def correlation_tables(found: Found) -> list[Table]:
    """Table 9 by both protocols, because the printed one is not said and decides the trend."""
    published = PUBLISHED[found.experiment.name]
    made = []
    cells = found.published_cells
    for panel in dict.fromkeys(cell.panel for cell in cells):
        rows = []
        for arm in (cell.arm for cell in cells if cell.panel == panel):
            one = found.cell(panel, arm)
            number = published[Key(panel, arm, 1.0, "correlation")]
            rows.append(
                (
                    arm,
                    _ours(one, correlation_of("active"), 3),
                    _ours(one, correlation_of("all"), 3),
                    _runs(one),
                    f"{number.value:.4f}",
                )
            )
        made.append(
            Table(
                title=f"{panel}: {_SHORT['correlation']}",
                columns=("Sparsity", "Noise on active", "Noise on all", "n", "Paper"),
                rows=tuple(rows),
                notes=(
                    "Noise on active: active weights get noise and are compared. Noise on all: "
                    "pruned weights get noise as well, and all are compared.",
                ),
            )
        )
    return made


def cost_table(found: Found) -> Table:
    """What each arm of this scale cost."""
    rows = []
    for one in found.cells:
        panel, arm = one.cell.panel, one.cell.arm
        base = baseline_of(arm, found.arms(panel))
        other = None if base is None else found.cell(panel, base)
        ratio = None if other is None else relative_passes(one, other)
        rows.append(
            (
                panel,
                arm,
                _runs(one),
                _cost(one, "data_passes"),
                "1 (base)" if base is None else MISSING if ratio is None else f"{ratio:.2f}",
                _cost(one, "training_seconds"),
                _cost(one, "training_flops"),
            )
        )
    return Table(
        title=f"Cost of a run at scale {found.scale}, mean over seeds",
        columns=("Panel", "Arm", "n", "Passes", "To base", "Seconds", "FLOPs"),
        rows=tuple(rows),
    )


def as_text(table: Table, width: int = WIDTH) -> str:
    """The table in plain text; words that do not fit go on in the next line.

    Args:
        table: Which.
        width: Most characters of a line.
    """
    drawn = TerminalTable(
        title=table.title, title_justify="left", title_style="", box=None, padding=(0, 1, 0, 0)
    )
    for column in table.columns:
        drawn.add_column(column, overflow="fold")
    for row in table.rows:
        drawn.add_row(*(cell.replace("[", "\\[") for cell in row))
    page = StringIO()
    console = Console(file=page, width=width, color_system=None, highlight=False)
    console.print(drawn)
    for note in table.notes:
        console.print(note, markup=False)
    return "\n".join(line.rstrip() for line in page.getvalue().splitlines()) + "\n"


def reading_of(key: Key, shares: Sequence[float]) -> Reading:
    """How a published number is read from our runs.

    Args:
        key: Which number.
        shares: All budgets of its table.
    """
    if key.quantity == "robust":
        return robust_after(key.share)
    if key.quantity == "norm":
        return norm_until(key.share, shares)
    if key.quantity == "correlation":
        return correlation_of("active")
    return accuracy_after(key.share)


def _row(found: Found, arms: tuple[str, ...], key: Key) -> tuple[str, ...]:
    """Ours, published, and both differences."""
    published = PUBLISHED[found.experiment.name]
    one = found.cell(key.panel, key.arm)
    reading = reading_of(key, found.experiment.budgets)
    decimals = 2 if key.quantity == "norm" else 1
    number = published.get(key)
    base = baseline_of(key.arm, arms)
    difference = printed = MISSING
    if base is not None:
        other = found.cell(key.panel, base)
        if one is not None and other is not None:
            difference = effect(paired(one, other, reading), decimals=decimals)
        theirs = published.get(key._replace(arm=base))
        if number is not None and theirs is not None:
            printed = f"{number.value - theirs.value:+.{decimals}f}"
    return (
        _after(found, one, key.share),
        key.arm,
        "left out" if one is None else _ours(one, reading, decimals),
        _runs(one),
        _printed(number, decimals),
        difference,
        printed,
    )


def _after(found: Found, one: FoundCell | None, share: float) -> str:
    """Epoch of ours, and of the paper's in parentheses."""
    lengths = {cell.run.loop.epochs for cell in found.published_cells}
    theirs = "" if len(lengths) != 1 else f"({epoch_after(share, lengths.pop())})"
    if one is None:
        return theirs
    return f"{epoch_after(share, one.cell.run.loop.epochs)} {theirs}".strip()


def _bases(arms: Sequence[str]) -> str:
    """What the differences are against."""
    bases = dict.fromkeys(base for arm in arms if (base := baseline_of(arm, arms)) is not None)
    return (
        f"Base: {', '.join(bases)}. Differences are paired by seed, with a 95 % interval. After: "
        "epochs of ours, in parentheses the paper's."
    )


def _ours(one: FoundCell | None, reading: Reading, decimals: int) -> str:
    """Mean and deviation; the number of runs that have the value, where it is not all."""
    if one is None:
        return "left out"
    values = list(reading.of(one).values())
    if not values:
        return "missing"
    spread = mean_and_deviation(values)
    assert spread.mean is not None
    shown = f"{spread.mean:.{decimals}f}"
    if spread.deviation is not None:
        shown += f" \u00b1 {spread.deviation:.{decimals}f}"
    return shown if len(values) == len(one.runs) else f"{shown} (n {len(values)})"


def _runs(one: FoundCell | None) -> str:
    """Runs that are there of those planned."""
    return MISSING if one is None else f"{len(one.runs)}/{one.planned}"


def _printed(number: Number | None, decimals: int) -> str:
    """As in the paper, deviation in parentheses."""
    if number is None:
        return MISSING
    shown = f"{number.value:.{decimals}f}"
    return shown if number.deviation is None else f"{shown} ({number.deviation:.2f})"


def _cost(one: FoundCell, field: str) -> str:
    """Mean over the runs of a count at their end."""
    values = [float(getattr(run.epochs[-1], field)) for run in one.runs]
    if not values:
        return "missing"
    mean = math.fsum(values) / len(values)
    return f"{mean:.2e}" if mean >= 1e6 else magnitude(mean)
