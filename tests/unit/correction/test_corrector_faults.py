"""Losses that are no losses, exceptions in the middle, numbers that are not finite."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from equipoise.correction import (
    Coefficient,
    Constant,
    GradientCorrector,
    LinearDecay,
    LossCovariance,
    NoCorrection,
)

COEFFICIENTS: dict[str, Callable[[], Coefficient]] = {
    "Constant": lambda: Constant(1.0),
    "LinearDecay": lambda: LinearDecay(0.5, 5),
    "LossCovariance": LossCovariance,
}


class Fault(Exception):
    """What the tests raise inside loss functions and loaders."""


class Switchable:
    """A mean-square loss that misbehaves at its n-th call from now."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.countdown = math.inf
        self.fault: Callable[[Tensor], Tensor] = self.fail

    @staticmethod
    def fail(loss: Tensor) -> Tensor:
        raise Fault

    def __call__(self, x: Tensor) -> Tensor:
        loss: Tensor = self.model(x).square().mean()  # the model has drawn and counted by now
        self.countdown -= 1
        return self.fault(loss) if self.countdown == 0 else loss


def build() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Tanh(), nn.Linear(6, 1)
    )


def draw(*sizes: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, 4, generator=generator) for n in sizes]


def described(corrector: GradientCorrector[Any]) -> dict[str, Any]:
    """Everything that must survive a fault, with identities where objects could be swapped."""
    model = corrector.model
    return {
        "model": copy.deepcopy(model.state_dict()),
        "objects": [id(t) for t in [*model.parameters(), *model.buffers()]],
        "modes": [m.training for m in model.modules()],
        "gradients": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "stream": torch.get_rng_state(),
        "corrector": copy.deepcopy(corrector.state_dict()),
        "value": corrector.coefficient_value,
    }


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def trained(coefficient: Coefficient) -> tuple[GradientCorrector[Any], Switchable, list[Tensor]]:
    """A corrector after two corrected epochs, with gradients left over."""
    model, batches = build(), draw(6, 6, 3)
    loss_fn = Switchable(model)
    corrector = GradientCorrector(model, loss_fn, coefficient)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(2):
        corrector.refresh(batches)
        for x in batches:
            optimizer.zero_grad()
            corrector.backward(x)
            optimizer.step()
    return corrector, loss_fn, batches


@pytest.mark.parametrize("place", ["loader", "first call", "second call", "last call"])
@pytest.mark.parametrize("name", COEFFICIENTS)
def test_a_failed_refresh_leaves_everything_and_can_be_repeated(name: str, place: str) -> None:
    corrector, loss_fn, batches = trained(COEFFICIENTS[name]())
    twin, _, _ = trained(COEFFICIENTS[name]())
    torch.manual_seed(5)
    before = described(corrector)
    calls = 6 if name == "LossCovariance" else 3

    def failing() -> Iterator[Tensor]:
        for i, x in enumerate(batches):
            if i == 2:
                raise Fault
            yield x

    if place != "loader":
        loss_fn.countdown = {"first call": 1, "second call": 2, "last call": calls}[place]
    with pytest.raises(Fault):
        corrector.refresh(failing() if place == "loader" else batches)
    assert same(before, described(corrector))

    corrector.refresh(batches)
    torch.manual_seed(5)
    twin.refresh(batches)
    after, expected = described(corrector), described(twin)
    assert same(after["corrector"], expected["corrector"])
    assert after["corrector"]["num_refreshes"] == 3


def test_an_interrupt_counts_as_a_failure() -> None:
    corrector, loss_fn, batches = trained(LinearDecay(0.5, 5))

    def interrupt(loss: Tensor) -> Tensor:
        raise KeyboardInterrupt

    loss_fn.fault, loss_fn.countdown = interrupt, 2
    before = described(corrector)
    with pytest.raises(KeyboardInterrupt):
        corrector.refresh(batches)
    assert same(before, described(corrector))


def test_a_failure_in_the_old_pass_of_a_step() -> None:
    corrector, loss_fn, batches = trained(Constant(1.0))
    reference = copy.deepcopy(corrector.model)
    torch.manual_seed(5)
    corrector.model.zero_grad()
    reference.zero_grad()
    before = described(corrector)
    loss_fn.countdown = 2
    with pytest.raises(Fault):
        corrector.backward(batches[0])
    failed = described(corrector)
    torch.manual_seed(5)
    torch.autograd.backward(reference(batches[0]).square().mean())
    for part in ("objects", "modes", "corrector", "value"):
        assert same(before[part], failed[part])
    # What a plain step would have done by now is done, and nothing else.
    assert same(failed["model"], reference.state_dict())
    assert same(failed["stream"], torch.get_rng_state())
    assert same(failed["gradients"], [p.grad for p in reference.parameters()])


def test_a_failure_before_the_model_is_used_changes_nothing() -> None:
    corrector, _, batches = trained(Constant(1.0))

    def fail(x: Tensor) -> Tensor:
        raise Fault

    corrector.loss_fn = fail
    before = described(corrector)
    with pytest.raises(Fault):
        corrector.backward(batches[0])
    assert same(before, described(corrector))


