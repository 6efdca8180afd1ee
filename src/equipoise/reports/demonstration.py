"""What the demonstration of correction has shown, as values: arms on paired seeds, and a probe."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from equipoise.records import EpochRecord, RunRecords
from equipoise.reports.reaching import (
    end_differences,
    end_of_first_rate,
    finite_interval,
    reach_ratio,
)
from equipoise.reports.statistics import PairedInterval, Spread, mean_and_deviation

Kind = Literal["plain", "control", "equal compute", "published", "ours"]
FIXED_PARTITION = "fixed_partition"
"""Name of the control that shares the batches of the arm that is shown, and nothing else."""
COSTS = {"epochs": "epoch", "passes": "data_passes", "seconds": "training_seconds"}


@dataclass(frozen=True, kw_only=True)
class Member:
    """An arm of the demonstration.

    Args:
        name: Label of its runs.
        what: In words, as a sentence can begin with.
        kind: Its part in the argument.
    """

    name: str
    what: str
    kind: Kind


@dataclass(frozen=True, kw_only=True)
class Reached:
    """Cost to plain's training loss at the end of its first learning rate, over plain's cost.

    Args:
        ratio: Over the pairs that got there; below 1 is sooner.
        num_never: Pairs that never did, which the ratio leaves out.
    """

    ratio: PairedInterval
    num_never: int


@dataclass(frozen=True, kw_only=True)
class Variance:
    """What became of the variance of a batch's gradient, means over the seeds.

    Args:
        removable: Share that the best coefficient removes at the end of the first learning rate.
        left: Share that the coefficient in use has left there.
        left_at_end: The same at the end of training; None where it is not known.
        coefficient: In use at the end of the first learning rate.
        source: "records", where the corrector watches its gradients, or "probe".
    """

    removable: float
    left: float
    left_at_end: float | None
    coefficient: float
    source: Literal["records", "probe"]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One arm over its seeds, against plain training of the same seeds.

    Args:
        member: Which.
        n: Pairs.
        num_diverged: Runs that ended with a loss that is not finite; they are in no interval.
        engine: Whether kernels for active weights ran it.
        epochs: It was trained for.
        passes: Over the data, of a whole run.
        seconds: Of training, of a whole run.
        reached: Per cost: epochs, passes, seconds.
        loss: Training loss after as many epochs as plain's first learning rate lasts.
        loss_difference: The same, less plain's.
        accuracy: Test accuracy at the end, in per cent.
        accuracy_difference: The same, less plain's, in points.
        variance: None where nothing is corrected.
    """

    member: Member
    n: int
    num_diverged: int
    engine: bool
    epochs: int
    passes: float
    seconds: float
    reached: Mapping[str, Reached]
    loss: Spread
    loss_difference: PairedInterval
    accuracy: Spread
    accuracy_difference: PairedInterval
    variance: Variance | None


@dataclass(frozen=True, kw_only=True)
class Against:
    """The corrector that is shown against one other arm, paired.

    Args:
        member: The other arm.
        loss: Training loss after as many epochs as plain's first learning rate lasts, ours less
            theirs.
        num_lower: Pairs in which ours is lower.
        seconds: To plain's loss, ours over theirs, over the pairs in which both got there.
        accuracy: At the end, ours less theirs, in points.
    """

    member: Member
    loss: PairedInterval
    num_lower: int
    seconds: PairedInterval
    accuracy: PairedInterval


@dataclass(frozen=True, kw_only=True)
class Demonstration:
    """All that was measured.

    Args:
        readings: One per arm, plain first.
        phase: Epochs of plain's first learning rate.
        target: Plain's mean training loss at its end.
        against: The arm of kind "ours" against the controls.
        longer_less_dearest: Test accuracy at the end in points, plain with equal compute less the
            dearest corrector.
        seeds: That plain has.
    """

    readings: tuple[Reading, ...]
    phase: int
    target: float
    against: tuple[Against, ...]
    longer_less_dearest: PairedInterval
    seeds: tuple[int, ...]

    def of_kind(self, kind: Kind) -> list[Reading]:
        """The readings of one kind, in order."""
        return [reading for reading in self.readings if reading.member.kind == kind]

    @property
    def dearest(self) -> Reading:
        """The corrector with the most passes."""
        return _dearest(self.readings)


def read_demonstration(
    members: Sequence[Member],
    runs: Mapping[str, Sequence[RunRecords]],
    probe: Mapping[str, Any] | None,
) -> Demonstration:
    """Reads finished runs.

    Args:
        members: Plain first, and exactly one of kind "ours" and one of kind "equal compute".
        runs: By name, each with at least one epoch; an arm may have fewer seeds than plain.
        probe: A diagnosis of plain training at the end of its first learning rate, or None.

    Returns:
        Every number is over the seeds that an arm and plain both have.
    """
    plain = {run.seed: run for run in runs[members[0].name]}
    phase = end_of_first_rate(next(iter(plain.values())).epochs).epoch
    readings = tuple(
        _read(member, [r for r in runs[member.name] if r.seed in plain], plain, phase, probe)
        for member in members
    )
    ours = next(member for member in members if member.kind == "ours")
    longer = next(member for member in members if member.kind == "equal compute")
    longer_runs = {run.seed: run for run in runs[longer.name]}
    dearest = [r for r in runs[_dearest(readings).member.name] if r.seed in longer_runs]
    return Demonstration(
        readings=readings,
        phase=phase,
        target=statistics.fmean(end_of_first_rate(r.epochs).train_loss for r in plain.values()),
        against=tuple(
            _against(member, runs[ours.name], runs[member.name], plain, phase)
            for member in members
            if member.kind == "control"
        ),
        longer_less_dearest=end_differences([longer_runs[r.seed] for r in dearest], dearest)[0],
        seeds=tuple(sorted(plain)),
    )


