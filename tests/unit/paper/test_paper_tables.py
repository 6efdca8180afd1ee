"""Tables from rows that were written by hand, so that every number can be checked by eye."""

import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest

from equipoise.experiments.catalogue import EXPERIMENTS
from equipoise.experiments.store import folder_of
from equipoise.experiments.values import Cell
from equipoise.paper.evidence import Found, gather
from equipoise.paper.published import PUBLISHED
from equipoise.paper.tables import as_text, cost_table, tables_of
from equipoise.records import MANIFEST, RECORDS, write_records

synthetic = import_module("tests.unit.reports.synthetic_runs")


def put(
    store: Path, cell: Cell, seed: int, accuracies: dict[int, float], passes: float = 1.0
) -> Path:
    """A run whose test accuracies are those of a table; other epochs have none to speak of."""
    place = store / "cpu" / folder_of(cell, seed)
    place.mkdir(parents=True)
    run = synthetic.run(cell.run.label, seed, [])
    (place / MANIFEST).write_text(json.dumps(run.manifest), encoding="utf-8")
    epochs = range(1, cell.run.loop.epochs + 1)
    plain = [synthetic.record(epoch) for epoch in epochs]
    write_records(
        place / RECORDS,
        [
            replace(one, test_accuracy=accuracies.get(one.epoch, 0.0), data_passes=passes * e)
            for e, one in zip(epochs, plain, strict=True)
        ],
    )
    return place


def cells_of(name: str, panel: str) -> dict[str, Cell]:
    return {cell.arm: cell for cell in EXPERIMENTS[name].cells("cpu") if cell.panel == panel}


def found(store: Path, name: str) -> Found:
    return gather("cpu", range(3), [store], [EXPERIMENTS[name]]).found[name]


def table(store: Path, name: str, title: str) -> list[tuple[str, ...]]:
    (one,) = (one for one in tables_of(found(store, name)) if one.title.startswith(title))
    return list(one.rows)


def test_accuracies_stand_beside_the_published_ones(tmp_path: Path) -> None:
    cells = cells_of("table-1", "Standard, 99 %")
    # Epochs 1, 2 and 12 of 12 are the budgets of 20, 40 and 200 epochs of 200.
    for seed, (one, two, last) in enumerate(
        [(0.30, 0.40, 0.50), (0.31, 0.42, 0.51), (0.32, 0.44, 0.52)]
    ):
        put(tmp_path, cells["BSR-Net"], seed, {1: one, 2: two, 12: last})
        accuracies = {1: one + 0.02, 2: two - 0.01 * seed, 12: last + 0.03}
        put(tmp_path, cells["A-BSR-Net"], seed, accuracies, passes=3.0)
    rows = table(tmp_path, "table-1", "Standard, 99 %: Test accuracy")
    shown = {(row[0], row[1]): row[2:] for row in rows}
    assert shown["1 (20)", "BSR-Net"] == ("31.0 \u00b1 1.0", "3/3", "60.6 (1.26)", "-", "-")
    agent = shown["1 (20)", "A-BSR-Net"]
    assert agent == ("33.0 \u00b1 1.0", "3/3", "69.8 (1.45)", "+2.0 [+2.0, +2.0]", "+9.2")
    # 0, -1 and -2 points: mean -1, deviation 1, 4.3027 / sqrt(3) = 2.48 to each side.
    assert shown["2 (40)", "A-BSR-Net"][3:] == ("-1.0 [-3.5, +1.5]", "+11.1")
    assert shown["12 (200)", "A-BSR-Net"][3:] == ("+3.0 [+3.0, +3.0]", "+1.3")
    control = shown["1 (20)", "BSR-Net, BatchNorm refreshed"]
    assert control == ("missing", "0/3", "-", "-", "-")
    left_out = table(tmp_path, "table-1", "TRADES, 90 %")
    assert left_out[0] == ("(20)", "BSR-Net", "left out", "-", "62.0 (0.82)", "-", "-")
    cost = {row[:2]: row[2:5] for row in cost_table(found(tmp_path, "table-1")).rows}
    assert cost["Standard, 99 %", "A-BSR-Net"] == ("3/3", "36", "3.00")
    assert cost["Standard, 99 %", "BSR-Net"] == ("3/3", "12", "1 (base)")


