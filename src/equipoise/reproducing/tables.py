"""What there is of a table or figure, as rows of strings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console

from equipoise.experiments.catalogue import EXPERIMENTS
from equipoise.experiments.passes import expected_passes, rough_seconds
from equipoise.experiments.store import KEPT, FoundCell, folder_of
from equipoise.experiments.values import SCALES, Experiment, Measure, Scale
from equipoise.paper.evidence import Found
from equipoise.paper.published import PUBLISHED
from equipoise.paper.tables import as_text, tables_of
from equipoise.records import RunRecords, epoch_after
from equipoise.reports.numbers import MISSING, spread
from equipoise.reports.statistics import mean_and_deviation
from equipoise.reports.tables import Table
from equipoise.reproducing.settings import Reproducing
from equipoise.reproducing.tasks import chosen_cells, is_finished

Row = dict[str, Any]
MEASURED: Mapping[Measure, Mapping[str, Callable[[Row], float | None]]] = {
    "gradient_correlation": {"correlation": lambda row: row["full"]},
    "gradient_norms": {"gradient norm": lambda row: row["new"]},
    "perturbed_gradients": {
        "correlation, active": lambda row: _protocol(row, "active", "correlation"),
        "correlation, all": lambda row: _protocol(row, "all", "correlation"),
        "variance, active": lambda row: _protocol(row, "active", "variance"),
        "variance, all": lambda row: _protocol(row, "all", "variance"),
    },
}
"""What is shown of a row of each measure; None where the row has nothing of it."""


def experiment_table(
    experiment: Experiment, scale: Scale, found: Sequence[FoundCell], only: str | None = None
) -> Table:
    """Mean and deviation over seeds after every budget; at the end, where there are none.

    Args:
        experiment: Which.
        scale: At which scale.
        found: Its cells, from `find`.
        only: As for `chosen_cells`.
    """
    cells = chosen_cells(experiment, scale, only)
    shown = [one for one in found if one.cell in cells]
    budgets = experiment.budgets or (1.0,)
    rows: list[tuple[str, ...]] = []
    for panel in dict.fromkeys(one.cell.panel for one in shown):
        rows.append((panel, *[""] * (1 + len(budgets))))
        for one in shown:
            if one.cell.panel != panel:
                continue
            clean = (_after(one, share) for share in budgets)
            rows.append((f"  {one.cell.arm}", f"{len(one.runs)}/{one.planned}", *clean))
            if one.cell.attacked:
                robust = (_robust(one, share) for share in budgets)
                rows.append(("    robust", "", *robust))
            for measure in one.cell.measures:
                for words, of in MEASURED[measure].items():
                    values = (_measured(one, measure, share, of) for share in budgets)
                    rows.append((f"    {words}", "", *values))
    return Table(
        title=f"{experiment.name} at scale {scale}: {experiment.title}",
        columns=("Accuracy (%) after epoch", "Runs", *(_budget(share, shown) for share in budgets)),
        rows=tuple(rows) or ((MISSING,) * (2 + len(budgets)),),
        notes=experiment.notes_at(scale),
    )


def tables_beside(experiment: Experiment, scale: Scale, found: Sequence[FoundCell]) -> list[str]:
    """Ours beside the published numbers, as text; nothing where the paper has no numbers.

    Args:
        experiment: Which.
        scale: At which scale.
        found: Its cells, from `find`.
    """
    if experiment.name not in PUBLISHED:
        return []
    return [as_text(table) for table in tables_of(Found(experiment, scale, tuple(found)))]


def plan_table(
    experiment: Experiment, scale: Scale, found: Sequence[FoundCell], only: str | None = None
) -> Table:
    """Cells, finished runs, and what one run costs.

    Args:
        experiment: Which.
        scale: At which scale.
        found: Its cells, from `find`.
        only: As for `chosen_cells`.
    """
    cells = chosen_cells(experiment, scale, only)
    rows = []
    for one in found:
        if one.cell not in cells:
            continue
        seconds = rough_seconds(one.cell.run, scale)
        rows.append(
            (
                one.cell.panel,
                one.cell.arm,
                f"{len(one.runs)} of {one.planned}",
                f"{expected_passes(one.cell.run):.0f}",
                MISSING if seconds is None else f"{seconds / 60:.1f}",
            )
        )
    return Table(
        title=f"{experiment.name} at scale {scale}: {experiment.title}",
        columns=("Panel", "Arm", "Runs", "Passes", "Minutes"),
        rows=tuple(rows) or ((MISSING,) * 5,),
        notes=experiment.notes_at(scale),
    )


def print_status(chosen: Reproducing, console: Console) -> None:
    """One line for each table and figure: name, title, finished runs by scale."""
    for name, title, *counts in status_lines(range(chosen.num_seeds), (chosen.out, KEPT)):
        shown = ", ".join(f"{scale} {n}" for scale, n in zip(SCALES, counts, strict=True))
        console.print(f"{name:10} {title:70} {shown}", highlight=False, soft_wrap=True)


def status_lines(seeds: Sequence[int], folders: Sequence[Path]) -> list[tuple[str, ...]]:
    """Name, title and finished runs by scale, of every experiment.

    Args:
        seeds: Wanted of every cell.
        folders: That are looked into.
    """
    lines = []
    for experiment in EXPERIMENTS.values():
        counts = [_count(experiment, scale, seeds, folders) for scale in SCALES]
        lines.append((experiment.name, experiment.title, *counts))
    return lines


def _count(
    experiment: Experiment, scale: Scale, seeds: Sequence[int], folders: Sequence[Path]
) -> str:
    """Finished runs of all that are wanted."""
    cells = {(cell.kind, cell.run): cell for cell in experiment.cells(scale)}.values()
    if not cells:
        return "no runs"
    places = [place for folder in folders if (place := folder / scale).is_dir()]
    done = 0
    if places:  # names of folders take a moment each
        wanted = [(folder_of(cell, seed), cell.run) for cell in cells for seed in seeds]
        done = sum(any(is_finished(p / name, run) for p in places) for name, run in wanted)
    return f"{done} of {len(cells) * len(seeds)}"


def _budget(share: float, shown: Sequence[FoundCell]) -> str:
    """A budget in epochs; where trainings differ in length, as a share of them."""
    lengths = {one.cell.run.loop.epochs for one in shown}
    if len(lengths) != 1:
        return f"{100 * share:g} %"
    return str(epoch_after(share, lengths.pop()))


def _after(one: FoundCell, share: float) -> str:
    """Test accuracy after a share of training, in per cent."""
    epochs = one.cell.run.loop.epochs
    return _spread(_accuracy(run, epoch_after(share, epochs)) for run in one.runs)


def _accuracy(run: RunRecords, epoch: int) -> float:
    return run.epochs[epoch - 1].test_accuracy


def _robust(one: FoundCell, share: float) -> str:
    """Robust accuracy after a share of training, in per cent."""
    rows = [row for found in one.measured("robust").values() for row in found]
    return _spread(row["robust_accuracy"] for row in rows if row["share"] == share)


def _measured(
    one: FoundCell, measure: Measure, share: float, of: Callable[[Row], float | None]
) -> str:
    """What was measured after a share of training, or at its end; mean and deviation over seeds."""
    epoch = epoch_after(share, one.cell.run.loop.epochs)
    means = []
    for rows in one.measured(measure).values():
        meant = [of(row) for row in rows if row.get("epoch", epoch) == epoch]
        there = [value for value in meant if value is not None]
        means += [fmean(there)] if there else []
    return spread(mean_and_deviation(means), "{:.3g}".format)


def _protocol(row: Row, which: str, name: str) -> float | None:
    """A number of one protocol: noise on, and numbers over, active weights or all."""
    value: float | None = row[name]
    return value if row["perturb"] == row["coordinates"] == which else None


def _spread(values: Iterable[float]) -> str:
    """Mean and deviation in per cent."""
    return spread(mean_and_deviation(100 * value for value in values), "{:.1f}".format)
