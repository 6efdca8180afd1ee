"""What the lists of cells are put together from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from equipoise.experiments.values import Cell, Experiment, Scale
from equipoise.settings import Run

Arms = Mapping[str, Run]
Cells = Callable[[Scale], tuple[Cell, ...]]
LONG = "about an hour, twice as long as others; --only with part of a name leaves cells out"


def cells_of(panel: str, arms: Arms, **more: Any) -> tuple[Cell, ...]:
    """One cell for every arm of a panel.

    Args:
        panel: Block of rows of a table, or panel of a figure.
        arms: Runs by the name of the column or line.
        **more: What else the cells have, all alike.

    Example:
        >>> [cell.label for cell in cells_of("VGG-C", {"AGENT": Run()})]
        ['VGG-C: AGENT']
    """
    return tuple(Cell(panel=panel, arm=arm, run=run, **more) for arm, run in arms.items())


def per_cent(sparsity: float) -> str:
    """A sparsity as tables have it.

    Example:
        >>> per_cent(0.99)
        '99 %'
    """
    return f"{100 * sparsity:g} %"


def shares(epochs: Sequence[int], of: int) -> tuple[float, ...]:
    """Budgets in epochs as shares of training.

    Example:
        >>> shares((20, 200), of=200)
        (0.1, 1.0)
    """
    return tuple(epoch / of for epoch in epochs)


def shorter(experiment: Experiment, *words: str) -> Experiment:
    """The experiment with fewer cells at `cpu`, so that it takes about half an hour; noted there.

    Args:
        experiment: With all cells.
        *words: Cells whose label contains one of these are left out.

    Example:
        >>> full = Experiment(name="", title="", quantity="", cells=lambda scale: ())
        >>> shorter(full, "AT", "90 %").notes["cpu"][0]
        'for time, cells are left out whose name contains AT or 90 %'
    """

    def kept(scale: Scale) -> tuple[Cell, ...]:
        return tuple(
            cell
            for cell in experiment.cells(scale)
            if scale != "cpu" or not any(word in cell.label for word in words)
        )

    note = f"for time, cells are left out whose name contains {' or '.join(words)}"
    before = experiment.notes.get("cpu", ())
    notes = {**experiment.notes, "cpu": (*before, note)}
    return replace(experiment, cells=kept, notes=notes)


def by_name(*experiments: Experiment) -> dict[str, Experiment]:
    """Experiments by their name."""
    return {experiment.name: experiment for experiment in experiments}
