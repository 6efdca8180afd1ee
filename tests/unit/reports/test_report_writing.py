import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from equipoise.records import COMPARISON, find_runs
from equipoise.reports import extras, write_report
from equipoise.reports import report as writing

synthetic = import_module("tests.unit.reports.synthetic_runs")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """Leaves out the rendering; returns the baselines that were asked for."""
    asked: list[str | None] = []

    def page(runs: object, baseline: str | None, confidence: float) -> str:
        asked.append(baseline)
        return "page"

    monkeypatch.setattr(writing, "page_html", page)
    monkeypatch.setattr(writing, "figure_png", lambda arms, baseline: b"picture")
    return asked


def test_a_folder_becomes_a_page_and_a_picture(tmp_path: Path) -> None:
    for made in synthetic.two_arms(num_seeds=2, epochs=3):
        synthetic.write_run(tmp_path / "runs", made)
    before = sorted(path.read_bytes() for path in (tmp_path / "runs").rglob("*.json*"))
    written = write_report(tmp_path / "runs", tmp_path / "out")
    assert written == [tmp_path / "out" / "report.html", tmp_path / "out" / "report.png"]
    assert written[0].read_text(encoding="utf-8").startswith("<!doctype html>")
    assert written[1].read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "report.html",
        "report.png",
    ]
    assert sorted(path.read_bytes() for path in (tmp_path / "runs").rglob("*.json*")) == before


def test_the_page_can_be_named(tmp_path: Path, quick: list[str | None]) -> None:
    written = write_report([synthetic.training_run(epochs=1)], tmp_path / "deep" / "mine.html")
    assert [path.name for path in written] == ["mine.html", "mine.png"]
    assert all(path.exists() for path in written)


def test_a_report_beside_its_runs_does_not_disturb_them(
    tmp_path: Path, quick: list[str | None]
) -> None:
    synthetic.write_run(tmp_path, synthetic.training_run(epochs=2))
    write_report(tmp_path, tmp_path)
    write_report(str(tmp_path), str(tmp_path))
    assert len(find_runs(tmp_path)) == 1


def test_a_failure_leaves_the_old_report_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: list[str | None]
) -> None:
    write_report([synthetic.training_run(epochs=1)], tmp_path)

    def fail(arms: object, baseline: object) -> bytes:
        raise RuntimeError("no picture")

    monkeypatch.setattr(writing, "figure_png", fail)
    monkeypatch.setattr(writing, "page_html", lambda *arguments: "new page")
    with pytest.raises(RuntimeError):
        write_report([synthetic.training_run(epochs=1)], tmp_path)
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == "page"
    assert (tmp_path / "report.png").read_bytes() == b"picture"


def test_the_cheapest_arm_is_the_baseline_unless_one_is_named(
    tmp_path: Path, quick: list[str | None]
) -> None:
    runs = [
        synthetic.training_run("agent", 0, epochs=1, passes=10 / 3),
        synthetic.training_run("set", 0, epochs=1),
        synthetic.training_run("rigl", 0, epochs=1),
        synthetic.run("absent", 0, []),
    ]
    write_report(runs, tmp_path)
    write_report(runs, tmp_path, baseline="set")
    write_report(runs[:1], tmp_path)
    assert quick == ["rigl", "set", None]


def test_a_recorded_baseline_is_used(tmp_path: Path, quick: list[str | None]) -> None:
    for label in ("a", "b"):
        synthetic.write_run(tmp_path, synthetic.training_run(label, epochs=1))
    (tmp_path / COMPARISON).write_text(json.dumps({"baseline": "b"}), encoding="utf-8")
    write_report(tmp_path, tmp_path / "out")
    assert quick == ["b"]
    (tmp_path / COMPARISON).write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="names no baseline"):
        write_report(tmp_path, tmp_path / "out")


def test_nothing_to_report_on_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no run; pass a folder .*\.$") as caught:
        write_report(tmp_path, tmp_path / "out")
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="list of runs is empty"):
        write_report([], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_extra_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == "bokeh" else object())
    with pytest.raises(ImportError, match=r'needs bokeh, .*pip install "equipoise\[report\]"'):
        write_report([synthetic.training_run(epochs=1)], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_importing_reports_loads_nothing_heavy() -> None:
    heavy = ["torch", "matplotlib", "bokeh", "plotly", "jinja2", "scipy", "numpy"]
    code = (
        "import sys, equipoise.reports; "
        f"sys.exit(', '.join(name for name in {heavy} if name in sys.modules) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_comparing_and_writing_load_no_torch(tmp_path: Path) -> None:
    for made in synthetic.two_arms(num_seeds=2, epochs=2):
        synthetic.write_run(tmp_path / "runs", made)
    code = (
        "import sys; from equipoise.reports import write_report; "
        "write_report(sys.argv[1], sys.argv[2]); sys.exit('torch' in sys.modules)"
    )
    arguments = [sys.executable, "-c", code, str(tmp_path / "runs"), str(tmp_path / "out")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
