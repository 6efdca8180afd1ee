"""Trains a run in a folder of its own: records, checkpoints, and going on after a stop."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from equipoise.data import Dataset
from equipoise.data.folder import FolderDataset
from equipoise.engine.network import to_dense
from equipoise.records import (
    MANIFEST,
    RECORDS,
    EpochRecord,
    read_records,
    write_atomically,
    write_records,
)
from equipoise.settings import Run, as_plain
from equipoise.training.checkpoint import load_checkpoint, save_checkpoint, save_whole
from equipoise.training.correcting import CACHE
from equipoise.training.manifest import describe_run
from equipoise.training.observers import Everyone, Observer, watched
from equipoise.training.session import Session
from equipoise.training.spikes import SpikeWatch

CHECKPOINT = "checkpoint.pt"
MODEL = "model.pt"
TENSORBOARD = "tensorboard"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a call of `train` ended.

    Args:
        records: All completed epochs of the run.
        finished: Whether that is all of them.
        resumed: Whether an earlier call had begun the run.
    """

    records: list[EpochRecord]
    finished: bool
    resumed: bool


def never() -> bool:
    """Nobody asks the training to stop."""
    return False


def train(
    run: Run,
    folder: Path,
    *,
    label: str | None = None,
    dataset: Dataset | FolderDataset | None = None,
    observers: tuple[Observer, ...] = (),
    should_stop: Callable[[], bool] = never,
    checkpoint_seconds: float = 60.0,
    overwrite: bool = False,
    begin: Callable[[Session], None] | None = None,
    arrange: Callable[[Session], AbstractContextManager[None]] | None = None,
) -> Outcome:
    """Trains `run` in `folder`, or goes on with it where it was stopped.

    A manifest is written before the first step, a record after every epoch, and a checkpoint
    after every epoch and every `checkpoint_seconds` in between, each file whole or not at all. A
    run that was killed at any moment and called again continues from its last checkpoint and ends
    bit for bit like one that was never stopped.

    Args:
        run: The settings.
        folder: Its own; made if needed.
        label: Name of the arm in reports; default: from the settings.
        dataset: The images, where they are in memory already; default: read as the settings say.
        observers: Are told what happens.
        should_stop: Asked after every step; if true a checkpoint is saved and training stops.
        checkpoint_seconds: Time between checkpoints within an epoch.
        overwrite: Start again whatever is in the folder.
        begin: Called with a new session before its first step, to start from weights and masks
            of its own; not with one that goes on.
        arrange: Entered with every session before anything is loaded into it, and left when its
            files are written, to train something else of the network than its weights.

    Raises:
        ValueError: The folder holds another run, or a setting is wrong.
        FileNotFoundError: The data are not on this machine.
    """
    name = label or run.label
    finished = None if overwrite else finished_records(run, folder, name)
    if finished is not None:
        return Outcome(records=finished, finished=True, resumed=True)
    with _deterministic(wanted=run.loop.deterministic):
        state = None if overwrite else _stored_state(folder)
        session = Session(run, dataset, begun=state, folder=folder)
        with nullcontext() if arrange is None else arrange(session):
            records = [] if state is None else _resume(session, folder, state)
            resumed = bool(records) or session.step > 0
            if not resumed:
                if begin is not None:
                    begin(session)
                # What another run left goes first, so that a kill here cannot mix the two.
                (folder / CHECKPOINT).unlink(missing_ok=True)
                (folder / MODEL).unlink(missing_ok=True)
                manifest = describe_run(session, name)
                write_atomically(folder / MANIFEST, json.dumps(manifest, indent=2) + "\n")
            write_records(folder / RECORDS, records)
            everyone = Everyone(SpikeWatch(), *observers)
            try:
                everyone.start(session)
                writer = _Writer(session, folder, records, checkpoint_seconds)
                done = _epochs(session, writer, everyone, should_stop)
            finally:
                everyone.stop()
    return Outcome(records=records, finished=done, resumed=resumed)


def _epochs(
    session: Session, writer: _Writer, observer: Observer, should_stop: Callable[[], bool]
) -> bool:
    """All epochs that are left; whether none is."""
    while session.epoch < session.run.loop.epochs:
        with session.meter("other"):
            for group in session.batches():
                if session.refresh_is_due:
                    session.refresh(watched(session, session.refresh_batches(), observer))
                session.train_step(group)
                observer.stepped(session, sum(batch.size for batch in group))
                if should_stop():
                    writer.checkpoint()
                    return False
                writer.checkpoint_if_due()
            record = session.finish_epoch()
        writer.epoch(record)
        observer.recorded(session, record)
    writer.model()
    return True


