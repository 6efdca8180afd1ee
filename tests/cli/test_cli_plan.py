"""What is to be expected of the engine, and what is measured of it, from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from equipoise.engine import convert
from equipoise.engine.choice import Timed
from equipoise.engine.convolution import Tiling, Way
from equipoise.engine.layers import SparseLayer

Call = Callable[..., Any]
kit: Any = import_module("tests.unit.engine.engine_kit")

CNN = ("--model", "small_cnn", "--batch-size", "8", "--device", "cpu", "--threads", "1")
QUICK = (
    *("--models", "linear", "--width", "0.0625", "--batch-size", "16"),
    *("--threads", "1", "--repeats", "1", "--no-memory"),
)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every layer gains twofold, every step threefold."""

    def choose(geometry: Any, *rest: Any) -> Timed:
        return Timed(Way(Tiling(16, 2, 8)), 0.001, 0.002)

    def seconds(model: nn.Module, inputs: Any) -> float:
        return 1.0 if any(isinstance(m, SparseLayer) for m in model.modules()) else 3.0

    monkeypatch.setattr(convert, "choose_way", choose)
    monkeypatch.setattr("equipoise.engine.timing.step_seconds", seconds)


def test_plan_of_moving_densities_says_that_they_move(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EQUIPOISE_KERNELS", "off")
    result = call("plan", *CNN, "--topology", "bsr", "--sparsity", "0.95")
    assert (result.code, result.err) == (0, "")
    first, _, *rows = result.out.splitlines()
    assert "sparsity 0.95 (as bsr starts), batches of 8" in first
    # Rows are named after weights where a timing says that nothing is worth converting.
    cells = [row.split() for row in rows if " % " in row]
    densities = {row[0].removesuffix(".weight"): row[2] for row in cells}
    assert densities["features.3"] == "2.5"  # half of the density of the whole, but for the ends
    assert densities["head"] == "60.0"
    said = next(row for row in rows if row.startswith("These densities are those of the start, "))
    assert "every step moves them, in every layer, and refills them to " in said
    erk = call("plan", *CNN, "--topology", "rigl", "--sparsity", "0.95").out
    assert "These densities" not in erk


@kit.needs_kernels
@pytest.mark.usefixtures("quick")
def test_plan_explains_every_layer_and_ends_with_the_verdict(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    result = call("plan", *CNN, "--sparsity", "0.9")
    assert (result.code, result.err) == (0, "")
    first, head, *rows = (line.rstrip() for line in result.out.splitlines())
    assert first == (
        "small_cnn for digits (1 x 8 x 8, 10 classes), sparsity 0.9 (erk), batches of 8"
    )
    assert head.split() == ["layer", "weight", "density", "way", "kernels", "torch", "faster"]
    together = next(row for row in rows if row.startswith("together"))
    count = sum("2 x 8 positions" in row for row in rows)
    assert count == 5
    assert together.split() == ["together", *f"{8 * count:.2f} ms {16 * count:.2f} ms 2.0".split()]
    assert "sparse, 16 channels at a time, 2 x 8 positions" in rows[1]
    memory, file, verdict = rows[-3:]
    assert memory.startswith("Weights and optimizer state: ")
    assert file.startswith("File that `equipoise export` writes: ")
    assert verdict.startswith(
        "Expected: a training step 3.0 times as fast as with masks on this machine ("
    )
    assert verdict.endswith(", 1 thread).")
    assert list(Path().iterdir()) in ([], [Path("home")])  # at most the cache of timings


def test_plan_takes_the_words_of_train(call: Call) -> None:
    words = ("--corrector", "agent", "--epochs", "7", "--topology", "set", "--milestones", "0.5")
    result = call("plan", *CNN, *words, "--engine", "dense")
    assert result.code == 0
    assert result.out.splitlines()[-1] == (
        "Nothing to gain: --engine dense asks for masks on ordinary tensors."
    )


def test_plan_without_kernels_is_no_mistake(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EQUIPOISE_KERNELS", "off")
    result = call("plan", *CNN)
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines()[-1].startswith(
        "Nothing to gain on this machine: the kernels are switched off"
    )
    assert "10x" in result.out  # the densities are told all the same


def test_plan_needs_no_data(call: Call) -> None:
    """Data that are not on this machine are no obstacle."""
    words = ("--dataset", "svhn", "--model", "mlp", "--width", "0.1", "--engine", "dense")
    result = call("plan", *words)
    assert result.code == 0
    assert result.out.startswith("mlp for svhn (3 x 32 x 32, 10 classes)")
    assert call("train", *words).code == 2


def test_plan_guesses_the_classes_of_a_folder(call: Call) -> None:
    words = ("--dataset", "image_folder", "--image-size", "16", "--width", "0.1")
    result = call("plan", *words, "--model", "mlp", "--engine", "dense")
    assert "(3 x 16 x 16, 1000 classes (a guess))" in result.out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("plan", "--sparsity", "90"), "for 90 % write 0.9"),
        (("plan", "--threads", "0"), "--threads is at least 1; got 0"),
        (("plan", "--model", "vgg17"), "did you mean vgg16?"),
        (("bench", "--sparsities", "0.9", "1.0"), "--sparsities are fractions in [0, 1); got 1"),
        (("bench", "--sparsities"), "--models and --sparsities take at least one each"),
        (("bench", "--models", "vgg17"), "did you mean vgg16?"),
        (("bench", "--threads", "1", "0"), "--threads must be at least 1; got 0"),
        (("bench", "--threads"), "--threads must be at least 1; got 0"),
        (("bench", "--batch-size", "0"), "--batch-size must be at least 1; got 0"),
        (("bench", "--repeats", "0"), "--repeats must be at least 1; got 0"),
        (("bench", "--width", "0"), "--width must be above 0 and finite; got 0"),
    ],
)
def test_mistakes_get_one_sentence(words: tuple[str, ...], sentence: str, call: Call) -> None:
    result = call(*words)
    assert (result.code, result.out) == (2, "")
    assert len(result.err.splitlines()) == 1
    assert sentence in result.err


@kit.needs_kernels
@pytest.mark.usefixtures("quick")
def test_bench_prints_as_it_goes_and_keeps_everything(call: Call) -> None:
    result = call("bench", *QUICK, "--sparsities", "0", "0.9", "--out", "new/x.json")
    assert (result.code, result.err) == (0, "")
    lines = [line for line in result.out.splitlines() if not line.startswith("note:")]
    assert lines[0].split()[:5] == ["network", "sparsity", "threads", "masks", "engine"]
    assert lines[1].startswith("linear            0 %       1 not measured: the engine cannot run")
    assert lines[2].startswith("linear           90 %       1 ")
    assert lines[3:] == ["Wrote new/x.json and new/x.md."]
    kept = json.loads(Path("new/x.json").read_text())
    assert [len(step["laps"]) for step in kept["steps"]] == [0, 2]
    assert kept["memory"] == []
    assert kept["settings"]["rounds"] == 1
    assert "engine not used: the engine cannot run" in Path("new/x.md").read_text()


def test_bench_without_kernels_has_nothing_to_measure(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EQUIPOISE_KERNELS", "off")
    result = call("bench", *QUICK, "--sparsities", "0.9")
    assert (result.code, result.out) == (2, "")
    assert "the kernels are switched off" in result.err
    assert not Path("runs").exists()
