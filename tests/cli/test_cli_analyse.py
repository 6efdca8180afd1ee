"""Measurements from the command line: along a training, on a finished run, and of the theory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from equipoise.analyses.rows import read_rows

Call = Callable[..., Any]
TINY = (
    *("--model", "mlp", "--width", "0.1", "--train-samples", "128", "--test-samples", "64"),
    *("--epochs", "2", "--batch-size", "32", "--device", "cpu", "--learning-rate", "0.05"),
)


def test_a_training_is_measured_while_it_runs(call: Call, tmp_path: Path) -> None:
    words = ("--measure", "gradient_correlation", "gradient_norms", "--engine", "dense")
    result = call("train", *TINY, *words, "--corrector", "agent", "--out", "run")
    assert (result.code, result.err) == (0, "")
    assert [row["epoch"] for row in read_rows(tmp_path / "run/gradient_correlation.jsonl")] == [2]
    assert [row["epoch"] for row in read_rows(tmp_path / "run/gradient_norms.jsonl")] == [1, 2]


def test_a_wrong_name_of_a_measurement_gets_one_sentence(call: Call) -> None:
    result = call("train", *TINY, "--measure", "gradient_corelation")
    assert result.code == 2
    assert "gradient_correlation" in result.err
    assert len(result.err.splitlines()) == 1
