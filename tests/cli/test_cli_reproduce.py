"""Tables and figures of the paper, reproduced as far as seconds allow: all 44, at scale smoke."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from equipoise.experiments.catalogue import EXPERIMENTS
from equipoise.reproducing import commands
from equipoise.training.arms import Job, run_jobs


def test_all_44_run(call: Callable[..., Any]) -> None:
    done = call("reproduce", "all", "--scale", "smoke", "--num-seeds", 1)
    assert (done.code, done.err) == (0, "")
    for name, experiment in EXPERIMENTS.items():
        assert f"{name} at scale smoke: {experiment.title}" in " ".join(done.out.split())
    assert "0/1" not in done.out
    assert "0 of 1" not in done.out
    again = call("reproduce", "all", "--scale", "smoke", "--num-seeds", 1)
    assert again.code == 0
    assert "Training" not in again.out
    assert "Measuring" not in again.out
    listed = call("reproduce", "--list", "--num-seeds", 1)
    for line in listed.out.splitlines():
        name = line.split()[0]
        count = re.search(r"smoke (\d+) of (\d+)", line)
        assert (count is None) == (name == "figure-2")
        assert count is None or count[1] == count[2]
    assert [line.split()[0] for line in listed.out.splitlines()] == list(EXPERIMENTS)


def test_what_was_stopped_is_gone_on_with_and_kept(
    call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words: tuple[object, ...] = (
        "reproduce",
        "figure-3",
        "table-2",
        "--scale",
        "smoke",
        "--num-seeds",
        1,
    )
    words += ("--workers", 1, "--only", "A-", "--out", "store", "--keep", "kept")

    def part(jobs: Sequence[Job], *rest: Any, **more: Any) -> bool:
        run_jobs(jobs[:2], *rest, **more)
        return False

    monkeypatch.setattr(commands, "run_jobs", part)
    stopped = call(*words)
    assert stopped.code == 130
    assert "Stopped and saved in store; run the same command again to go on." in stopped.out
    begun = {path: path.stat().st_mtime_ns for path in Path("store").rglob("records.jsonl")}
    assert len(begun) == 2
    assert not Path("kept").exists()

    monkeypatch.setattr(commands, "run_jobs", run_jobs)
    done = call(*words)
    assert (done.code, done.err) == (0, "")
    assert {path: path.stat().st_mtime_ns for path in begun} == begun
    assert "Training 8 runs, 1 at a time; 2 are there." in done.out
    kept = sorted(path.name for path in (tmp_path / "kept").rglob("*") if path.is_file())
    assert set(kept) == {"manifest.json", "records.jsonl", "robust.jsonl"}
    assert kept.count("manifest.json") == 10
    assert kept.count("robust.jsonl") == 4
    assert not list(Path("store").rglob("epoch-*.pt"))

    # What is kept counts as there, also without the runs.
    fresh = call(*words[:-4], "--keep", "more")
    assert "Training 10 runs" in fresh.out
    Path("results").mkdir()
    (tmp_path / "kept").rename(tmp_path / "results" / "paper")
    again = call(*words[:-4], "--out", "elsewhere")
    assert again.code == 0
    assert "Training" not in again.out


def test_a_plan_trains_nothing(call: Callable[..., Any]) -> None:
    planned = call("reproduce", "table-1", "--plan")
    assert planned.code == 0
    words = " ".join(planned.out.split())
    assert "To train: 15 runs" in words
    assert "very roughly" in words
    assert "A-BSR-Net" in words
    assert not Path("runs").exists()


def test_missing_data_stop_a_named_one_and_not_all(
    call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    named = call("reproduce", "table-4")
    assert named.code == 2
    assert "SVHN was not found" in named.err
    trained: list[Job] = []

    def noted(jobs: Sequence[Job], *rest: Any, **more: Any) -> bool:
        del rest, more
        trained.extend(jobs)
        return False

    monkeypatch.setattr(commands, "run_jobs", noted)
    every = call("reproduce", "all", "--num-seeds", 1)
    assert every.code == 0
    assert "Left out, for want of SVHN" in every.out
    assert not trained


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("", "takes tables and figures of the paper"),
        ("table-12", "'table-12' is not a table or figure of the paper"),
        ("figure3", "did you mean figure-3?"),
        ("figure-3 --num-seeds 0", "--num-seeds is at least 1; got 0"),
        ("figure-3 --workers 0", "--workers is at least 1; got 0"),
        ("figure-3 --scale big", "--scale"),
        ("figure-3 --only nothing", "is part of no panel or arm of figure-3"),
    ],
)
def test_mistakes_get_one_sentence(call: Callable[..., Any], words: str, sentence: str) -> None:
    result = call("reproduce", *words.split())
    assert result.code == 2
    assert sentence in result.err
    assert "Traceback" not in result.err
