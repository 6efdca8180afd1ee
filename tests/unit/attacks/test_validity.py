"""Every flag is raised by what it is about, and by nothing else."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from equipoise.attacks.evaluation import Plan
from equipoise.attacks.pgd import PGD
from equipoise.attacks.threat import Norm, ThreatModel
from equipoise.attacks.validity import validity_flags

nets = import_module("tests.unit.attacks.nets")


def plan(eps: float = 0.08, norm: Norm = "linf", **more: Any) -> Plan:
    settings = {"steps": 20, "step_size": 2.5 * eps / 20, **more}
    return Plan(attack=PGD(threat=ThreatModel(norm=norm, eps=eps), **settings), restarts=1)


def raised(model: nn.Module, chosen: Plan | None = None) -> set[str]:
    _, x, y = nets.trained()
    flags = validity_flags(model, x[:64], y[:64], chosen or plan())
    assert all(flag.raised_if and flag.found and flag.explanation.endswith(".") for flag in flags)
    return {flag.name for flag in flags if flag.raised}


class Wrapped(nn.Module):
    """The trained network with something in front or behind."""

    def __init__(
        self,
        before: Callable[[Tensor], Tensor] = lambda x: x,
        after: Callable[[Tensor], Tensor] = lambda z: z,
    ) -> None:
        super().__init__()
        self.net = nets.trained()[0]
        self.before, self.after = before, after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.net(self.before(x)))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_fair_evaluation_raises_nothing(norm: Norm) -> None:
    assert raised(Wrapped(), plan(0.08 if norm == "linf" else 0.6, norm)) == set()


def test_a_randomised_network() -> None:
    noisy = Wrapped(before=lambda x: x + 0.1 * torch.randn_like(x))
    assert "randomised forward pass" in raised(noisy)


def test_a_softmax_at_the_end() -> None:
    assert "probabilities" in raised(Wrapped(after=lambda z: z.softmax(dim=1)))


def test_rounded_inputs_have_no_gradient() -> None:
    names = raised(Wrapped(before=lambda x: (x * 8).round() / 8))
    assert {"zero gradients", "any image"} <= names


def test_saturated_logits_hide_their_gradient_from_cross_entropy_alone() -> None:
    certain = Wrapped(after=lambda z: z * 1e4)
    assert "zero gradients" in raised(certain)
    chosen = plan()
    margin = Plan(attack=chosen.attack, restarts=1, loss="margin")
    assert "zero gradients" not in raised(certain, margin)


class Backwards(torch.autograd.Function):
    """The identity whose gradient points the other way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return -gradient


def test_misleading_gradients() -> None:
    names = raised(Wrapped(before=Backwards.apply), plan(0.3))
    assert {"more steps", "loss", "any image"} <= names


def test_steps_that_are_too_long_or_too_short() -> None:
    assert "more steps" in raised(Wrapped(), plan(step_size=1e-6))


def test_a_network_that_is_never_right_has_nothing_to_check() -> None:
    model, x, _ = nets.trained()
    with torch.no_grad():
        worst = model(x[:8]).argmin(1)
    flags = validity_flags(model, x[:8], worst, plan())
    assert [flag.name for flag in flags] == ["randomised forward pass", "probabilities"]
