"""Epochs, passes, FLOPs and seconds until a test accuracy is reached."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from equipoise.experiments.store import FoundCell
from equipoise.paper.reading import BySeed
from equipoise.records import RunRecords


def first_reached(run: RunRecords, target: float, field: str = "epoch") -> float | None:
    """Cost at the end of the first epoch with a test accuracy of at least `target`.

    Args:
        run: Its records.
        target: Test accuracy in per cent.
        field: A cumulative cost of a record, or ``epoch``.

    Returns:
        In the unit of the cost; None if the run never gets there.
    """
    for record in run.epochs:
        if 100 * record.test_accuracy >= target:
            return float(getattr(record, field))
    return None


def targets(runs: Sequence[RunRecords]) -> list[int]:
    """Whole per cent of test accuracy, from the least that some run begins with to the best.

    Args:
        runs: Of all arms.
    """
    started = [run for run in runs if run.epochs]
    if not started:
        return []
    low = min(100 * run.epochs[0].test_accuracy for run in started)
    high = max(100 * record.test_accuracy for run in started for record in run.epochs)
    return list(range(math.ceil(low), math.floor(high) + 1))


def reductions(arm: FoundCell, base: FoundCell, field: str = "epoch") -> BySeed:
    """By how many per cent an arm needs less than its base, by seed.

    The mean of ``100 (1 - arm / base)`` over whole per cents of test accuracy, from above the first
    epoch of the base to the best that both reach.

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
        saved = []
        for target in targets([other])[1:]:
            ours, theirs = first_reached(run, target, field), first_reached(other, target, field)
            if ours is not None and theirs:
                saved.append(100 * (1 - ours / theirs))
        if saved:
            values[run.seed] = fmean(saved)
    return values
