"""What an arm needs less than its base until an accuracy, seed by seed."""

from __future__ import annotations

from equipoise.experiments.store import FoundCell
from equipoise.paper.reading import BySeed
from equipoise.reports.gains import accuracy_targets, reduction


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
        saved = reduction(run.epochs, other.epochs, accuracy_targets([other.epochs]), field).mean
        if saved is not None:
            values[run.seed] = 100 * saved
    return values
