"""Arms on paired seeds in several processes: files, fairness, going on, and a report."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from equipoise.arguments import parse_arm
from equipoise.records import find_runs, read_records
from equipoise.settings import Run, with_setting
from equipoise.training.arms import default_workers, plan, write_plan
from equipoise.training.loop import train

Start = Callable[..., subprocess.Popen[str]]
TINY = (
    *("compare", "--model", "mlp", "--width", "0.1", "--train-samples", "128"),
    *("--test-samples", "64", "--batch-size", "32", "--device", "cpu", "--learning-rate", "0.05"),
    *("--epochs", "8", "--interval", "2", "--num-seeds", "2", "--seed", "3", "--workers", "2"),
    *("--threads", "2", "--arms", "rigl", "double:rigl+agent,batch_size=64", "--out", "both"),
    *("--engine", "dense"),
)
SETTINGS = {
    "model": "mlp", "width": 0.1, "train_samples": 128, "test_samples": 64, "batch_size": 32,
    "device": "cpu", "learning_rate": 0.05, "epochs": 8, "interval": 2, "seed": 4,
    "engine": "dense",
}  # fmt: skip


def interrupt(process: subprocess.Popen[str]) -> None:
    """As a terminal does it: everybody in the foreground is told."""
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=100)
    assert (process.returncode, err) == (130, "")
    last = out.splitlines()[-1]
    assert last == "Stopped and saved in both; run the same command again to go on."


def test_two_arms_on_two_seeds_interrupted_and_completed(start: Start, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    folder = tmp_path / "both"
    process = start(*TINY)
    for _ in range(6000):
        if read_records(folder / "rigl" / "seed3" / "records.jsonl"):
            break
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    interrupt(process)
    assert len(list(folder.rglob("model.pt"))) < 4
    records = {path: path.read_bytes() for path in folder.rglob("records.jsonl")}

    process = start(*TINY)
    out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    assert all(path.read_bytes().startswith(before) for path, before in records.items())
    written = json.loads((folder / "comparison.json").read_text())
    assert written["baseline"] == "rigl"
    assert (written["arms"], written["seeds"]) == (["rigl", "double"], [3, 4])
    assert len(written["runs"]) == 4
    assert all((folder / run / "model.pt").exists() for run in written["runs"])
    check_runs(folder, out)
    assert "double" in (folder / "report.html").read_text()
    assert f"Wrote {Path('both') / 'report.html'}" in out
    assert list(folder.glob("*.png"))


def check_runs(folder: Path, out: str) -> None:
    """Four runs, each with the settings of its arm, and one of them done again here."""
    runs = {(run.label, run.seed): run for run in find_runs(folder)}
    assert set(runs) == {("rigl", 3), ("rigl", 4), ("double", 3), ("double", 4)}
    for (label, seed), run in runs.items():
        double, settings = label == "double", run.manifest["run"]
        assert [record.epoch for record in run.epochs] == list(range(1, 9))
        assert settings["loop"]["seed"] == seed
        assert settings["loop"]["batch_size"] == (64 if double else 32)
        assert settings["correction"]["corrector"] == ("agent" if double else "none")
        assert run.manifest["device"]["threads"] == 1  # two, shared by two processes
        record = run.epochs[-1]
        assert record.data_passes == pytest.approx(1 + 7 * 10 / 3 if double else 8)
        assert f"{label}, seed {seed}: test accuracy {100 * record.test_accuracy:.2f} %" in out
    alone = Run()
    for name, value in SETTINGS.items():
        alone = with_setting(alone, name, value)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    train(alone, folder.parent / "alone")
    torch.set_num_threads(threads)
    left = torch.load(folder.parent / "alone" / "model.pt")
    right = torch.load(folder / "rigl" / "seed4" / "model.pt")
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


def test_an_interrupt_while_the_processes_start(start: Start, tmp_path: Path) -> None:
    process = start(*TINY)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("Training 2 arms on 2 seeds in both, 2 at a time.")
    time.sleep(0.3)
    interrupt(process)
    assert not list((tmp_path / "both").rglob("model.pt"))


def arms(*texts: str) -> list[Any]:
    return [parse_arm(text, Run()) for text in texts]


def test_the_plan_completes_pairs_early(tmp_path: Path) -> None:
    jobs = plan(arms("rigl", "b:set+svrg"), [3, 4], tmp_path)
    assert [(job.label, job.run.loop.seed) for job in jobs] == [
        ("rigl", 3),
        ("b", 3),
        ("rigl", 4),
        ("b", 4),
    ]
    assert len({job.name for job in jobs}) == 4
    assert [job.folder.relative_to(tmp_path).as_posix() for job in jobs] == [
        "rigl/seed3",
        "b/seed3",
        "rigl/seed4",
        "b/seed4",
    ]
    write_plan(jobs, tmp_path, baseline="rigl")
    written = json.loads((tmp_path / "comparison.json").read_text())
    assert written["runs"] == ["rigl/seed3", "b/seed3", "rigl/seed4", "b/seed4"]
    assert (written["arms"], written["seeds"]) == (["rigl", "b"], [3, 4])


@pytest.mark.parametrize(
    "label", ["../up", "/root", "a/b", "a\\b", "..", ".", "a b", "x:y", "\u00e9t\u00e9", "*", ""]
)
def test_a_label_is_never_a_path_of_its_own(label: str, tmp_path: Path) -> None:
    arm = arms("rigl")[0]._replace(label=label)
    (job,) = plan([arm], [0], tmp_path)
    assert job.folder.parent.parent == tmp_path
    assert job.folder.resolve().parent.parent == tmp_path.resolve()
    assert job.folder.parent.name not in ("", ".", "..")


def test_arms_with_the_same_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^the arms a b and a_b would share one folder.*\.$"):
        plan(arms("a b:rigl", "set", "a_b:rigl+agent"), [0], tmp_path)


def test_workers_are_as_many_as_cores_or_jobs(tmp_path: Path) -> None:
    jobs = plan(arms("rigl", "set"), range(50), tmp_path)
    if not torch.cuda.is_available():
        assert default_workers(jobs) == min(100, os.cpu_count() or 1)
    assert default_workers(jobs[:1]) == 1
