"""What there is of all experiments at one scale; everything else of this room is made from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from equipoise.experiments.catalogue import EXPERIMENTS
from equipoise.experiments.families import REDUCTIONS
from equipoise.experiments.store import FoundCell, find
from equipoise.experiments.values import Cell, Experiment, Scale
from equipoise.records import read_run


@dataclass(frozen=True)
class Found:
    """What there is of one experiment.

    Args:
        experiment: Which.
        scale: At which scale.
        cells: Those of this scale, with their runs.
    """

    experiment: Experiment
    scale: Scale
    cells: tuple[FoundCell, ...]

    @property
    def panels(self) -> tuple[str, ...]:
        """Names of the panels of this scale, in order."""
        return tuple(dict.fromkeys(one.cell.panel for one in self.cells))

    def arms(self, panel: str) -> tuple[str, ...]:
        """Names of the arms of a panel, in order."""
        return tuple(one.cell.arm for one in self.cells if one.cell.panel == panel)

    def cell(self, panel: str, arm: str) -> FoundCell | None:
        """One cell; None where this scale leaves it out."""
        for one in self.cells:
            if (one.cell.panel, one.cell.arm) == (panel, arm):
                return one
        return None

    @property
    def published_cells(self) -> tuple[Cell, ...]:
        """All cells, as at full scale."""
        return self.experiment.cells("paper")

    @property
    def runs(self) -> tuple[int, int]:
        """Finished runs, and how many there should be; a run of several cells counts in each."""
        return sum(len(one.runs) for one in self.cells), sum(one.planned for one in self.cells)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the reader must know at any scale, and what is otherwise at this one."""
        return self.experiment.notes_at(self.scale)

    @property
    def command(self) -> str:
        """What trains it."""
        return f"equipoise reproduce {self.experiment.name} --scale {self.scale}"


@dataclass(frozen=True)
class Evidence:
    """All experiments at one scale.

    Args:
        scale: Which.
        found: By the name of the experiment.
    """

    scale: Scale
    found: Mapping[str, Found]

    @property
    def reductions(self) -> tuple[str, ...]:
        """What the scale leaves out."""
        return REDUCTIONS[self.scale]


def gather(
    scale: Scale,
    seeds: Sequence[int],
    folders: Sequence[Path],
    experiments: Iterable[Experiment] | None = None,
) -> Evidence:
    """Reads what there is.

    Args:
        scale: At which scale.
        seeds: Wanted of every cell.
        folders: Looked into in turn.
        experiments: Which; all 44 by default.
    """
    chosen = EXPERIMENTS.values() if experiments is None else experiments
    there = [folder for folder in folders if (folder / scale).is_dir()]
    read = cache(read_run)  # experiments share runs
    return Evidence(
        scale,
        {
            one.name: Found(one, scale, tuple(find(one, scale, seeds, there, read)))
            for one in chosen
        },
    )
