"""HYDRA from the command line: three phases that every other command reads as one run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from equipoise.records import read_records

Call = Callable[..., Any]
SMALL = (
    *("hydra", "--model", "mlp", "--width", "0.05", "--train-samples", "64", "--test-samples"),
    *("32", "--batch-size", "16", "--device", "cpu", "--engine", "dense", "--out", "run"),
    *("--pretrain-epochs", "2", "--score-epochs", "1", "--finetune-epochs", "2"),
)


def test_what_it_leaves_is_a_run(call: Call) -> None:
    result = call(*SMALL)
    assert (result.code, result.err) == (0, "")
    lines = result.out.splitlines()
    assert lines[0] == "pre-train: epochs 1 to 2 of 5, all weights"
    assert lines[3] == "prune: epochs 3 to 3 of 5, scores of frozen weights"
    assert lines[5] == "fine-tune: epochs 4 to 5 of 5, the weights that are kept"
    assert [i for i, line in enumerate(lines) if line.startswith("hydra: epoch")] == [1, 2, 4, 6, 7]
    assert lines[8].endswith("at sparsity 0.8995.")
    accuracy = lines[8].split("test accuracy ")[1].split(" %")[0]

    again = call("evaluate", "run")
    assert again.code == 0
    assert f"test accuracy {accuracy} %" in again.out
    assert "(sparsity 0.8995)" in again.out
    assert call("export", "run").code == 0
    assert f"test accuracy {accuracy} %" in call("evaluate", "run/model.safetensors").out
    attacked = call("attack", "run", "--steps", "2", "--restarts", "1", "--samples", "8")
    assert attacked.code == 0
    assert "Network          run (standard, hydra)" in attacked.out
    reported = call("report", "run")
    assert reported.code == 0
    assert "hydra" in reported.out
    assert "pre-train" not in reported.out  # its phases are no arms


def test_a_stop_is_said_and_the_same_command_goes_on(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = iter(range(100))

    class Stop:
        def __call__(self) -> bool:
            return next(steps) == 9  # in the second step of the scores

        def install(self) -> None:
            pass

    monkeypatch.setattr("equipoise.pruning.commands.StopFlag", Stop)
    result = call(*SMALL)
    assert (result.code, result.err) == (130, "")
    last = result.out.splitlines()[-1]
    assert last == "Stopped and saved in run; run the same command again to go on."
    assert [record.epoch for record in read_records(Path("run/records.jsonl"))] == [1, 2]
    result = call(*SMALL)
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines()[0].startswith("prune: epochs 3 to 3 of 5")
    assert [record.epoch for record in read_records(Path("run/records.jsonl"))] == [1, 2, 3, 4, 5]
    phases = json.loads(Path("run/manifest.json").read_text())["phases"]
    assert [phase["last_epoch"] for phase in phases] == [2, 3, 5]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("--score-epochs", "0"), "--score-epochs must be at least 1; got 0"),
        (("--finetune-rate", "0"), "--finetune-rate must be above 0 and finite; got 0"),
        (("--sparsity", "0"), "HYDRA prunes to a --sparsity above 0; got 0"),
        (("--sparsity", "90"), "for 90 % write 0.9"),
        (("--snapshot", "adversarial"), "--snapshot adversarial has no effect here"),
        (("--topology", "rigl"), "`equipoise hydra` has no option --topology"),
        (("--dataset", "cifar10"), "cifar10"),
    ],
)
def test_a_mistake_is_one_sentence(call: Call, words: tuple[str, ...], problem: str) -> None:
    result = call("hydra", *words)
    assert result.code == 2
    assert result.err.startswith("equipoise: ")
    assert problem in result.err
    assert len(result.err.strip().splitlines()) == 1
