"""The gradient table against least squares, where the published and derived floors are known."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from equipoise.correction import AgeAdaptive, Constant, GradientCorrector, GradientTable

SAMPLES, FEATURES, BATCH, EPOCHS = 256, 20, 16, 200


@functools.cache
def problem() -> tuple[Tensor, Tensor, Tensor, float]:
    """Design, targets, the solution, and the step size 0.1 / L."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(SAMPLES, FEATURES, generator=generator, dtype=torch.float64)
    a *= torch.linspace(0.5, 1.5, FEATURES, dtype=torch.float64)
    b = a @ torch.randn(FEATURES, 1, generator=generator, dtype=torch.float64)
    b += 0.5 * torch.randn(SAMPLES, 1, generator=generator, dtype=torch.float64)
    largest = float(torch.linalg.eigvalsh(a.T @ a / SAMPLES).max())
    return a, b, torch.linalg.lstsq(a, b).solution, 0.1 / largest


def distance(make: Callable[[nn.Module, Callable[[Any], Tensor]], Any]) -> float:
    """From the solution after 200 epochs, relative, as a mean over the last 20."""
    a, b, solution, rate = problem()
    model = nn.Linear(FEATURES, 1, bias=False, dtype=torch.float64)
    nn.init.zeros_(model.weight)
    batches = list(zip(a.split(BATCH), b.split(BATCH), strict=True))

    def loss_fn(batch: tuple[Tensor, Tensor]) -> Any:
        return (model(batch[0]) - batch[1]).square().mean() / 2

    corrector = make(model, loss_fn)
    coefficient = getattr(corrector, "coefficient", None)
    takes_keys = isinstance(corrector, GradientTable)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    if isinstance(coefficient, AgeAdaptive):
        coefficient.follow(optimizer)
    generator = torch.Generator().manual_seed(1)
    found = []
    for _ in range(EPOCHS):
        corrector.refresh(batches)
        for key in torch.randperm(len(batches), generator=generator).tolist():
            optimizer.zero_grad()
            if takes_keys:
                corrector.backward(batches[key], key)
            else:
                corrector.backward(batches[key])
            optimizer.step()
        found.append(float((model.weight.detach().T - solution).norm() / solution.norm()))
    return sum(found[-20:]) / 20


def test_the_floor_of_plain_steps() -> None:
    assert distance(lambda m, f: GradientTable(m, f, coefficient=0.0)) > 1e-3
    assert distance(lambda m, f: GradientCorrector(m, f, Constant(1.0))) < 1e-12


@pytest.mark.parametrize("coefficient", [1.0, None], ids=["SAGA", "estimated"])
def test_stored_gradients_have_no_floor(coefficient: float | None) -> None:
    found = distance(lambda m, f: GradientTable(m, f, precision="fp32", coefficient=coefficient))
    assert found < 1e-10


@pytest.mark.parametrize(
    ("precision", "low", "high"),
    [("bf16", 1e-7, 1e-4), ("int8", 1e-7, 2e-4), ("int4", 1e-5, 3e-3)],
)
def test_few_bits_leave_a_floor(precision: Any, low: float, high: float) -> None:
    """What four bits hold of a gradient does not tell it from its neighbours."""
    assert low < distance(lambda m, f: GradientTable(m, f, precision=precision)) < high


def test_an_age_adaptive_coefficient_has_no_floor() -> None:
    assert distance(lambda m, f: GradientCorrector(m, f, AgeAdaptive())) < 1e-8
