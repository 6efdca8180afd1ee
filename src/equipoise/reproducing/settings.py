"""Options of `equipoise reproduce`; torch is not imported here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from equipoise.arguments import nearest
from equipoise.experiments.catalogue import EXPERIMENTS
from equipoise.experiments.store import STORE
from equipoise.experiments.values import Experiment, Scale

ALL = "all"


@dataclass(frozen=True, kw_only=True)
class Reproducing:
    """What is reproduced."""

    names: tuple[str, ...] = ()
    """Tables and figures, for example table-1 figure-3, or all; `--list` names them."""
    scale: Scale = "cpu"
    """How much of the published settings: smoke takes seconds and shows that it runs, cpu is
    reduced to about half an hour for each on two cores, paper is as published."""
    num_seeds: int = 3
    """Seeds, from 0 on; more can be added later."""
    only: str | None = None
    """Leave out the cells whose panel and arm do not contain this text."""
    workers: int | None = None
    """Processes side by side; default: one a core on CPU, one on an accelerator."""
    out: Path = STORE
    """Folder of all runs; experiments share them."""
    data_dir: Path | None = None
    """Folder with the data; default: $EQUIPOISE_DATA, then the usual places."""
    download: bool = False
    """Fetch missing data sets from their homes, checked by their checksums."""
    device: str = "auto"
    """cpu, cuda, cuda:1, or auto: as the scale says."""
    overwrite: bool = False
    """Train every run again."""
    keep: Path | None = None
    """Copy the records of finished runs here, without weights, for version control."""
    plan: bool = False
    """Only tell the cells, what is there, and what the rest would cost."""
    list: bool = False
    """Only tell the names and titles of all tables and figures, and what there is of each."""


def check_reproducing(chosen: Reproducing) -> None:
    """Checks what the types cannot.

    Args:
        chosen: The options.

    Raises:
        ValueError: One sentence on the first thing that is wrong.

    Example:
        >>> check_reproducing(Reproducing(names=("table-1",)))
    """
    if chosen.num_seeds < 1:
        raise ValueError(f"--num-seeds is at least 1; got {chosen.num_seeds}; 3 is usual.")
    if chosen.workers is not None and chosen.workers < 1:
        raise ValueError(f"--workers is at least 1; got {chosen.workers}.")
    if not chosen.names and not chosen.list:
        raise ValueError(
            "`equipoise reproduce` takes tables and figures of the paper, for example table-1 "
            "figure-3, or all; `equipoise reproduce --list` names them."
        )
    chosen_experiments(chosen.names)


def chosen_experiments(names: Sequence[str]) -> list[Experiment]:
    """The experiments by their names, each once.

    Args:
        names: As the command line has them; ``all`` stands for every one.

    Raises:
        ValueError: There is none of that name.

    Example:
        >>> len(chosen_experiments(["all"])), chosen_experiments(["figure-3"])[0].name
        (44, 'figure-3')
    """
    for name in names:
        if name != ALL and name not in EXPERIMENTS:
            raise ValueError(
                f"{name!r} is not a table or figure of the paper; there are table-1 to table-11, "
                f"figure-1 to figure-33, and all{nearest(name, EXPERIMENTS)}"
            )
    return [experiment for name, experiment in EXPERIMENTS.items() if name in names or ALL in names]
