"""Measurements along a training, by the names that the command line has for them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from equipoise.analyses.correlation import GradientCorrelation
from equipoise.analyses.norms import GradientNorms
from equipoise.analyses.rows import CORRELATION, NORMS
from equipoise.training.observers import Observer


def measuring(names: Iterable[str], folder: Path) -> list[Observer]:
    """Observers of a run that write what they measure into its folder.

    Args:
        names: `gradient_correlation`, `gradient_norms`, or both; what is measured on a finished
            run is left out.
        folder: Of the run.

    Example:
        >>> [type(each).__name__ for each in measuring(["gradient_norms"], Path("runs/one"))]
        ['GradientNorms']
    """
    made: list[Observer] = []
    wanted = set(names)
    if "gradient_norms" in wanted:
        made.append(GradientNorms(folder / NORMS))
    if "gradient_correlation" in wanted:
        made.append(GradientCorrelation(folder / CORRELATION))
    return made
