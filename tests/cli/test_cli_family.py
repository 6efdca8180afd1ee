"""Every corrector from the command line, and what its cost is said to be."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import pytest

from equipoise.listing import CORRECTORS
from equipoise.records import read_records
from equipoise.settings import CorrectorName

Call = Callable[..., Any]
toy = import_module("tests.unit.training.toy")
TINY = (
    *("--model", "mlp", "--width", "0.1", "--train-samples", "128", "--test-samples", "64"),
    *("--epochs", "2", "--batch-size", "32", "--device", "cpu", "--learning-rate", "0.05"),
    *("--engine", "dense"),
)


@pytest.mark.parametrize(
    ("words", "passes"),
    [
        ("--corrector ref_itop --topology set_itop --interval 3", 20 / 3),
        ("--corrector ref_bsr --optimizer sgdw", 2 + 10 / 3),
        ("--corrector mvr --schedule constant", 4 - 1 / 4),
        ("--corrector agent_mvr_oracle --correction-mode cached", 2 + 7 / 3 + 1 - 1 / 4),
        ("--corrector svrg --correction-mode cached --cache disk", 4),
        ("--corrector svrg --refresh-samples 32 --keep active", 4.5),
        ("--corrector agent --refresh-chance 1 --refresh-draw clean", None),
    ],
)
def test_a_tiny_run(words: str, passes: float | None, call: Call, tmp_path: Path) -> None:
    result = call("train", *TINY, *words.split(), "--out", "run")
    assert (result.code, result.err) == (0, "")
    record = read_records(tmp_path / "run" / "records.jsonl")[-1]
    if passes is not None:
        assert record.data_passes == pytest.approx(passes)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "checkpoint.pt",
        "manifest.json",
        "model.pt",
        "records.jsonl",
    ]


def test_a_contradiction_gets_one_sentence(call: Call) -> None:
    words = ("--corrector", "svrg", "--correction-mode", "cached", "--refresh-every", "2")
    result = call("train", *TINY, *words)
    assert result.code == 2
    assert result.err == (
        "equipoise: --correction-mode cached needs a refresh that replays every epoch whole; got "
        "--refresh-every 2; leave one of the two out.\n"
    )


def test_the_list_shows_every_corrector_with_its_cost(call: Call) -> None:
    shown = " ".join(call("list").out.split())
    for name in get_args(CorrectorName):
        assert name in shown
        assert re.search(r"[\d/]+ pass", CORRECTORS[name]), name


@pytest.mark.parametrize("name", get_args(CorrectorName))
def test_the_cost_in_the_list_is_that_of_an_epoch(name: str) -> None:
    """Of the second one of four, by the meter."""
    told = re.search(r"([\d/]+) pass", CORRECTORS[name])
    assert told is not None
    whole, _, part = told[1].partition("/")
    # 64 images in batches of 16, so that no batch is left out of a refresh.
    session = toy.session(toy.images(64), corrector=name, epochs=4)
    first, second = (toy.one_epoch(session).data_passes for _ in range(2))
    assert second - first == pytest.approx(int(whole) / int(part or 1))
