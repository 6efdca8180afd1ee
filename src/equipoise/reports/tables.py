"""Comparisons as rows of strings, for a terminal and for a page."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from equipoise.reports.arms import ArmSummary
from equipoise.reports.comparison import ArmComparison, Comparison, MatchedComparison
from equipoise.reports.numbers import MISSING, effect, magnitude, mib, spread
from equipoise.reports.wording import (
    EQUAL,
    caveats,
    completeness,
    number_range,
    verdict_sentence,
)


@dataclass(frozen=True)
class Table:
    """A table of strings, ready to be printed or put on a page (escaped there).

    Args:
        title: One line.
        columns: Heads, units included.
        rows: As many cells each as there are columns.
        notes: Sentences that belong below it.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


def arms_table(arms: Iterable[ArmSummary]) -> Table:
    """Final results and cost, one row per arm.

    Args:
        arms: Summaries, in the order of the rows.

    Returns:
        Mean and standard deviation over seeds; ``-`` where there is nothing.
    """
    summaries = list(arms)
    on_device = any(arm.peak_device_memory_bytes.n for arm in summaries)
    memory = (
        ("Peak memory (MiB)", "Peak device memory (MiB)") if on_device else ("Peak memory (MiB)",)
    )
    return Table(
        title="Arms at the end of their runs",
        columns=(
            "Arm",
            "Seeds",
            "Epochs",
            "Test accuracy (%)",
            "Training loss",
            "Passes per epoch",
            "Training FLOPs",
            "Training time (s)",
            *memory,
        ),
        rows=tuple(
            (
                arm.label,
                str(len(arm.seeds)),
                spread(arm.epochs, magnitude),
                spread(arm.test_accuracy, lambda value: f"{100 * value:.2f}"),
                spread(arm.train_loss, lambda value: f"{value:.4f}"),
                spread(arm.passes_per_epoch, lambda value: f"{value:.2f}"),
                spread(arm.training_flops, lambda value: f"{value:.2e}"),
                spread(arm.training_seconds, magnitude),
                spread(arm.peak_memory_bytes, mib),
                *([spread(arm.peak_device_memory_bytes, mib)] if on_device else []),
            )
            for arm in summaries
        ),
        notes=tuple(note for arm in summaries for note in completeness(arm)),
    )


def comparison_table(comparison: Comparison) -> Table:
    """Every arm against the baseline: a row per arm and matching, then sentences.

    Args:
        comparison: From `compare_runs`.

    Returns:
        Differences as arm minus baseline with their interval, the number of pairs and the
        verdict. The notes are the verdict sentence of each arm followed by its caveats, and once
        for all arms whether they were trained by different engines.
    """
    percent = f"{100 * comparison.confidence:g}%"
    return Table(
        title=f"Against {comparison.baseline}: mean paired difference [{percent} interval]",
        columns=(
            "Arm",
            "At",
            "Epochs (arm / baseline)",
            "Test accuracy (points)",
            "Verdict",
            "Training loss",
            "Verdict",
            "Pairs",
        ),
        rows=tuple(
            _difference_row(arm, matched) for arm in comparison.against for matched in arm.matchings
        ),
        notes=tuple(
            sentence
            for arm in comparison.against
            for sentence in (verdict_sentence(arm), *caveats(arm))
        )
        + tuple(note for arm in comparison.arms for note in completeness(arm))
        + (() if comparison.engines is None else (comparison.engines,)),
    )


def _difference_row(arm: ArmComparison, matched: MatchedComparison) -> tuple[str, ...]:
    """One row of the table of differences."""
    accuracy, loss = matched.differences
    used = accuracy.interval.n
    return (
        arm.label,
        EQUAL[matched.cost],
        _epochs_read(matched),
        effect(accuracy.interval, scale=100.0, decimals=1),
        accuracy.verdict.value,
        effect(loss.interval, decimals=3),
        loss.verdict.value,
        str(used) if used == len(arm.seeds) else f"{used} of {len(arm.seeds)}",
    )


def _epochs_read(matched: MatchedComparison) -> str:
    """Epochs of the records that were compared, for example ``6 / 20``."""
    sides = (
        {pair.arm.epoch for pair in matched.pairs if pair.arm is not None},
        {pair.baseline.epoch for pair in matched.pairs if pair.baseline is not None},
    )
    return " / ".join(number_range(side) if side else MISSING for side in sides)
