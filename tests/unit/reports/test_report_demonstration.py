"""The demonstration of correction: numbers, verdict and page, from runs written by hand."""

from __future__ import annotations

import io
import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.unit.reports.synthetic_runs import record, run

from equipoise.records import RunRecords
from equipoise.reports.demonstration import Member, left_by, read_demonstration
from equipoise.reports.demonstration_page import (
    Setting,
    markdown,
    page_html,
    write_demonstration,
)
from equipoise.reports.demonstration_words import (
    demonstration_table,
    narrow_tables,
    page_tables,
    verdicts,
)
from equipoise.showing import print_table

MEMBERS = [
    Member(name="plain", what="plain training", kind="plain"),
    Member(name="table", what="stored gradients", kind="ours"),
    Member(name="fixed_partition", what="plain with the fixed partition", kind="control"),
    Member(name="double", what="plain with <large> batches", kind="control"),
    Member(name="agent", what="AGENT as published", kind="published"),
    Member(name="longer", what="plain for longer", kind="equal compute"),
]
PROBE = {
    "ages": [
        {"age": 1, "rho_squared": 0.9, "best_coefficient": 1.0},
        {"age": 100, "rho_squared": 0.5, "best_coefficient": 0.5},
    ]
}
SETTING = Setting(
    command="equipoise demo correction",
    settings="epochs 4",
    machine="a machine",
    facts={},
    notes=["a <note>"],
    arms={member.name: member.what for member in MEMBERS},
)


def training(
    label: str,
    seed: int,
    *,
    speed: float = 1.0,
    cost: float = 1.0,
    passes: float = 1.0,
    gain: float = 0.0,
    epochs: int = 4,
    **more: Any,
) -> RunRecords:
    """Losses 2, 1.5, 1, 0.5, then flat; a run of speed 2 comes down in half of the epochs."""
    level = 0.01 * seed
    rows = [
        record(
            epoch,
            learning_rate=0.1 if epoch <= epochs // 2 else 0.01,
            train_loss=2.5 + level - 0.5 * speed * epoch * (1 + 0.001 * seed),
            test_accuracy=0.5 + level + gain * (1 + 0.01 * seed),
            data_passes=passes * epoch,
            training_seconds=10.0 * cost * epoch,
            **more,
        )
        for epoch in range(1, epochs + 1)
    ]
    return run(label, seed, rows, engine={"used": False})


def arms(num_seeds: int = 3, **changes: dict[str, Any]) -> dict[str, list[RunRecords]]:
    """Table sooner than every control, unless `changes` say otherwise."""
    usual: dict[str, dict[str, Any]] = {
        "plain": {},
        "table": {
            "speed": 1.25, "cost": 1.1, "rho_squared": 0.4, "variance_ratio": 0.7,
            "coefficient": 0.5,
        },
        "fixed_partition": {"speed": 1.01},
        "double": {"speed": 0.6, "epochs": 4},
        "agent": {"speed": 1.02, "cost": 3.5, "passes": 3.0, "coefficient": 0.05},
        "longer": {"epochs": 12, "gain": 0.05},
    }  # fmt: skip
    return {
        name: [
            training(name, seed, **(options | changes.get(name, {}))) for seed in range(num_seeds)
        ]
        for name, options in usual.items()
    }


def said(runs: dict[str, list[RunRecords]]) -> str:
    return "\n".join(verdicts(read_demonstration(MEMBERS, runs, PROBE)))


def test_ratios_are_to_plains_loss_at_the_end_of_its_first_rate() -> None:
    found = read_demonstration(MEMBERS, arms(), PROBE)
    assert (found.phase, found.seeds) == (2, (0, 1, 2))
    assert found.target == pytest.approx(1.509, abs=1e-3)
    table = found.readings[1]
    assert table.reached["epochs"].ratio.mean == pytest.approx(0.8, abs=1e-3)
    assert table.reached["seconds"].ratio.mean == pytest.approx(0.88, abs=1e-3)
    assert (table.n, table.passes, table.seconds) == (3, 4.0, pytest.approx(44.0))
    assert table.loss_difference.mean == pytest.approx(-0.25, abs=1e-3)
    longer = found.of_kind("equal compute")[0]
    assert longer.accuracy_difference.mean == pytest.approx(5.0, abs=0.1)
    assert found.longer_less_dearest.mean == pytest.approx(5.0, abs=0.1)
    assert found.dearest.member.name == "agent"


