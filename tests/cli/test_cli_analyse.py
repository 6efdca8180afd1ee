"""Measurements from the command line: along a training, on a finished run, and of the theory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from equipoise.records import read_rows

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


def test_the_constants_of_theorem_1_and_the_slips_are_printed(call: Call) -> None:
    result = call("analyse", "theorem-1")
    assert (result.code, result.err) == (0, "")
    agent, svrg = (line.split() for line in result.out.splitlines()[2:4])
    assert (agent[0], agent[5], agent[8]) == ("AGENT", "0.0987", "1.01e-05")
    assert (svrg[0], svrg[5]) == ("SVRG", "0.0645")
    assert result.out.count("Slip. ") == 11
    none = call("analyse", "theorem-1", "--mu", "0.4", "--samples", "73257")
    assert none.out.splitlines()[3].split()[-1] == "none"


def test_figure_2_is_drawn(call: Call, tmp_path: Path) -> None:
    assert call("analyse", "parabola").out == "Wrote parabola.png\n"
    assert (tmp_path / "parabola.png").read_bytes().startswith(b"\x89PNG")


def test_a_measured_run_is_analysed(call: Call, tmp_path: Path) -> None:
    words = ("--measure", "gradient_correlation", "gradient_norms", "--engine", "dense")
    assert call("train", *TINY, *words, "--out", "run").code == 0
    noise = call("analyse", "gradients", "run", "--batch-size", "32", "--device", "cpu")
    assert (noise.code, noise.err) == (0, "")
    rows = read_rows(tmp_path / "run/perturbed_gradients.jsonl")
    assert len(rows) == 3 * 4
    assert {row["samples"] for row in rows} == {128}
    for what in ("correlation", "norms", "reach"):
        result = call("analyse", what, "run")
        assert (result.code, result.err) == (0, ""), what
        assert result.out.endswith(f"Wrote run/{what}.png\n")
        assert "rigl" in result.out


def test_mistakes_get_one_sentence(call: Call, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for words, expected in (
        (("reach",), "needs the folder of a run or of several"),
        (("reach", "empty"), "empty holds no run"),
        (("parabola", "--alpha", "0.3"), "--alpha has no effect on `equipoise analyse parabola`"),
        (("theorem-1", "--mu", "2"), "mu is in (0, 1); got 2"),
        (("theorem-1", "--steps", "0"), "--steps is at least 1; got 0"),
        (("reach", "empty", "--target-step", "1"), "--target-step is in (0, 1); got 1"),
        (("gradiens", "empty"), "did you mean gradients?"),
        ((), "needs --what"),
    ):
        result = call("analyse", *words)
        assert result.code == 2, words
        assert expected in result.err
        assert len(result.err.splitlines()) == 1
    assert call("train", *TINY, "--out", "run").code == 0
    assert "train with --measure gradient_norms" in call("analyse", "norms", "run").err
