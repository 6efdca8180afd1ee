"""What an arm needs less than its base until an accuracy, seed by seed."""

from __future__ import annotations

from collections.abc import Sequence

from equipoise.experiments.store import FoundCell
from equipoise.paper.reading import BySeed
from equipoise.records import RunRecords
from equipoise.reports.gains import accuracy_targets, cost_at_accuracy, reduction


def targets(runs: Sequence[RunRecords]) -> tuple[float, ...]:
    """Whole per cents of test accuracy, from above the lowest first one to the best, as fractions.

    Args:
        runs: Of all arms.
    """
    return accuracy_targets([run.epochs for run in runs])


def first_reached(run: RunRecords, target: float, field: str = "epoch") -> float | None:
    """Cost at the end of the first epoch with a test accuracy of at least `target`.

    Args:
        run: Its records.
        target: In [0, 1].
        field: A cumulative cost of a record, or ``epoch``.

    Returns:
        In the unit of the cost; None if the run never gets there.
    """
    return cost_at_accuracy(run.epochs, target, field)


def reductions(arm: FoundCell, base: FoundCell, field: str = "epoch") -> BySeed:
    """By how many per cent an arm needs less than its base, by seed.

    The mean over whole per cents of test accuracy, from above the first epoch of the base to the
    best that both reach.

    Args:
        arm: What is judged.
        base: What it is compared with.
        field: A cumulative cost of a record, or ``epoch``.

    Returns:
        Nothing for seeds that share no target.
    """
    others = {run.seed: run for run in base.runs}
    values = {}
    for run in arm.runs:
        other = others.get(run.seed)
        if other is None:
            continue
        saved = reduction(run.epochs, other.epochs, targets([other]), field).mean
        if saved is not None:
            values[run.seed] = 100 * saved
    return values
