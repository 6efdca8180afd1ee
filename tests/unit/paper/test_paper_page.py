import json
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from equipoise.experiments.catalogue import EXPERIMENTS
from equipoise.experiments.values import Cell
from equipoise.paper.evidence import Evidence, gather
from equipoise.paper.ledger import ledger
from equipoise.paper.page import page_html
from equipoise.paper.pictures import picture
from equipoise.paper.plots import COSTS, panels_of
from equipoise.paper.report import write_paper_report

fake = import_module("tests.unit.paper.fake_store")
headless = import_module("tests.unit.reports.headless_browser")

MISSING = headless.missing_program()
PANEL = "VGG-C, RigL-ITOP"
WRITTEN = ("table-1", "table-9", "table-11", "figure-4", "figure-5", "figure-26", "figure-32")
SHOWN = ("table-1", "table-7", "table-9", "figure-2", "figure-4", "figure-5", "figure-26")
STATE = """
const plots = Bokeh.documents.flatMap((one) => one.roots()).flatMap((root) => {
  const walk = (model) => model.type === "Figure" ? [model] : (model.children ?? []).flatMap(
    (child) => walk(Array.isArray(child) ? child[0] : child));
  return walk(root);
});
return plots.map((plot) => ({
  title: plot.title.text,
  x_title: plot.below[0].axis_label,
  x: plot.renderers.filter((one) => one.name === "line").map(
    (one) => Array.from(one.data_source.data.x)),
}));
"""


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    """A few experiments with runs, the others without."""
    store = tmp_path_factory.mktemp("store")

    def make(cell: Cell) -> dict[str, float]:
        corrected = cell.run.correction.corrector == "agent"
        return {"gain": 0.04, "passes": 2.2} if corrected else {}

    for name in WRITTEN:
        fake.write_experiment(store, "cpu", EXPERIMENTS[name], make)
    return gather("cpu", range(3), [store])


@pytest.fixture(scope="module")
def page(evidence: Evidence, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("page") / "paper.html"
    shown = {name: evidence.found[name] for name in SHOWN}
    path.write_text(page_html(Evidence("cpu", shown), ledger(evidence)), encoding="utf-8")
    return path


@pytest.fixture
def browser() -> Iterator[Any]:
    with headless.Browser(1280, 1600) as opened:
        yield opened


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_table_and_figure_has_panels_with_what_is_missing(
    name: str, evidence: Evidence
) -> None:
    panels = panels_of(evidence.found[name])
    assert panels
    for panel in panels:
        assert panel.lines or panel.missing
        assert set(panel.choices) == set(COSTS)
        for line in panel.lines:
            for choice in panel.choices.values():
                columns = [choice.x, choice.y, f"{choice.y}_low", f"{choice.y}_high"]
                lengths = {len(line.columns[column]) for column in columns}
                assert len(lengths) == 1
                assert lengths != {0}


def test_curves_are_means_with_a_band_over_seeds(evidence: Evidence) -> None:
    panel = panels_of(evidence.found["figure-5"])[0]
    found = evidence.found["figure-5"].cells[0]
    line = panel.lines[0]
    values = [100 * run.epochs[2].test_accuracy for run in found.runs]
    assert line.label == "RigL-ITOP (n 3)"
    assert line.columns["y"][2] == pytest.approx(sum(values) / 3)
    assert line.columns["y_low"][2] < line.columns["y"][2] < line.columns["y_high"][2]
    assert list(line.columns["epochs"][:3]) == [1, 2, 3]
    assert panel.lines[1].columns["passes"][0] == pytest.approx(2.2)


def test_figures_of_other_quantities_draw_those(evidence: Evidence) -> None:
    reach = panels_of(evidence.found["figure-4"])[0]
    assert reach.choices["seconds"].x_title == "Test accuracy (%)"
    epochs = reach.lines[0].columns["epochs"]
    assert list(epochs) == sorted(epochs)
    correlation = panels_of(evidence.found["figure-26"])[0]
    assert correlation.lines[0].columns["epochs"][0] == 2
    loss = panels_of(evidence.found["figure-32"])[0]
    run = evidence.found["figure-32"].cells[0].runs
    assert loss.lines[0].columns["y"][0] == pytest.approx(
        sum(one.epochs[0].test_loss for one in run) / 3
    )
    sparsity = panels_of(evidence.found["table-9"])
    assert [panel.title for panel in sparsity] == [
        "Correlation, noise on active weights",
        "Correlation, noise on all weights",
    ]
    assert list(sparsity[1].lines[1].columns["x"]) == [0, 50, 80, 90, 95]
    assert [line.printed for line in sparsity[1].lines] == [False, True, False, True]


def test_pictures_are_png_also_of_what_is_missing(evidence: Evidence) -> None:
    for name in ("figure-2", "figure-5", "table-7"):
        assert picture(panels_of(evidence.found[name]), name)[:4] == b"\x89PNG"


def test_the_report_is_a_page_a_text_and_a_picture_each(evidence: Evidence, tmp_path: Path) -> None:
    few = Evidence("cpu", {name: evidence.found[name] for name in ("figure-2", "table-9")})
    written, entries = write_paper_report(few, tmp_path, claims=())
    names = ["paper.html", "tables.txt", "figure-2.png", "table-9.png"]
    assert [path.name for path in written] == names
    assert entries == []
    text = (tmp_path / "tables.txt").read_text(encoding="utf-8")
    assert "table-9 at scale cpu" in text


def test_the_page_names_everything_with_its_scale(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for name in SHOWN:
        assert f'<section id="{name}"' in text
        if name != "figure-2":
            assert f"equipoise reproduce {name} --scale cpu" in text
    assert "at scale cpu" in text
    assert "the first 5,120 training" in text
    data = json.loads(text.partition('id="page-data">')[2].partition("</script>")[0])
    assert set(data["plots"]) == {f"plot-{name}" for name in SHOWN}
    assert text.count("Bokeh.safely") < 2  # one copy of the library
    assert len(text) < 6_000_000


@pytest.mark.skipif(MISSING is not None, reason=f"{MISSING} is not installed")
def test_plots_are_drawn_in_sight_and_switched_together(browser: Any, page: Path) -> None:
    browser.requests()
    browser.open(page)
    browser.run("document.getElementById('figure-5').scrollIntoView()")
    browser.run_async(
        "const done = arguments[0]; const wait = () => document.getElementById("
        "'plot-figure-5').dataset.drawn ? setTimeout(() => done(true), 200) : "
        "setTimeout(wait, 50); wait();"
    )
    before = next(one for one in browser.run(STATE) if one["title"] == PANEL)
    assert before["x_title"] == "Epochs"
    assert before["x"][1][:2] == [1, 2]
    browser.run("document.querySelector('button[data-x=passes]').click()")
    after = next(one for one in browser.run(STATE) if one["title"] == PANEL)
    assert after["x_title"].startswith("Data passes")
    assert after["x"][1][:2] == pytest.approx([2.2, 4.4])
    pressed = "return document.querySelectorAll('[data-x][aria-pressed=true]').length"
    assert browser.run(pressed) == 1
    assert [one["message"] for one in browser.log() if one["level"] != "INFO"] == []
    outside = [
        url for url in browser.requests() if not url.startswith(("data:", "blob:", "chrome:"))
    ]
    assert outside == [page.resolve().as_uri()]
    assert browser.screenshot()[:4] == b"\x89PNG"
