"""Those who watch a run: progress on screen, TensorBoard, or nobody."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from equipoise.data import Batch
from equipoise.engine.fallback import csr_in_words
from equipoise.engine.network import runs_by_csr
from equipoise.records import EpochRecord
from equipoise.training.progress import Work
from equipoise.training.session import Session

_SECONDS_BETWEEN_UPDATES = 0.2


class Observer(Protocol):
    """Is told what happens; changes nothing."""

    def start(self, session: Session) -> None:
        """Training begins, or goes on after a stop."""
        ...  # pragma: no cover

    def refreshed(self, session: Session, batch: Batch) -> None:
        """One batch of a refresh was handed out."""
        ...  # pragma: no cover

    def stepped(self, session: Session, samples: int) -> None:
        """One optimizer step was made."""
        ...  # pragma: no cover

    def recorded(self, session: Session, record: EpochRecord) -> None:
        """An epoch was completed and evaluated."""
        ...  # pragma: no cover

    def stop(self) -> None:
        """Training has ended, was stopped, or failed."""
        ...  # pragma: no cover


def watched(session: Session, batches: Iterable[Batch], observer: Observer) -> Iterator[Batch]:
    """The batches of a refresh, each shown to the observer."""
    for batch in batches:
        yield batch
        observer.refreshed(session, batch)


def shown_loss(session: Session) -> str:
    """The mean training loss in five characters; a dash before the first step of an epoch."""
    loss = session.mean_loss
    return f"{loss:.3f}" if math.isfinite(loss) else "  -  "


class Everyone:
    """Several observers as one.

    Args:
        observers: Told in this order.
    """

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def start(self, session: Session) -> None:
        """Tells everyone."""
        for observer in self._observers:
            observer.start(session)

    def refreshed(self, session: Session, batch: Batch) -> None:
        """Tells everyone."""
        for observer in self._observers:
            observer.refreshed(session, batch)

    def stepped(self, session: Session, samples: int) -> None:
        """Tells everyone."""
        for observer in self._observers:
            observer.stepped(session, samples)

    def recorded(self, session: Session, record: EpochRecord) -> None:
        """Tells everyone."""
        for observer in self._observers:
            observer.recorded(session, record)

    def stop(self) -> None:
        """Tells everyone."""
        for observer in self._observers:
            observer.stop()


class Bar:
    """A progress bar with time left, throughput, loss, accuracy, coefficient and sparsity.

    Where the output is not a terminal, one line an epoch instead.

    Args:
        console: Where to draw.
        label: Name of the run on the bar.
    """

    def __init__(self, console: Console, label: str) -> None:
        self._console = console
        self._label = label
        self._accuracy = "  -  "
        self._task = TaskID(0)
        self._shown = 0.0
        self._since, self._samples = 0.0, 0
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

    def start(self, session: Session) -> None:
        """Shows the bar from where the session stands."""
        if session.uses_engine:
            words = "active weights only"
            if runs_by_csr(session.model):
                words = csr_in_words()
            self._console.print(f"Engine: {words}.", highlight=False, soft_wrap=True)
        elif session.engine_reason is not None:
            self._console.print(
                f"Engine not used: {session.engine_reason}.", highlight=False, soft_wrap=True
            )
        self._work = Work(session)
        if not self._progress.tasks:  # or it goes on with the next phase of the same training
            self._task = self._progress.add_task(self._label, total=self._work.total, state="")
        self._progress.update(self._task, completed=self._work.done(session))
        self._since, self._samples = time.perf_counter(), 0
        self._progress.start()

    def refreshed(self, session: Session, batch: Batch) -> None:
        """Moves on by one batch of a refresh."""
        self._work.refreshed(batch.size)
        self._move(session, batch.size, "refresh")

    def stepped(self, session: Session, samples: int) -> None:
        """Moves on by one step."""
        self._work.stepped()
        self._move(session, samples, "train")

    def recorded(self, session: Session, record: EpochRecord) -> None:
        """Shows the accuracy; prints a line where there is no terminal."""
        self._accuracy = f"{100 * record.test_accuracy:5.2f}"
        epochs = session.epochs_in_all
        self._progress.update(self._task, completed=self._work.done(session))
        if not self._console.is_terminal:
            self._console.print(
                f"{self._label}: epoch {record.epoch}/{epochs}, "
                f"train loss {record.train_loss:.4f}, test accuracy {self._accuracy} %, "
                f"coefficient {record.coefficient:.3f}, {record.data_passes:.2f} passes, "
                f"{record.training_seconds:.1f} s",
                highlight=False,
                soft_wrap=True,
            )

    def stop(self) -> None:
        """Takes the bar away."""
        self._progress.stop()

    def _move(self, session: Session, samples: int, what: str) -> None:
        """Moves the bar."""
        self._samples += samples
        self._progress.update(self._task, completed=self._work.done(session))
        self._show(session, what)

    def _show(self, session: Session, what: str) -> None:
        """Updates the numbers, but not so often that reading them slows the training."""
        now = time.perf_counter()
        if self._progress.disable or now - self._shown < _SECONDS_BETWEEN_UPDATES:
            return
        self._shown = now
        rate = self._samples / max(1e-9, now - self._since)
        state = (
            f"{what:<7} {session.epochs_before + session.epoch + 1:>3}/{session.epochs_in_all}"
            f"  loss {shown_loss(session)}  acc {self._accuracy} %"
            f"  c {session.corrector.coefficient_value:.3f}"
            f"  sparsity {session.topology.sparsity:.3f}  {rate:,.0f}/s"
        )
        self._progress.update(self._task, state=state)


class TensorBoard:
    """Writes every number of every record as a TensorBoard scalar, by step.

    Args:
        folder: Where the event files go.

    Raises:
        ImportError: The package `tensorboard` is not installed.
    """

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._open = SummaryWriter
        self._folder = folder
        self._writer: Any = None

    def start(self, session: Session) -> None:
        """Opens the event file; what a killed run wrote beyond its checkpoint is purged."""
        step = session.steps_before + session.step
        self._writer = self._open(str(self._folder), purge_step=step + 1)

    def refreshed(self, session: Session, batch: Batch) -> None:
        """Writes nothing."""

    def stepped(self, session: Session, samples: int) -> None:
        """Writes nothing."""

    def recorded(self, session: Session, record: EpochRecord) -> None:
        """Writes the record."""
        del session
        for name, number in vars(record).items():
            if isinstance(number, int | float):
                self._writer.add_scalar(name, number, record.step)
        self._writer.flush()

    def stop(self) -> None:
        """Closes the event file."""
        if self._writer is not None:
            self._writer.close()
