"""The correction against results that were derived without it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from equipoise.correction import (
    Coefficient,
    Constant,
    GradientCorrector,
    LinearDecay,
    LossCovariance,
)


class Point(nn.Module):
    """A single parameter, so that a gradient is a single number."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(value, dtype=torch.float64))

    def move_to(self, value: float) -> None:
        with torch.no_grad():
            self.w.fill_(value)


def corrector_for(
    model: nn.Module, loss_fn: Callable[[Any], Tensor], coefficient: Coefficient
) -> GradientCorrector[Any]:
    """One for batches that all count the same."""
    return GradientCorrector(model, loss_fn, coefficient, batch_size=lambda batch: 1.0)


# --- Two steps by hand ---------------------------------------------------------------------------
#
# Two batches, l_1 = w^2 / 2 and l_2 = 3 (w - 2)^2 / 2, snapshot at w = 1: the gradients there are
# 1 and -3, their mean -1. SGD with Nesterov momentum .9, learning rate .1, decay .01, c = 1/2:
#
#   step 1, batch 1: g = 1;                       corrected 1 + (-1 - 1) / 2 = 0
#                    d = 0 + .01 * 1 = .01;       buffer .01;   d + .9 * .01 = .019
#                    w = 1 - .0019 = .9981
#   step 2, batch 2: g = 3 (.9981 - 2) = -3.0057; corrected -3.0057 + (-1 + 3) / 2 = -2.0057
#                    d = -2.0057 + .009981 = -1.995719;   buffer .009 - 1.995719 = -1.986719
#                    d + .9 * buffer = -3.7837661;        w = .9981 + .37837661 = 1.37647661


def test_two_steps_of_nesterov_by_hand() -> None:
    model = Point(1.0)

    def loss_fn(batch: tuple[float, float]) -> Tensor:
        stiffness, centre = batch
        return 0.5 * stiffness * (model.w - centre) ** 2

    batches = [(1.0, 0.0), (3.0, 2.0)]
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01
    )
    corrector = corrector_for(model, loss_fn, Constant(0.5))
    corrector.refresh(batches)
    assert corrector.full_gradient["w"].item() == -1.0
    gradients, positions = [], []
    for batch in batches:
        optimizer.zero_grad()
        corrector.backward(batch)
        gradients.append(model.w.grad.item())  # type: ignore[union-attr]
        optimizer.step()
        positions.append(model.w.item())
    assert gradients == pytest.approx([0.0, -2.0057], abs=1e-14)
    assert positions == pytest.approx([0.9981, 1.37647661], abs=1e-14)


# The same two batches under decoupled decay: w <- (1 - lr * decay) w, then the step.
#   step 1: w = .999 * 1 - 0           = .999      (lr .1, decay .01, no momentum)
#   step 2: g = 3 (.999 - 2) = -3.003; corrected -2.003; w = .999 * .999 + .2003 = 1.198301


