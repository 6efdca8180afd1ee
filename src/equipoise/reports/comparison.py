"""Arms against a baseline: paired by seed, at equal epochs, equal FLOPs and equal seconds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from equipoise.records import RunRecords
from equipoise.reports.arms import (
    METRICS,
    ArmSummary,
    Metric,
    baseline_first,
    group_by_label,
    summarize_arm,
)
from equipoise.reports.manifests import device, mixed_engines
from equipoise.reports.matching import Cost, MatchedPair, match_pair
from equipoise.reports.reaching import cost_at_loss
from equipoise.reports.statistics import (
    PairedInterval,
    Verdict,
    mean_and_deviation,
    paired_interval,
)

MATCHINGS = (Cost.EPOCHS, Cost.FLOPS, Cost.SECONDS)


@dataclass(frozen=True)
class Difference:
    """One metric of an arm minus the baseline's, over the pairs that have it.

    Args:
        metric: What is compared.
        interval: Of the paired differences.
        verdict: Better or worse than the baseline, in the direction of the metric.
        num_missing: Pairs in which an arm completed no epoch within the budget.
        num_not_finite: Pairs left out because a value is not a finite number.
    """

    metric: Metric
    interval: PairedInterval
    verdict: Verdict
    num_missing: int
    num_not_finite: int


@dataclass(frozen=True)
class MatchedComparison:
    """An arm against the baseline at one equal cost.

    Args:
        cost: What is equal within each pair.
        pairs: The pairs, by seed.
        differences: One per metric, in the order of `METRICS`.
    """

    cost: Cost
    pairs: tuple[MatchedPair, ...]
    differences: tuple[Difference, ...]


@dataclass(frozen=True)
class Reach:
    """How soon an arm reaches the final training loss of the baseline.

    Args:
        epochs: Ratio of epochs, arm over baseline; below 1 is sooner.
        passes: The same as a ratio of data passes, that is with the cost of the epochs.
        num_never: Pairs in which the arm never got there; they are not in the ratios, which
            therefore flatter the arm when this is not zero.
        num_without_target: Pairs whose baseline ended with a loss that is not finite.
    """

    epochs: PairedInterval
    passes: PairedInterval
    num_never: int
    num_without_target: int


@dataclass(frozen=True)
class ArmComparison:
    """One arm against the baseline.

    Args:
        label: Name of the arm.
        baseline: Name of the baseline.
        seeds: Seeds that both have, ascending: the pairs.
        seeds_only_in_arm: Left out of the pairs.
        seeds_only_in_baseline: Left out of the pairs.
        matchings: One per cost, in the order of `MATCHINGS`.
        reach: Epochs to the baseline's final training loss.
        pass_ratio: Data passes per epoch, arm over baseline; None without a pair.
        devices: The devices of the pairs, where manifests name them; more than one makes the
            comparison at equal seconds one of machines.
    """

    label: str
    baseline: str
    seeds: tuple[int, ...]
    seeds_only_in_arm: tuple[int, ...]
    seeds_only_in_baseline: tuple[int, ...]
    matchings: tuple[MatchedComparison, ...]
    reach: Reach
    pass_ratio: float | None
    devices: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """All arms of a set of runs, and each of them against the baseline.

    Args:
        baseline: Name of the baseline.
        confidence: Coverage of every interval.
        arms: The baseline first, then the others by name.
        against: One per arm other than the baseline, in the same order.
        engines: What to know of seconds where runs were trained by different engines, or None.
    """

    baseline: str
    confidence: float
    arms: tuple[ArmSummary, ...]
    against: tuple[ArmComparison, ...]
    engines: str | None = None


def compare_runs(
    runs: Sequence[RunRecords], baseline: str, *, confidence: float = 0.95
) -> Comparison:
    """Compares every arm with a baseline, paired by seed and at equal cost.

    In each pair the budget is the smaller of the two final costs, and each run is read at its
    last epoch within it. The difference is arm minus baseline; its interval is Student's over
    the pairs. Accuracies are those of the last epoch, never of the best one.

    Args:
        runs: Runs of two or more arms; not changed.
        baseline: Label of the arm that the others are compared with.
        confidence: Coverage of the intervals, in (0, 1).

    Returns:
        Summaries of all arms and one comparison per arm other than the baseline.

    Raises:
        ValueError: There is no such baseline, no other arm, or two runs share label and seed.
    """
    arms = group_by_label(runs)
    if baseline not in arms:
        raise ValueError(
            f"no run has the label {baseline!r}; choose the baseline among {sorted(arms)}."
        )
    if len(arms) < 2:
        raise ValueError(
            f"all runs have the label {baseline!r}, so there is nothing to compare; "
            "add the runs of another arm."
        )
    ordered = baseline_first(arms, baseline)
    return Comparison(
        baseline=baseline,
        confidence=confidence,
        arms=tuple(summarize_arm(arm) for arm in ordered.values()),
        against=tuple(
            _against(arm, arms[baseline], confidence)
            for label, arm in ordered.items()
            if label != baseline
        ),
        engines=mixed_engines(ordered),
    )


def epochs_to_loss(run: RunRecords, loss: float) -> tuple[float, float] | None:
    """Where the training loss first comes down to `loss`, interpolated between epochs.

    Args:
        run: One run; not changed.
        loss: Training loss to reach.

    Returns:
        Epochs and data passes at that point, or None if the run never gets there. The first epoch
        is not divided: a run that starts below `loss` gets there at the end of epoch 1.
    """
    epochs = cost_at_loss(run.epochs, loss, "epoch")
    passes = cost_at_loss(run.epochs, loss, "data_passes")
    return None if epochs is None or passes is None else (epochs, passes)


def _against(
    arm: Sequence[RunRecords], baseline: Sequence[RunRecords], confidence: float
) -> ArmComparison:
    """One arm against the baseline, over the seeds that both have completed epochs for."""
    arm_runs = {run.seed: run for run in arm if run.epochs}
    baseline_runs = {run.seed: run for run in baseline if run.epochs}
    seeds = tuple(sorted(arm_runs.keys() & baseline_runs.keys()))
    pairs = [(arm_runs[seed], baseline_runs[seed]) for seed in seeds]
    devices = {device(run) for pair in pairs for run in pair} - {None}
    return ArmComparison(
        label=arm[0].label,
        baseline=baseline[0].label,
        seeds=seeds,
        seeds_only_in_arm=tuple(sorted(arm_runs.keys() - baseline_runs.keys())),
        seeds_only_in_baseline=tuple(sorted(baseline_runs.keys() - arm_runs.keys())),
        matchings=tuple(_matched(pairs, cost, confidence) for cost in MATCHINGS),
        reach=_reach(pairs, confidence),
        pass_ratio=_pass_ratio(pairs),
        devices=tuple(sorted(name for name in devices if name is not None)),
    )


def _matched(
    pairs: Sequence[tuple[RunRecords, RunRecords]], cost: Cost, confidence: float
) -> MatchedComparison:
    """All metrics at one equal cost."""
    matched = tuple(match_pair(arm, baseline, cost) for arm, baseline in pairs)
    differences = tuple(_difference(matched, metric, confidence) for metric in METRICS)
    return MatchedComparison(cost, matched, differences)


def _difference(pairs: Sequence[MatchedPair], metric: Metric, confidence: float) -> Difference:
    """One metric over matched pairs; what is missing or not finite is counted, not guessed."""
    found = [
        metric.of(pair.arm) - metric.of(pair.baseline)
        for pair in pairs
        if pair.arm is not None and pair.baseline is not None
    ]
    finite = [value for value in found if math.isfinite(value)]
    interval = paired_interval(finite, confidence)
    return Difference(
        metric=metric,
        interval=interval,
        verdict=interval.verdict(higher_is_better=metric.higher_is_better),
        num_missing=len(pairs) - len(found),
        num_not_finite=len(found) - len(finite),
    )


def _reach(pairs: Sequence[tuple[RunRecords, RunRecords]], confidence: float) -> Reach:
    """Ratios of epochs and passes to the baseline's final training loss."""
    ratios = []
    num_never = num_without_target = 0
    for arm, baseline in pairs:
        target = baseline.epochs[-1].train_loss
        start, end = epochs_to_loss(baseline, target), epochs_to_loss(arm, target)
        if start is None or not math.isfinite(target):
            num_without_target += 1
        elif end is None:
            num_never += 1
        else:
            ratios.append((end[0] / start[0], end[1] / start[1]))
    return Reach(
        epochs=paired_interval([epochs for epochs, _ in ratios], confidence),
        passes=paired_interval([passes for _, passes in ratios], confidence),
        num_never=num_never,
        num_without_target=num_without_target,
    )


def _pass_ratio(pairs: Sequence[tuple[RunRecords, RunRecords]]) -> float | None:
    """Mean ratio of data passes per epoch."""
    ratios = []
    for arm, baseline in pairs:
        ours, theirs = arm.epochs[-1], baseline.epochs[-1]
        ratios.append((ours.data_passes / ours.epoch) / (theirs.data_passes / theirs.epoch))
    return mean_and_deviation(ratios).mean
