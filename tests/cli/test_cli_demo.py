"""The demonstration of correction on a tiny network: stopped, gone on with, and told."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from equipoise.demos import commands
from equipoise.demos.correction import DIGITS
from equipoise.records import find_runs
from equipoise.training.arms import Job, run_jobs

TINY = {
    **DIGITS, "model": "mlp", "width": 0.05, "train_samples": 128, "test_samples": 64,
    "epochs": 2, "interval": 2, "engine": "dense",
}  # fmt: skip
NAMES = (
    *("plain", "table", "fixed_partition", "double_long", "double_batch", "lower_rate"),
    *("agent", "longer"),
)


def test_a_demonstration_is_stopped_and_gone_on_with(
    call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(commands, "DIGITS", TINY)
    words = ("demo", "correction", "--num-seeds", "1", "--workers", "1", "--out", "shown")

    def half(jobs: Sequence[Job], *rest: Any, **more: Any) -> bool:
        run_jobs(jobs[:2], *rest, **more)
        return False

    monkeypatch.setattr(commands, "run_jobs", half)
    stopped = call(*words)
    assert stopped.code == 130
    assert "CIFAR-10 was not found, so this is shown on the digits" in stopped.out
    assert "Stopped and saved in shown; run the same command again to go on." in stopped.out
    folder = tmp_path / "shown"
    begun = {path: path.stat().st_mtime_ns for path in folder.rglob("records.jsonl")}
    assert len(begun) == 2
    assert not (folder / "demonstration.json").exists()

    monkeypatch.setattr(commands, "run_jobs", run_jobs)
    manifest = folder / "table" / "seed0" / "manifest.json"
    told = json.loads(manifest.read_text())
    told["engine"] = {"used": True, "instructions": "avx2"}  # as from where it is used
    manifest.write_text(json.dumps(told))
    done = call(*words)
    assert (done.code, done.err) == (0, "")
    assert {path: path.stat().st_mtime_ns for path in begun} == begun
    check_files(folder, done.out)
    mixed = "the avx2 engine ran table."
    assert f"methods: masks ran plain, {', '.join(NAMES[2:-1])} and longer" in (
        " ".join(done.out.split())
    )
    for name in ("demonstration.html", "demonstration.md", "report.html"):
        assert mixed in (folder / name).read_text()


def check_files(folder: Path, out: str) -> None:
    """What was written is what was measured, and what is printed follows from it."""
    assert {run.label for run in find_runs(folder)} == set(NAMES)
    kept = json.loads((folder / "demonstration.json").read_text())
    assert [row["member"]["name"] for row in kept["measured"]["readings"]] == list(NAMES)
    assert kept["command"] == "equipoise demo correction --num-seeds 1 --workers 1"
    assert kept["probe"]["ages"][-1]["age"] == 8
    assert kept["measured"]["phase"] == 1
    assert "n = 1 is too small to tell anything from chance" in " ".join(out.split())
    for sentence in kept["verdict"]:
        assert " ".join(sentence.split()) in " ".join(out.split())
        assert sentence in (folder / "demonstration.md").read_text()
    for name in ("demonstration.html", "demonstration.md", "demonstration.json", "report.html"):
        assert f"Wrote {Path('shown') / name}" in out
        assert (folder / name).stat().st_size > 1000


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("corection", "'corection' is not a demonstration; equipoise has correction; did you"),
        ("", "`equipoise demo` needs --name"),
        ("correction --sparsity 90", "for 90 % write 0.9"),
        ("correction --num-seeds 0", "--num-seeds is at least 1; got 0"),
        ("correction --data-dir nowhere", "CIFAR-10 was not found"),
    ],
)
def test_mistakes_get_one_sentence(call: Callable[..., Any], words: str, sentence: str) -> None:
    result = call("demo", *words.split())
    assert result.code == 2
    assert sentence in result.err
    assert "Traceback" not in result.err
