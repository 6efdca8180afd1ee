"""Losses and gradients at another point; the model is left as it was found."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from equipoise.points import (
    checked,
    device_of,
    preserved,
    random_state,
    replayed,
    trainable,
    value_and_gradient_at,
    value_at,
)

CPU = torch.device("cpu")


class Tied(nn.Module):
    """A language model's head: the embedding and the output share one matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.output = nn.Linear(3, 5, bias=False)
        self.output.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Any:
        return self.output(self.embedding(tokens)).square().mean()


class Recurrent(nn.Module):
    """An LSTM holds its weights in a second, flat list as well."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(2, 4, num_layers=2, batch_first=True)
        self.head = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.lstm(x)[0]).square().mean()


class Counting(nn.Module):
    """Replaces a buffer in its forward pass instead of writing into it."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([2.0]))
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen = self.seen + 1
        return (self.weight * x).sum()


def normed() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 1))


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "batch norm": (normed, lambda: torch.randn(8, 4)),
    "convolution": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten()),
        lambda: torch.randn(3, 1, 5, 5),
    ),
    "tied": (Tied, lambda: torch.randint(5, (7,))),
    "lstm": (Recurrent, lambda: torch.randn(3, 6, 2)),
    "weight norm": (
        lambda: nn.Sequential(weight_norm(nn.Linear(4, 3)), nn.Tanh()),
        lambda: torch.randn(5, 4),
    ),
    "spectral norm": (
        lambda: nn.Sequential(spectral_norm(nn.Linear(4, 3)), nn.Tanh()),
        lambda: torch.randn(5, 4),
    ),
    "attention": (
        lambda: nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True),
        lambda: torch.randn(2, 3, 4),
    ),
}


