"""equipoise attack: from a trained run to a card, and mistakes in one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def test_train_against_attacks_then_attack(call: Callable[..., Any], tmp_path: Path) -> None:
    words = ["--dataset", "digits", "--model", "mlp", "--width", "0.1", "--epochs", "1"]
    words += ["--objective", "at", "--attack-steps", "2", "--eps", "0.1", "--device", "cpu"]
    assert call("train", *words, "--train-samples", "200", "--out", "run").code == 0
    quick = ["--steps", "2", "--restarts", "2", "--samples", "40", "--eps", "0.1"]
    result = call("attack", "run", *quick, "--out", "card.json")
    assert (result.code, result.err) == (0, "")
    card = json.loads((tmp_path / "card.json").read_text())
    assert card["model"]["label"] == "at, rigl"
    assert f"Robust accuracy  {100 * card['robust_accuracy']:.2f} %" in result.out
    assert "Wrote card.json" in result.out
    again = call("attack", "run", *quick, "--out", "card.json")
    assert again.code == 2
    assert "card.json is there already" in again.err
    refreshed = call("evaluate", "run", "--refresh-batchnorm")
    assert refreshed.code == 0
    assert "test accuracy" in refreshed.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["attack"], "takes the folder of a run or --module"),
        (["attack", "x", "--eps", "8"], "for 8 grey values write 0.0313725"),
        (["attack", "--module", "nowhere"], "is package.module:name"),
        (["attack", "--module", "no_such_package:x"], "No module named 'no_such_package'"),
        (["attack", "nothing"], "nothing holds no manifest.json"),
        (["attack", "x", "--method", "autoatack"], "did you mean autoattack?"),
        (["train", "--objective", "trade"], "did you mean trades?"),
        (["train", "--eps", "8"], "--eps must be in [0, 1]; got 8"),
    ],
)
def test_mistakes_get_one_sentence(words: list[str], said: str, call: Callable[..., Any]) -> None:
    result = call(*words)
    assert result.code == 2
    assert said in result.err
    assert result.err.count("\n") == 1
