"""Measurements as tables, panels and pictures."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from equipoise.records import RunRecords
from equipoise.reports.measured import (
    Measured,
    correlation_panels,
    correlation_table,
    norms_panels,
    norms_table,
    perturbed_panels,
    perturbed_table,
)
from equipoise.reports.panels import Line, Panel, panels_png
from equipoise.reports.reached import reach_panels, reach_table

synthetic: Any = import_module("tests.unit.reports.synthetic_runs")


def measured(rows: list[dict[str, Any]], **changes: Any) -> Measured:
    return replace(Measured(label="set", seed=0, sparsity=0.5, rows=rows), **changes)


def noise(correlation: float, perturb: str = "active", **changes: Any) -> dict[str, Any]:
    usual = {"perturb": perturb, "coordinates": "all", "variance": 0.5}
    return usual | {"correlation": correlation} | changes


def test_draws_of_a_protocol_are_averaged_and_others_are_kept_apart() -> None:
    run = measured([noise(0.2), noise(0.4), noise(0.9, "all"), noise(0.6)])
    rows = perturbed_table([run]).rows
    assert rows == (
        ("set", "0", "0.5", "active", "all", "0.5", "0.4000", "3"),
        ("set", "0", "0.5", "all", "all", "0.5", "0.9000", "1"),
    )


def test_figure_1_has_a_line_for_a_protocol_and_a_place_for_a_sparsity() -> None:
    runs = [
        measured([noise(0.2)], sparsity=0.9),
        measured([noise(0.4)], sparsity=0.9, seed=1),
        measured([noise(0.8), noise(0.7, "all")]),
    ]
    variance, correlation = perturbed_panels(runs)
    assert variance.logarithmic
    assert [line.label for line in correlation.lines] == [
        "noise on active, over all",
        "noise on all, over all",
    ]
    first, second = correlation.lines
    assert (first.x, first.y) == ([0.5, 0.9], [0.8, pytest.approx(0.3)])
    assert second.y == [0.7, None]


def along(values: list[float | None], **more: Any) -> list[dict[str, Any]]:
    usual = {"batch": 0.5, "extra_passes": 1.25, "new": 2.0, "corrected": 1.0}
    rows = enumerate(values, start=2)
    return [usual | {"epoch": epoch, "full": value} | more for epoch, value in rows]


def test_thirds_and_fifths_cover_a_training() -> None:
    run = measured(along([0.1, 0.3, None, 0.5, 0.8, 0.6]))
    assert correlation_table([run]).rows == (
        ("set", "0", "0.5", "0.2000", "0.5000", "0.7000", "0.5000", "1.2"),
    )
    norms = norms_table([measured(along([None] * 7))])
    assert [row[3] for row in norms.rows] == ["batch", "corrected"]
    assert norms.rows[0][4:] == ("2",) * 5
    assert norms_table([measured(along([0.1, 0.2]))]).rows[0].count("-") == 3


def test_lines_along_a_training_are_means_over_seeds_and_name_what_differs() -> None:
    runs = [measured(along([0.2, 0.4])), measured(along([0.4]), seed=1)]
    full, _ = correlation_panels(runs)
    assert [line.label for line in full.lines] == ["set"]
    assert full.lines[0].y == [pytest.approx(0.3), 0.4]
    several = correlation_panels([*runs, measured(along([0.1]), sparsity=0.9)])[0]
    assert [line.label for line in several.lines] == ["set, 0.5", "set, 0.9"]
    assert len(norms_panels(runs)) == 2


def arm(label: str, seed: int, *accuracies: float, seconds: float = 10.0) -> RunRecords:
    usual = synthetic.record(1)
    records = [
        replace(usual, epoch=n, test_accuracy=accuracy, training_seconds=seconds * n)
        for n, accuracy in enumerate(accuracies, start=1)
    ]
    made: RunRecords = synthetic.run(label, seed, records)
    return made


def test_an_arm_that_is_twice_as_soon_saves_half_of_the_epochs_and_no_seconds() -> None:
    runs = [
        run
        for seed in (0, 1)
        for run in (
            arm("plain", seed, 0.1, 0.2, 0.2, 0.4),
            arm("ours", seed, 0.2, 0.4, 0.4, 0.5, seconds=20.0),
        )
    ]
    table = reach_table(runs, "plain", step=0.1)
    assert table.rows[0] == ("plain", "2", *["-"] * 6, "7.50")
    label, pairs, epochs, seconds, both, ours, theirs, gain, _ = table.rows[1]
    assert (label, pairs, both, ours, theirs) == ("ours", "2", "6", "2", "0")
    assert epochs.startswith("+50.0 [")
    assert seconds.startswith("+0.0 [")
    # Budgets of 10 to 100 % of four epochs are epochs 1, 2, 3 and 4.
    assert gain.startswith("+15.0 [")
    epochs_panel, seconds_panel = reach_panels(runs, "plain", step=0.1)
    plain, better = epochs_panel.lines
    assert [round(x) for x in plain.x] == [20, 30, 40, 50]
    assert plain.y == [2.0, 4.0, 4.0, None]
    assert better.y == [1.0, 2.0, 2.0, 4.0]
    assert seconds_panel.lines[1].y == [20.0, 40.0, 40.0, 80.0]


def test_an_arm_without_a_partner_has_dashes_and_a_wrong_baseline_one_sentence() -> None:
    runs = [arm("plain", 0, 0.1, 0.2), arm("ours", 1, 0.2, 0.3)]
    assert reach_table(runs, "plain").rows[1] == ("ours", "0", *["-"] * 7)
    with pytest.raises(ValueError, match="there is no arm 'other'; the arms here are ours, plain"):
        reach_table(runs, "other")


@pytest.mark.parametrize("count", [1, 2])
def test_panels_become_a_picture(count: int, tmp_path: Path) -> None:
    lines = [Line("_a $x$", [1, 2, 3], [0.1, None, 0.3]), Line("b", [1], [1e-4])]
    panels = [Panel("title", "Epoch", "y", lines, logarithmic=n == 0) for n in range(count)]
    image = panels_png(panels, note="A sentence.")
    assert image.startswith(b"\x89PNG")
    assert len(image) > 5_000
