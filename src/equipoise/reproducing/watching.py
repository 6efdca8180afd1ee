"""What is kept and measured along training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from equipoise.analyses.along import measuring
from equipoise.analyses.stored import perturb_stored
from equipoise.data import Batch
from equipoise.engine.network import to_dense
from equipoise.experiments.values import Measure
from equipoise.records import RECORDS, EpochRecord
from equipoise.reproducing.tasks import epoch_file
from equipoise.settings import Run
from equipoise.training.checkpoint import save_whole
from equipoise.training.hydra import HydraPlan, train_hydra
from equipoise.training.loop import Outcome, train
from equipoise.training.observers import Observer
from equipoise.training.session import Session


class KeptEpochs:
    """Keeps the weights after some epochs, so that they can be attacked later.

    Args:
        folder: Of the run.
        epochs: After which.
    """

    def __init__(self, folder: Path, epochs: Sequence[int]) -> None:
        self._folder = folder
        self._epochs = epochs

    def start(self, session: Session) -> None:
        """A run that was killed between an epoch and its file gets the file now."""
        if session.batch == 0:
            self._keep(session, session.epoch)

    def refreshed(self, session: Session, batch: Batch) -> None:
        """Nothing to keep."""

    def stepped(self, session: Session, samples: int) -> None:
        """Nothing to keep."""

    def recorded(self, session: Session, record: EpochRecord) -> None:
        """Keeps the weights of the epoch."""
        self._keep(session, record.epoch)

    def stop(self) -> None:
        """Nothing to close."""

    def _keep(self, session: Session, epoch: int) -> None:
        if epoch in self._epochs:
            save_whole(self._folder / epoch_file(epoch), to_dense(session.model).state_dict())


def watchers(
    folder: Path, *, measures: tuple[Measure, ...], epochs: tuple[int, ...]
) -> tuple[Observer, ...]:
    """Those who watch one run; made in the process that trains it.

    Args:
        folder: Of the run.
        measures: Taken along training.
        epochs: After which the weights are kept.
    """
    kept: tuple[Observer, ...] = (KeptEpochs(folder, epochs),) if epochs else ()
    return (*kept, *measuring(measures, folder))


def trainer_of(kind: Literal["train", "hydra"]) -> Callable[..., Outcome]:
    """What trains a cell of a kind; takes what `train` takes."""
    return train if kind == "train" else train_by_phases


def train_by_phases(run: Run, folder: Path, **more: Any) -> Outcome:
    """HYDRA, its three phases at the published shares of all epochs.

    Args:
        run: Its number of epochs is that of all phases.
        folder: Its own.
        **more: As for `train`.
    """
    return train_hydra(run, folder, HydraPlan(**phases_of(run.loop.epochs)), **more)


def phases_of(epochs: int) -> dict[str, int]:
    """Lengths of the phases; as published, 100, 20 and 100 of 220.

    Example:
        >>> list(phases_of(220).values()), list(phases_of(12).values())
        ([100, 20, 100], [5, 1, 6])
    """
    scores = max(1, round(epochs * 20 / 220))
    first = (epochs - scores) // 2
    return {
        "pretrain_epochs": first,
        "score_epochs": scores,
        "finetune_epochs": epochs - scores - first,
    }


def measure_run(
    measure: Measure, place: Path, *, batch_size: int, data_dir: Path | None, device: str
) -> None:
    """Measures a trained network, and writes the rows beside its records.

    Args:
        measure: Which; there is one, gradients at perturbed weights.
        place: Folder of the run.
        batch_size: Samples in a batch.
        data_dir: Where the data are; default: the usual places.
        device: cpu, cuda, cuda:N or auto.
    """
    assert measure == "perturbed_gradients"
    perturb_stored(place, batch_size=batch_size, data_dir=data_dir, device=device)


def forget_measured(folder: Path) -> None:
    """Removes what was measured of a run that starts again."""
    for path in folder.glob("*.jsonl"):
        if path.name != RECORDS:
            path.unlink()
    for path in folder.glob("epoch-*.pt"):
        path.unlink()
