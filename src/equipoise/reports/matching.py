"""Runs at a budget: the same epochs, data passes, FLOPs or seconds for both arms of a pair."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from equipoise.records import EpochRecord, RunRecords

# Two arms that do the same work may sum it up in another order.
RELATIVE_TOLERANCE = 1e-9


class Cost(StrEnum):
    """A cost that two arms can be made equal in."""

    EPOCHS = "epochs"
    PASSES = "passes"
    FLOPS = "flops"
    SECONDS = "seconds"

    @property
    def field(self) -> str:
        """Name of the cumulative cost in an `EpochRecord`."""
        return _FIELDS[self]


_FIELDS = {
    Cost.EPOCHS: "epoch",
    Cost.PASSES: "data_passes",
    Cost.FLOPS: "training_flops",
    Cost.SECONDS: "training_seconds",
}


@dataclass(frozen=True)
class MatchedPair:
    """Two runs of one seed, read at the same budget.

    Args:
        seed: The seed that both share.
        budget: The smaller of the two final costs, in the unit of the cost.
        arm: Last record of the arm within the budget; None if it completed no epoch in it.
        baseline: Last record of the baseline within the budget; None likewise.
        arm_final: Last record of the whole run of the arm.
        baseline_final: Last record of the whole run of the baseline.
    """

    seed: int
    budget: float
    arm: EpochRecord | None
    baseline: EpochRecord | None
    arm_final: EpochRecord
    baseline_final: EpochRecord

    @property
    def arm_is_cut(self) -> bool:
        """Whether the arm went on training after the budget."""
        return _is_cut(self.arm, self.arm_final)

    @property
    def baseline_is_cut(self) -> bool:
        """Whether the baseline went on training after the budget."""
        return _is_cut(self.baseline, self.baseline_final)


def at_cost(run: RunRecords, cost: Cost, budget: float) -> EpochRecord | None:
    """Last record of `run` whose cost does not exceed `budget`.

    Args:
        run: One run; it is not changed.
        cost: What the budget limits.
        budget: In the unit of that cost, from the start of the run.

    Returns:
        The record, or None when not even the first epoch fits: missing, never zero.
    """
    limit = budget * (1.0 + RELATIVE_TOLERANCE)
    within = [record for record in run.epochs if float(getattr(record, cost.field)) <= limit]
    return within[-1] if within else None


def at_epochs(run: RunRecords, budget: float) -> EpochRecord | None:
    """Last record within `budget` completed epochs; None if there is none."""
    return at_cost(run, Cost.EPOCHS, budget)


def at_passes(run: RunRecords, budget: float) -> EpochRecord | None:
    """Last record within `budget` gradient evaluations of the training set; None if none."""
    return at_cost(run, Cost.PASSES, budget)


def at_flops(run: RunRecords, budget: float) -> EpochRecord | None:
    """Last record within `budget` training FLOPs; None if there is none."""
    return at_cost(run, Cost.FLOPS, budget)


def at_seconds(run: RunRecords, budget: float) -> EpochRecord | None:
    """Last record within `budget` seconds of training; None if there is none."""
    return at_cost(run, Cost.SECONDS, budget)


def match_pair(arm: RunRecords, baseline: RunRecords, cost: Cost) -> MatchedPair:
    """Reads two runs of one seed at the largest budget that both completed.

    Args:
        arm: Run of the arm, with at least one record.
        baseline: Run of the baseline with the same seed, with at least one record.
        cost: What is made equal.

    Returns:
        Both records; at least one of them is the last of its run.

    Raises:
        ValueError: The seeds differ, or a run has no record.
    """
    if arm.seed != baseline.seed:
        raise ValueError(
            f"a pair shares its seed; got seeds {arm.seed} and {baseline.seed}; pair runs by seed."
        )
    for run in (arm, baseline):
        if not run.epochs:
            raise ValueError(
                f"{run.folder} has no completed epoch, so it cannot be paired; leave it out."
            )
    finals = (arm.epochs[-1], baseline.epochs[-1])
    budget = min(float(getattr(final, cost.field)) for final in finals)
    return MatchedPair(
        arm.seed, budget, at_cost(arm, cost, budget), at_cost(baseline, cost, budget), *finals
    )


def is_not_annealed(record: EpochRecord, final: EpochRecord) -> bool:
    """Whether the learning rate was still above the one that the run ended with."""
    return record.learning_rate > final.learning_rate


def _is_cut(record: EpochRecord | None, final: EpochRecord) -> bool:
    """Whether `record` is earlier than the end of its run."""
    return record is not None and record.epoch < final.epoch
