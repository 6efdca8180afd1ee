"""What is left to do, by the files that are there."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from equipoise.experiments.catalogue import EXPERIMENTS
from equipoise.experiments.families import changed
from equipoise.experiments.store import folder_of
from equipoise.experiments.values import Cell, Experiment
from equipoise.records import MANIFEST, RECORDS
from equipoise.reproducing.keeping import keep_records
from equipoise.reproducing.tasks import (
    CHECKPOINT,
    ROBUST,
    WEIGHTS,
    Task,
    epoch_file,
    left_of,
    tasks_of,
)
from equipoise.settings import Run, as_plain

RUN = changed(Run(), epochs=4)


@pytest.fixture
def rows(golden_rows: list[str]) -> list[str]:
    return golden_rows


def task_of(cell: Cell) -> Task:
    experiment = Experiment(name="table-0", title="", quantity="", cells=lambda _: (cell,))
    (task,) = tasks_of([experiment], "smoke", [0])
    return task


def write_run(place: Path, run: Run, rows: list[str], epochs: int) -> None:
    place.mkdir(parents=True, exist_ok=True)
    manifest = {"label": run.label, "seed": run.loop.seed, "run": as_plain(run)}
    (place / MANIFEST).write_text(json.dumps(manifest))
    (place / RECORDS).write_text("".join(row + "\n" for row in rows[:epochs]))


def write_rows(place: Path, name: str, epochs: list[int], **more: float) -> None:
    (place / name).write_text("".join(json.dumps({"epoch": e} | more) + "\n" for e in epochs))


def test_a_run_that_two_experiments_share_is_one_task() -> None:
    figures = [EXPERIMENTS[f"figure-{number}"] for number in (3, 5)]
    tasks = tasks_of(figures, "smoke", [0, 1])
    names = [folder_of(cell, s) for f in figures for cell in f.cells("smoke") for s in (0, 1)]
    assert len(tasks) == len(set(names)) < len(names)
    assert [task.seed for task in tasks] == sorted(task.seed for task in tasks)
    assert len({task.title for task in tasks}) == len(tasks)
    assert tasks[0].title == "figure-3, VGG-C, RigL-ITOP: RigL-ITOP, seed 0"


def test_what_cells_want_of_a_shared_run_is_joined() -> None:
    tables = [EXPERIMENTS[name] for name in ("table-1", "table-2", "table-6")]
    tasks = tasks_of(tables, "paper", [0], only="AT, 99")
    shares = {task.cell.run.correction.corrector: task.shares for task in tasks}
    assert shares["none"] == (0.35, 0.45, 0.7, 1.0)
    assert shares["agent"] == (0.1, 0.2, 0.35, 0.45, 0.7, 1.0)
    by_agent = next(task for task in tasks if task.cell.run.correction.corrector == "agent")
    assert by_agent.early_epochs == (20, 40, 70, 90, 140)


def test_only_reads_panels_and_arms_in_any_letters() -> None:
    experiment = EXPERIMENTS["figure-5"]
    counts = [len(tasks_of([experiment], "smoke", [0], only=t)) for t in ("svrg", "VGG-C", "x")]
    assert counts == [4, 6, 0]


def test_a_finished_run_has_nothing_left(tmp_path: Path, rows: list[str]) -> None:
    task = task_of(Cell(panel="p", arm="a", run=RUN))
    own = tmp_path / "own"
    assert left_of(task, "smoke", own, [own]).train
    write_run(own / "smoke" / task.name, RUN, rows, 3)
    begun = left_of(task, "smoke", own, [own])
    assert (begun.place, begun.train, begun.again) == (None, True, False)
    write_run(own / "smoke" / task.name, RUN, rows, 4)
    assert left_of(task, "smoke", own, [own]).nothing


def test_kept_records_count_and_weights_are_trained_anew(tmp_path: Path, rows: list[str]) -> None:
    own, kept = tmp_path / "own", tmp_path / "kept"
    task = task_of(Cell(panel="p", arm="a", run=RUN))
    write_run(kept / "smoke" / task.name, RUN, rows, 4)
    assert left_of(task, "smoke", own, [own, kept]).nothing
    attacked = replace(task, shares=(1.0,))
    left = left_of(attacked, "smoke", own, [own, kept])
    assert (left.train, left.again, left.shares) == (True, False, (1.0,))
    write_rows(kept / "smoke" / task.name, ROBUST, [4], share=1.0)
    assert left_of(attacked, "smoke", own, [own, kept]).nothing


def test_attacks_need_the_weights_of_their_epochs(tmp_path: Path, rows: list[str]) -> None:
    task = task_of(Cell(panel="p", arm="a", run=RUN, attacked=(0.5, 1.0)))
    place = tmp_path / "smoke" / task.name
    write_run(place, RUN, rows, 4)
    (place / WEIGHTS).touch()
    left = left_of(task, "smoke", tmp_path, [tmp_path])
    assert (left.train, left.again) == (True, True)
    (place / epoch_file(2)).touch()
    left = left_of(task, "smoke", tmp_path, [tmp_path])
    assert (left.train, left.shares) == (False, (0.5, 1.0))
    write_rows(place, ROBUST, [2], share=0.5)
    (place / epoch_file(2)).unlink()
    left = left_of(task, "smoke", tmp_path, [tmp_path])
    assert (left.train, left.shares) == (False, (1.0,))


@pytest.mark.parametrize(("epochs", "found", "again"), [
    (4, [2, 3, 4], False), (4, [2, 4], True), (4, [], True), (2, [2], False), (2, [], True),
])  # fmt: skip
def test_a_measure_must_cover_the_training(
    tmp_path: Path, rows: list[str], epochs: int, found: list[int], again: bool
) -> None:
    task = task_of(Cell(panel="p", arm="a", run=RUN, measures=("gradient_correlation",)))
    place = tmp_path / "smoke" / task.name
    write_run(place, RUN, rows, epochs)
    write_rows(place, "gradient_correlation.jsonl", found)
    left = left_of(task, "smoke", tmp_path, [tmp_path])
    assert left.again == again
    assert left.train == (again or epochs < 4)
    assert not left.measures


def test_a_measure_of_the_trained_network_needs_its_weights(
    tmp_path: Path, rows: list[str]
) -> None:
    task = task_of(Cell(panel="p", arm="a", run=RUN, measures=("perturbed_gradients",)))
    place = tmp_path / "smoke" / task.name
    write_run(place, RUN, rows, 4)
    assert left_of(task, "smoke", tmp_path, [tmp_path]).again
    (place / CHECKPOINT).touch()
    left = left_of(task, "smoke", tmp_path, [tmp_path])
    assert (left.train, left.again) == (True, False)
    (place / WEIGHTS).touch()
    left = left_of(task, "smoke", tmp_path, [tmp_path])
    assert (left.train, left.measures) == (False, ("perturbed_gradients",))
    write_rows(place, "perturbed_gradients.jsonl", [4])
    assert left_of(task, "smoke", tmp_path, [tmp_path]).nothing


def test_records_are_kept_without_weights(tmp_path: Path, rows: list[str]) -> None:
    tasks = [task_of(Cell(panel="p", arm="a", run=changed(RUN, sparsity=s))) for s in (0.5, 0.9)]
    for task, epochs in zip(tasks, (4, 3), strict=True):
        place = tmp_path / "own" / "smoke" / task.name
        write_run(place, task.run, rows, epochs)
        write_rows(place, ROBUST, [4], share=1.0)
        for name in (WEIGHTS, CHECKPOINT, epoch_file(2), "gradient_norms.pt"):
            (place / name).touch()
    assert keep_records(tasks, "smoke", tmp_path / "own", tmp_path / "kept") == 1
    copied = {p.name for p in (tmp_path / "kept" / "smoke" / tasks[0].name).iterdir()}
    assert copied == {MANIFEST, RECORDS, ROBUST}
    assert not (tmp_path / "kept" / "smoke" / tasks[1].name).exists()
    # Kept again, it is the same; and what is kept is found as finished.
    assert keep_records(tasks, "smoke", tmp_path / "own", tmp_path / "kept") == 1
    assert left_of(tasks[0], "smoke", tmp_path / "none", [tmp_path / "kept"]).nothing
