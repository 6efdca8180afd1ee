"""Tables of what there is, with missing cells shown as missing."""

from __future__ import annotations

import json
from pathlib import Path

from equipoise.experiments.catalogue import EXPERIMENTS
from equipoise.experiments.families import changed
from equipoise.experiments.store import find, folder_of, with_seed
from equipoise.experiments.values import Cell, Experiment
from equipoise.records import MANIFEST, RECORDS
from equipoise.reproducing.tables import experiment_table, plan_table, status_lines
from equipoise.settings import Run

RUN = changed(Run(), epochs=4)
CELLS = (
    Cell(panel="AT", arm="BSR-Net", run=RUN, attacked=(0.5, 1.0)),
    Cell(panel="AT", arm="A-BSR-Net", run=changed(RUN, corrector="agent")),
    Cell(panel="Standard", arm="BSR-Net", run=changed(RUN, sparsity=0.5)),
)
TABLE = Experiment(
    name="table-0",
    title="a title",
    quantity="accuracy",
    cells=lambda _: CELLS,
    budgets=(0.5, 1.0),
    notes={"cpu": ("only here",), "paper": ("always",)},
)


def store_run(folder: Path, cell: Cell, seed: int, rows: list[str], accuracy: float) -> Path:
    place = folder / "cpu" / folder_of(cell, seed)
    place.mkdir(parents=True)
    run = with_seed(cell.run, seed)
    (place / MANIFEST).write_text(json.dumps({"label": run.label, "seed": seed}))
    changed_rows = [json.loads(row) | {"test_accuracy": accuracy} for row in rows]
    (place / RECORDS).write_text("".join(json.dumps(row) + "\n" for row in changed_rows))
    return place


def test_means_deviations_and_what_is_missing(tmp_path: Path, golden_rows: list[str]) -> None:
    for seed, accuracy in ((0, 0.5), (1, 0.6)):
        place = store_run(tmp_path, CELLS[0], seed, golden_rows, accuracy)
        row = {"share": 1.0, "robust_accuracy": accuracy / 2}
        (place / "robust.jsonl").write_text(json.dumps(row) + "\n")
    found = find(TABLE, "cpu", range(3), [tmp_path])
    table = experiment_table(TABLE, "cpu", found)
    assert table.columns == ("Accuracy (%) after epoch", "Runs", "2", "4")
    assert table.rows == (
        ("AT", "", "", ""),
        ("  BSR-Net", "2/3", "55.0 \u00b1 7.1", "55.0 \u00b1 7.1"),
        ("    robust", "", "-", "27.5 \u00b1 3.5"),
        ("  A-BSR-Net", "0/3", "-", "-"),
        ("Standard", "", "", ""),
        ("  BSR-Net", "0/3", "-", "-"),
    )
    assert table.notes == ("always", "only here")
    only = experiment_table(TABLE, "cpu", found, only="a-bsr")
    assert [row[0] for row in only.rows] == ["AT", "  A-BSR-Net"]


def test_a_plan_tells_what_a_run_costs(tmp_path: Path) -> None:
    table = plan_table(TABLE, "cpu", find(TABLE, "cpu", range(3), [tmp_path]))
    assert [row[:4] for row in table.rows] == [
        ("AT", "BSR-Net", "0 of 3", "4"),
        ("AT", "A-BSR-Net", "0 of 3", "11"),
        ("Standard", "BSR-Net", "0 of 3", "4"),
    ]
    drawn = EXPERIMENTS["figure-2"]
    assert len(plan_table(drawn, "cpu", []).rows) == 1
    assert len(experiment_table(drawn, "cpu", []).rows) == 1


def test_the_list_has_a_line_for_each_and_counts_what_is_there(
    tmp_path: Path, golden_rows: list[str]
) -> None:
    empty = {name: counts for name, _, *counts in status_lines(range(3), [tmp_path])}
    assert tuple(empty) == tuple(EXPERIMENTS)
    assert empty["figure-2"] == ["no runs"] * 3
    assert empty["table-10"] == ["0 of 12"] * 3
    cell = EXPERIMENTS["table-10"].cells("cpu")[0]
    rows = golden_rows * (cell.run.loop.epochs // 4 + 1)
    store_run(tmp_path, cell, 1, rows, 0.5)
    there = {name: counts for name, _, *counts in status_lines(range(3), [tmp_path])}
    assert there["table-10"] == ["0 of 12", "1 of 12", "0 of 12"]


def test_notes_of_a_scale_are_not_those_of_another() -> None:
    assert TABLE.notes_at("paper") == ("always",)
    assert TABLE.notes_at("smoke") == ("always",)
