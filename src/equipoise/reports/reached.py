"""Epochs and seconds to an accuracy, and what an arm saves on the way, as a table and panels."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from equipoise.records import EpochRecord, RunRecords, epoch_after
from equipoise.reports.arms import baseline_first, group_by_label
from equipoise.reports.gains import (
    Reduction,
    accuracies_at,
    accuracy_targets,
    average_gain,
    cost_at_accuracy,
    jitter,
    reduction,
)
from equipoise.reports.numbers import MISSING, effect
from equipoise.reports.panels import Line, Panel
from equipoise.reports.statistics import paired_interval
from equipoise.reports.tables import Table

BUDGETS = (0.1, 0.2, 0.35, 0.45, 0.7, 1.0)
"""Shares of training at which table 1 reads its six numbers."""

_COSTS = {"epoch": "Epochs", "training_seconds": "Training time (s)"}


def reach_table(runs: Sequence[RunRecords], baseline: str, *, step: float = 0.01) -> Table:
    """Savings, gains and steadiness of every arm against the baseline, over paired seeds.

    Args:
        runs: Of any number of arms.
        baseline: Label of the arm that the others are compared with.
        step: Distance of the accuracies that are looked at, in (0, 1).

    Raises:
        ValueError: There is no arm of that name, or two runs of one arm and seed.
    """
    arms = baseline_first(_arms(runs, baseline), baseline)
    targets = accuracy_targets([run.epochs for run in runs], step=step)
    plain = {run.seed: run for run in arms[baseline] if run.epochs}
    rows = [
        _row(label, {run.seed: run for run in arm if run.epochs}, plain, targets)
        for label, arm in arms.items()
    ]
    return Table(
        title=f"On the way to {len(targets)} accuracies, against {baseline}",
        columns=(
            *("Arm", "Pairs", "Epochs (%)", "Seconds (%)", "Both"),
            *("Ours", "Theirs", "Gain", "Jitter"),
        ),
        rows=tuple(rows),
        notes=(
            "Epochs and seconds saved: 1 minus the ratio of costs, averaged over the accuracies "
            "that both runs of a pair reach (Both, over all pairs); below 0 the arm is later. An "
            "accuracy that only the arm reaches (Ours), or only the baseline (Theirs), is in no "
            "average.",
            "Gain in points: mean difference of test accuracy after "
            f"{', '.join(f'{100 * share:.0f}' for share in BUDGETS)} % of training. Jitter in "
            "points: mean half-difference of an epoch's accuracy to those around it.",
        ),
    )


def reach_panels(runs: Sequence[RunRecords], baseline: str, *, step: float = 0.01) -> list[Panel]:
    """Epochs and seconds against the accuracy that they lead to, as in figures 4 and 15 to 21.

    A line ends where some seed of its arm never gets.
    """
    arms = baseline_first(_arms(runs, baseline), baseline)
    targets = accuracy_targets([run.epochs for run in runs], step=step)
    percent = [100 * target for target in targets]
    return [
        Panel(
            f"{title} to an accuracy",
            "Test accuracy (%)",
            title,
            [
                Line(label, percent, [_mean_cost(arm, target, field) for target in targets])
                for label, arm in arms.items()
            ],
        )
        for field, title in _COSTS.items()
    ]


def _arms(runs: Sequence[RunRecords], baseline: str) -> dict[str, list[RunRecords]]:
    """Runs by label."""
    arms = group_by_label(runs)
    if baseline not in arms:
        raise ValueError(
            f"there is no arm {baseline!r}; the arms here are {', '.join(arms)}: choose one."
        )
    return arms


def _row(
    label: str,
    arm: Mapping[int, RunRecords],
    plain: Mapping[int, RunRecords],
    targets: Sequence[float],
) -> tuple[str, ...]:
    """One arm; of the baseline itself its jitter only."""
    smooth = [value for run in arm.values() if (value := jitter(run.epochs)) is not None]
    last = f"{100 * statistics.fmean(smooth):.2f}" if smooth else MISSING
    pairs = [(arm[seed].epochs, plain[seed].epochs) for seed in sorted(arm.keys() & plain.keys())]
    if arm == plain or not pairs:
        return (label, str(len(pairs)), *[MISSING] * 6, last)
    by_cost = {
        field: [reduction(ours, theirs, targets, field) for ours, theirs in pairs]
        for field in _COSTS
    }
    epochs = by_cost["epoch"]
    gains = [gain for ours, theirs in pairs if (gain := _gain(ours, theirs)) is not None]
    return (
        label,
        str(len(pairs)),
        *(_saved(found) for found in by_cost.values()),
        str(sum(found.reached_by_both for found in epochs)),
        str(sum(found.only_run for found in epochs)),
        str(sum(found.only_plain for found in epochs)),
        effect(paired_interval(gains), scale=100),
        last,
    )


def _saved(found: Sequence[Reduction]) -> str:
    """The mean over pairs in per cent, with its interval."""
    return effect(paired_interval([r.mean for r in found if r.mean is not None]), scale=100)


def _gain(ours: Sequence[EpochRecord], theirs: Sequence[EpochRecord]) -> float | None:
    """The average gain over the budgets that both have."""
    length = max(len(ours), len(theirs))
    epochs = sorted({epoch_after(share, length) for share in BUDGETS})
    both = zip(accuracies_at(ours, epochs), accuracies_at(theirs, epochs), strict=True)
    known = [(a, b) for a, b in both if a is not None and b is not None]
    return average_gain(*zip(*known, strict=True)) if known else None


def _mean_cost(arm: Sequence[RunRecords], target: float, field: str) -> float | None:
    """Mean over the seeds; None where one never gets there."""
    costs = [cost_at_accuracy(run.epochs, target, field) for run in arm]
    known = [cost for cost in costs if cost is not None]
    return statistics.fmean(known) if known and len(known) == len(costs) else None
