"""The engine from the command line: used, refused, stopped, killed, resumed, compared."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from equipoise.engine.library import VARIABLE, kernels, unavailable_because
from equipoise.records import find_runs, read_records

kit: Any = import_module("tests.unit.engine.convert_kit")

Call = Callable[..., Any]
Start = Callable[..., subprocess.Popen[str]]

missing = unavailable_because()
pytestmark = pytest.mark.skipif(missing is not None, reason=str(missing))

TINY = (
    *("--model", "mlp", "--width", "0.1", "--train-samples", "128", "--test-samples", "64"),
    *("--batch-size", "32", "--device", "cpu", "--learning-rate", "0.05", "--interval", "2"),
)
TIMES = ("_seconds", "_bytes")


def manifest(folder: str = "run") -> dict[str, Any]:
    told: dict[str, Any] = json.loads(Path(folder, "manifest.json").read_text())
    return told


def timeless(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.endswith(TIMES)} for row in rows]


def position(folder: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(folder / "checkpoint.pt", weights_only=True)["position"]
    return state


def same_models(left: Path, right: Path) -> bool:
    a, b = torch.load(left / "model.pt"), torch.load(right / "model.pt")
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_with_the_engine(call: Call, tmp_path: Path) -> None:
    words = ("train", *TINY, "--epochs", "2", "--corrector", "agent", "--threads", "1")
    result = call(*words, "--engine", "sparse", "--out", "run")
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines()[0] == "Engine: active weights only."
    assert manifest()["engine"] == {
        "used": True,
        "instructions": kernels().instructions,
        "reason": None,
    }
    masked = call(*words, "--engine", "dense", "--out", "masked")
    assert "ngine" not in masked.out
    runs = [read_records(Path(name) / "records.jsonl") for name in ("run", "masked")]
    for a, b in zip(*runs, strict=True):
        assert a.train_loss == pytest.approx(b.train_loss, abs=1e-3)
        assert (a.data_passes, a.training_flops) == (b.data_passes, b.training_flops)
        assert (a.active_weights, a.rewirings) == (b.active_weights, b.rewirings)
    states = [torch.load(Path(name) / "model.pt") for name in ("run", "masked")]
    assert [(n, t.shape) for n, t in states[0].items()] == [
        (n, t.shape) for n, t in states[1].items()
    ]
    # The timings that were made are kept away from the runs.
    assert list((tmp_path / "home" / ".cache" / "equipoise").glob("ways-*.json"))
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {"manifest.json", "records.jsonl", "checkpoint.pt", "model.pt"}


def test_evaluating_and_exporting_it(call: Call) -> None:
    call("train", *TINY, "--epochs", "2", "--engine", "sparse", "--out", "run")
    record = read_records(Path("run/records.jsonl"))[-1]
    said = [call("evaluate", "run").out]
    assert call("export", "run").code == 0
    said.append(call("evaluate", "run/model.safetensors").out)
    Path("run/model.pt").unlink()
    said.append(call("evaluate", "run").out)
    assert call("export", "run", "--out", "again").code == 0
    assert Path("again").read_bytes() == Path("run/model.safetensors").read_bytes()
    said.append(call("evaluate", "again").out)
    tails = {line.partition(": ")[2] for line in said}
    assert len(tails) == 1
    found = re.search(r"test loss ([\d.]+) ", tails.pop())
    assert found is not None
    assert float(found[1]) == pytest.approx(record.test_loss, abs=1.1e-4)


REFUSALS = {
    "--compile": "--compile",
    "--precision bf16": "--precision bf16",
    "--topology dense": "a network without masks",
    "--sparsity 0": "a network without masks",
    "--device cuda": "--device cuda",
}


@pytest.mark.parametrize("words", REFUSALS)
@pytest.mark.parametrize("command", ["train", "compare"])
def test_what_it_does_not_go_with(command: str, words: str, call: Call, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    asked = words.split()
    known = [word for word in TINY if word not in ("--device", "cpu")] if "cuda" in words else TINY
    if command == "compare":
        # There the topology is part of an arm.
        asked = (
            ["--arms", "dense", "set"] if "topology" in words else [*asked, "--arms", "set", "rigl"]
        )
    result = call(command, *known, *asked, "--engine", "sparse")
    assert (result.code, result.out) == (2, "")
    assert result.err == (
        f"equipoise: --engine sparse cannot be had with {REFUSALS[words]}; leave one of them out.\n"
    )
    assert [path for path in sorted(tmp_path.rglob("*")) if path.suffix != ".cache"] == before


def test_without_kernels(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "off")
    words = ("train", *TINY, "--epochs", "1")
    result = call(*words, "--engine", "sparse", "--out", "run")
    assert result.code == 2
    assert re.fullmatch(
        r"equipoise: the engine cannot run this network: the kernels are switched off by "
        r"EQUIPOISE_KERNELS=off; unset it to use them; use masks instead\.\n",
        result.err,
    )
    result = call(*words, "--out", "run")
    assert (result.code, result.err) == (0, "")
    first = result.out.splitlines()[0]
    assert first.startswith("Engine not used: the kernels are switched off by EQUIPOISE_KERNELS")
    assert manifest()["engine"]["used"] is False


@pytest.mark.parametrize("engine", ["auto", "sparse"])
def test_linear_layers_without_kernels(engine: str, call: Call) -> None:
    words = (*TINY, "--sparsity", "0.8")
    with kit.only_csr():
        result = call("train", *words, "--epochs", "1", "--engine", engine, "--out", "run")
        plan = call("plan", *words, "--engine", engine)
    assert (result.code, result.err) == (0, "")
    assert [line for line in result.out.splitlines() if line.startswith("Engine")] == [
        "Engine: linear layers are run by torch CSR where that is faster, since the kernels are "
        "switched off by EQUIPOISE_KERNELS=off; unset it to use them."
    ]
    assert manifest()["engine"] == {"used": True, "instructions": "torch CSR", "reason": None}
    assert (plan.code, plan.err) == (0, "")
    head, *rows = plan.out.splitlines()[1:]
    assert head.split()[-3:] == ["CSR", "torch", "faster"]
    ways = ["torch CSR" in row for row in rows if row.startswith("layers.")]
    assert ways.count(True) >= 2
    assert "on this machine (torch CSR, " in plan.out


LONG = (
    *("train", *TINY, "--epochs", "12", "--topology", "rigl", "--corrector", "agent"),
    *("--threads", "1", "--engine", "sparse", "--checkpoint-seconds", "0"),
)


def wait_for(process: subprocess.Popen[str], ready: Callable[[], bool]) -> None:
    for _ in range(6000):
        if ready():
            break
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    assert process.poll() is None, "the run was over before it could be interrupted"


def test_a_run_that_was_stopped_and_killed_ends_like_one_that_was_not(
    start: Start, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In processes of their own, which find the timings of the first; the last finds none."""
    assert call(*LONG, "--out", "whole").code == 0
    folder = tmp_path / "run"
    process = start(*LONG, "--out", "run")
    wait_for(process, lambda: len(read_records(folder / "records.jsonl")) >= 2)
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate()
    assert (process.returncode, err) == (130, "")
    stopped = position(folder)

    # Nothing runs without the kernels, and nothing is lost.
    with monkeypatch.context() as without:
        without.setenv(VARIABLE, "off")
        result = call(*LONG, "--out", "run")
    assert result.code == 2
    assert len(result.err.splitlines()) == 1
    assert "the checkpoint was made with the engine, which does not work here" in result.err
    assert position(folder) == stopped

    process = start(*LONG, "--out", "run")
    seen = len(timeless(folder))
    wait_for(process, lambda: len(read_records(folder / "records.jsonl")) >= seen + 2)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    killed = position(folder)
    assert stopped["step"] < killed["step"] < 48

    for path in (tmp_path / "home" / ".cache" / "equipoise").iterdir():
        path.unlink()
    result = call(*LONG, "--out", "run")
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines()[0] == "Engine: active weights only."
    assert same_models(tmp_path / "whole", folder)
    assert timeless(tmp_path / "whole") == timeless(folder)
    assert not list((tmp_path / "home" / ".cache" / "equipoise").iterdir())


def test_two_arms_are_compared(call: Call, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    arms = ("--arms", "rigl", "rigl+agent", "masks:rigl,engine=dense")
    result = call(
        *("compare", *TINY, "--epochs", "3", *arms, "--num-seeds", "1", "--workers", "1"),
        *("--threads", "1", "--engine", "sparse", "--out", "both"),
    )
    assert (result.code, result.err) == (0, "")
    runs = {run.label: run for run in find_runs(tmp_path / "both")}
    assert {label: run.manifest["engine"]["used"] for label, run in runs.items()} == {
        "rigl": True,
        "rigl+agent": True,
        "masks": False,
    }
    losses = {label: run.epochs[-1].train_loss for label, run in runs.items()}
    assert losses["rigl"] == pytest.approx(losses["masks"], abs=1e-3)
    assert losses["rigl"] != losses["rigl+agent"]
    assert runs["rigl"].epochs[0].train_loss == runs["rigl+agent"].epochs[0].train_loss
    assert (tmp_path / "both" / "report.html").exists()
    states = [torch.load(p, weights_only=True) for p in (tmp_path / "both").rglob("checkpoint.pt")]
    ways = [state["engine"] for state in states if state["engine"]]
    assert len(ways) == 2
    assert ways[0] == ways[1]