def test_variance_is_what_a_corrector_saw_or_what_the_probe_says_of_its_coefficient() -> None:
    plain, table, _, _, agent, _ = read_demonstration(MEMBERS, arms(), PROBE).readings
    assert plain.variance is None
    assert table.variance is not None
    assert (table.variance.left, table.variance.source) == (pytest.approx(0.7), "records")
    assert agent.variance is not None
    assert agent.variance.left == pytest.approx(left_by(0.05, 0.5, 0.5)) == pytest.approx(0.905)
    assert agent.variance.source == "probe"
    assert read_demonstration(MEMBERS, arms(), None).readings[4].variance is None


def test_a_gain_that_no_control_has_is_said_to_be_one() -> None:
    text = said(arms())
    assert "table reached plain's training loss at the end of the first learning rate" in text
    assert "in 0.80 [0.80, 0.80] of the epochs" in text
    assert "0.88 [0.88, 0.88] of the seconds; the fixed partition alone in 0.99" in text
    assert "Against plain that is in epochs a gain and in seconds a gain." in text
    assert "table was sooner than fixed_partition and double: no control does as well." in text
    assert "lower in 3 of 3 seeds" in text
    assert "left 70 % of the variance of a batch's gradient (the best coefficient 60 %" in text
    assert "in epochs a gain, in seconds a loss." in text
    assert "plain training makes more of the same compute" in text
    assert "too small" not in text


def test_a_missing_gain_and_a_control_that_does_as_well_are_said_plainly() -> None:
    text = said(arms(table={"speed": 1.0, "cost": 1.2}))
    assert "in epochs no difference that n = 3 can tell from chance and in seconds a loss." in text
    assert "table was sooner than double, table was later than fixed_partition: what is" in text
    assert "can be had more simply" in text
    noisy = arms()
    noisy["fixed_partition"][1] = training("fixed_partition", 1, speed=1.5)
    assert "table was sooner than double, n = 3 cannot tell table from fixed_partition" in said(
        noisy
    )


def test_a_loss_that_is_never_reached_is_no_gain() -> None:
    text = said(arms(table={"speed": 0.3}, agent={"speed": 0.3}))
    assert "table never reached plain's training loss" in text
    assert "in 3 of 3 seeds: no gain." in text
    assert "agent never reached plain's training loss" in text
    row = demonstration_table(read_demonstration(MEMBERS, arms(table={"speed": 0.3}), PROBE)).rows[
        1
    ]
    assert "never in 3 of 3" in row


@pytest.mark.parametrize(("speed", "cost"), [(1.003, 1.0), (1.0, 1.004)])
def test_a_gain_that_rounds_to_none_is_not_called_one(speed: float, cost: float) -> None:
    """The interval ends at 0.997 or 1.004, which is printed as 1.00."""
    found = read_demonstration(MEMBERS, arms(table={"speed": speed, "cost": cost}), PROBE)
    interval = found.readings[1].reached["seconds"].ratio
    assert interval.low is not None
    assert interval.high is not None
    assert not interval.low <= 1.0 <= interval.high
    text = "\n".join(verdicts(found))
    word = "gain" if interval.high < 1.0 else "loss"
    assert f"in seconds no clear {word}, since the interval ends at 1.00." in text
    assert "in seconds a" not in text.split("agent, as published")[0]


@pytest.mark.parametrize("noise", [0.0, 0.7, 1.5])
def test_terminal_tables_fit_80_columns_and_hide_nothing(noise: float) -> None:
    runs = arms(12, **{name: {"speed": 1.0 + noise} for name in ("table",)})
    generator = random.Random(0)
    for name in runs:
        runs[name] = [
            RunRecords(
                run.folder,
                {**run.manifest, "engine": {"used": True}},
                [
                    replace(
                        r,
                        train_loss=r.train_loss + noise * generator.random(),
                        training_seconds=r.training_seconds * (1 + 40 * noise * generator.random()),
                        test_accuracy=r.test_accuracy * (1 - noise * generator.random() / 2),
                    )
                    for r in run.epochs
                ],
            )
            for run in runs[name]
        ]
    console = Console(file=io.StringIO(), width=80)
    tables = narrow_tables(read_demonstration(MEMBERS, runs, PROBE))
    for table in tables:
        print_table(table, console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, shown.splitlines())) <= 80
    assert "\u2026" not in shown
    for table in tables:
        for row in table.rows:
            assert all(part in shown for cell in row for part in cell.split("\n"))


