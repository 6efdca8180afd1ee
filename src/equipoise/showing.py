"""Runs and comparisons as tables in a terminal."""

from __future__ import annotations

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
    _print_table(arms_table(summarize_arm(arm) for arm in arms.values()), console)
    if len(arms) < 2:
        return
    chosen = baseline or default_baseline(folder, runs)
    _print_table(comparison_table(compare_runs(runs, chosen)), console)


def _print_table(table: Table, console: Console) -> None:
    """One table and the sentences below it."""
    drawn = TerminalTable(title=table.title, title_justify="left", title_style="bold")
    for column in table.columns:
        drawn.add_column(column, overflow="fold")
    for row in table.rows:
        drawn.add_row(*row)
    console.print(drawn)
    for note in table.notes:
        console.print(f"- {note}", highlight=False, markup=False)
