"""Several ranks that average their corrected gradients are one process with their batches together.

Ranks are copies in one process here: what is exchanged is one average of ``p.grad`` in a step and
nothing at a refresh, because the correction is linear in the gradients.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from equipoise.correction import (
    Constant,
    FixedRecursion,
    GradientCache,
    GradientCorrector,
    GradientTable,
    LinearDecay,
    MomentumCorrector,
)
from equipoise.topology import Topology

EPOCHS, BATCHES, HALF = 3, 4, 3


class LinearTable(GradientTable[Tensor]):
    """Without the rule that holds back what is far too large for a rank, which is not linear."""

    def _held_back(self, new: Tensor, *rest: Any) -> Tensor:
        return new


def build(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()


def make(name: str, model: nn.Module, c: float) -> Any:
    def loss_fn(x: Tensor) -> Any:
        return (model(x) - x[:, :2]).square().mean()

    topology = Topology(model, sparsity=0.4, seed=1)
    match name:
        case "svrg":
            return GradientCorrector(model, loss_fn, Constant(c), topology=topology)
        case "alpha_svrg":
            return GradientCorrector(model, loss_fn, LinearDecay(c, EPOCHS))
        case "cached":
            return GradientCorrector(model, loss_fn, Constant(c), cache=GradientCache())
        case "mvr":
            return MomentumCorrector(model, loss_fn, FixedRecursion(abs(c) / 3 + 0.1))
    return LinearTable(model, loss_fn, masks=topology, precision="fp32", coefficient=c)


def train(name: str, c: float, seed: int, split: int) -> tuple[list[Tensor], int]:
    """Weights after some epochs of ranks that see a part of each batch, and exchanges made."""
    generator = torch.Generator().manual_seed(seed)
    data = torch.randn(BATCHES, 2 * HALF, 3, generator=generator, dtype=torch.float64)
    models = [build(seed) for _ in range(split)]
    ranks = [make(name, model, c) for model in models]
    optimizers = [
        torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3) for m in models
    ]
    exchanges = 0
    for _ in range(EPOCHS):
        order = torch.randperm(BATCHES, generator=generator).tolist()
        for rank, corrector in enumerate(ranks):
            corrector.refresh([x.chunk(split)[rank] for x in data])
        for key in order:
            for rank, (corrector, optimizer) in enumerate(zip(ranks, optimizers, strict=True)):
                optimizer.zero_grad()
                batch = data[key].chunk(split)[rank]
                if name == "table":
                    corrector.backward(batch, key)
                else:
                    corrector.backward(batch)
            exchanges += 1
            for shared in zip(*(m.parameters() for m in models), strict=True):
                mean = torch.stack([p.grad for p in shared if p.grad is not None]).mean(0)
                for p in shared:
                    p.grad = mean.clone()
            for optimizer in optimizers:
                optimizer.step()
    first, *others = [[p.detach() for p in m.parameters()] for m in models]
    for other in others:
        assert all(map(torch.equal, first, other))  # no rank drifts away
    return first, exchanges


@pytest.mark.parametrize("name", ["svrg", "alpha_svrg", "cached", "mvr", "table"])
@given(c=st.floats(-1.0, 1.5), seed=st.integers(0, 2**31 - 1))
@settings(max_examples=8, deadline=None)
def test_two_ranks_are_one_process(name: str, c: float, seed: int) -> None:
    """Properties 9 and 24, without layers that see more than one sample."""
    together, _ = train(name, c, seed, 1)
    apart, exchanges = train(name, c, seed, 2)
    assert exchanges == EPOCHS * BATCHES
    for a, b in zip(together, apart, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)