def test_two_steps_of_decoupled_decay_by_hand() -> None:
    model = Point(1.0)

    def loss_fn(batch: tuple[float, float]) -> Tensor:
        stiffness, centre = batch
        return 0.5 * stiffness * (model.w - centre) ** 2

    batches = [(1.0, 0.0), (3.0, 2.0)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    corrector = corrector_for(model, loss_fn, Constant(0.5))
    corrector.refresh(batches)
    positions = []
    for batch in batches:
        optimizer.zero_grad()
        corrector.backward(batch)
        with torch.no_grad():
            model.w.mul_(1.0 - 0.1 * 0.01)
        optimizer.step()
        positions.append(model.w.item())
    assert positions == pytest.approx([0.999, 1.198301], abs=1e-14)


# --- The variance of a quadratic with known covariances ------------------------------------------
#
# l_B(w) = x_B w + y_B w^2 / 2 with x = (1, 1, -1, -1) and y = (1, -1, 1, -1): uncorrelated, mean 0,
# variance 1. The gradient at w is x + y w, so over the batches Var = 1 + w^2 and, between the
# points w and v, Cov = 1 + w v.

DESIGN = [(1.0, 1.0), (1.0, -1.0), (-1.0, 1.0), (-1.0, -1.0)]
POINTS = [(1.0, 0.0), (0.5, 2.0), (-1.0, 0.5), (3.0, 2.5)]


def variance(now: float, snapshot: float, coefficient: Coefficient) -> float:
    """Of the corrected gradient, over the four batches."""
    model = Point(snapshot)

    def loss_fn(batch: tuple[float, float]) -> Tensor:
        x, y = batch
        return x * model.w + 0.5 * y * model.w**2

    corrector = corrector_for(model, loss_fn, coefficient)
    corrector.refresh(DESIGN)
    model.move_to(now)
    gradients = []
    for batch in DESIGN:
        model.zero_grad()
        corrector.backward(batch)
        gradients.append(model.w.grad.item())  # type: ignore[union-attr]
    assert np.mean(gradients) == pytest.approx(0.0, abs=1e-14)
    return float(np.var(gradients))


@pytest.mark.parametrize(("now", "snapshot"), POINTS)
@pytest.mark.parametrize("c", [-0.5, 0.0, 0.1, 0.4, 1.0, 1.5])
def test_the_variance_is_the_parabola(now: float, snapshot: float, c: float) -> None:
    expected = (1 + now**2) + c**2 * (1 + snapshot**2) - 2 * c * (1 + now * snapshot)
    assert variance(now, snapshot, Constant(c)) == pytest.approx(expected, abs=1e-13)


@pytest.mark.parametrize(("now", "snapshot"), POINTS)
@pytest.mark.parametrize("gamma", [0.1, 0.5, 1.0, 2.0])
def test_a_scaled_optimum_reduces_the_variance_by_its_known_share(
    now: float, snapshot: float, gamma: float
) -> None:
    """1 - rho^2 (2 gamma - gamma^2), hence at most 19 % of rho^2 at the published 0.1."""
    covariance, old = 1 + now * snapshot, 1 + snapshot**2
    rho_squared = covariance**2 / ((1 + now**2) * old)
    ratio = variance(now, snapshot, Constant(gamma * covariance / old)) / (1 + now**2)
    assert ratio == pytest.approx(1 - rho_squared * (2 * gamma - gamma**2), abs=1e-13)


@pytest.mark.parametrize(("now", "snapshot"), POINTS)
def test_the_optimum_is_the_regression_of_the_gradients(now: float, snapshot: float) -> None:
    best = (1 + now * snapshot) / (1 + snapshot**2)
    at_best = variance(now, snapshot, Constant(best))
    for c in (best - 0.2, best - 0.01, best + 0.01, best + 0.2):
        assert variance(now, snapshot, Constant(c)) > at_best


# --- A net of two modules ------------------------------------------------------------------------


def build() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Dropout(0.4),
        nn.Flatten(),
        nn.Linear(3 * 16, 4),
    ).double()


def images(*sizes: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(n, 1, 4, 4, generator=generator, dtype=torch.float64),
            torch.randint(4, (n,), generator=generator),
        )
        for n in sizes
    ]


def entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def entropy_corrector(model: nn.Module, coefficient: Coefficient) -> GradientCorrector[Any]:
    return GradientCorrector(model, lambda batch: entropy(model, batch), coefficient)


def gradients(model: nn.Module) -> list[Tensor]:
    taken = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    return taken