NO_LOSSES: dict[str, tuple[Callable[[nn.Module, Tensor], Any], str]] = {
    "not reduced": (lambda m, x: m(x), r"returned shape \(6, 1\), expected one scalar tensor"),
    "a number": (lambda m, x: m(x).mean().item(), "returned float, expected one scalar tensor"),
    "nothing": (lambda m, x: m(x).mean() and None, "returned NoneType, expected one scalar tensor"),
    "a pair": (lambda m, x: (m(x).mean(), m(x)), "returned tuple, expected one scalar tensor"),
    "detached": (lambda m, x: m(x).mean().detach(), "loss_fn returned a loss"),
    "constant": (lambda m, x: torch.tensor(1.0), "loss_fn returned a loss"),
}


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")
@pytest.mark.parametrize("method", ["plain", "step", "refresh"])
@pytest.mark.parametrize("name", NO_LOSSES)
def test_a_loss_that_is_none_is_explained(name: str, method: str) -> None:
    make_loss, sentence = NO_LOSSES[name]
    model, batches = build(), draw(6, 6)

    def loss_fn(x: Tensor) -> Any:
        return make_loss(model, x)

    corrector = GradientCorrector(model, loss_fn, Constant(1.0))
    act: dict[str, Callable[[], Any]] = {
        "plain": lambda: NoCorrection(model, loss_fn).backward(batches[0]),
        "step": lambda: corrector.backward(batches[0]),
        "refresh": lambda: corrector.refresh(batches),
    }
    with pytest.raises(ValueError, match=sentence):
        act[method]()
    assert all(p.grad is None for p in model.parameters())


def test_a_loss_of_another_model_is_not_silently_left_uncorrected() -> None:
    model, other = build(), build()
    corrector = GradientCorrector(model, Switchable(other), Constant(1.0))
    with pytest.raises(ValueError, match="compute it from the model that the corrector was given"):
        corrector.refresh(draw(6))


def test_an_old_gradient_that_is_not_finite_leaves_the_step_plain_and_warns() -> None:
    corrector, loss_fn, batches = trained(Constant(1.0))
    reference = copy.deepcopy(corrector.model)
    corrector.model.zero_grad()
    reference.zero_grad()
    loss_fn.fault, loss_fn.countdown = (lambda loss: loss * math.inf), 2
    torch.manual_seed(5)
    with pytest.warns(RuntimeWarning, match="an old gradient is not finite, so this step stays"):
        corrector.backward(batches[0])
    torch.manual_seed(5)
    torch.autograd.backward(reference(batches[0]).square().mean())
    for p, q in zip(corrector.model.parameters(), reference.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)  # type: ignore[arg-type]

    # The next step is corrected again.
    corrector.model.zero_grad()
    loss_fn.countdown = math.inf
    stream = torch.get_rng_state()
    corrector.backward(batches[1])
    torch.set_rng_state(stream)
    reference.zero_grad()
    torch.autograd.backward(reference(batches[1]).square().mean())
    first, second = (m.get_parameter("0.weight").grad for m in (corrector.model, reference))
    assert not torch.allclose(first, second)  # type: ignore[arg-type]


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_full_gradient_that_is_not_finite_means_plain_steps_until_the_next_refresh(
    poison: float,
) -> None:
    corrector, loss_fn, batches = trained(Constant(1.0))
    loss_fn.fault, loss_fn.countdown = (lambda loss: loss * poison), 3
    with pytest.warns(RuntimeWarning, match="the full gradient is not finite, so gradients stay"):
        corrector.refresh(batches)
    assert corrector.coefficient_value == 0.0
    corrector.model.zero_grad()
    reference = copy.deepcopy(corrector.model)
    torch.manual_seed(5)
    corrector.backward(batches[0])
    torch.manual_seed(5)
    torch.autograd.backward(reference(batches[0]).square().mean())
    for p, q in zip(corrector.model.parameters(), reference.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)  # type: ignore[arg-type]

    corrector.refresh(batches)
    assert corrector.coefficient_value == 1.0


def test_a_loss_that_is_not_finite_does_not_poison_the_coefficient() -> None:
    corrector, loss_fn, batches = trained(LossCovariance())
    before = corrector.coefficient_value
    assert before != 0.0
    loss_fn.fault, loss_fn.countdown = (lambda loss: loss + math.nan), 2  # an old loss only
    with pytest.warns(RuntimeWarning, match="the coefficient cannot be estimated"):
        corrector.refresh(batches)
    assert corrector.coefficient_value == before


def test_a_batch_that_counts_nothing_does_not_poison_the_coefficient() -> None:
    model, batches = build(), draw(6, 6)
    corrector = GradientCorrector(
        model, Switchable(model), LossCovariance(), batch_size=lambda x: 0.0
    )
    corrector.refresh(batches)
    with pytest.warns(RuntimeWarning) as warned:
        corrector.refresh(batches)
    assert len(warned) == 2  # no estimate, no full gradient
    assert corrector.coefficient.value == 0.0


def test_a_plain_loss_that_is_not_finite_is_passed_on() -> None:
    """Skipping a step is the caller's or the loss scaler's decision, as in a plain loop."""
    model, (x,) = build(), draw(6)

    def loss_fn(x: Tensor) -> Any:
        return model(x).mean() * math.inf

    corrector = GradientCorrector(model, loss_fn, Constant(1.0))
    assert not torch.isfinite(corrector.backward(x))
    assert not all(bool(torch.isfinite(p.grad).all()) for p in model.parameters())  # type: ignore[arg-type]


def test_a_number_as_coefficient_is_answered_with_what_to_write() -> None:
    with pytest.raises(ValueError, match=r"write Constant\(0.5\)"):
        GradientCorrector(nn.Linear(1, 1), lambda x: x, 0.5)  # type: ignore[arg-type]