class _Writer:
    """Writes a session's files."""

    def __init__(
        self, session: Session, folder: Path, records: list[EpochRecord], seconds: float
    ) -> None:
        self._session = session
        self._folder = folder
        self._records = records
        self._seconds = seconds
        self._saved = time.monotonic()

    def epoch(self, record: EpochRecord) -> None:
        """Records first: a kill between the two leaves a record too many, never one too few."""
        self._records.append(record)
        write_records(self._folder / RECORDS, self._records)
        self.checkpoint()

    def checkpoint_if_due(self) -> None:
        """A checkpoint, if the last one is old enough."""
        if time.monotonic() - self._saved >= self._seconds:
            self.checkpoint()

    def checkpoint(self) -> None:
        """Everything that a resumed run needs."""
        with self._session.meter("checkpoint"):
            save_checkpoint(self._folder / CHECKPOINT, self._session.state_dict())
        self._saved = time.monotonic()

    def model(self) -> None:
        """The trained weights under plain names, for torch without this library."""
        save_whole(self._folder / MODEL, to_dense(self._session.model).state_dict())
        (self._folder / CACHE).unlink(missing_ok=True)


def finished_records(run: Run, folder: Path, label: str) -> list[EpochRecord] | None:
    """Records of a run that is complete already; refuses a folder that belongs to another run.

    Args:
        run: The settings.
        folder: Of the run.
        label: Name of the arm.

    Raises:
        ValueError: The folder holds another run, or its manifest is damaged.
    """
    path = folder / MANIFEST
    if not path.exists():
        if (folder / CHECKPOINT).exists():
            raise ValueError(
                f"{folder} holds a checkpoint but no {MANIFEST}, so it may be of another run; "
                "choose another folder, or pass --overwrite to replace it."
            )
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        differences = _differences(manifest["run"], as_plain(run))
        old_label = manifest["label"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is damaged ({error!r}); pass --overwrite to start the run again."
        ) from error
    if differences or old_label != label:
        what = ", ".join(differences[:3]) or f"label {old_label} instead of {label}"
        raise ValueError(
            f"{folder} holds another run ({what}); "
            "choose another folder, or pass --overwrite to replace it."
        )
    records = read_records(folder / RECORDS)
    complete = len(records) >= run.loop.epochs and (folder / MODEL).exists()
    return records if complete else None


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Settings that differ, as `name then instead of now`."""
    # A setting that a manifest does not know came later, so the run was made with its default.
    usual = as_plain(Run())
    pairs = [
        (name, before.get(group, {}).get(name, usual[group][name]), value)
        for group, settings in now.items()
        for name, value in settings.items()
    ]
    return [
        f"{name.replace('_', '-')} {then!r} instead of {value!r}"
        for name, then, value in pairs
        # An interval of 1 is a step and one of 1.0 the whole training, so types count as well.
        if json.dumps(then) != json.dumps(value)
    ]


def _stored_state(folder: Path) -> dict[str, Any] | None:
    """The last checkpoint of a folder, if there is one."""
    path = folder / CHECKPOINT
    return load_checkpoint(path) if path.exists() else None


def _resume(session: Session, folder: Path, state: dict[str, Any]) -> list[EpochRecord]:
    """Loads a checkpoint, and the records up to it."""
    session.load_state_dict(state)
    records = [r for r in read_records(folder / RECORDS) if r.epoch <= session.epoch]
    if [r.epoch for r in records] != list(range(1, session.epoch + 1)):
        raise ValueError(
            f"{folder / RECORDS} lacks records of the {session.epoch} epochs that were completed; "
            "put the file back, or pass --overwrite to start the run again."
        )
    return records


@contextmanager
def _deterministic(*, wanted: bool) -> Iterator[None]:
    """Repeatable kernels inside; the process is left as it was."""
    if not wanted:
        yield
        return
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.benchmark,
    )
    # Some CUDA kernels have no repeatable twin; those are named once and used all the same.
    torch.use_deterministic_algorithms(mode=True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("once", message=".*deterministic.*")
            yield
    finally:
        torch.use_deterministic_algorithms(mode=before[0], warn_only=before[1])
        torch.backends.cudnn.benchmark = before[2]
