"""What every corrector promises to a training loop."""

from __future__ import annotations

import copy
import inspect
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import equipoise.correction
from equipoise.correction import (
    AgeAdaptive,
    AgentRecursion,
    Coefficient,
    Constant,
    Corrector,
    FixedRecursion,
    GradientCache,
    GradientCorrector,
    GradientTable,
    LinearDecay,
    LossCovariance,
    MomentumCorrector,
    NoCorrection,
    RefreshOptions,
)
from equipoise.measure import unmeasured

Loss = Callable[[Tensor], Any]


def _with(make: Callable[[], Coefficient]) -> Callable[..., Corrector[Tensor]]:
    return lambda model, loss_fn, **more: GradientCorrector(model, loss_fn, make(), **more)


def _oracle(model: nn.Module, loss_fn: Loss, **more: Any) -> Corrector[Tensor]:
    snapshots = GradientCorrector(model, loss_fn, LossCovariance(), **more)
    return MomentumCorrector(model, loss_fn, snapshots=snapshots, **more)


TABLE: dict[str, Callable[..., Corrector[Tensor]]] = {
    "NoCorrection": NoCorrection,
    "default": GradientCorrector,
    "SVRG": _with(lambda: Constant(1.0)),
    "fixed": _with(lambda: Constant(0.1)),
    "none": _with(lambda: Constant(0.0)),
    "alpha-SVRG": _with(lambda: LinearDecay(0.75, 4)),
    "AGENT without gamma": _with(lambda: LossCovariance(scaling=1.0)),
    "table": GradientTable,
    "by age": _with(AgeAdaptive),
    "by age, recentred": _with(lambda: AgeAdaptive(mismatch="recentre")),
    "AGENT clipped": _with(lambda: LossCovariance(clip=(0.0, 1.0))),
    "AGENT as one code has it": lambda model, loss_fn, **more: GradientCorrector(
        model,
        loss_fn,
        LossCovariance(initial=0.1),
        options=RefreshOptions(weighting="batches", compares_with="current", adds_leftover=True),
        **more,
    ),
    "SVRG cached": lambda model, loss_fn, **more: GradientCorrector(
        model, loss_fn, Constant(1.0), cache=GradientCache(), **more
    ),
    "MVR": MomentumCorrector,
    "MVR without memory": lambda model, loss_fn, **more: MomentumCorrector(
        model, loss_fn, FixedRecursion(1.0), **more
    ),
    "AGENT + MVR": lambda model, loss_fn, **more: MomentumCorrector(
        model, loss_fn, AgentRecursion(LossCovariance(scaling=1.0)), **more
    ),
    "AGENT + MVR, oracle": _oracle,
}
NAMES = pytest.mark.parametrize("name", TABLE)


def build() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.2), nn.Linear(6, 1)
    )


def draw() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, 4, generator=generator) for n in (6, 6, 3)]


def started(name: str, epochs: int) -> tuple[nn.Module, Corrector[Tensor]]:
    """A corrector after some epochs of training."""
    model = build()
    corrector = TABLE[name](model, lambda x: model(x).square().mean())
    train(model, corrector, epochs)
    return model, corrector


def train(model: nn.Module, corrector: Corrector[Tensor], epochs: int) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(epochs):
        corrector.refresh(draw())
        for x in draw():
            optimizer.zero_grad()
            corrector.backward(x)
            optimizer.step()


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def test_every_public_corrector_is_in_the_table() -> None:
    public = {
        value
        for value in vars(equipoise.correction).values()
        if isinstance(value, type) and hasattr(value, "backward") and value is not Corrector
    }
    assert public == {type(make(build(), lambda x: x)) for make in TABLE.values()}


@pytest.mark.parametrize("corrector", [NoCorrection, GradientCorrector, MomentumCorrector])
def test_the_signatures_are_those_of_the_protocol(corrector: type) -> None:
    for method in ("refresh", "backward", "state_dict", "load_state_dict"):
        expected = inspect.signature(getattr(Corrector, method)).parameters.values()
        found = inspect.signature(getattr(corrector, method)).parameters.values()
        assert [(p.name, p.kind, p.default) for p in found] == [
            (p.name, p.kind, p.default) for p in expected
        ]


@NAMES
def test_it_starts_at_0(name: str) -> None:
    _, corrector = started(name, epochs=0)
    assert corrector.coefficient_value == 0.0


@NAMES
@pytest.mark.parametrize("epochs", [0, 1, 3])
def test_a_step_returns_the_detached_unscaled_loss(name: str, epochs: int) -> None:
    model, corrector = started(name, epochs)
    x = draw()[0]
    torch.manual_seed(5)
    expected = copy.deepcopy(model)(x).square().mean().detach()
    torch.manual_seed(5)
    loss = corrector.backward(x, scale=8.0)
    assert type(loss) is Tensor
    assert loss.shape == ()
    assert not loss.requires_grad
    assert torch.equal(loss, expected)


