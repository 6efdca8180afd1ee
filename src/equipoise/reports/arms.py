"""Arms: the runs that share a label, and what they come to at their end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from equipoise.records import EpochRecord, RunRecords
from equipoise.reports.manifests import is_unfinished
from equipoise.reports.statistics import Spread, mean_and_deviation


@dataclass(frozen=True)
class Metric:
    """A number of an `EpochRecord` that arms are judged by.

    Args:
        name: In words.
        field: Its name in the record.
        higher_is_better: True for an accuracy.
    """

    name: str
    field: str
    higher_is_better: bool

    def of(self, record: EpochRecord) -> float:
        """The value in one record."""
        return float(getattr(record, self.field))


TEST_ACCURACY = Metric("test accuracy", "test_accuracy", higher_is_better=True)
TRAIN_LOSS = Metric("training loss", "train_loss", higher_is_better=False)
METRICS = (TEST_ACCURACY, TRAIN_LOSS)


@dataclass(frozen=True)
class ArmSummary:
    """One arm at the end of its runs; nothing is matched here.

    Args:
        label: Name of the arm.
        seeds: Seeds with at least one completed epoch, ascending.
        unfinished_seeds: Of these, the ones that completed fewer epochs than planned.
        empty_seeds: Seeds without a completed epoch; they enter no number.
        epochs: Completed epochs.
        test_accuracy: After the last epoch, a fraction in [0, 1]; never the best epoch.
        train_loss: Of the last epoch.
        passes_per_epoch: Gradient evaluations of the training set per epoch.
        training_flops: Of the whole run.
        training_seconds: Of the whole run, evaluation left out.
        peak_memory_bytes: Largest resident memory of the process.
        peak_device_memory_bytes: Largest memory on the accelerator; n = 0 on CPU.
    """

    label: str
    seeds: tuple[int, ...]
    unfinished_seeds: tuple[int, ...]
    empty_seeds: tuple[int, ...]
    epochs: Spread
    test_accuracy: Spread
    train_loss: Spread
    passes_per_epoch: Spread
    training_flops: Spread
    training_seconds: Spread
    peak_memory_bytes: Spread
    peak_device_memory_bytes: Spread


def group_by_label(runs: Sequence[RunRecords]) -> dict[str, list[RunRecords]]:
    """Runs by arm, arms by name, the runs of an arm by seed.

    Raises:
        ValueError: There is no run, or two runs have the same label and seed.
    """
    if not runs:
        raise ValueError("there is no run to report on; pass at least one run that was written.")
    arms: dict[str, list[RunRecords]] = {}
    for run in sorted(runs, key=lambda run: (run.label, run.seed)):
        arm = arms.setdefault(run.label, [])
        if arm and arm[-1].seed == run.seed:
            raise ValueError(
                f"{arm[-1].folder} and {run.folder} are both {run.label!r} with seed {run.seed}; "
                "an arm needs one run per seed: give one of them another label or move it away."
            )
        arm.append(run)
    return arms


def baseline_first(
    arms: Mapping[str, Sequence[RunRecords]], baseline: str | None
) -> dict[str, Sequence[RunRecords]]:
    """The same arms with the baseline, if it is one of them, in front."""
    front = {label: runs for label, runs in arms.items() if label == baseline}
    return front | dict(arms)


def summarize_arm(runs: Sequence[RunRecords]) -> ArmSummary:
    """Final results and cost of the runs of one arm.

    Args:
        runs: Runs that share a label, one per seed.

    Returns:
        Means over the seeds with at least one completed epoch.
    """
    started = [run for run in runs if run.epochs]
    finals = [run.epochs[-1] for run in started]
    device_memory = [final.peak_device_memory_bytes for final in finals]
    return ArmSummary(
        label=runs[0].label,
        seeds=tuple(run.seed for run in started),
        unfinished_seeds=tuple(run.seed for run in started if is_unfinished(run)),
        empty_seeds=tuple(run.seed for run in runs if not run.epochs),
        epochs=mean_and_deviation(final.epoch for final in finals),
        test_accuracy=mean_and_deviation(final.test_accuracy for final in finals),
        train_loss=mean_and_deviation(final.train_loss for final in finals),
        passes_per_epoch=mean_and_deviation(final.data_passes / final.epoch for final in finals),
        training_flops=mean_and_deviation(final.training_flops for final in finals),
        training_seconds=mean_and_deviation(final.training_seconds for final in finals),
        peak_memory_bytes=mean_and_deviation(final.peak_memory_bytes for final in finals),
        peak_device_memory_bytes=mean_and_deviation(m for m in device_memory if m is not None),
    )
