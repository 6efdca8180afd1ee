"""What a run writes down: one manifest before it starts, one record after every epoch.

Only the standard library is imported here, so that reports and the command line can read runs
without loading torch. Counts and seconds are cumulative from the start of the run, so any two
records can be subtracted; units are part of the names; accuracies are fractions in [0, 1].
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

FORMAT = 1
MANIFEST = "manifest.json"
RECORDS = "records.jsonl"
COMPARISON = "comparison.json"


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """One completed epoch of one run.

    Args:
        epoch: Completed epochs, from 1.
        step: Completed optimizer steps.
        learning_rate: Of the last step of the epoch.
        train_loss: Mean of the batch losses seen during the epoch, each before its step.
        validation_loss: None without a validation split.
        validation_accuracy: None without a validation split.
        test_loss: After the epoch, evaluation mode.
        test_accuracy: After the epoch, evaluation mode.
        sparsity: Fraction of the maskable weights that is inactive.
        active_weights: Number of active maskable weights.
        exploration_rate: Share of the maskable weights that was ever active.
        rewirings: Rewirings so far.
        coefficient: Weight of the old gradient at the end of the epoch, already scaled.
        coefficient_estimate: Latest raw estimate, before smoothing and scaling; None without one.
        loss_correlation: Pearson correlation of the losses behind that estimate.
        data_passes: Gradient evaluations of the whole training set so far, forward counted as
            1/3 and backward as 2/3; a plain epoch is 1.
        forward_samples: Samples sent forward for training so far.
        backward_samples: Samples sent backward for training so far.
        training_flops: Theoretical FLOPs of training so far, active weights only.
        training_seconds: Wall time of training so far, evaluation and checkpoints left out.
        new_gradient_seconds: Of which gradients at the current parameters.
        old_gradient_seconds: Of which gradients at the snapshot.
        refresh_seconds: Of which snapshots and full gradients.
        optimizer_seconds: Of which the optimizer's own arithmetic.
        topology_seconds: Of which masks and rewiring.
        data_seconds: Of which drawing and augmenting batches.
        other_seconds: Of which everything else.
        evaluation_seconds: Wall time of evaluation so far (not in `training_seconds`).
        peak_memory_bytes: Largest resident memory of the process during the run.
        peak_device_memory_bytes: Largest memory on the accelerator; None on CPU.
        attack_seconds: Of the training time, that of attacks on the training images.
        best_coefficient: Estimate of the best coefficient, without a bound; None without one.
        rho_squared: Share of the variance of the gradient that it would remove.
        variance_ratio: Share of the variance that the coefficient in use has left.
        table_bytes: Of the stored gradients; None without a table.
        old_passes: Steps so far with a second pass, at the snapshot; None where none is gated.
        old_passes_left_out: Steps so far in which it was left out, because it could not pay.
        refreshes_left_out: So far, because second passes before were of no use.
        by_age: The same by age of the snapshot: age, whether after a rewiring, coefficient, best,
            rho_squared, variance_ratio and samples; None where age has no part.
    """

    epoch: int
    step: int
    learning_rate: float
    train_loss: float
    validation_loss: float | None
    validation_accuracy: float | None
    test_loss: float
    test_accuracy: float
    sparsity: float
    active_weights: int
    exploration_rate: float
    rewirings: int
    coefficient: float
    coefficient_estimate: float | None
    loss_correlation: float | None
    data_passes: float
    forward_samples: int
    backward_samples: int
    training_flops: float
    training_seconds: float
    new_gradient_seconds: float
    old_gradient_seconds: float
    refresh_seconds: float
    optimizer_seconds: float
    topology_seconds: float
    data_seconds: float
    other_seconds: float
    evaluation_seconds: float
    peak_memory_bytes: int
    peak_device_memory_bytes: int | None
    attack_seconds: float = 0.0
    best_coefficient: float | None = None
    rho_squared: float | None = None
    variance_ratio: float | None = None
    table_bytes: int | None = None
    old_passes: int | None = None
    old_passes_left_out: int | None = None
    refreshes_left_out: int | None = None
    by_age: list[dict[str, Any]] | None = None


@dataclass(frozen=True)
class RunRecords:
    """One run as read back from its folder.

    Args:
        folder: Where it was read.
        manifest: Settings, versions, device and data of the run.
        epochs: Its records, in order of epochs.
    """

    folder: Path
    manifest: dict[str, Any]
    epochs: list[EpochRecord]

    @property
    def label(self) -> str:
        """Name of the arm, for example ``rigl+agent``."""
        return str(self.manifest["label"])

    @property
    def seed(self) -> int:
        """The seed shared by the arms of a pair."""
        return int(self.manifest["seed"])


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replaces `path` by `content` in one step, so that a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def write_records(path: Path, records: Iterable[EpochRecord]) -> None:
    """Writes all records of a run, one JSON object a line, atomically."""
    write_atomically(path, "".join(json.dumps(asdict(record)) + "\n" for record in records))


def read_records(path: Path) -> list[EpochRecord]:
    """Reads `records.jsonl`; a missing file is a run without completed epochs.

    Raises:
        ValueError: A line is not a record of this format.
    """
    if not path.exists():
        return []
    # Records from before there was a field are read as if it held nothing.
    needed = [field.name for field in fields(EpochRecord) if field.default is MISSING]
    others = [field.name for field in fields(EpochRecord) if field.default is not MISSING]
    records = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            row = json.loads(line)
            known = {name: row[name] for name in needed}
            known |= {name: row[name] for name in others if name in row}
            records.append(EpochRecord(**known))
        except (ValueError, KeyError, TypeError) as error:  # not JSON, or not even text
            raise ValueError(
                f"{path}, line {number}, is not a record of format {FORMAT} ({error}); "
                "put the file back, or train the run again with --overwrite."
            ) from error
    return records


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replaces the file by these rows, whole or not at all."""
    write_atomically(path, "".join(json.dumps(dict(row)) + "\n" for row in rows))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Reads what `write_rows` wrote; a missing file has no rows.

    Raises:
        ValueError: A line is not a JSON object.
    """
    if not path.exists():
        return []
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            row = error
        if not isinstance(row, dict):
            raise ValueError(
                f"{path}, line {number}, is not a JSON object; "
                "delete the file and measure again, or put it back."
            )
        rows.append(row)
    return rows


def epoch_after(share: float, epochs: int) -> int:
    """The epoch after which a share of training is done, at least the first.

    Example:
        >>> epoch_after(0.35, 20), epoch_after(0.1, 2)
        (7, 1)
    """
    return max(1, round(share * epochs))


def read_run(folder: Path) -> RunRecords:
    """Reads one run folder.

    Raises:
        ValueError: There is no readable manifest in it.
    """
    path = folder / MANIFEST
    if not path.exists():
        raise ValueError(f"{folder} holds no {MANIFEST}; pass the folder that a run wrote.")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        label_and_seed = (manifest["label"], manifest["seed"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged ({error!r}); train the run again with --overwrite."
        ) from error
    assert label_and_seed is not None
    return RunRecords(folder, manifest, read_records(folder / RECORDS))


def find_runs(folder: Path) -> list[RunRecords]:
    """All runs at or below `folder`, sorted by folder name.

    In the folder of a comparison only the runs that it consists of: what an earlier comparison
    with other arms, seeds or data has left there is not mixed in. The phases of a run count as
    one run, the whole.

    Raises:
        ValueError: A manifest, or the list of runs of the comparison, is damaged.
    """
    comparison = folder / COMPARISON
    if comparison.exists():
        try:
            names = json.loads(comparison.read_bytes()).get("runs")
            listed = None if names is None else sorted(folder / name for name in names)
        except (ValueError, AttributeError, TypeError) as error:
            raise ValueError(
                f"{comparison} is damaged ({error!r}); run the comparison again, or delete it."
            ) from error
        if listed is not None:
            return [read_run(path) for path in listed if (path / MANIFEST).exists()]
    runs = [read_run(path.parent) for path in sorted(folder.rglob(MANIFEST))]
    within = [(run.folder, run.manifest.get("phases", [])) for run in runs]
    parts = {folder / phase["name"] for folder, phases in within for phase in phases}
    return [run for run in runs if run.folder not in parts]
