"""How soon a run comes down to a training loss, and where paired runs end."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence

from equipoise.records import EpochRecord, RunRecords
from equipoise.reports.statistics import PairedInterval, paired_interval


def cost_at_loss(records: Sequence[EpochRecord], target: float, field: str) -> float | None:
    """Cost at which the training loss first comes down to `target`, linear between epochs.

    Args:
        records: Of one run, in order of epochs; not changed.
        target: Training loss to reach.
        field: Name of a cumulative cost in an `EpochRecord`, or `epoch`.

    Returns:
        In the unit of the cost, or None if the run never gets there. The first epoch is not
        divided: a run that starts below `target` gets there at its end. Neither is an epoch after
        a loss that is not finite, since there is nothing to interpolate from.
    """
    before: EpochRecord | None = None
    for record in records:
        if record.train_loss <= target:
            end = float(getattr(record, field))
            if before is None or not math.isfinite(before.train_loss):
                return end
            start = float(getattr(before, field))
            share = (before.train_loss - target) / (before.train_loss - record.train_loss)
            return start + share * (end - start)
        before = record
    return None


def end_of_first_rate(records: Sequence[EpochRecord]) -> EpochRecord:
    """The last record with the learning rate that the run began with.

    Args:
        records: Of one run, at least one.
    """
    first = records[0].learning_rate
    return [record for record in records if record.learning_rate == first][-1]


def reach_ratio(run: RunRecords, plain: RunRecords, field: str) -> float | None:
    """Cost to plain's training loss at the end of its first learning rate, over plain's cost.

    Args:
        run: Of the same seed as `plain`.
        plain: What it is compared with.
        field: Name of a cumulative cost in an `EpochRecord`, or `epoch`.

    Returns:
        Below 1 is sooner; None if the run never gets there.
    """
    end = end_of_first_rate(plain.epochs)
    at = cost_at_loss(run.epochs, end.train_loss, field)
    return None if at is None else at / float(getattr(end, field))


def median_reach(
    runs: Sequence[RunRecords], plain: Sequence[RunRecords], field: str
) -> float | None:
    """Median of `reach_ratio` over pairs; None where some pair never got there."""
    ratios = [reach_ratio(run, other, field) for run, other in zip(runs, plain, strict=True)]
    there = [ratio for ratio in ratios if ratio is not None]
    return statistics.median(there) if len(there) == len(ratios) else None


def end_differences(
    runs: Sequence[RunRecords], plain: Sequence[RunRecords]
) -> tuple[PairedInterval, PairedInterval]:
    """Ends of paired runs: test accuracy in points and training loss, each run less its partner.

    Args:
        runs: One per seed.
        plain: Their partners, in the same order.

    Returns:
        Two intervals, over the pairs whose values are finite.
    """
    ends = [(run.epochs[-1], other.epochs[-1]) for run, other in zip(runs, plain, strict=True)]
    return (
        finite_interval(100 * (a.test_accuracy - b.test_accuracy) for a, b in ends),
        finite_interval(a.train_loss - b.train_loss for a, b in ends),
    )


def finite_interval(differences: Iterable[float]) -> PairedInterval:
    """The 95 % interval over the finite ones; its n says how many those are."""
    return paired_interval([value for value in differences if math.isfinite(value)])