def test_the_tables_of_the_page_hold_the_whole_one() -> None:
    found = read_demonstration(MEMBERS, arms(), PROBE)
    whole, parts = demonstration_table(found), page_tables(found)
    assert set(whole.columns) == {name for part in parts for name in part.columns}
    assert {cell for row in whole.rows for cell in row} == {
        cell for part in parts for row in part.rows for cell in row
    }
    assert [note for part in parts for note in part.notes] == list(whole.notes)


def test_too_few_seeds_are_said() -> None:
    for n in (1, 2):
        assert f"n = {n} is too small to tell anything from chance" in said(arms(n))
    assert "a ratio of one pair, which says nothing about chance" in said(arms(1))
    runs = arms()
    runs["agent"] = runs["agent"][:2]
    text = said(runs)
    assert "agent has 2 of the 3 seeds only." in text
    assert "(n = 2)" in text


def test_a_run_that_diverged_is_counted_and_left_out() -> None:
    runs = arms()
    last = runs["fixed_partition"][2]
    broken = [replace(r, train_loss=math.nan) for r in last.epochs]
    runs["fixed_partition"][2] = RunRecords(last.folder, last.manifest, broken)
    found = read_demonstration(MEMBERS, runs, PROBE)
    assert found.readings[2].loss_difference.n == 2
    assert "fixed_partition diverged in 1 of 3 runs" in "\n".join(verdicts(found))


def test_every_row_has_n_and_cost() -> None:
    found = read_demonstration(MEMBERS, arms(), PROBE)
    whole = demonstration_table(found)
    assert [row[1:5] for row in whole.rows] == [
        ("3", "4", "4.0", "40"),
        ("3", "4", "4.0", "44"),
        ("3", "4", "4.0", "40"),
        ("3", "4", "4.0", "40"),
        ("3", "4", "12.0", "140"),
        ("3", "12", "12.0", "120"),
    ]
    for table in (whole, *narrow_tables(found)):
        assert all(len(row) == len(table.columns) for row in table.rows)
        assert [row[:2] for row in table.rows] == [(m.name, "3") for m in MEMBERS]


def test_the_page_escapes_what_it_shows_and_fetches_nothing() -> None:
    found = read_demonstration(MEMBERS, arms(), PROBE)
    page = page_html(found, SETTING, b"picture")
    assert "<large>" not in page
    assert "&lt;large&gt;" in page
    assert "a &lt;note&gt;" in page
    assert "http:" not in page
    assert "https:" not in page
    assert "<script" not in page
    assert "data:image/png;base64,cGljdHVyZQ==" in page
    text = markdown(found, SETTING)
    assert text.count("\n| ") == 2 + len(MEMBERS)
    assert "`equipoise demo correction`: epochs 4; n = 3 paired seeds." in text


def test_files_with_and_without_a_picture(tmp_path: Path) -> None:
    runs = arms()
    found = read_demonstration(MEMBERS, runs, PROBE)
    without = write_demonstration(found, SETTING, runs, tmp_path, probe=PROBE, pictured=False)
    assert [path.name for path in without] == ["demonstration.json", "demonstration.md"]
    kept = json.loads(without[0].read_text())
    assert kept["verdict"] == verdicts(found)
    assert kept["measured"]["readings"][1]["variance"]["left"] == pytest.approx(0.7)
    assert kept["probe"] == PROBE
    pytest.importorskip("matplotlib")
    page = write_demonstration(found, SETTING, runs, tmp_path, probe=PROBE, pictured=True)[0]
    assert page.name == "demonstration.html"
    assert "data:image/png;base64,iVBOR" in page.read_text()
