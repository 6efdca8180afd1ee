"""Evaluation is a plain mean over all samples, and leaves the model as it was."""

from __future__ import annotations

import math
from importlib import import_module

import pytest
import torch
from torch import Tensor, nn

from equipoise.data import Batch
from equipoise.training.evaluate import evaluate, evaluating

toy = import_module("tests.unit.training.toy")


def model_and_batches(sizes: tuple[int, ...] = (5, 3)) -> tuple[nn.Sequential, list[Batch]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    with torch.no_grad():
        model(torch.randn(16, 4))
    x, y = torch.randn(8, 4), torch.randint(3, (8,))
    parts = zip(torch.split(x, [*sizes]), torch.split(y, [*sizes]), strict=True)
    return model, [Batch(a, b, torch.arange(len(b))) for a, b in parts]


def by_hand(model: nn.Module, batches: list[Batch]) -> tuple[float, float]:
    """One sample at a time, in Python numbers."""
    model.eval().requires_grad_(False)
    losses, hits = [], []
    for batch in batches:
        for x, y in zip(batch.x, batch.y, strict=True):
            logits = [float(z) for z in model(x[None])[0]]
            losses.append(math.log(sum(math.exp(z) for z in logits)) - logits[int(y)])
            hits.append(logits.index(max(logits)) == int(y))
    return sum(losses) / len(losses), sum(hits) / len(hits)


def test_equals_a_sum_by_hand() -> None:
    model, batches = model_and_batches()
    score = evaluate(model, batches)
    loss, accuracy = by_hand(model, batches)
    assert score.loss == pytest.approx(loss, rel=1e-6)
    assert score.accuracy == accuracy
    assert 0.0 < accuracy < 1.0


@pytest.mark.parametrize("sizes", [(8,), (1, 7), (2, 2, 2, 2)])
def test_does_not_depend_on_the_batches(sizes: tuple[int, ...]) -> None:
    reference = evaluate(*model_and_batches())
    score = evaluate(*model_and_batches(sizes))
    assert score.accuracy == reference.accuracy
    assert score.loss == pytest.approx(reference.loss, rel=1e-6)


def test_leaves_modes_buffers_gradients_and_random_numbers() -> None:
    model, batches = model_and_batches()
    model[1].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    evaluate(model, iter(batches))
    assert [module.training for module in model.modules()] == [True, True, False, True, True]
    assert toy.differences(before, dict(model.state_dict())) == []
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(random, torch.get_rng_state())
    model(torch.randn(4, 4)).sum().backward()  # nothing was turned into an inference tensor
    assert all(p.grad is not None for p in model.parameters())


def test_is_without_gradients_and_in_evaluation_mode() -> None:
    class Spy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            assert not torch.is_grad_enabled()
            assert not self.training
            return x

    model, batches = nn.Sequential(Spy(), nn.Linear(4, 3)), model_and_batches()[1]
    evaluate(model, batches)
    assert model[0].training


def test_restores_modes_when_the_model_fails_in_the_middle() -> None:
    model, batches = model_and_batches()
    model[1].eval()
    broken = batches[1]._replace(x=torch.zeros(3, 5))
    with pytest.raises(RuntimeError, match="shapes"):
        evaluate(model, [batches[0], broken])
    assert [module.training for module in model.modules()] == [True, True, False, True, True]


def test_restores_modes_when_the_body_fails() -> None:
    model = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2).eval())

    def fails() -> None:
        with evaluating(model):
            assert not model[0].training
            raise KeyError("inside")

    with pytest.raises(KeyError, match="inside"):
        fails()
    assert [module.training for module in model] == [True, False]


def test_refuses_an_empty_set() -> None:
    model = nn.Linear(4, 3)
    with pytest.raises(ValueError, match=r"^evaluate\(\) got no batches, expected .*\.$"):
        evaluate(model, [])
    assert model.training


def test_half_precision_logits_are_scored_in_single_precision() -> None:
    model, batches = model_and_batches()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = evaluate(model, batches)
    assert half.loss == pytest.approx(evaluate(model, batches).loss, rel=0.02)
