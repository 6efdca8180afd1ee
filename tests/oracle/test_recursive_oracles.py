"""Recursive and sub-sampled correction against results that were derived without them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from equipoise.correction import (
    Constant,
    FixedRecursion,
    GradientCache,
    GradientCorrector,
    MomentumCorrector,
    StormRecursion,
)


class Points(nn.Module):
    """Independent copies of one coordinate, each under (w - a) ** 2 / 2 with a of its own."""

    def __init__(self, count: int, start: float = 0.0) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.full((count,), start, dtype=torch.float64))

    def forward(self, a: Tensor) -> Tensor:
        return (self.w - a).square().sum() / 2


# --- Two steps of MVR by hand --------------------------------------------------------------------
#
# l_1 = w^2 / 2 and l_2 = 3 (w - 2)^2 / 2 from w = 1, learning rate .1, share a = 1/4:
#
#   step 1: d = g_1(1) = 1;                                  w = .9
#   step 2: g_2(.9) = -3.3, g_2(1) = -3;  d = -3.3 + .75 (1 + 3) = -.3;  w = .93
#   step 3, batch 1: g_1(.93) = .93, g_1(.9) = .9;  d = .93 + .75 (-.3 - .9) = .03;  w = .927


def test_three_steps_of_mvr_by_hand() -> None:
    model = Points(1, start=1.0)

    def loss_fn(batch: tuple[float, float]) -> Tensor:
        stiffness, centre = batch
        return stiffness * (model.w - centre).square().sum() / 2

    corrector = MomentumCorrector(model, loss_fn, FixedRecursion(0.25))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    directions, places = [], []
    for batch in [(1.0, 0.0), (3.0, 2.0), (1.0, 0.0)]:
        optimizer.zero_grad()
        corrector.backward(batch)
        assert model.w.grad is not None
        directions.append(model.w.grad.item())
        optimizer.step()
        places.append(model.w.item())
    assert directions == pytest.approx([1.0, -0.3, 0.03], abs=1e-14)
    assert places == pytest.approx([0.9, 0.93, 0.927], abs=1e-14)


# STORM on l = w^2 / 2 from w = 2, k = 1, offset 4, strength 1/2:
#   step 1: |g|^2 = 4, rate (4 + 4)^(-1/3) = 1/2;  w = 2 - 1/2 * 2 = 1;  a = 1/2 * 1/4 = 1/8
#   step 2: g(1) = 1, g(2) = 2;  d = 1 + 7/8 (2 - 2) = 1;  |g|^2 = 1, rate 9^(-1/3);  w = 1 - rate


def test_two_steps_of_storm_by_hand() -> None:
    model = Points(1, start=2.0)
    rule = StormRecursion(step_size=1.0, strength=0.5, offset=4.0)
    corrector = MomentumCorrector(model, lambda a: model(torch.tensor(a)), rule)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    places = []
    for _ in range(2):
        optimizer.zero_grad()
        corrector.backward(0.0)
        optimizer.step()
        places.append(model.w.item())
    assert places == pytest.approx([1.0, 1.0 - 9.0 ** (-1 / 3)], abs=1e-14)
    assert rule.weight == pytest.approx(7 / 8)


# --- The noise that MVR leaves -------------------------------------------------------------------
#
# With noise of variance 1 that does not depend on w, g_t - g'_t is free of noise and the direction
# is the exact gradient plus an average: e_t = (1 - a) e_{t-1} + a xi_t, of variance a / (2 - a).


def test_the_noise_of_the_direction_is_that_of_a_moving_average() -> None:
    share = 0.2
    model = Points(4096)
    corrector = MomentumCorrector(model, model, FixedRecursion(share))
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    errors = []
    for step in range(60):
        optimizer.zero_grad()
        corrector.backward(torch.randn(4096, generator=generator, dtype=torch.float64))
        assert model.w.grad is not None
        if step >= 40:
            errors.append((model.w.grad - model.w.detach()).square().mean())
        optimizer.step()
    assert float(torch.stack(errors).mean()) == pytest.approx(share / (2 - share), rel=0.05)


# --- Sub-sampled snapshots ------------------------------------------------------------------------
#
# Over the T steps of a snapshot from K batches the noise adds up to (1 - c) sum xi_t + c T e with
# Var e = 1 / K: in slow directions its variance is R = (1 - c)^2 + c^2 T / K of SGD's.


@pytest.mark.parametrize(("k", "c"), [(2, 0.111), (16, 0.5), (64, 0.8), (2, 1.0)])
def test_the_floor_of_a_sub_sampled_snapshot_is_that_of_the_formula(k: int, c: float) -> None:
    period, count = 16, 512

    def floor(constant: float) -> float:
        generator = torch.Generator().manual_seed(0)

        def draw() -> Tensor:
            return torch.randn(count, generator=generator, dtype=torch.float64)

        model = Points(count)
        corrector = GradientCorrector(model, model, Constant(constant), batch_size=lambda a: 1.0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        squares = []
        for step in range(800):
            if step % period == 0:
                corrector.refresh([draw() for _ in range(k)])
            optimizer.zero_grad()
            corrector.backward(draw())
            optimizer.step()
            if step >= 400:
                squares.append(model.w.detach().square().mean())
        return math.sqrt(float(torch.stack(squares).mean()))

    expected = math.sqrt((1 - c) ** 2 + c**2 * period / k)
    assert floor(c) / floor(0.0) == pytest.approx(expected, rel=0.15)


# --- Least squares --------------------------------------------------------------------------------


def relative_distance(constant: float, epochs: int = 200) -> float:
    """512 samples of 20 numbers, batches of 16 in a new order every epoch, rate .1 / L."""
    generator = torch.Generator().manual_seed(3)
    a = torch.randn(512, 20, generator=generator, dtype=torch.float64)
    b = torch.randn(512, generator=generator, dtype=torch.float64)
    minimum = torch.linalg.lstsq(a, b[:, None]).solution[:, 0]
    largest = float(torch.linalg.eigvalsh(a.T @ a / 512)[-1])
    weight = nn.Linear(20, 1, bias=False, dtype=torch.float64)
    nn.init.zeros_(weight.weight)
    data = list(zip(a.split(16), b.split(16), strict=True))

    def loss_fn(pair: tuple[Tensor, Tensor]) -> Tensor:
        return (weight(pair[0])[:, 0] - pair[1]).square().mean() / 2

    corrector = GradientCorrector(weight, loss_fn, Constant(constant), cache=GradientCache())
    optimizer = torch.optim.SGD(weight.parameters(), lr=0.1 / largest)
    tail = []
    for epoch in range(epochs):
        corrector.refresh(data)
        for place in torch.randperm(32, generator=generator):
            optimizer.zero_grad()
            corrector.backward(data[int(place)])
            optimizer.step()
        if epoch >= epochs - 40 or constant == 1.0:
            tail.append(float((weight.weight.detach()[0] - minimum).norm() / minimum.norm()))
    return tail[-1] if constant == 1.0 else sum(tail) / len(tail)


def test_least_squares_with_stored_gradients() -> None:
    """As with two passes: SVRG to the end, SGD to a floor, a tenth of SVRG next to it."""
    sgd, weak = (relative_distance(c, epochs=70) for c in (0.0, 0.1))
    assert relative_distance(1.0) < 1e-12
    assert sgd > 1e-3
    assert 0.7 * sgd < weak < sgd
