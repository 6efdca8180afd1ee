"""The command `reproduce`, in a terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from equipoise.data.catalogue import describe
from equipoise.experiments.families import REDUCTIONS
from equipoise.experiments.passes import expected_passes, rough_seconds
from equipoise.experiments.store import KEPT, find
from equipoise.experiments.values import Experiment
from equipoise.reports.tables import Table
from equipoise.reproducing.attacks import ATTACKS, attack_run
from equipoise.reproducing.keeping import keep_records
from equipoise.reproducing.settings import ALL, Reproducing, chosen_experiments
from equipoise.reproducing.tables import experiment_table, plan_table, tables_beside
from equipoise.reproducing.tasks import Left, Task, left_of, tasks_of
from equipoise.reproducing.watching import forget_measured, measure_run, trainer_of, watchers
from equipoise.settings import Run, with_setting
from equipoise.showing import print_table
from equipoise.training.arms import Job, default_workers, run_jobs
from equipoise.training.build import resolve_device

LABELS = {"hydra": "hydra"}
"""Names of arms that their settings do not tell."""

Load = Callable[[Run, Console], Any]
Work = list[tuple[Task, Left]]


def reproduce(chosen: Reproducing, console: Console, load: Load) -> bool:
    """Trains, measures and attacks what is missing, and prints what came of it.

    Args:
        chosen: The options, valid.
        console: Where to print.
        load: Reads the data of a run, with progress; raises FileNotFoundError without them.

    Returns:
        Whether it is finished; if not, everything is saved.

    Raises:
        ValueError: No cell is called like that, or a folder holds another run.
        FileNotFoundError: Data are missing that a named table or figure needs.
        RuntimeError: A training process died.
    """
    experiments = chosen_experiments(chosen.names)
    tasks = tasks_of(experiments, chosen.scale, range(chosen.num_seeds), chosen.only)
    if not tasks and chosen.only is not None:
        raise ValueError(
            f"--only {chosen.only!r} is part of no panel or arm of {' '.join(chosen.names)}; "
            "add --plan without it to see their names."
        )
    if chosen.plan:
        _tell_plan(chosen, experiments, tasks, console)
        return True
    resolve_device(chosen.device)
    _tell_scale(chosen, tasks, console)
    present = _with_data(chosen, tasks, console, load)
    if not _train(chosen, present, console):
        return False
    _measure(chosen, present, console)
    if chosen.keep is not None:
        count = keep_records(tasks, chosen.scale, chosen.out, chosen.keep)
        _say(f"Copied the records of {count} runs to {chosen.keep}.", console)
    for experiment in experiments:
        _tell(chosen, experiment, console)
    _say(f"The runs are in {chosen.out / chosen.scale}.", console)
    return True


def folders_of(chosen: Reproducing) -> tuple[Path, ...]:
    """Where finished runs are looked for: the store, then the records that are kept."""
    return (chosen.out, KEPT)


def _left(chosen: Reproducing, tasks: Sequence[Task], *, fresh: bool = False) -> Work:
    """What is left to do for each task.

    Args:
        chosen: The options.
        tasks: All of them.
        fresh: Whether nothing that is there counts.
    """
    found = [
        (task, left_of(task, chosen.scale, chosen.out, () if fresh else folders_of(chosen)))
        for task in tasks
    ]
    return [(task, left) for task, left in found if not left.nothing]


def _train(chosen: Reproducing, tasks: Sequence[Task], console: Console) -> bool:
    """Trains what must be trained; whether all of it is finished."""
    work = [
        (task, left) for task, left in _left(chosen, tasks, fresh=chosen.overwrite) if left.train
    ]
    if not work:
        return True
    jobs = [_job(chosen, task, left) for task, left in work]
    for (_, left), job in zip(work, jobs, strict=True):
        if left.again or chosen.overwrite:
            forget_measured(job.folder)
    workers = chosen.workers or default_workers(jobs)
    there = len(tasks) - len(jobs)
    _say(f"Training {len(jobs)} runs, {workers} at a time; {there} are there.", console)
    return run_jobs(jobs, console, workers=workers, overwrite=chosen.overwrite)


def _job(chosen: Reproducing, task: Task, left: Left) -> Job:
    """The training of a task."""
    run = with_setting(task.run, "data_dir", chosen.data_dir)
    if chosen.device != "auto":
        run = with_setting(run, "device", chosen.device)
    seconds = rough_seconds(run, chosen.scale)
    return Job(
        label=LABELS.get(task.cell.kind, task.run.label),
        run=run,
        folder=chosen.out / chosen.scale / task.name,
        weight=expected_passes(run) if seconds is None else seconds,
        title=task.title,
        again=left.again,
        watching=partial(watchers, measures=task.along, epochs=task.early_epochs),
        trainer=trainer_of(task.cell.kind),
    )


def _measure(chosen: Reproducing, tasks: Sequence[Task], console: Console) -> None:
    """Measures and attacks the trained networks."""
    work = [(task, left) for task, left in _left(chosen, tasks) if left.place is not None]
    steps = sum(len(left.measures) + len(left.shares) for _, left in work)
    if not steps:
        return
    _say(f"Measuring {len(work)} trained networks.", console)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("measuring", total=len(work))
        for task, left in work:
            progress.update(bar, description=task.title)
            assert left.place is not None
            for measure in left.measures:
                measure_run(
                    measure,
                    left.place,
                    batch_size=task.run.loop.batch_size,
                    data_dir=chosen.data_dir,
                    device=chosen.device,
                )
            if left.shares:
                attack_run(
                    task,
                    left.place,
                    left.shares,
                    ATTACKS[chosen.scale],
                    data_dir=chosen.data_dir,
                    device=chosen.device,
                )
            progress.advance(bar)


def _with_data(
    chosen: Reproducing, tasks: Sequence[Task], console: Console, load: Load
) -> list[Task]:
    """The tasks whose data are there; those of the others are left out where all are meant."""
    needed = {task.name for task, _ in _left(chosen, tasks, fresh=chosen.overwrite)}
    missing: dict[str, int] = {}
    known: set[str] = set()
    present = []
    for task in tasks:
        dataset: str = task.run.data.dataset
        if task.name not in needed:
            present.append(task)
            continue
        if dataset not in known | missing.keys():
            run = with_setting(task.run, "data_dir", chosen.data_dir)
            try:
                load(with_setting(run, "download", chosen.download), console)
                known.add(dataset)
            except FileNotFoundError as error:
                if ALL not in chosen.names:
                    raise
                missing[dataset] = 0
                _say(f"{str(error).rstrip('.')}.", console)
        if dataset in missing:
            missing[dataset] += 1
        else:
            present.append(task)
    for dataset, count in missing.items():
        _say(f"Left out, for want of {describe(dataset).title}: {count} runs.", console)
    return present


def _tell_scale(chosen: Reproducing, tasks: Sequence[Task], console: Console) -> None:
    """What the scale leaves out."""
    _say(f"{len(tasks)} runs at scale {chosen.scale}.", console)
    for sentence in REDUCTIONS[chosen.scale]:
        console.print(f"- {sentence}", style="dim", highlight=False, markup=False)


def _tell_plan(
    chosen: Reproducing,
    experiments: Sequence[Experiment],
    tasks: Sequence[Task],
    console: Console,
) -> None:
    """The cells, and what the missing runs would cost."""
    _tell_scale(chosen, tasks, console)
    work = {task.name: task for task, left in _left(chosen, tasks) if left.train}
    for experiment in experiments:
        found = find(experiment, chosen.scale, range(chosen.num_seeds), folders_of(chosen))
        _show(plan_table(experiment, chosen.scale, found, chosen.only), console)
    passes = sum(expected_passes(task.run) for task in work.values())
    text = f"To train: {len(work)} runs, about {passes:.0f} passes over their data"
    seconds = [rough_seconds(task.run, chosen.scale) for task in work.values()]
    if work and None not in seconds:
        minutes = sum(second for second in seconds if second is not None) / 60
        cores = chosen.workers or torch.get_num_threads()
        text += f", very roughly {minutes / cores:.0f} minutes in {cores} processes"
    _say(f"{text}.", console)


def _tell(chosen: Reproducing, experiment: Experiment, console: Console) -> None:
    """The tables of an experiment: beside the published numbers, where there are any."""
    seeds, folders = range(chosen.num_seeds), folders_of(chosen)
    found = find(experiment, chosen.scale, seeds, folders)
    beside = [] if chosen.only is not None else tables_beside(experiment, chosen.scale, found)
    if not beside:
        _show(experiment_table(experiment, chosen.scale, found, chosen.only), console)
        return
    _say(f"{experiment.name} at scale {chosen.scale}: {experiment.title}", console)
    for text in beside:
        console.print(text, highlight=False, markup=False)
    for note in experiment.notes_at(chosen.scale):
        console.print(f"- {note}", highlight=False, markup=False)


def _show(table: Table, console: Console) -> None:
    """A table below its title, which may be wider."""
    _say(table.title, console)
    print_table(replace(table, title=""), console)


def _say(text: str, console: Console) -> None:
    console.print(text, highlight=False, soft_wrap=True, markup=False)
