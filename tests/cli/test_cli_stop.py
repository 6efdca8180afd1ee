"""A real process that is interrupted or killed, and the same command again."""

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

from equipoise.records import read_records

Start = Callable[..., subprocess.Popen[str]]
LONG = (
    *(
        "train",
        "--model",
        "mlp",
        "--width",
        "0.1",
        "--train-samples",
        "192",
        "--test-samples",
        "64",
    ),
    *("--epochs", "20", "--batch-size", "16", "--device", "cpu", "--topology", "rigl"),
    *("--interval", "5", "--corrector", "agent", "--optimizer", "adamw"),
    *("--learning-rate", "0.003", "--threads", "1", "--engine", "dense"),
)
TIMES = ("_seconds", "_bytes")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, never interrupted, in this process."""
    from equipoise.settings import Run, with_setting
    from equipoise.training.loop import train

    run = Run()
    settings: dict[str, Any] = {
        "model": "mlp", "width": 0.1, "train_samples": 192, "test_samples": 64, "epochs": 20,
        "batch_size": 16, "device": "cpu", "interval": 5, "corrector": "agent",
        "optimizer": "adamw", "learning_rate": 0.003, "engine": "dense",
    }  # fmt: skip
    for name, value in settings.items():
        run = with_setting(run, name, value)
    folder = tmp_path_factory.mktemp("whole")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    train(run, folder)
    torch.set_num_threads(threads)
    return folder


def wait_for(process: subprocess.Popen[str], ready: Callable[[], bool]) -> None:
    """Looks every hundredth of a second; the run must not end before it is interrupted."""
    for _ in range(6000):
        if ready():
            break
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    assert process.poll() is None, "the run was over before it could be interrupted"


def timeless(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.endswith(TIMES)} for row in rows]


def assert_the_same(whole: Path, folder: Path) -> None:
    left, right = torch.load(whole / "model.pt"), torch.load(folder / "model.pt")
    assert list(left) == list(right)
    assert [name for name in left if not torch.equal(left[name], right[name])] == []
    assert timeless(whole) == timeless(folder)


def position(folder: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(folder / "checkpoint.pt", weights_only=True)["position"]
    return state


def test_an_interrupted_and_then_killed_run_ends_like_one_that_was_not(
    start: Start, whole: Path, tmp_path: Path
) -> None:
    words = (*LONG, "--out", "run", "--checkpoint-seconds", "0")
    folder = tmp_path / "run"

    process = start(*words)
    wait_for(process, lambda: len(read_records(folder / "records.jsonl")) >= 2)
    os.kill(process.pid, signal.SIGINT)
    out, err = process.communicate()
    assert (process.returncode, err) == (130, "")
    assert out.splitlines()[-1] == "Stopped and saved in run; run the same command again to go on."
    assert not (folder / "model.pt").exists()
    stopped = position(folder)
    assert 24 <= stopped["step"] < 240

    process = start(*words)
    seen = len(timeless(folder))
    wait_for(process, lambda: len(read_records(folder / "records.jsonl")) >= seen + 2)
    os.kill(process.pid, signal.SIGKILL)
    out, err = process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert f"epoch {stopped['epoch'] + 1}/20" in out.splitlines()[0]
    assert not (folder / "model.pt").exists()
    killed = position(folder)
    assert stopped["step"] < killed["step"] < 240

    process = start(*words)
    out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    assert f"epoch {killed['epoch'] + 1}/20" in out.splitlines()[0]
    assert_the_same(whole, folder)