def test_fewer_runs_are_counted_and_paired(tmp_path: Path) -> None:
    cells = cells_of("table-10", "VGG-C")
    put(tmp_path, cells["Reduce LR"], 0, {12: 0.4})
    put(tmp_path, cells["AGENT"], 0, {12: 0.5})
    put(tmp_path, cells["AGENT"], 1, {12: 0.6})
    last = table(tmp_path, "table-10", "VGG-C")[-2:]
    assert last[0][2:] == ("40.0", "1/3", "85.5", "-", "-")
    assert last[1][2:] == ("55.0 \u00b1 7.1", "2/3", "88.6", "+10.0", "+3.1")


def test_an_unfinished_run_is_missing(tmp_path: Path) -> None:
    cell = cells_of("table-10", "VGG-C")["AGENT"]
    place = put(tmp_path, cell, 0, {12: 0.5})
    lines = (place / RECORDS).read_text().splitlines(keepends=True)
    (place / RECORDS).write_text("".join(lines[:-1]))
    assert table(tmp_path, "table-10", "VGG-C")[-1][2:4] == ("missing", "0/3")


def test_robust_accuracies_and_runs_without_an_attack(tmp_path: Path) -> None:
    cells = cells_of("table-2", "AT, 99 %")
    for seed, robust in ((0, 0.20), (1, 0.22)):
        place = put(tmp_path, cells["BSR-Net"], seed, {})
        rows = [{"share": share, "robust_accuracy": robust} for share in (0.35, 1.0)]
        (place / "robust.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    put(tmp_path, cells["BSR-Net"], 2, {})
    shown = {row[:2]: row[2:] for row in table(tmp_path, "table-2", "AT, 99 %")}
    assert shown["4 (70)", "BSR-Net"][:3] == ("21.0 \u00b1 1.4 (n 2)", "3/3", "34.9")
    assert shown["5 (90)", "BSR-Net"][0] == "missing"


def test_norms_are_means_of_a_phase(tmp_path: Path) -> None:
    cells = cells_of("table-11", "VGG-C")
    place = put(tmp_path, cells["SET-ITOP"], 0, {})
    rows = [{"epoch": epoch, "new": float(epoch)} for epoch in range(1, 13)]
    (place / "gradient_norms.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shown = [row[2] for row in table(tmp_path, "table-11", "VGG-C") if row[1] == "SET-ITOP"]
    # Phases of 12 epochs: 1-2, 3-5, 6-7, 8-10, 11-12.
    assert shown == ["1.50", "4.00", "6.50", "9.00", "11.50"]


def test_correlations_are_shown_by_both_protocols(tmp_path: Path) -> None:
    (cell,) = (
        one
        for one in EXPERIMENTS["table-9"].cells("cpu")
        if (one.panel, one.arm) == ("RigL", "95 %")
    )
    place = put(tmp_path, cell, 0, {})
    rows = [
        {"perturb": p, "coordinates": c, "replicate": 0, "correlation": value, "variance": 1.0}
        for p, c, value in (("active", "active", 0.5), ("all", "all", 0.2), ("active", "all", 0.9))
    ]
    (place / "perturbed_gradients.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows)
    )
    shown = {row[0]: row[1:] for row in table(tmp_path, "table-9", "RigL")}
    assert shown["95 %"] == ("0.500", "0.200", "1/3", "0.1590")
    assert shown["0 %"] == ("missing", "missing", "0/3", "0.6005")


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_table_fits_into_80_columns_and_loses_nothing(name: str, tmp_path: Path) -> None:
    for one in tables_of(found(tmp_path, name)):
        text = as_text(one)
        assert max(len(line) for line in text.splitlines()) <= 80
        words = "".join(text.split())
        assert all("".join(cell.split()) in words for row in one.rows for cell in row[:1])
        for column in one.columns:
            assert "\u2026" not in text, column