def test_a_run_of_agent_is_the_run_of_two_separate_networks() -> None:
    """Epochs of the published algorithm, written out with a second network and plain autograd."""
    gamma, alpha, lr = 0.1, 0.3, 0.2
    batches = images(6, 6, 6, 3)
    sizes = np.array([6, 6, 6, 3])

    model = build()
    corrector = entropy_corrector(model, LossCovariance(gamma, alpha))
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, nesterov=True)

    new_net = build()
    old_net = copy.deepcopy(new_net)
    reference = torch.optim.SGD(new_net.parameters(), lr=lr, momentum=0.9, nesterov=True)
    smoothed, full = 0.0, [torch.zeros_like(p) for p in new_net.parameters()]

    def at(net: nn.Module, batch: tuple[Tensor, Tensor], seed: int) -> tuple[float, list[Tensor]]:
        """Loss and gradient of a network that is used up by it."""
        used = copy.deepcopy(net)
        used.zero_grad()
        torch.manual_seed(seed)
        loss = entropy(used, batch)
        torch.autograd.backward(loss)
        return loss.item(), gradients(used)

    class Seeded:
        """Gives the corrector's passes over the batches the random numbers of the reference."""

        def __iter__(self) -> Any:
            for i, batch in enumerate(batches):
                torch.manual_seed(100 + i)
                yield batch

    for epoch in range(4):
        corrector.refresh(Seeded())
        if epoch > 0:
            now = [at(new_net, b, 100 + i) for i, b in enumerate(batches)]
            before = [at(old_net, b, 100 + i)[0] for i, b in enumerate(batches)]
            covariance = np.cov([loss for loss, _ in now], before, fweights=sizes)
            smoothed = (1 - alpha) * smoothed + alpha * covariance[0, 1] / covariance[1, 1]
            full = [
                sum((n * g[j] for n, (_, g) in zip(sizes, now, strict=True)), full[j] * 0)
                / sizes.sum()
                for j in range(len(full))
            ]
        old_net = copy.deepcopy(new_net)
        assert corrector.coefficient_value == pytest.approx(gamma * smoothed, rel=1e-9, abs=1e-15)
        for i, batch in enumerate(batches):
            torch.manual_seed(i)
            optimizer.zero_grad()
            corrector.backward(batch)
            optimizer.step()

            _, old = at(old_net, batch, i)
            torch.manual_seed(i)
            reference.zero_grad()
            torch.autograd.backward(entropy(new_net, batch))
            with torch.no_grad():
                for p, g_old, g_full in zip(new_net.parameters(), old, full, strict=True):
                    assert p.grad is not None
                    p.grad.sub_(gamma * smoothed * (g_old - g_full))
            reference.step()
    assert smoothed != 0.0
    for (name, a), b in zip(model.state_dict().items(), new_net.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12, msg=name)


# --- Equal methods -------------------------------------------------------------------------------


