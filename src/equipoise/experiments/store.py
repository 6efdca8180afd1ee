"""Where the runs of experiments lie, and which of them are there.

Experiments share runs: a run lies in a folder named after its settings, so the plain arm of five
figures is trained once. Torch is not imported here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from equipoise.experiments.values import Cell, Experiment, Scale
from equipoise.records import MANIFEST, RunRecords, read_rows, read_run
from equipoise.settings import Run, with_setting

Reader: TypeAlias = Callable[[Path], RunRecords]

STORE = Path("runs/paper")
KEPT = Path("results/paper")
"""Records that are kept under version control, without weights."""


@dataclass(frozen=True, kw_only=True)
class FoundCell:
    """A cell and what there is of it.

    Args:
        cell: What was asked for.
        runs: Its finished runs, by seed.
        planned: How many there should be.
    """

    cell: Cell
    runs: tuple[RunRecords, ...]
    planned: int

    def measured(self, name: str) -> dict[int, list[dict[str, Any]]]:
        """Rows of what was measured besides the records, by seed; those that have them.

        Args:
            name: Of the file, without its ending.
        """
        paths = {run.seed: run.folder / f"{name}.jsonl" for run in self.runs}
        return {seed: read_rows(path) for seed, path in paths.items() if path.exists()}


def with_seed(run: Run, seed: int) -> Run:
    """The run of another seed."""
    return with_setting(run, "seed", seed)


def folder_of(cell: Cell, seed: int) -> str:
    """Name of the folder of one run of a cell, in the folder of its scale.

    Example:
        >>> from equipoise.settings import Run
        >>> folder_of(Cell(panel="", arm="", run=Run()), 3).rpartition("-")[0]
        'digits-small_cnn-rigl-s0.9-seed3'
    """
    name = with_seed(cell.run, seed).folder_name
    return name if cell.kind == "train" else f"{cell.kind}-{name}"


def find(
    experiment: Experiment,
    scale: Scale,
    seeds: Sequence[int],
    folders: Sequence[Path],
    read: Reader = read_run,
) -> list[FoundCell]:
    """What there is of an experiment.

    Args:
        experiment: Which.
        scale: At which scale.
        seeds: Wanted of every cell.
        folders: Each with a folder for every scale; the first that holds a finished run counts.
        read: Reads the folder of a run; a cached one serves experiments that share runs.

    Returns:
        One entry for every cell, in order.
    """
    return [
        FoundCell(
            cell=cell,
            runs=tuple(
                run for seed in seeds if (run := _finished(cell, seed, scale, folders, read))
            ),
            planned=len(seeds),
        )
        for cell in experiment.cells(scale)
    ]


def _finished(
    cell: Cell, seed: int, scale: Scale, folders: Sequence[Path], read: Reader
) -> RunRecords | None:
    """The run of one seed, if all of its epochs are there."""
    for folder in folders:
        place = folder / scale / folder_of(cell, seed)
        if (place / MANIFEST).exists():
            run = read(place)
            if len(run.epochs) >= cell.run.loop.epochs:
                return run
    return None