@NAMES
@pytest.mark.parametrize("epochs", [0, 1, 3])
def test_a_step_writes_a_finite_gradient_for_every_parameter_and_moves_none(
    name: str, epochs: int
) -> None:
    model, corrector = started(name, epochs)
    model.zero_grad()
    before = [p.detach().clone() for p in model.parameters()]
    corrector.backward(draw()[0])
    for p, q in zip(model.parameters(), before, strict=True):
        assert p.grad is not None
        assert p.grad.shape == p.shape
        assert p.grad.dtype == p.dtype
        assert not p.grad.requires_grad
        assert bool(torch.isfinite(p.grad).all())
        assert torch.equal(p, q)


@NAMES
def test_steps_accumulate(name: str) -> None:
    model, corrector = started(name, epochs=2)
    model.zero_grad()
    grads = []
    state = copy.deepcopy(corrector.state_dict())
    for _ in range(2):
        corrector.load_state_dict(state)  # some learn from every step
        torch.manual_seed(5)
        corrector.backward(draw()[0])
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for once, twice in zip(*grads, strict=True):
        torch.testing.assert_close(twice, 2 * once)


@NAMES
def test_the_scale_multiplies_the_gradient(name: str) -> None:
    model, corrector = started(name, epochs=2)
    grads = []
    state = copy.deepcopy(corrector.state_dict())
    for scale in (1.0, 4.0):
        corrector.load_state_dict(state)  # some learn from every step
        model.zero_grad()
        torch.manual_seed(5)
        corrector.backward(draw()[0], scale=scale)
        grads.append([p.grad for p in model.parameters()])
    for plain, scaled in zip(*grads, strict=True):
        assert plain is not None
        assert torch.equal(scaled, 4 * plain)


@NAMES
def test_a_refresh_leaves_model_gradients_and_random_stream(name: str) -> None:
    model, corrector = started(name, epochs=2)
    state = copy.deepcopy(model.state_dict())
    grads = [(id(p.grad), p.grad.clone()) for p in model.parameters() if p.grad is not None]
    stream = torch.get_rng_state()
    corrector.refresh(draw(), weights=[1.0, 2.0, 3.0], scale=2.0)
    assert same(dict(model.state_dict()), dict(state))
    assert torch.equal(stream, torch.get_rng_state())
    for p, (identity, grad) in zip(model.parameters(), grads, strict=True):
        assert id(p.grad) == identity
        assert torch.equal(p.grad, grad)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [n for n in TABLE if not n.startswith("by age")])
def test_the_coefficient_value_does_not_move_within_an_epoch(name: str) -> None:
    _, corrector = started(name, epochs=2)
    before = corrector.coefficient_value
    for x in draw():
        corrector.backward(x)
    assert corrector.coefficient_value == before


@NAMES
@pytest.mark.parametrize("epochs", [0, 1, 2, 5])
def test_a_state_round_trip_continues_bit_for_bit(name: str, epochs: int) -> None:
    model, corrector = started(name, epochs)
    file = io.BytesIO()
    torch.save([corrector.state_dict(), model.state_dict(), torch.get_rng_state()], file)
    train(model, corrector, 2)
    expected = copy.deepcopy([dict(model.state_dict()), corrector.state_dict()])
    file.seek(0)
    state, weights, stream = torch.load(file, weights_only=True)
    other, resumed = started(name, epochs=0)
    other.load_state_dict(weights)
    resumed.load_state_dict(state)
    torch.set_rng_state(stream)
    train(other, resumed, 2)
    found = [dict(other.state_dict()), resumed.state_dict()]
    assert all(map(same, found, expected))


@NAMES
def test_a_loss_that_is_no_scalar_is_refused(name: str) -> None:
    model = build()
    corrector = TABLE[name](model, model)
    with pytest.raises(ValueError, match=r"returned shape \(6, 1\), expected one scalar tensor"):
        corrector.backward(draw()[0])


@NAMES
def test_a_measure_is_accepted_and_told_of_the_new_gradient(name: str) -> None:
    told = []

    def measure(part: str, /, **cost: Any) -> Any:
        told.append((part, cost))
        return unmeasured(part)

    model = build()
    corrector = TABLE[name](model, lambda x: model(x).mean(), measure=measure)
    corrector.backward(draw()[0])
    assert told == [("new_gradient", {"samples": 6.0, "forwards": 1, "backwards": 1})]
