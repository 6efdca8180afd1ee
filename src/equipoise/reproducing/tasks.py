"""Which runs experiments ask for, each once, and what is left to do for each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from equipoise.experiments.store import folder_of, with_seed
from equipoise.experiments.values import Cell, Experiment, Measure, Scale
from equipoise.records import MANIFEST, RECORDS, epoch_after, read_records, read_rows
from equipoise.settings import Run

WEIGHTS, CHECKPOINT = "model.pt", "checkpoint.pt"
ROBUST = "robust.jsonl"
FIRST_ROW = {"gradient_correlation": 2, "gradient_norms": 1}
"""Measures that are taken along training, by the first epoch that has a row."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One run, and all that is wanted of it.

    Args:
        title: The cell that asked for it first, and the seed.
        cell: That cell.
        seed: Of the run.
        name: Of its folder.
        measures: What the cells that share it want measured.
        shares: Shares of training after which they want it attacked.
    """

    title: str
    cell: Cell
    seed: int
    name: str
    measures: tuple[Measure, ...]
    shares: tuple[float, ...]

    @property
    def run(self) -> Run:
        """The settings with the seed."""
        return with_seed(self.cell.run, self.seed)

    @property
    def along(self) -> tuple[Measure, ...]:
        """Measures that are taken along training."""
        return tuple(measure for measure in self.measures if measure in FIRST_ROW)

    @property
    def early_epochs(self) -> tuple[int, ...]:
        """Epochs before the last that are attacked, so that their weights must be kept."""
        last = self.cell.run.loop.epochs
        return tuple(sorted({epoch_after(share, last) for share in self.shares} - {last}))


@dataclass(frozen=True, kw_only=True)
class Left:
    """What is left to do for a task.

    Args:
        place: Folder of the finished run; None without one.
        train: Whether it must be trained.
        again: Whether from the start, whatever there is.
        measures: To be taken of the trained network.
        shares: At which it is to be attacked.
    """

    place: Path | None
    train: bool
    again: bool
    measures: tuple[Measure, ...]
    shares: tuple[float, ...]

    @property
    def nothing(self) -> bool:
        """Whether all that is wanted is there."""
        return not (self.train or self.measures or self.shares)


def chosen_cells(experiment: Experiment, scale: Scale, only: str | None) -> tuple[Cell, ...]:
    """The cells whose panel or arm contains a text, in small letters or large.

    Args:
        experiment: Which.
        scale: At which scale.
        only: The text; None for all cells.
    """
    return tuple(
        cell
        for cell in experiment.cells(scale)
        if only is None or only.lower() in cell.panel.lower() or only.lower() in cell.arm.lower()
    )


def tasks_of(
    experiments: Iterable[Experiment],
    scale: Scale,
    seeds: Sequence[int],
    only: str | None = None,
) -> list[Task]:
    """The runs of experiments, each once, seed by seed.

    Args:
        experiments: Which.
        scale: At which scale.
        seeds: Wanted of every cell.
        only: Part of the panel or the arm of the cells that are meant.
    """
    wanted: dict[tuple[int, str], list[tuple[str, Cell]]] = {}
    cells = [(e.name, cell) for e in experiments for cell in chosen_cells(e, scale, only)]
    for seed in seeds:
        for name, cell in cells:
            wanted.setdefault((seed, folder_of(cell, seed)), []).append((name, cell))
    return [
        Task(
            title=f"{askers[0][0]}, {askers[0][1].label}, seed {seed}",
            cell=askers[0][1],
            seed=seed,
            name=name,
            measures=tuple(dict.fromkeys(m for _, cell in askers for m in cell.measures)),
            shares=tuple(sorted({share for _, cell in askers for share in cell.attacked})),
        )
        for (seed, name), askers in wanted.items()
    ]


def left_of(task: Task, scale: Scale, store: Path, folders: Sequence[Path]) -> Left:
    """What is left to do, by the files that are there.

    What is measured along training must cover all of its epochs; a run that lacks it is trained
    again from the start.

    Args:
        task: Which.
        scale: Its scale.
        store: Folder that runs are trained in.
        folders: All folders that are looked into, in order.
    """
    own = store / scale / task.name
    places = [folder / scale / task.name for folder in folders]
    place = next((path for path in places if is_finished(path, task.run)), None)
    if place is None:
        again = (own / MANIFEST).exists() and not _covered(task, own)
        after = tuple(m for m in task.measures if m not in FIRST_ROW)
        return Left(place=None, train=True, again=again, measures=after, shares=task.shares)
    attacked = {row["share"] for row in read_rows(place / ROBUST)}
    shares = tuple(share for share in task.shares if share not in attacked)
    after = tuple(
        m for m in task.measures if m not in FIRST_ROW and not (place / f"{m}.jsonl").exists()
    )
    needs_weights = bool(after) or any(
        epoch_after(share, task.run.loop.epochs) == task.run.loop.epochs for share in shares
    )
    lacks_weights = needs_weights and not (place / WEIGHTS).exists()
    train = lacks_weights or not _covered(task, place)
    # Where only the file of weights is gone, the last checkpoint still has them.
    resumable = _covered(task, own) and (own / CHECKPOINT).exists()
    again = train and (own / MANIFEST).exists() and not resumable
    return Left(place=place, train=train, again=again, measures=after, shares=shares)


def is_finished(place: Path, run: Run) -> bool:
    """Whether a folder holds all epochs of a run."""
    return (place / MANIFEST).exists() and (len(read_records(place / RECORDS)) >= run.loop.epochs)


def epoch_file(epoch: int) -> str:
    """Name of the file with the weights after an epoch."""
    return f"epoch-{epoch}.pt"


def _covered(task: Task, place: Path) -> bool:
    """Whether all that is kept along training is there, as far as the training has come."""
    epochs = len(read_records(place / RECORDS))
    for measure in task.along:
        found = {row["epoch"] for row in read_rows(place / f"{measure}.jsonl")}
        if not found >= set(range(FIRST_ROW[measure], epochs + 1)):
            return False
    attacked = {row["epoch"] for row in read_rows(place / ROBUST)}
    return all(
        epoch > epochs or epoch in attacked or (place / epoch_file(epoch)).exists()
        for epoch in task.early_epochs
    )