def left_by(coefficient: float, best: float, removable: float) -> float:
    r"""Share of the variance that a coefficient leaves.

    .. math:: 1 - \rho^2 (2 u - u^2), \quad u = c / c^*

    Args:
        coefficient: In use.
        best: The one that would leave the least, above 0.
        removable: What that one removes, in [0, 1].

    Example:
        >>> left_by(0.5, 0.5, 0.4), left_by(0.0, 0.5, 0.4)
        (0.6, 1.0)
    """
    share = coefficient / best
    return 1.0 - removable * (2 * share - share**2)


def _read(
    member: Member,
    runs: Sequence[RunRecords],
    plain: Mapping[int, RunRecords],
    phase: int,
    probe: Mapping[str, Any] | None,
) -> Reading:
    """One arm."""
    partners = [plain[run.seed] for run in runs]
    finals = [run.epochs[-1] for run in runs]
    accuracy, _ = end_differences(runs, partners)
    pairs = list(zip(runs, partners, strict=True))
    return Reading(
        member=member,
        n=len(runs),
        num_diverged=sum(not _is_finite(final) for final in finals),
        engine=all(bool(run.manifest.get("engine", {}).get("used")) for run in runs),
        epochs=finals[0].epoch,
        passes=statistics.fmean(final.data_passes for final in finals),
        seconds=statistics.fmean(final.training_seconds for final in finals),
        reached={name: _reached(pairs, field) for name, field in COSTS.items()},
        loss=mean_and_deviation(_at(run, phase).train_loss for run in runs),
        loss_difference=finite_interval(
            _at(run, phase).train_loss - _at(other, phase).train_loss for run, other in pairs
        ),
        accuracy=mean_and_deviation(100 * final.test_accuracy for final in finals),
        accuracy_difference=accuracy,
        variance=_variance(member, runs, phase, probe),
    )


def _reached(pairs: Sequence[tuple[RunRecords, RunRecords]], field: str) -> Reached:
    """Ratios of one cost."""
    ratios = [reach_ratio(run, other, field) for run, other in pairs]
    there = [ratio for ratio in ratios if ratio is not None]
    return Reached(ratio=finite_interval(there), num_never=len(ratios) - len(there))


def _variance(
    member: Member, runs: Sequence[RunRecords], phase: int, probe: Mapping[str, Any] | None
) -> Variance | None:
    """From what the corrector has seen; else what the probe says of the coefficient in use."""
    at = [_at(run, phase) for run in runs]
    coefficient = statistics.fmean(record.coefficient for record in at)
    removable = _mean(record.rho_squared for record in at)
    left = _mean(record.variance_ratio for record in at)
    if removable is not None and left is not None:
        return Variance(
            removable=removable,
            left=left,
            left_at_end=_mean(run.epochs[-1].variance_ratio for run in runs),
            coefficient=coefficient,
            source="records",
        )
    if member.kind != "published" or probe is None:
        return None
    # A snapshot's age runs from 0 to an epoch; the probe's last age is the whole epoch.
    last = probe["ages"][-1]
    if last["best_coefficient"] <= 0.0:
        return None
    return Variance(
        removable=last["rho_squared"],
        left=left_by(coefficient, last["best_coefficient"], last["rho_squared"]),
        left_at_end=None,
        coefficient=coefficient,
        source="probe",
    )


def _against(
    member: Member,
    ours: Sequence[RunRecords],
    theirs: Sequence[RunRecords],
    plain: Mapping[int, RunRecords],
    phase: int,
) -> Against:
    """Ours against another arm, seed by seed."""
    others = {run.seed: run for run in theirs}
    pairs = [(run, others[run.seed]) for run in ours if run.seed in others]
    losses = [_at(a, phase).train_loss - _at(b, phase).train_loss for a, b in pairs]
    seconds = [
        tuple(reach_ratio(run, plain[run.seed], "training_seconds") for run in pair)
        for pair in pairs
        if pair[0].seed in plain
    ]
    accuracy, _ = end_differences([a for a, _ in pairs], [b for _, b in pairs])
    return Against(
        member=member,
        loss=finite_interval(losses),
        num_lower=sum(loss < 0.0 for loss in losses),
        seconds=finite_interval(a / b for a, b in seconds if a is not None and b is not None),
        accuracy=accuracy,
    )


def _dearest(readings: Sequence[Reading]) -> Reading:
    """The corrector with the most passes."""
    correctors = [r for r in readings if r.member.kind in ("published", "ours")]
    return max(correctors, key=lambda reading: reading.passes)


def _at(run: RunRecords, epoch: int) -> EpochRecord:
    """The record of that epoch, or the last one of a shorter run."""
    return run.epochs[min(epoch, len(run.epochs)) - 1]


def _is_finite(record: EpochRecord) -> bool:
    """Whether a run is still on its feet."""
    return abs(record.train_loss) < float("inf")


def _mean(values: Iterable[float | None]) -> float | None:
    """Of those that are there."""
    found = [value for value in values if value is not None]
    return statistics.fmean(found) if found else None
