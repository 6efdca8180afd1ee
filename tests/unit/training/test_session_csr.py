"""Runs without kernels whose linear layers are run by torch CSR: stopped, resumed, told."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from equipoise.engine.fallback import no_kernels
from equipoise.engine.library import VARIABLE
from equipoise.engine.network import runs_by_csr
from equipoise.training.loop import CHECKPOINT
from equipoise.training.manifest import describe_run
from equipoise.training.observers import Bar
from equipoise.training.session import Session

kit: Any = import_module("tests.unit.engine.convert_kit")
toy: Any = import_module("tests.unit.training.toy")
resume: Any = import_module("tests.unit.training.test_resume")

RUN = {
    **{"model": "mlp", "width": 0.2, "sparsity": 0.8, "engine": "sparse", "corrector": "agent"},
    **{"topology": "rigl", "interval": 2},
}


@pytest.fixture(autouse=True)
def by_csr(tmp_path: Path) -> Iterator[None]:
    with kit.settled(tmp_path / "cache"), kit.only_csr():
        yield


@pytest.fixture
def case(tmp_path: Path) -> Any:
    return resume.Case(RUN, tmp_path / "whole", toy.images())


def test_a_stop_changes_nothing(case: Any, tmp_path: Path) -> None:
    state = torch.load(case.whole / CHECKPOINT, weights_only=True)
    assert any(key.endswith(".values") for key in state["model"])
    assert state["topology"]["num_rewirings"] >= 2
    for when in ("middle of an epoch", "last step of an epoch"):
        folder = tmp_path / when
        count = resume.WHEN[when](case.steps, case.steps * case.run.loop.epochs)
        assert not case.stop_after(folder, count).finished
        assert toy.stored_state(folder)["position"]["step"] == count
        case.check(folder)


def test_it_goes_on_by_csr_where_there_are_kernels(case: Any, tmp_path: Path) -> None:
    case.stop_after(tmp_path / "run", case.steps + 1)
    console = Console(record=True, force_terminal=False, width=60)
    with pytest.MonkeyPatch.context() as changed:
        changed.setenv(VARIABLE, "auto")
        if no_kernels() is not None:
            pytest.skip("no kernels")
        case.train(tmp_path / "run", observers=(Bar(console, "it"),))
        case.check(tmp_path / "run")
    assert console.export_text().splitlines()[0].endswith(", since the run began so.")


@pytest.mark.parametrize("engine", ["auto", "sparse"])
def test_it_says_what_it_uses_once_and_why(engine: str, tmp_path: Path) -> None:
    session = Session(toy.make_run(**RUN | {"engine": engine}), toy.images())
    assert runs_by_csr(session.model)
    console = Console(record=True, force_terminal=False, width=60)
    bar = Bar(console, "it")
    bar.start(session)
    bar.stop()
    assert describe_run(session, "it")["engine"] == {
        **{"used": True, "instructions": "torch CSR", "reason": None}
    }
    assert console.export_text().splitlines()[0] == (
        "Engine: linear layers are run by torch CSR where that is faster, since the kernels are "
        "switched off by EQUIPOISE_KERNELS=off; unset it to use them."
    )
