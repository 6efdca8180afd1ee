"""The 44 tables and figures as lists of runs: valid, named, and shared where they are the same."""

from __future__ import annotations

from dataclasses import replace

import pytest

from equipoise.experiments.catalogue import EXPERIMENTS, NAMES
from equipoise.experiments.catalogue.itop import shortened
from equipoise.experiments.catalogue.parts import shorter
from equipoise.experiments.families import bsr, bsr_original, changed, itop
from equipoise.experiments.store import folder_of
from equipoise.experiments.values import SCALES, Cell, Experiment, Scale
from equipoise.settings import Run
from equipoise.validation import validate

WITHOUT_RUNS = ("figure-2",)
FULL = {
    "table-1": 14, "table-2": 8, "table-3": 4, "table-4": 8, "table-5": 3, "table-6": 12,
    "table-7": 13, "table-8": 12, "table-9": 10, "table-10": 4, "table-11": 4, "figure-1": 10,
    "figure-3": 11, "figure-5": 12, "figure-26": 8, "figure-31": 7, "figure-33": 16,
}  # fmt: skip
"""Cells at the full size, of those whose number the paper gives."""


def cell_of(name: str, scale: Scale, panel: str, arm: str) -> Cell:
    (found,) = [
        cell for cell in EXPERIMENTS[name].cells(scale) if (cell.panel, cell.arm) == (panel, arm)
    ]
    return found


def test_there_are_44_in_the_order_of_the_paper() -> None:
    assert len(EXPERIMENTS) == 44
    assert tuple(EXPERIMENTS) == NAMES
    assert {name: e.name for name, e in EXPERIMENTS.items()} == {name: name for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", SCALES)
def test_every_cell_is_valid_and_has_a_name_of_its_own(scale: Scale, name: str) -> None:
    experiment = EXPERIMENTS[name]
    cells = experiment.cells(scale)
    assert (len(cells) == 0) == (name in WITHOUT_RUNS)
    labels = [cell.label for cell in cells]
    assert len(set(labels)) == len(labels)
    for cell in cells:
        validate(cell.run)
        assert cell.run.loop.seed == 0
        assert all(0.0 < share <= 1.0 for share in cell.attacked)
    assert all(0.0 < share <= 1.0 for share in experiment.budgets)
    assert list(experiment.budgets) == sorted(experiment.budgets)
    assert experiment.title
    assert experiment.quantity


@pytest.mark.parametrize(("name", "count"), FULL.items())
def test_the_full_size_has_the_cells_of_the_paper(name: str, count: int) -> None:
    assert len(EXPERIMENTS[name].cells("paper")) == count
    assert len(EXPERIMENTS[name].cells("smoke")) == count


def test_equal_runs_are_one_run() -> None:
    for scale in SCALES:
        plain = itop(scale, "vgg_c", "set_itop")
        agent = itop(scale, "vgg_c", "set_itop", "agent")
        for name in ("figure-3", "figure-5", "figure-33"):
            assert cell_of(name, scale, "VGG-C, SET-ITOP", "SET-ITOP").run == plain
        for name, arm in (
            *((f"figure-{number}", "A-SET-ITOP") for number in (3, 5, 28, 31, 33)),
            ("figure-23", "gamma 0.1"),
            ("figure-30", "alpha 0.3"),
        ):
            assert cell_of(name, scale, "VGG-C, SET-ITOP", arm).run == agent
        assert cell_of("table-10", scale, "VGG-C", "AGENT").run == agent
        # A figure of hours is drawn from the runs of one of accuracies.
        for number in range(6, 12):
            same = [EXPERIMENTS[f"figure-{n}"].cells(scale) for n in (number, number + 10)]
            assert same[0] == same[1]


def test_runs_that_differ_have_folders_that_differ() -> None:
    for scale in SCALES:
        cells = {(c.kind, c.run): c for e in EXPERIMENTS.values() for c in e.cells(scale)}.values()
        folders = [folder_of(cell, 1) for cell in cells]
        assert len(set(folders)) == len(folders)
        assert len(cells) < sum(len(e.cells(scale)) for e in EXPERIMENTS.values()) / 1.5


def test_arms_of_a_panel_differ_in_what_they_say_only() -> None:
    """BSR-Net beside A-BSR-Net, which their own codes do not grant each other."""
    for name in ("table-1", "table-2", "table-4", "figure-4", "figure-9"):
        cells = EXPERIMENTS[name].cells("paper")
        for panel in {cell.panel for cell in cells}:
            plain = cell_of(name, "paper", panel, "BSR-Net").run
            corrected = cell_of(name, "paper", panel, "A-BSR-Net").run
            assert changed(corrected, corrector="none") == plain


def test_the_published_codes_are_arms_beside_the_default() -> None:
    for scale in SCALES:
        assert cell_of(
            "figure-3", scale, "VGG-C, SET-ITOP", "A-SET-ITOP (as its ITOP code)"
        ).run == itop(scale, "vgg_c", "set_itop", "ref_itop")
        control = cell_of("table-1", scale, "Standard, 99 %", "BSR-Net, BatchNorm refreshed").run
        assert control == bsr(scale, "vgg16", batchnorm="refreshed")
        assert cell_of("figure-6", scale, "99 %", "BSR-Net (ori)").run == bsr_original(
            scale, "vgg16"
        )
    arm = cell_of("table-1", "paper", "Standard, 99 %", "A-BSR-Net (as its BSR code)")
    assert arm.run == bsr("paper", "vgg16", "ref_bsr", correction_mask="all", batchnorm="refreshed")
    arm = cell_of("table-7", "paper", "CIFAR-10, 90 %", "A-RigL (as its RigL code)")
    assert arm.run.correction.corrector == "ref_rigl"


def test_what_is_measured_is_where_the_paper_measures() -> None:
    wanted: dict[str, set[str]] = {}
    for name, experiment in EXPERIMENTS.items():
        for cell in experiment.cells("cpu"):
            for measure in cell.measures:
                wanted.setdefault(measure, set()).add(name)
    assert wanted == {
        "gradient_correlation": {"figure-26"},
        "gradient_norms": {"table-11"},
        "perturbed_gradients": {"table-9", "figure-1"},
    }


def test_a_budget_keeps_the_number_of_steps_between_rewirings() -> None:
    base = itop("cpu", "vgg_c", "set_itop")
    short = shortened(base, "cpu", 50)
    assert isinstance(base.sparse.interval, float)
    assert isinstance(short.sparse.interval, float)
    assert short.sparse.interval * 50 == pytest.approx(base.sparse.interval * 250, rel=0.01)
    assert short.loop.epochs == round(base.loop.epochs / 5)
    assert [
        cell.run.loop.epochs for cell in EXPERIMENTS["figure-29"].cells("cpu") if "A-" in cell.arm
    ] == [2, 5]  # as the notes say
    assert shortened(itop("paper", "vgg_c", "set_itop"), "paper", 50).sparse.interval is None


def test_a_shorter_list_is_short_at_one_scale_and_says_so() -> None:
    def cells(scale: Scale) -> tuple[Cell, ...]:
        del scale
        return (Cell(panel="90 %", arm="a", run=Run()), Cell(panel="99 %", arm="a", run=Run()))

    full = Experiment(name="x", title="", quantity="", cells=cells, notes={"cpu": ("before",)})
    short = shorter(full, "90 %")
    assert [len(short.cells(scale)) for scale in SCALES] == [2, 1, 2]
    assert short.notes["cpu"] == (
        "before",
        "for time, cells are left out whose name contains 90 %",
    )
    assert replace(short, cells=cells, notes=full.notes) == full
