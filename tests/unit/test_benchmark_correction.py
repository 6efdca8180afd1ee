"""The runner of the comparison of all correctors; nothing is trained here."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import pytest

from equipoise.records import RunRecords
from equipoise.settings import CorrectorName

synthetic = importlib.import_module("tests.unit.reports.synthetic_runs")
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "correction.py"


@pytest.fixture(scope="module")
def runner() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_correction", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_every_corrector_is_a_member_and_every_member_is_valid(runner: ModuleType) -> None:
    base = runner.base_run(["epochs=2"], None)
    arms = [runner.member_arm(name, text, base) for name, text in runner.MEMBERS.items()]
    assert {arm.run.correction.corrector for arm in arms} == set(get_args(CorrectorName))
    assert arms[0].run == base
    assert arms[0].label == runner.PLAIN


def runs(label: str, passes: float, seconds: float, **more: Any) -> list[RunRecords]:
    rows = [
        synthetic.record(e, data_passes=passes * e, training_seconds=seconds * e)
        for e in range(1, 5)
    ]
    manifest = {"engine": {"used": True}, "identity": "x"}
    return [synthetic.run(label, seed, rows, **manifest, **more) for seed in range(2)]


def test_plain_training_gets_as_many_epochs_as_cost_the_same(runner: ModuleType) -> None:
    known = {"plain": runs("plain", 1, 10), "svrg": runs("svrg", 3, 25), "mvr": runs("mvr", 2, 21)}
    chosen = runner.plain_epochs(known, 4)
    assert chosen == {
        "plain/data_passes": 4,
        "plain/training_seconds": 4,
        "mvr/data_passes": 8,
        "mvr/training_seconds": 8,
        "svrg/data_passes": 12,
        "svrg/training_seconds": 10,
    }


def test_the_table_says_n_command_and_every_difference(runner: ModuleType) -> None:
    known = {"plain": runs("plain", 1, 10), "svrg": runs("svrg", 1, 10)}
    base = runner.base_run(["epochs=4"], None)
    arms = {name: runner.member_arm(name, runner.MEMBERS[name], base) for name in known}
    opponents = runner.plain_epochs(known, 4)
    members = [runner.read_member(n, arms[n], known, opponents, base) for n in known]
    machine = {
        "date": "2026-11-25T10:00:00+00:00",
        "processor": "X",
        "cores": 2,
        "instructions": "avx2",
        "versions": {"torch": "2.13.0", "python": "3.11.7"},
    }
    text = runner.markdown(
        {
            "machine": machine,
            "load": {"before": [0.1, 0.1, 0.1], "after": None},
            "settings": {"epochs": 4},
            "command": "python benchmarks/correction.py run",
            "seeds": 2,
            "members": [vars(member) for member in members],
        }
    )
    assert "`python benchmarks/correction.py run`: epochs 4; n = 2 paired seeds." in text
    row = next(line for line in text.splitlines() if line.startswith("| svrg "))
    assert row.count("+0.00 [+0.00, +0.00]; loss +0.0000 [+0.0000, +0.0000] (4)") == 3


def test_the_command_is_told_without_folders(
    runner: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = "x run --data-dir /somewhere --seeds 3 --out=/there/a.json --set epochs=4"
    monkeypatch.setattr(sys, "argv", words.split())
    assert runner.command() == "python benchmarks/correction.py run --seeds 3 --set epochs=4"
