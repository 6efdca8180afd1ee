"""Comparisons in sentences that can be read without the tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from equipoise.records import EpochRecord
from equipoise.reports.arms import TEST_ACCURACY, ArmSummary
from equipoise.reports.comparison import ArmComparison, Difference, MatchedComparison
from equipoise.reports.matching import Cost, is_not_annealed
from equipoise.reports.numbers import effect, ratio

# From about this many pairs on, an interval says by itself what could have been seen.
NUM_PAIRS_IS_SMALL = 10

EQUAL = {
    Cost.EPOCHS: "equal epochs",
    Cost.PASSES: "equal data passes",
    Cost.FLOPS: "equal FLOPs",
    Cost.SECONDS: "equal seconds",
}


def verdict_sentence(arm: ArmComparison) -> str:
    """The whole answer about one arm in one sentence.

    Args:
        arm: One arm against the baseline.

    Returns:
        For example ``"a against b (n = 3 pairs): at equal epochs test accuracy +0.3 points
        [-0.8, +1.4], no difference; ...; one epoch costs 3.33 times the passes."``
    """
    if not arm.seeds:
        return f"{arm.label} against {arm.baseline}: no seed in common, so there is no pair."
    parts: list[str] = []
    for matched in arm.matchings:
        difference = _of(matched)
        subject = "test accuracy " if not parts else ""
        parts.append(f"at {EQUAL[matched.cost]} {subject}{_answer(difference, len(arm.seeds))}")
    parts.append(f"one epoch costs {arm.pass_ratio:.2f} times the passes")
    return f"{arm.label} against {arm.baseline} ({_pairs(len(arm.seeds))}): {'; '.join(parts)}."


def caveats(arm: ArmComparison) -> tuple[str, ...]:
    """What a reader must know beside the verdict, one sentence each.

    Args:
        arm: One arm against the baseline.

    Returns:
        Epochs to the baseline's loss, runs cut in mid-schedule, pairs that are missing or left
        out, machines that differ, and the size of effect that so few pairs could show.
    """
    sentences = [*_reach(arm)] if arm.seeds else []
    for matched in arm.matchings:
        sentences += [*_cuts(arm, matched), *_gaps(matched)]
    for seeds, owner in (
        (arm.seeds_only_in_arm, arm.label),
        (arm.seeds_only_in_baseline, arm.baseline),
    ):
        if seeds:
            names = ", ".join(map(str, seeds))
            sentences.append(f"Left out of the pairs: seed {names}, which only {owner} has.")
    if len(arm.devices) > 1:
        sentences.append(
            f"The runs used different devices ({'; '.join(arm.devices)}), so equal seconds "
            "compare machines as well as methods."
        )
    return (*sentences, *_sensitivity(arm))


def completeness(arm: ArmSummary) -> tuple[str, ...]:
    """What is unfinished about an arm, one sentence each.

    Args:
        arm: Summary of one arm.

    Returns:
        Seeds with fewer epochs than planned, and seeds without any.
    """
    sentences = []
    if arm.unfinished_seeds:
        names = ", ".join(map(str, arm.unfinished_seeds))
        sentences.append(f"{arm.label} is unfinished for seed {names}: fewer epochs than planned.")
    if arm.empty_seeds:
        names = ", ".join(map(str, arm.empty_seeds))
        sentences.append(f"{arm.label} has no completed epoch for seed {names}, which is left out.")
    return tuple(sentences)


def _of(matched: MatchedComparison) -> Difference:
    """The difference in test accuracy."""
    return next(found for found in matched.differences if found.metric == TEST_ACCURACY)


def _answer(difference: Difference, num_pairs: int) -> str:
    """Effect and verdict of one matching; missing is said, never shown as zero."""
    interval = difference.interval
    if interval.mean is None:
        return "missing"
    words = f"{effect(interval, scale=100.0, decimals=1, unit=' points')}, {difference.verdict}"
    return words if interval.n == num_pairs else f"{words} ({interval.n} of {num_pairs} pairs)"


def _reach(arm: ArmComparison) -> Iterable[str]:
    """Epochs and passes to the baseline's final training loss."""
    reach = arm.reach
    num_pairs = len(arm.seeds) - reach.num_without_target
    if reach.num_without_target:
        yield (
            f"In {_share(reach.num_without_target, len(arm.seeds))} {arm.baseline} ended with a "
            "training loss that is not finite, so there is nothing to reach."
        )
    if reach.epochs.mean is not None:
        where = f" in {_share(reach.epochs.n, num_pairs)}" if reach.num_never else ""
        yield (
            f"{arm.label} reached the final training loss of {arm.baseline}{where} after "
            f"{ratio(reach.epochs)} times its epochs and {ratio(reach.passes)} times its "
            "data passes."
        )
    if reach.num_never:
        flattery = "" if reach.epochs.mean is None else "; the ratios leave that out and flatter it"
        yield (
            f"{arm.label} never reached the final training loss of {arm.baseline} in "
            f"{_share(reach.num_never, num_pairs)}{flattery}."
        )


