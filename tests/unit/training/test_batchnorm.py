"""Refreshed BatchNorm statistics: what they are, and that they are gone afterwards."""

from __future__ import annotations

import copy
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import nn

from equipoise.data import Batch
from equipoise.training.batchnorm import refreshed_statistics
from equipoise.training.evaluate import evaluate

toy = import_module("tests.unit.training.toy")


def batches(count: int = 3) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    return [
        Batch(torch.randn(8, 4, generator=generator) + i, torch.zeros(8).long(), torch.arange(8))
        for i in range(count)
    ]


def test_statistics_are_the_means_over_the_batches() -> None:
    norm = nn.BatchNorm1d(4)
    norm.get_buffer("running_mean").fill_(9.0)
    norm.eval()
    before = copy.deepcopy(norm.state_dict())
    given = batches()
    with refreshed_statistics(norm, given):
        assert not norm.training
        assert norm.momentum == 0.1
        means = torch.stack([b.x.mean(0) for b in given]).mean(0)
        variances = torch.stack([b.x.var(0) for b in given]).mean(0)
        assert torch.allclose(norm.get_buffer("running_mean"), means, atol=1e-6)
        assert torch.allclose(norm.get_buffer("running_var"), variances, atol=1e-6)
    assert toy.differences(dict(before), dict(norm.state_dict())) == []


@pytest.mark.parametrize("momentum", [0.1, None])
def test_an_exception_puts_everything_back(momentum: float | None) -> None:
    model = nn.Sequential(nn.BatchNorm1d(4, momentum=momentum), nn.Dropout(), nn.Linear(4, 2))
    model[1].eval()
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    random = torch.get_rng_state()
    with pytest.raises(KeyError), refreshed_statistics(model, batches()):
        raise KeyError
    with pytest.raises(ValueError, match="at least one batch"), refreshed_statistics(model, []):
        pass
    assert toy.differences(dict(before), dict(model.state_dict())) == []
    assert [m.training for m in model.modules()] == modes
    assert model[0].momentum == momentum
    assert torch.equal(random, torch.get_rng_state())


def test_a_network_without_batchnorm_sees_no_batch() -> None:
    def never() -> Any:
        raise AssertionError
        yield

    with refreshed_statistics(nn.Linear(2, 2), never()):
        pass


@pytest.mark.parametrize("engine", ["dense", "sparse"])
def test_the_control_changes_evaluation_only(engine: str) -> None:
    found = {}
    for kind in ("running", "refreshed"):
        with toy.untimed():
            session = toy.session(
                model="small_cnn", width=0.25, engine=engine, batchnorm=kind, learning_rate=0.02
            )
        records = toy.all_epochs(session)
        found[kind] = records, dict(session.model.state_dict())
        last = records[-1]
        with session._evaluation_statistics():
            again = evaluate(session.model, _test_batches(session))
        assert again.accuracy == last.test_accuracy
    (plain, one), (refreshed, two) = found["running"], found["refreshed"]
    assert toy.differences(one, two) == []
    assert [r.train_loss for r in plain] == [r.train_loss for r in refreshed]
    assert [r.data_passes for r in plain] == [r.data_passes for r in refreshed]
    # After a few steps at momentum 0.1 the running statistics are still far from the real ones.
    assert refreshed[0].test_loss != plain[0].test_loss


def _test_batches(session: Any) -> Any:
    from equipoise.training import build

    return build.test_loader(session.images.test, session.run, session.device).epoch(0)
