"""A coefficient by age where the best one is known: from numpy, and for a poor full gradient."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from equipoise.correction import AgeAdaptive, Coefficient, Constant, GradientCorrector
from equipoise.correction.moments import Moments

SAMPLES, PERIOD = 160, 16


def linear(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1)).double()


def gradients_of_samples(model: nn.Module, data: Tensor) -> np.ndarray:
    """One row per sample, all parameters behind each other."""
    rows = []
    for x in data.split(1):
        found = torch.autograd.grad(squares(model, x), list(model.parameters()))
        rows.append(torch.cat([g.flatten() for g in found]).numpy())
    return np.stack(rows)


def squares(model: nn.Module, x: Tensor) -> Any:
    return (model(x) - x.sum(1, keepdim=True)).square().mean()


@pytest.mark.parametrize("size", [1, 8])
def test_the_coefficient_is_numpys_whatever_the_size_of_a_batch(size: int) -> None:
    """Property 9: micro-batches are samples of the same ratio, over all parameters and in each."""
    model, then = linear(0), linear(0)
    data = torch.randn(SAMPLES, 3, dtype=torch.float64)
    coefficient = AgeAdaptive(decay=1 - 1e-9, confidence=0.0, prior=0.0)
    corrector = GradientCorrector(model, lambda x: squares(model, x), coefficient)
    corrector.refresh([data])
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    # Only the oldest bin is of use, so all steps are made at one age.
    coefficient.optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    coefficient._age = 1.0
    for epoch in range(4 * size):
        order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(epoch))
        for batch in data[order].split(size):
            model.zero_grad()
            corrector.backward(batch)
    new, old = gradients_of_samples(model, data), gradients_of_samples(then, data)
    sizes = [p.numel() for p in model.parameters()]
    ends = np.cumsum([0, *sizes])
    cov, var = np.zeros(len(sizes)), np.zeros(len(sizes))
    for place, (first, last) in enumerate(pairwise(ends)):
        for k in range(first, last):
            matrix = np.cov(new[:, k], old[:, k])
            cov[place] += matrix[0, 1]
            var[place] += matrix[1, 1]
    (_, _, found), moments = coefficient.by_age()[-1], coefficient._bins[0, 0]
    assert found.best == pytest.approx(cov.sum() / var.sum(), rel=0.05)
    expected = np.clip(cov / var, 0.0, 1.0)
    assert moments.values().tolist() == pytest.approx(expected.tolist(), abs=0.05)


def test_the_network_is_the_sum_of_its_parameters() -> None:
    """Property 9: what is known of all parameters is what one parameter of all would tell."""
    generator = torch.Generator().manual_seed(0)
    parts, whole = Moments(3, torch.device("cpu")), Moments(1, torch.device("cpu"))
    for _ in range(20):
        a, b, s = torch.rand(3, 3, generator=generator, dtype=torch.float64)
        parts.observe(a, b, s)
        whole.observe(*(x.sum(0, keepdim=True) for x in (a, b, s)))
    one, other = parts.evidence(), whole.evidence()
    for name in ("coefficient", "best", "rho_squared", "variance_ratio"):
        assert getattr(one, name) == pytest.approx(getattr(other, name), rel=1e-12)


class Points(nn.Module):
    """Independent copies of one coordinate, each under (w - a) ** 2 / 2 with a of its own."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(count, dtype=torch.float64))

    def forward(self, a: Tensor) -> Tensor:
        return (self.w - a).square().sum() / 2


@functools.cache
def floor(make: Callable[[Any], Coefficient], k: int) -> float:
    """Distance from the minimum with snapshots from k batches, each used for `PERIOD` steps."""
    generator = torch.Generator().manual_seed(0)

    def draw() -> Tensor:
        return torch.randn(512, generator=generator, dtype=torch.float64)

    model = Points(512)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    corrector = GradientCorrector(model, model, make(optimizer), batch_size=lambda a: 1.0)
    found = []
    for step in range(800):
        if step % PERIOD == 0:
            corrector.refresh([draw() for _ in range(k)])
        optimizer.zero_grad()
        corrector.backward(draw())
        optimizer.step()
        if step >= 400:
            found.append(model.w.detach().square().mean())
    return math.sqrt(float(torch.stack(found).mean()))


def plain(optimizer: Any) -> Coefficient:
    return Constant(0.0)


@pytest.mark.parametrize("k", [2, 8, 64])
def test_a_full_gradient_of_few_batches_never_does_worse_than_plain_steps(k: int) -> None:
    r"""Property 14: with a horizon of T steps :math:`c = 1 / (1 + T / K)` leaves the least."""
    expected = math.sqrt(PERIOD / (PERIOD + k))
    ratio = floor(AgeAdaptive, k) / floor(plain, 1)
    assert ratio == pytest.approx(expected, rel=0.1)
    assert ratio < 1.05


def end(coefficient: Coefficient) -> float:
    """Mean of where a weight ends whose minimum is 0 but whose full gradients say 2."""
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(model.weight, 3.0)
    generator = torch.Generator().manual_seed(2)
    targets = 2 * torch.randn(160, generator=generator, dtype=torch.float64)
    batches = list((targets - targets.mean()).split(4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.04)
    if isinstance(coefficient, AgeAdaptive):
        coefficient.follow(optimizer)
    corrector = GradientCorrector(
        model, lambda t: (model.weight - t).square().mean() / 2, coefficient
    )
    ends = []
    for _ in range(24):
        corrector.refresh([b + 2.0 for b in batches])
        for i in torch.randperm(40, generator=generator).tolist():
            optimizer.zero_grad()
            corrector.backward(batches[i])
            optimizer.step()
        ends.append(float(model.weight.detach()))
    return sum(ends[-8:]) / 8


def test_recentred_a_biased_full_gradient_leads_to_the_right_point() -> None:
    """Property 15: a coefficient of 1 does not; the bias of a step falls as 1 / steps."""
    assert end(Constant(1.0)) == pytest.approx(2.0, abs=0.05)
    recentred = AgeAdaptive(mismatch="recentre")
    assert abs(end(recentred)) < 0.3
    assert recentred.value > 0.5  # not because hardly anything is corrected
    shrunk = AgeAdaptive()
    assert abs(end(shrunk)) < 0.2
    assert shrunk.value < 0.1
