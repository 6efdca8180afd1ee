from importlib import import_module
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from equipoise.experiments.catalogue import EXPERIMENTS
from equipoise.options import Reporting
from equipoise.paper import commands
from equipoise.paper.evidence import Evidence, gather
from equipoise.paper.ledger import Entry, ledger
from equipoise.paper.report import write_paper_report

fake = import_module("tests.unit.paper.fake_store")


@pytest.fixture
def two_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages and pictures of two figures only, which is faster."""

    def few(evidence: Evidence, folder: Path) -> tuple[list[Path], list[Entry]]:
        shown = {name: evidence.found[name] for name in ("figure-2", "figure-29")}
        written, _ = write(Evidence(evidence.scale, shown), folder, ())
        return written, ledger(evidence)

    write = write_paper_report
    monkeypatch.setattr(commands, "write_paper_report", few)


@pytest.mark.usefixtures("two_figures")
def test_the_command_writes_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fake.write_experiment(tmp_path / "store", "cpu", EXPERIMENTS["figure-29"])
    page = StringIO()
    chosen = Reporting(paper=True, store=tmp_path / "store", claims=Path("docs/claims.md"))
    assert commands.report_paper(chosen, Console(file=page)) == 0
    said = page.getvalue()
    assert "Scale cpu, " in said
    assert "claims of the paper: " in said
    assert "Wrote 2 pictures beside it" in said
    folder = Path("runs/paper-report-cpu")
    assert (folder / "paper.html").exists()
    assert (folder / "figure-29.png").exists()
    assert "# Claims of the paper" in Path("docs/claims.md").read_text(encoding="utf-8")


def test_kept_records_count_where_the_store_has_none(tmp_path: Path) -> None:
    kept, store = tmp_path / "kept", tmp_path / "store"
    experiment = EXPERIMENTS["figure-29"]
    fake.write_experiment(kept, "cpu", experiment, seeds=range(3))
    fake.write_experiment(store, "cpu", experiment, seeds=range(1))
    found = gather("cpu", range(3), [store, kept], [experiment]).found["figure-29"]
    assert found.runs == (12, 12)
    folders = {run.folder.parents[1].name for one in found.cells for run in one.runs}
    assert folders == {"store", "kept"}
