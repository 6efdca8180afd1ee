"""One number of every seed of a cell, and what two cells differ by on the same seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from equipoise.experiments.store import FoundCell
from equipoise.records import EpochRecord, RunRecords, epoch_after
from equipoise.reports.gains import jitter
from equipoise.reports.statistics import PairedInterval, paired_interval

BySeed = Mapping[int, float]
POINTS = "points"


@dataclass(frozen=True)
class Reading:
    """How a cell becomes a number for every seed.

    Args:
        words: What the number is.
        of: The numbers by seed; seeds without one are left out.
        unit: Of a difference.
    """

    words: str
    of: Callable[[FoundCell], BySeed]
    unit: str = POINTS


def accuracy_after(*shares: float) -> Reading:
    """Test accuracy in per cent after a share of training, or its mean over several.

    Args:
        *shares: In (0, 1].
    """

    def of(found: FoundCell) -> BySeed:
        epochs = found.cell.run.loop.epochs
        places = [epoch_after(share, epochs) - 1 for share in shares]
        return _finite(
            {
                run.seed: 100 * fmean(run.epochs[place].test_accuracy for place in places)
                for run in found.runs
            }
        )

    return Reading(_after("test accuracy", shares), of)


def robust_after(*shares: float) -> Reading:
    """Accuracy under attack in per cent after a share of training, or its mean over several."""

    def of(found: FoundCell) -> BySeed:
        values: dict[int, float] = {}
        for seed, rows in found.measured("robust").items():
            by_share = {row["share"]: 100 * row["robust_accuracy"] for row in rows}
            if all(share in by_share for share in shares):
                values[seed] = fmean(by_share[share] for share in shares)
        return _finite(values)

    return Reading(_after("robust accuracy", shares), of)


def norm_until(share: float, shares: Sequence[float]) -> Reading:
    """Mean norm of the gradient of a batch in the phase that ends at a share of training.

    Args:
        share: One of `shares`.
        shares: Ends of all phases, in order.
    """
    before = max((other for other in shares if other < share), default=0.0)

    def of(found: FoundCell) -> BySeed:
        epochs = found.cell.run.loop.epochs
        first = epoch_after(before, epochs) if before else 0
        last = max(first + 1, epoch_after(share, epochs))
        return _row_means(found, "gradient_norms", "new", first + 1, last)

    return Reading("mean norm of the gradient of a batch, active weights", of, "")


def correlation_of(perturb: str) -> Reading:
    """Correlation of full gradients at the weights and at perturbed ones.

    Args:
        perturb: ``active`` or ``all``: which weights get noise, and are compared.
    """
    return Reading(
        f"correlation of full gradients, noise on {perturb} weights",
        lambda found: _perturbed(found, perturb, "correlation"),
        "",
    )


def log_variance_of(perturb: str) -> Reading:
    """Logarithm to base 10 of the variance of the gradients of batches at perturbed weights."""

    def of(found: FoundCell) -> BySeed:
        values = _perturbed(found, perturb, "variance")
        return {seed: math.log10(value) for seed, value in values.items() if value > 0.0}

    return Reading(
        f"log10 of the variance of batch gradients, noise on {perturb} weights", of, "decades"
    )


def late_correlation(first: float = 0.5) -> Reading:
    """Correlation of the full gradients of successive epochs, mean over the end of training.

    Args:
        first: Share of training from which on.
    """

    def of(found: FoundCell) -> BySeed:
        epochs = found.cell.run.loop.epochs
        start = epoch_after(first, epochs) + 1
        return _row_means(found, "gradient_correlation", "full", start, epochs)

    return Reading(
        f"correlation of successive full gradients, mean after {100 * first:g} % of training",
        of,
        "",
    )


def mean_accuracy(first: float = 0.0, last: float = 1.0) -> Reading:
    """Test accuracy in per cent, mean over the epochs of a part of training.

    Args:
        first: Share of training from which on.
        last: And until which.
    """

    def of(found: FoundCell) -> BySeed:
        return _finite(
            {
                run.seed: 100 * fmean(record.test_accuracy for record in part)
                for run in found.runs
                if (part := _part(run, first, last))
            }
        )

    return Reading(f"test accuracy, mean over {_span(first, last)}", of)


def mean_loss() -> Reading:
    """Loss, mean over all epochs: on the validation split, or test images where there is none."""

    def of(found: FoundCell) -> BySeed:
        return _finite({run.seed: fmean(losses(run)) for run in found.runs if run.epochs})

    return Reading("validation loss (test loss without a split), mean over all epochs", of, "nats")


def losses(run: RunRecords) -> list[float]:
    """Validation loss by epoch, or test loss where there is no split."""
    return [
        record.test_loss if record.validation_loss is None else record.validation_loss
        for record in run.epochs
    ]


def unsteadiness(last: float = 0.5) -> Reading:
    """Mean change of test accuracy between epochs beside its own trend, in points.

    Args:
        last: Share of training until which, so that the drop of the rate is not counted.
    """

    def of(found: FoundCell) -> BySeed:
        values = {run.seed: jitter(_part(run, 0.0, last)) for run in found.runs}
        return _finite({seed: 100 * value for seed, value in values.items() if value is not None})

    return Reading(f"jitter of test accuracy around its own trend, {_span(0.0, last)}", of)


def log_seconds() -> Reading:
    """Logarithm of the training seconds of an epoch; a difference is that of a ratio."""
    return Reading(
        "training seconds of an epoch",
        lambda found: {
            run.seed: math.log(run.epochs[-1].training_seconds / run.epochs[-1].epoch)
            for run in found.runs
            if run.epochs and run.epochs[-1].training_seconds > 0.0
        },
        "ratio",
    )


def log_norm() -> Reading:
    """Logarithm of the mean gradient norm of a training; a difference is that of a ratio."""

    def of(found: FoundCell) -> BySeed:
        values = _row_means(found, "gradient_norms", "new", 1, found.cell.run.loop.epochs)
        return {seed: math.log(value) for seed, value in values.items() if value > 0.0}

    return Reading("mean norm of the gradient of a batch", of, "ratio")


def passes(found: FoundCell) -> BySeed:
    """Passes over the training images of a whole training."""
    return {run.seed: run.epochs[-1].data_passes for run in found.runs if run.epochs}


def paired(
    arm: FoundCell, base: FoundCell, reading: Reading, confidence: float = 0.95
) -> PairedInterval:
    """Arm less base, on the seeds that both have.

    Args:
        arm: What is judged.
        base: What it is compared with.
        reading: What is compared.
        confidence: Coverage of the interval, in (0, 1).
    """
    ours, theirs = reading.of(arm), reading.of(base)
    return paired_interval(
        [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())], confidence
    )


def relative_passes(arm: FoundCell, base: FoundCell) -> float | None:
    """Passes of the arm over those of the base, mean over common seeds; None without one."""
    ours, theirs = passes(arm), passes(base)
    ratios = [ours[seed] / theirs[seed] for seed in ours.keys() & theirs.keys() if theirs[seed]]
    return fmean(ratios) if ratios else None


def baseline_of(arm: str, arms: Sequence[str]) -> str | None:
    """The arm of a panel that another is compared with.

    Args:
        arm: Its name.
        arms: All names of the panel, in order.

    Returns:
        Its name without ``A-`` and without what follows ``+``, ``(`` or a comma, where there is
        such an arm; the panel's first otherwise, in the ablation the full method. None where that
        is the arm itself.

    Example:
        >>> baseline_of("A-RigL", ("A-RigL", "RigL", "RigL+SVRG"))
        'RigL'
        >>> baseline_of("RigL", ("A-RigL", "RigL", "RigL+SVRG")) is None
        True
    """
    plain = _plain(arm)
    if plain != arm and plain in arms:
        return plain
    first = "Ours" if "Ours" in arms else arms[0]
    is_base = any(other != arm and _plain(other) == arm for other in arms)
    return None if is_base or first == arm else first


def _plain(arm: str) -> str:
    """Name of an arm without what is added to plain training."""
    name = arm.removeprefix("A-")
    for sign in ("+", " (", ","):
        name = name.split(sign)[0]
    return name


def _perturbed(found: FoundCell, perturb: str, name: str) -> BySeed:
    """Mean over replicates."""
    values = {}
    for seed, rows in found.measured("perturbed_gradients").items():
        kept = [row[name] for row in rows if (row["perturb"], row["coordinates"]) == (perturb,) * 2]
        if kept:
            values[seed] = fmean(kept)
    return _finite(values)


def _row_means(found: FoundCell, file: str, name: str, first: int, last: int) -> BySeed:
    """Mean over the rows of some epochs."""
    values = {}
    for seed, rows in found.measured(file).items():
        kept = [
            row[name] for row in rows if first <= row["epoch"] <= last and row.get(name) is not None
        ]
        if kept:
            values[seed] = fmean(kept)
    return _finite(values)


def _part(run: RunRecords, first: float, last: float) -> list[EpochRecord]:
    """Records of a part of training."""
    start = epoch_after(first, len(run.epochs)) if first else 0
    return run.epochs[start : epoch_after(last, len(run.epochs))]


def _finite(values: Mapping[int, float]) -> BySeed:
    """Without the seeds that diverged."""
    return {seed: value for seed, value in values.items() if math.isfinite(value)}


def _span(first: float, last: float) -> str:
    """A part of training in words."""
    if (first, last) == (0.0, 1.0):
        return "all epochs"
    return f"{100 * first:g} to {100 * last:g} % of training"


def _after(what: str, shares: Iterable[float]) -> str:
    """What is read, and when."""
    listed = tuple(shares)
    if listed == (1.0,):
        return f"{what} at the end"
    if len(listed) == 1:
        return f"{what} after {100 * listed[0]:g} % of training"
    return f"{what}, mean over the table's {len(listed)} budgets"
