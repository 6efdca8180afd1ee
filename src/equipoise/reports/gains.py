"""How soon and by how much one run is better than another, from their test accuracies."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from equipoise.records import EpochRecord


def cost_at_accuracy(records: Sequence[EpochRecord], target: float, field: str) -> float | None:
    """Cost at the end of the first epoch whose test accuracy is at least `target`.

    Args:
        records: Of one run, in order of epochs.
        target: Accuracy in [0, 1].
        field: Name of a cumulative cost in an `EpochRecord`, for example ``training_seconds``, or
            `epoch`.

    Returns:
        In the unit of the cost; None if the run never gets there.
    """
    for record in records:
        if record.test_accuracy >= target:
            return float(getattr(record, field))
    return None


def accuracy_targets(
    runs: Sequence[Sequence[EpochRecord]], *, step: float = 0.01
) -> tuple[float, ...]:
    """Multiples of `step` above the lowest first accuracy, up to the highest of all.

    Args:
        runs: Records of each run.
        step: Distance of two targets, above 0.

    Returns:
        Ascending; empty without records, or where no multiple lies in between.
    """
    firsts = [records[0].test_accuracy for records in runs if records]
    if not firsts:
        return ()
    best = max(record.test_accuracy for records in runs for record in records)
    low, high = (math.floor(value / step + 1e-9) for value in (min(firsts), best))
    # Rounded so that 0.57 is 57 hundredths and no more, as accuracies are written.
    return tuple(round(step * n, 10) for n in range(low + 1, high + 1))


@dataclass(frozen=True, kw_only=True)
class Target:
    """One accuracy, and what it cost each of two runs.

    Args:
        accuracy: In [0, 1].
        cost: Of the run; None for never.
        plain: Of the other; None for never.
    """

    accuracy: float
    cost: float | None
    plain: float | None

    @property
    def reduction(self) -> float | None:
        """One minus the ratio of the costs; None unless both got there."""
        if self.cost is None or not self.plain:
            return None
        return 1.0 - self.cost / self.plain


@dataclass(frozen=True, kw_only=True)
class Reduction:
    """What a run saves on the way to accuracies that another reaches as well.

    Args:
        targets: All of them.
        mean: Of the reductions at targets that both reached; None without one.
        reached_by_both: How many those are.
        only_run: Targets that the run alone reached; they are in no mean.
        only_plain: Targets that the other alone reached; with these in it the mean would be lower.
    """

    targets: tuple[Target, ...]
    mean: float | None
    reached_by_both: int
    only_run: int
    only_plain: int


def reduction(
    run: Sequence[EpochRecord],
    plain: Sequence[EpochRecord],
    targets: Sequence[float],
    field: str = "epoch",
) -> Reduction:
    r"""Saving of `run` against `plain`: :math:`1 - E_\mathrm{run} / E_\mathrm{plain}`.

    Averaged over the targets that both reach. Above 0 is sooner.

    Args:
        run: Records.
        plain: Records of its partner.
        targets: Accuracies in [0, 1].
        field: As in `cost_at_accuracy`.

    References:
        Figures 4 and 15 to 21 of the AGENT paper, which says 52.1 % for the best setting.
    """
    found = tuple(
        Target(
            accuracy=target,
            cost=cost_at_accuracy(run, target, field),
            plain=cost_at_accuracy(plain, target, field),
        )
        for target in targets
    )
    saved = [target.reduction for target in found if target.reduction is not None]
    return Reduction(
        targets=found,
        mean=statistics.fmean(saved) if saved else None,
        reached_by_both=sum(t.cost is not None and t.plain is not None for t in found),
        only_run=sum(t.cost is not None and t.plain is None for t in found),
        only_plain=sum(t.cost is None and t.plain is not None for t in found),
    )


def average_gain(ours: Sequence[float], plain: Sequence[float]) -> float:
    """Mean of the differences at the same budgets, in the unit of the numbers.

    Args:
        ours: One number for each budget, at least one.
        plain: As many, in the same order.

    Raises:
        ValueError: The two differ in length, or are empty.

    Example:
        >>> average_gain([2.0, 4.0], [1.0, 1.0])
        2.0
    """
    if len(ours) != len(plain) or not ours:
        raise ValueError(
            f"an average gain takes as many budgets of both, at least one; got {len(ours)} and "
            f"{len(plain)}; leave out those that only one has."
        )
    return statistics.fmean(a - b for a, b in zip(ours, plain, strict=True))


def accuracies_at(records: Sequence[EpochRecord], epochs: Sequence[int]) -> list[float | None]:
    """Test accuracy after each of these epochs; None where the run has not got so far."""
    known = {record.epoch: record.test_accuracy for record in records}
    return [known.get(epoch) for epoch in epochs]


def jitter(records: Sequence[EpochRecord], *, skip: int = 0) -> float | None:
    r"""Mean change of test accuracy between successive epochs beside its own trend.

    .. math:: \frac{1}{E-2} \sum_e \tfrac12 \lvert a_{e+1} - 2 a_e + a_{e-1} \rvert

    A steady rise has none; a curve that goes up and down by d has d.

    Args:
        records: Of one run.
        skip: Epochs at the start that are left out, at least 0.

    Returns:
        In [0, 1]; None with fewer than three epochs left.
    """
    curve = [record.test_accuracy for record in records[skip:]]
    if len(curve) < 3:
        return None
    triples = zip(curve, curve[1:], curve[2:], strict=False)
    return statistics.fmean(abs(c - 2.0 * b + a) / 2.0 for a, b, c in triples)
