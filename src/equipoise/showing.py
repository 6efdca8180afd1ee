"""Runs and comparisons as tables in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table as TerminalTable

from equipoise.records import find_runs
from equipoise.reports import (
    Table,
    arms_table,
    compare_runs,
    comparison_table,
    default_baseline,
    group_by_label,
    summarize_arm,
)

# Heads of the page, shortened so that a table fits into 80 columns.
_SHORT = {
    "Epochs (arm / baseline)": "Epochs",
    "Test accuracy (%)": "Accuracy",
    "Test accuracy (points)": "Acc. (points)",
    "At": "At equal",
    "Seeds": "n",
    "Pairs": "n",
    "Training loss": "Train loss",
    "Passes per epoch": "Passes",
    "Training FLOPs": "FLOPs",
    "Training time (s)": "Seconds",
    "Peak memory (MiB)": "MiB",
    "Peak device memory (MiB)": "GPU MiB",
}


def print_comparison(folder: Path, console: Console, *, baseline: str | None = None) -> None:
    """Prints the arms, and where there are several each against the baseline, with a verdict.

    Args:
        folder: Holds runs at any depth.
        console: Where to print.
        baseline: Label of the arm that the others are compared with; default: as the comparison
            that made the folder says.

    Raises:
        ValueError: There is no run in the folder, or no arm of that name.
    """
    runs = find_runs(folder)
    if not runs:
        raise ValueError(f"{folder} holds no run; pass a folder that a training wrote.")
    arms = group_by_label(runs)
    print_table(arms_table(summarize_arm(arm) for arm in arms.values()), console)
    if len(arms) < 2:
        return
    chosen = baseline or default_baseline(folder, runs)
    print_table(comparison_table(compare_runs(runs, chosen)), console)


def print_table(table: Table, console: Console) -> None:
    """One table, narrow enough for a terminal, and the sentences below it."""
    drawn = TerminalTable(
        title=table.title,
        title_justify="left",
        title_style="bold",
        box=None,
        padding=(0, 2, 0, 0),
        pad_edge=False,
    )
    for column in _joined(table.columns, table.columns):
        drawn.add_column(_SHORT.get(column, column), no_wrap=True)
    for row in table.rows:
        # A mean, then its spread or interval below it.
        cells = [cell.replace(" [", "\n[").replace(" \u00b1", "\n\u00b1") for cell in row]
        cells = [cell.removeprefix("equal ") for cell in cells]
        drawn.add_row(*_joined(table.columns, cells))
    console.print(drawn)
    console.print()
    for note in table.notes:
        console.print(f"- {note}", highlight=False, markup=False)
    if table.notes:
        console.print()


def _joined(columns: Sequence[str], cells: Sequence[str]) -> list[str]:
    """The cells, with every verdict below the difference that it judges."""
    joined: list[str] = []
    for column, cell in zip(columns, cells, strict=True):
        if column != "Verdict":
            joined.append(cell)
        elif cell != column:
            joined[-1] += f"\n{cell}"
    return joined