def _cuts(arm: ArmComparison, matched: MatchedComparison) -> Iterable[str]:
    """Which of the two was cut by the matching before its learning rate was annealed."""
    records = {
        arm.label: [(p.arm, p.arm_final) for p in matched.pairs if p.arm_is_cut],
        arm.baseline: [(p.baseline, p.baseline_final) for p in matched.pairs if p.baseline_is_cut],
    }
    for label, cut in records.items():
        found = [
            (record, final)
            for record, final in cut
            if record is not None and is_not_annealed(record, final)
        ]
        if not found:
            continue
        epochs = number_range({record.epoch for record, _ in found})
        finals = number_range({final.epoch for _, final in found})
        rates = _rates(record for record, _ in found)
        yield (
            f"At {EQUAL[matched.cost]} {label} was cut at epoch {epochs} of {finals} "
            f"({_share(len(found), len(matched.pairs))}), in mid-schedule: its learning rate was "
            f"{rates}, not yet annealed to the {_rates(final for _, final in found)} of its end, "
            "so a run planned for this budget may do better."
        )


def _gaps(matched: MatchedComparison) -> Iterable[str]:
    """Pairs without a record within the budget, and pairs that diverged."""
    missing = matched.differences[0].num_missing
    if missing:
        yield (
            f"At {EQUAL[matched.cost]} {_share(missing, len(matched.pairs))} are missing: "
            "one of the two completed no epoch within the budget."
        )
    for difference in matched.differences:
        if difference.num_not_finite:
            yield (
                f"At {EQUAL[matched.cost]} {_share(difference.num_not_finite, len(matched.pairs))} "
                f"are left out of {difference.metric.name} because a value is not finite; "
                "an arm that diverged looks better than it is."
            )


def _sensitivity(arm: ArmComparison) -> Iterable[str]:
    """The size of effect that so few pairs could have shown."""
    if not arm.seeds or len(arm.seeds) >= NUM_PAIRS_IS_SMALL:
        return
    seen = []
    for matched in arm.matchings:
        half = _of(matched).interval.half_width
        if half is not None:
            seen.append(f"{100 * half:.2g} at {EQUAL[matched.cost]}")
    if seen:
        yield (
            f"With so few pairs (n = {len(arm.seeds)}) an effect on test accuracy smaller than the "
            f"half-width of the interval would not be seen: {', '.join(seen)} (points)."
        )
    else:
        yield (
            f"With {_pairs(len(arm.seeds))} there is no interval: no effect of any size can be "
            "told from chance; run more seeds."
        )


def _pairs(count: int) -> str:
    """Number of pairs in words."""
    return f"n = {count} pair" + ("" if count == 1 else "s")


def _share(count: int, total: int) -> str:
    """For example ``2 of 3 pairs``."""
    return f"{count} of {total} pair" + ("" if total == 1 else "s")


def _rates(records: Iterable[EpochRecord]) -> str:
    """Learning rates in as few digits as tell them apart."""
    low, *rest = sorted({f"{record.learning_rate:.2g}" for record in records}, key=float)
    return f"{low} to {rest[-1]}" if rest else low


def number_range(values: Sequence[int] | set[int]) -> str:
    """One number, or the smallest and the largest, for example ``6 to 7``."""
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"
