"""A training by torch CSR, where there are no kernels, is the training on masked weights."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

kit: Any = import_module("tests.unit.engine.convert_kit")
layers: Any = import_module("tests.unit.topology.compact_layers")
engine: Any = import_module("tests.parity.test_engine_follows_masked")
networks: Any = import_module("equipoise.engine.network")

MLP = {"model": "mlp", "width": 0.2, "sparsity": 0.9, "batch_size": 16, "train_samples": 256}


@pytest.fixture(autouse=True)
def by_csr(tmp_path: Path) -> Iterator[None]:
    with kit.settled(tmp_path), kit.only_csr():
        yield


@pytest.mark.parametrize("topology", ["set", "rigl", "rigl_itop"])
def test_a_free_training_stays_on_the_masked_one(topology: str) -> None:
    changes = MLP | {"topology": topology, "interval": 8, "learning_rate": 0.02, "epochs": 6}
    masked, csr = engine.pair(engine.digits(), **changes)
    assert networks.runs_by_csr(csr.model)
    assert engine.largest_difference(masked, csr) == 0.0
    apart = []
    for a, b in zip(engine.losses(masked, 90), engine.losses(csr, 90), strict=True):
        apart.append(abs(a - b))
        # Two rewirings choose the same weights.
        assert len(apart) > 20 or layers.same(engine.masks(masked), engine.masks(csr))
    assert max(apart[:20]) < 1e-5
    assert max(apart) < 0.3
    assert masked.topology.num_rewirings == csr.topology.num_rewirings > 5
    scores = [s._score(s.images.test).accuracy for s in (masked, csr)]
    assert min(scores) > 0.5
    assert abs(scores[0] - scores[1]) < 0.09
    assert csr.topology.verify() == []


@pytest.mark.parametrize("topology", ["set", "rigl"])
@pytest.mark.parametrize("network", ["mlp by half", "small_cnn, channels last"])
def test_every_step_is_the_masked_one(network: str, topology: str) -> None:
    engine.test_every_step_is_the_masked_one(network, topology)
