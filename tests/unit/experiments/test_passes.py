"""The cost that is foretold is the cost that is written down."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from equipoise.experiments.families import bsr, changed, itop
from equipoise.experiments.passes import expected_passes, rough_seconds
from equipoise.settings import Run
from equipoise.training.loop import train

RUNS: dict[str, dict[str, Any]] = {
    "plain": {},
    "agent": {"corrector": "agent"},
    "agent cached": {"corrector": "agent", "correction_mode": "cached"},
    "svrg": {"corrector": "svrg"},
    "svrg cached": {"corrector": "svrg", "correction_mode": "cached"},
    "itop code": {"corrector": "ref_itop"},
    "bsr code": {"corrector": "ref_bsr"},
    "at": {"objective": "at"},
    "trades, agent": {"objective": "trades", "corrector": "agent"},
    "mvr": {"corrector": "mvr_fixed"},
    "agent in mvr": {"corrector": "agent_mvr_oracle"},
}


@pytest.mark.parametrize("name", RUNS)
def test_passes_are_foretold(name: str, tmp_path: Path) -> None:
    run = changed(itop("smoke", "vgg_c", "set_itop"), model="mlp", **RUNS[name])
    last = train(run, tmp_path).records[-1]
    assert expected_passes(run) == pytest.approx(last.data_passes, rel=0.1)


def test_time_is_foretold_for_one_scale_only() -> None:
    sparse, dense = bsr("cpu", "vgg16"), bsr("cpu", "vgg16", topology="dense", sparsity=0.0)
    seconds = [rough_seconds(run, "cpu") for run in (sparse, dense)]
    assert seconds[0] is not None
    assert seconds[1] is not None
    assert 30 < seconds[0] < seconds[1]
    assert rough_seconds(sparse, "paper") is None
    assert rough_seconds(Run(), "cpu") is None