def run(coefficient: Coefficient, epochs: int = 3) -> list[Tensor]:
    model, batches = build(), images(6, 6, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    corrector = entropy_corrector(model, coefficient)
    for _ in range(epochs):
        corrector.refresh(batches)
        for batch in batches:
            optimizer.zero_grad()
            corrector.backward(batch)
            optimizer.step()
    return [t.clone() for t in model.state_dict().values()]


def identical(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(map(torch.equal, a, b))


def test_svrg_is_the_constant_one() -> None:
    """x + (g~ - y), written out by hand, is what Constant(1.0) trains with."""
    model, batches = build(), images(6, 6, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(3):
        snapshot = copy.deepcopy(model)
        with torch.random.fork_rng(devices=[]):
            full = [torch.zeros_like(p) for p in model.parameters()]
            for batch in batches:
                other = copy.deepcopy(model)
                other.zero_grad()
                torch.autograd.backward(entropy(other, batch))
                for total, g in zip(full, gradients(other), strict=True):
                    total.add_(g, alpha=len(batch[0]) / 15)
        for batch in batches:
            stream = torch.get_rng_state()
            optimizer.zero_grad()
            torch.autograd.backward(entropy(model, batch))
            after = torch.get_rng_state()
            torch.set_rng_state(stream)
            other = copy.deepcopy(snapshot)
            other.zero_grad()
            torch.autograd.backward(entropy(other, batch))
            torch.set_rng_state(after)
            for p, y, g in zip(model.parameters(), gradients(other), full, strict=True):
                assert p.grad is not None
                p.grad.add_(g - y)
            optimizer.step()
    for a, b in zip(run(Constant(1.0)), model.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_a_gamma_of_one_is_no_gamma() -> None:
    """A run with gamma = 1 uses the smoothed estimate itself."""
    model, batches = build(), images(6, 6, 6)
    coefficient = LossCovariance(scaling=1.0, smoothing=1.0)
    corrector = entropy_corrector(model, coefficient)
    for epoch in range(3):
        corrector.refresh(batches)
        expected = 0.0 if epoch == 0 else coefficient.estimate
        assert corrector.coefficient_value == expected
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(0.9)


def test_a_line_that_does_not_fall_within_the_run_is_a_constant() -> None:
    assert identical(run(LinearDecay(0.5, 1), epochs=1), run(Constant(0.5), epochs=1))
    assert not identical(run(LinearDecay(0.5, 3)), run(Constant(0.5)))


# --- What the correction is for ------------------------------------------------------------------


def distance_after(coefficient: Coefficient, epochs: int = 60) -> float:
    """Of least squares to its minimum, by steps of a constant size over batches of 8."""
    generator = torch.Generator().manual_seed(3)
    a = torch.randn(64, 4, generator=generator, dtype=torch.float64)
    b = torch.randn(64, 1, generator=generator, dtype=torch.float64)
    minimum = torch.linalg.lstsq(a, b).solution
    model = nn.Linear(4, 1, bias=False, dtype=torch.float64)
    nn.init.zeros_(model.weight)
    data = list(zip(torch.split(a, 8), torch.split(b, 8), strict=True))

    def loss_fn(pair: tuple[Tensor, Tensor]) -> Any:
        return (model(pair[0]) - pair[1]).square().mean() / 2

    corrector = GradientCorrector(model, loss_fn, coefficient)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.15)
    for _ in range(epochs):
        corrector.refresh(data)
        for i in torch.randint(8, (8,), generator=generator):
            optimizer.zero_grad()
            corrector.backward(data[int(i)])
            optimizer.step()
    return float((model.weight.detach().T - minimum).norm())


def test_with_a_constant_step_svrg_converges_and_sgd_does_not() -> None:
    sgd, weak, svrg = (distance_after(Constant(c)) for c in (0.0, 0.1, 1.0))
    assert svrg < 1e-10
    assert sgd > 1e-2
    assert weak > 1e-3


def test_a_biased_reference_moves_the_minimum_and_an_unbiased_one_does_not() -> None:
    """Weights that are not those of the training pass make SVRG converge to the wrong point."""
    model = Point(0.0)
    centres = [0.0, 4.0]
    distances = []
    for weights in (None, [3.0, 1.0]):
        model.move_to(0.0)
        corrector = corrector_for(model, lambda a: 0.5 * (model.w - a) ** 2, Constant(1.0))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(60):
            corrector.refresh(centres, weights=weights)
            for centre in centres:
                optimizer.zero_grad()
                corrector.backward(centre)
                optimizer.step()
        distances.append(model.w.item())
    assert distances == pytest.approx([2.0, 1.0], abs=1e-4)


def test_the_published_sequence_of_used_coefficients() -> None:
    """The published code of one pipeline estimates 1 at every refresh; then w_k is this."""
    model = Point(1.0)
    corrector = corrector_for(model, lambda a: 0.5 * (model.w - a) ** 2, LossCovariance())
    used = []
    for _ in range(5):  # nothing moves, so the two losses of a batch are equal
        corrector.refresh([0.0, 1.0, 3.0])
        used.append(corrector.coefficient_value)
    assert used == pytest.approx([0.1 * (1 - 0.7**k) for k in range(5)], abs=1e-12)
    assert used == pytest.approx([0.0, 0.03, 0.051, 0.0657, 0.07599], abs=1e-12)
    assert math.isclose(corrector.coefficient_value, 0.07599)