def described(model: nn.Module) -> dict[str, Any]:
    """Everything about a model that must not change."""
    return {
        "parameters": {n: (id(p), p.detach().clone()) for n, p in model.named_parameters()},
        "buffers": {n: (id(b), b.clone()) for n, b in model.named_buffers()},
        "modes": {n: m.training for n, m in model.named_modules()},
        "gradients": {
            n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()
        },
        "requires": {n: p.requires_grad for n, p in model.named_parameters()},
        "random": torch.get_rng_state(),
    }


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, tuple):
        return all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def elsewhere(model: nn.Module) -> tuple[nn.Module, dict[str, Tensor]]:
    """A separate copy of `model` with other parameters, and those parameters by name."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(torch.randn_like(p))
    return other, {n: p.detach().clone() for n, p in other.named_parameters()}


@pytest.mark.parametrize("name", MODELS)
def test_value_and_gradient_are_those_of_a_second_model(name: str) -> None:
    torch.manual_seed(0)
    build, draw = MODELS[name]
    model, x = build(), draw()
    other, point = elsewhere(model)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    before = described(model)
    value, gradient = value_and_gradient_at(model, point, lambda: model(x).square().mean())
    expected = other(x).square().mean()
    torch.autograd.backward(expected)
    assert torch.equal(value, expected.detach())
    assert gradient.keys() == dict(other.named_parameters()).keys()
    for parameter_name, p in other.named_parameters():
        torch.testing.assert_close(gradient[parameter_name], p.grad, rtol=1e-6, atol=1e-7)
    assert same(before, described(model))
    assert not value.requires_grad
    assert not any(t.requires_grad for t in [*point.values(), *gradient.values()])


def test_a_buffer_that_is_replaced_comes_back() -> None:
    model = Counting()
    before = model.seen
    value_at(model, {"weight": torch.tensor([5.0])}, lambda: model(torch.ones(1)))
    assert model.seen is before
    assert float(model.seen) == 0.0


def test_parameters_that_are_not_named_keep_their_values() -> None:
    model = nn.Linear(2, 1)
    with torch.no_grad():
        model.weight.fill_(1.0)
        model.bias.fill_(10.0)
    value = value_at(model, {"weight": torch.zeros(1, 2)}, lambda: model(torch.ones(1, 2)).sum())
    assert value.item() == 10.0


def test_a_loss_may_call_submodules_and_the_model_several_times() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    point = {"0.weight": torch.eye(2) * 3.0, "1.weight": torch.ones(1, 2)}
    x = torch.ones(1, 2)
    value = value_at(model, point, lambda: model[0](x).sum() + model(x).sum() + model(x).sum())
    assert value.item() == 18.0


def test_the_value_is_connected_to_the_point() -> None:
    model = nn.Linear(1, 1, bias=False)
    point = {"weight": torch.tensor([[3.0]], requires_grad=True)}
    value = value_at(model, point, lambda: model(torch.ones(1, 1)).pow(3).sum())
    (first,) = torch.autograd.grad(value, point["weight"], create_graph=True)
    (second,) = torch.autograd.grad(first, point["weight"])
    assert (first.item(), second.item()) == (27.0, 18.0)


def test_the_models_own_gradients_are_not_written() -> None:
    model = normed()
    _, point = elsewhere(model)
    value_and_gradient_at(model, point, lambda: model(torch.randn(4, 4)).mean())
    assert all(p.grad is None for p in model.parameters())


def test_the_gradient_is_found_inside_no_grad() -> None:
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        _, gradient = value_and_gradient_at(
            model, {"weight": torch.ones(1, 1)}, lambda: model(torch.ones(1, 1)).sum()
        )
        assert not torch.is_grad_enabled()
    assert float(gradient["weight"]) == 1.0


def test_scale_multiplies_the_gradient_only() -> None:
    model = nn.Linear(1, 1, bias=False)
    value, gradient = value_and_gradient_at(
        model, {"weight": torch.ones(1, 1)}, lambda: model(torch.ones(1, 1)).sum(), scale=8.0
    )
    assert (float(value), float(gradient["weight"])) == (1.0, 8.0)


def test_an_unused_parameter_has_no_entry() -> None:
    model = nn.ModuleDict({"used": nn.Linear(1, 1), "unused": nn.Linear(1, 1)})
    point = {n: p.detach() for n, p in model.named_parameters()}
    _, gradient = value_and_gradient_at(model, point, lambda: model["used"](torch.ones(1, 1)).sum())
    assert set(gradient) == {"used.weight", "used.bias"}


@pytest.mark.parametrize("failing", ["before", "after"])
def test_an_exception_gives_the_model_back(failing: str) -> None:
    model = normed()
    _, point = elsewhere(model)
    before = described(model)

    def loss() -> Tensor:
        if failing == "after":
            model(torch.randn(4, 4, generator=torch.Generator()))
        raise RuntimeError("from the loss")

    with pytest.raises(RuntimeError, match="from the loss"):
        value_and_gradient_at(model, point, loss)
    assert same(before, described(model))


@pytest.mark.parametrize(
    "make_loss",
    [
        lambda model: torch.tensor(1.0),
        lambda model: model(torch.ones(1, 1)).sum().detach(),
        lambda model: nn.Linear(1, 1)(torch.ones(1, 1)).sum(),
    ],
    ids=["constant", "detached", "another model"],
)
def test_a_loss_that_does_not_depend_on_the_point_is_refused(
    make_loss: Callable[[nn.Module], Tensor],
) -> None:
    model = nn.Linear(1, 1)
    point = {n: p.detach() for n, p in model.named_parameters()}
    with pytest.raises(ValueError, match=r"does not depend on the model's trainable parameters"):
        value_and_gradient_at(model, point, lambda: make_loss(model))


def test_a_point_without_parameters_is_refused() -> None:
    model = nn.Linear(1, 1)
    with pytest.raises(ValueError, match=r"does not depend on the model's trainable parameters"):
        value_and_gradient_at(model, {}, lambda: model(torch.ones(1, 1)).sum())


def test_a_sparse_gradient_is_refused_by_name() -> None:
    model = nn.Sequential(nn.Embedding(3, 2, sparse=True), nn.Linear(2, 1))
    point = {n: p.detach() for n, p in model.named_parameters()}
    with pytest.raises(ValueError, match=r"0\.weight is a sparse tensor.*sparse=False"):
        value_and_gradient_at(model, point, lambda: model(torch.tensor([0, 2])).sum())


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_one_element_is_a_loss_of_shape_nothing(shape: tuple[int, ...]) -> None:
    assert checked(torch.full(shape, 2.0)).shape == ()


@pytest.mark.parametrize(
    ("value", "got"),
    [
        (torch.ones(2), r"shape \(2,\)"),
        (torch.ones(0), r"shape \(0,\)"),
        (1.5, "float"),
        (None, "NoneType"),
        ((torch.ones(()), torch.ones(())), "tuple"),
    ],
)
def test_anything_else_is_not_a_loss(value: object, got: str) -> None:
    with pytest.raises(ValueError, match=f"loss_fn returned {got}, expected one scalar tensor"):
        checked(value)


def test_trainable_leaves_out_frozen_and_repeated_parameters() -> None:
    model = Tied()
    assert list(trainable(model)) == ["embedding.weight"]
    assert trainable(model)["embedding.weight"] is model.output.weight
    model.embedding.weight.requires_grad_(False)
    assert trainable(model) == {}


def test_device_of_a_model_without_parameters_is_the_cpu() -> None:
    assert device_of(nn.ReLU()) == CPU
    assert device_of(nn.Linear(1, 1, device="meta")).type == "meta"


def raising() -> Iterator[None]:
    raise RuntimeError("inside")


@pytest.mark.parametrize("failing", [False, True])
def test_preserved_restores_the_random_stream(failing: bool) -> None:
    before = torch.get_rng_state()
    try:
        with preserved(CPU):
            torch.rand(3)
            if failing:
                raising()
    except RuntimeError:
        assert failing
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("failing", [False, True])
def test_replayed_repeats_the_numbers_and_leaves_the_stream(failing: bool) -> None:
    state = random_state(CPU)
    first = torch.rand(3)
    after = torch.get_rng_state()
    again = torch.empty(3)
    try:
        with replayed(state):
            again = torch.rand(3)
            if failing:
                raising()
    except RuntimeError:
        assert failing
    assert torch.equal(first, again)
    assert torch.equal(after, torch.get_rng_state())
    with replayed(state):
        assert torch.equal(first, torch.rand(3))


def test_a_replay_that_draws_less_leaves_the_stream_all_the_same() -> None:
    state = random_state(CPU)
    torch.rand(3)
    after = torch.get_rng_state()
    with replayed(state):
        torch.rand(1)
    assert torch.equal(after, torch.get_rng_state())


def test_a_random_state_is_a_copy() -> None:
    state = random_state(CPU)
    taken = state.cpu.clone()
    torch.rand(1)
    assert torch.equal(state.cpu, taken)
    assert state.accelerator is None


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
        ),
    ],
)
def test_dropout_repeats_under_replay(device: str) -> None:
    model = nn.Sequential(nn.Linear(4, 50), nn.Dropout(0.5)).to(device)
    point = {n: p.detach().clone() for n, p in model.named_parameters()}
    x = torch.randn(3, 4, device=device)
    state = random_state(device_of(model))
    loss = model(x).square().mean()
    torch.autograd.backward(loss)
    with replayed(state):
        value, gradient = value_and_gradient_at(model, point, lambda: model(x).square().mean())
    assert torch.equal(value, loss.detach())
    for name, p in model.named_parameters():
        assert torch.equal(gradient[name], p.grad)  # type: ignore[arg-type]
