"""The gradient table against least squares, where the published and derived floors are known."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from equipoise.correction import AgeAdaptive, Constant, GradientCorrector, GradientTable
from equipoise.correction.rows import new_row, row_bytes, write_row_

SAMPLES, FEATURES, BATCH, EPOCHS = 512, 20, 16, 200


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


def distance(
    make: Callable[[nn.Module, Callable[[Any], Tensor]], Any], epochs: int, enough: float = 0.0
) -> float:
    """From the solution, relative, after so many epochs or as soon as it is less than enough."""
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
    for _ in range(epochs):
        corrector.refresh(batches)
        for key in torch.randperm(len(batches), generator=generator).tolist():
            optimizer.zero_grad()
            if takes_keys:
                corrector.backward(batches[key], key)
            else:
                corrector.backward(batches[key])
            optimizer.step()
        found.append(float((model.weight.detach().T - solution).norm() / solution.norm()))
        if found[-1] < enough:
            return found[-1]
    return sum(found[-20:]) / 20


def test_plain_steps_have_a_floor_and_those_of_svrg_have_none() -> None:
    assert distance(lambda m, f: GradientTable(m, f, coefficient=0.0), 60) > 1e-3
    assert distance(lambda m, f: GradientCorrector(m, f, Constant(1.0)), EPOCHS, 1e-12) < 1e-12


@pytest.mark.parametrize("coefficient", [1.0, None], ids=["SAGA", "estimated"])
def test_stored_gradients_have_no_floor(coefficient: float | None) -> None:
    def make(model: nn.Module, loss_fn: Any) -> Any:
        return GradientTable(model, loss_fn, precision="fp32", coefficient=coefficient)

    assert distance(make, EPOCHS, 1e-10) < 1e-10


def test_a_coefficient_by_age_has_no_floor() -> None:
    assert distance(lambda m, f: GradientCorrector(m, f, AgeAdaptive()), EPOCHS, 1e-8) < 1e-8


@pytest.mark.parametrize(
    ("precision", "low", "high"),
    [("bf16", 1e-7, 1e-4), ("int8", 1e-7, 3e-4), ("int4", 1e-5, 3e-3)],
)
def test_few_bits_leave_a_floor_below_that_of_plain_steps(
    precision: Any, low: float, high: float
) -> None:
    """What a few bits hold of a gradient does not tell it from its neighbours."""
    assert low < distance(lambda m, f: GradientTable(m, f, precision=precision), 60) < high


class Differences(GradientTable[Any]):
    """The rule that stores rounded differences, which needs a row that is wide enough to add up."""

    def _held_back(self, new: Tensor, *rest: Any) -> Tensor:
        key = self.key
        before = self._ledger.read(key)
        kept = torch.zeros_like(new) if before is None else before.vector
        row = new_row(row_bytes(new.numel(), "int4"), new.device, None)
        return kept + write_row_(row, new - kept, "int4")

    def backward(self, batch: Any, key: Any = None, *, scale: float = 1.0) -> Tensor:
        self.key = key
        return super().backward(batch, key, scale=scale)


def test_rounded_differences_in_wide_rows_have_no_floor() -> None:
    """Four bits are enough for what is added, if not for what is kept."""
    found = distance(lambda m, f: Differences(m, f, precision="fp32"), EPOCHS, 1e-10)
    assert found < 1e-10
