"""Curves of runs as plain lists of numbers, for the figure and for the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from equipoise.records import EpochRecord, RunRecords
from equipoise.reports.palette import PARTS


@dataclass(frozen=True)
class Axis:
    """One quantity of a record that can be drawn.

    Args:
        name: Short name, used in addresses and file names.
        field: Its name in the record.
        title: Axis title with its unit.
        scale: Factor from the record to the unit of the title.
        unit: Written after a single value, with its leading space.
    """

    name: str
    field: str
    title: str
    scale: float = 1.0
    unit: str = ""

    def of(self, record: EpochRecord) -> float:
        """The scaled value; NaN where the record has none or it is not finite."""
        value = getattr(record, self.field)
        number = math.nan if value is None else self.scale * float(value)
        return number if math.isfinite(number) else math.nan


EPOCHS = Axis("epochs", "epoch", "Epochs")
PASSES = Axis("passes", "data_passes", "Data passes (gradients of the whole training set)")
SECONDS = Axis("seconds", "training_seconds", "Training time (s)", 1.0, " s")
TEST_ACCURACY = Axis("test_accuracy", "test_accuracy", "Test accuracy (%)", 100.0)
TRAIN_LOSS = Axis("train_loss", "train_loss", "Training loss")
COEFFICIENT = Axis("coefficient", "coefficient", "Coefficient of the old gradient")
EXPLORATION = Axis(
    "exploration_rate", "exploration_rate", "Exploration (% of weights ever active)", 100.0
)
Y_AXES = (
    TEST_ACCURACY,
    TRAIN_LOSS,
    Axis("validation_accuracy", "validation_accuracy", "Validation accuracy (%)", 100.0),
    Axis("validation_loss", "validation_loss", "Validation loss"),
    Axis("test_loss", "test_loss", "Test loss"),
    COEFFICIENT,
    Axis("rho_squared", "rho_squared", "Variance that correction can remove (%)", 100.0),
    Axis("variance_ratio", "variance_ratio", "Variance left by correction (%)", 100.0),
    EXPLORATION,
    Axis("sparsity", "sparsity", "Sparsity (% of weights inactive)", 100.0),
    Axis("learning_rate", "learning_rate", "Learning rate"),
)


def flops_axis(runs: Sequence[RunRecords]) -> Axis:
    """FLOPs in a power of a thousand that suits these runs, so that ticks are short."""
    largest = max((record.training_flops for run in runs for record in run.epochs), default=0.0)
    finite = largest if math.isfinite(largest) else 0.0
    power = 3 * int(math.log10(finite) // 3) if finite >= 1.0 else 0
    return Axis(
        "flops",
        "training_flops",
        f"Training FLOPs (in 1e{power})",
        10.0**-power,
        f" x 1e{power}",
    )


def x_axes(runs: Sequence[RunRecords]) -> tuple[Axis, ...]:
    """The costs that a curve can be drawn against."""
    return (EPOCHS, PASSES, flops_axis(runs), SECONDS)


def y_axes(runs: Sequence[RunRecords]) -> tuple[Axis, ...]:
    """Quantities that some run has; test accuracy in any case."""
    return tuple(axis for axis in Y_AXES if axis is TEST_ACCURACY or is_available(runs, axis))


def column(run: RunRecords, axis: Axis) -> list[float]:
    """Values of one quantity over the epochs of a run; NaN where missing."""
    return [axis.of(record) for record in run.epochs]


def mean_column(runs: Sequence[RunRecords], axis: Axis) -> list[float]:
    """Mean over the runs of an arm, epoch by epoch, as far as all of them have come.

    Args:
        runs: Runs of one arm; those without records are ignored.
        axis: A quantity, on either axis of a plot: a mean curve against seconds joins the mean
            seconds and the mean values of the same epochs.

    Returns:
        One mean per common epoch; NaN where a run has no value. Further epochs of some runs are
        left out, since a mean over fewer runs would jump there.
    """
    columns = [column(run, axis) for run in runs if run.epochs]
    return [math.fsum(values) / len(values) for values in zip(*columns, strict=False)]


def is_available(runs: Sequence[RunRecords], axis: Axis) -> bool:
    """Whether any record has a value that is not zero."""
    return any(
        value != 0.0 and not math.isnan(value) for run in runs for value in column(run, axis)
    )


def is_constant(runs: Sequence[RunRecords], axis: Axis) -> bool:
    """Whether all values of every run are the same; one run may differ from another."""
    return all(
        len({value for value in column(run, axis) if not math.isnan(value)}) <= 1 for run in runs
    )


def part_seconds(runs: Sequence[RunRecords]) -> dict[str, float]:
    """Mean training seconds per epoch by part, for one arm.

    Args:
        runs: Runs of one arm; those without records are ignored.

    Returns:
        Seconds per epoch for each part of `PARTS`, by the name of its field; empty without runs.
    """
    finals = [run.epochs[-1] for run in runs if run.epochs]
    return {
        field: math.fsum(getattr(final, field) / final.epoch for final in finals) / len(finals)
        for field, _, _ in PARTS
        if finals
    }
