"""The snapshot, the full gradient and the losses that a refresh takes."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from equipoise.correction import Constant, GradientCorrector, LinearDecay, LossCovariance

Grads = dict[str, Tensor]


class Recorder:
    """Passes the observations of a corrector on to the test."""

    idle, needs_losses = False, True

    def __init__(self, value: float = 0.0) -> None:
        self.value = value
        self.calls: list[str] = []
        self.seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def advance(self) -> None:
        self.calls.append("advance")

    def observe(self, current: Tensor, previous: Tensor, sizes: Tensor) -> None:
        self.calls.append("observe")
        self.seen.append((current, previous, sizes))

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass


def build(*, dropout: float = 0.0, norm: bool = False) -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Linear(4, 6)]
    layers += [nn.BatchNorm1d(6)] if norm else []
    layers += [nn.Tanh(), nn.Dropout(dropout), nn.Linear(6, 1)]
    return nn.Sequential(*layers).double()


def draw(*sizes: int, seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, 4, generator=generator, dtype=torch.float64) for n in sizes]


def mean_square(model: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda x: model(x).square().mean()


def move(model: nn.Module, seed: int = 2) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=generator, dtype=p.dtype))


def gradient_of(model: nn.Module, x: Tensor) -> Grads:
    other = copy.deepcopy(model)
    other.zero_grad()
    torch.autograd.backward(mean_square(other)(x))
    return {n: p.grad for n, p in other.named_parameters() if p.grad is not None}


def close(a: Grads, b: Grads) -> bool:
    return a.keys() == b.keys() and all(
        torch.allclose(a[n], b[n], rtol=1e-12, atol=1e-12) for n in a
    )


def weighted_mean(weights: Iterable[float], gradients: list[Grads]) -> Grads:
    ws = list(weights)
    return {
        n: torch.stack([w * g[n] for w, g in zip(ws, gradients, strict=True)]).sum(dim=0) / sum(ws)
        for n in gradients[0]
    }


def constant_one(model: nn.Module) -> GradientCorrector[Any]:
    return GradientCorrector(model, mean_square(model), Constant(1.0))


def test_a_short_last_batch_counts_by_its_size() -> None:
    model, batches = build(), draw(8, 8, 3)
    corrector = constant_one(model)
    corrector.refresh(batches)
    assert close(corrector.full_gradient, gradient_of(model, torch.cat(batches)))
    equal = weighted_mean([1, 1, 1], [gradient_of(model, x) for x in batches])
    assert not close(corrector.full_gradient, equal)


def test_with_batch_norm_it_is_the_mean_of_the_batch_gradients() -> None:
    model, batches = build(norm=True), draw(8, 8, 3)
    corrector = constant_one(model)
    corrector.refresh(batches)
    expected = weighted_mean([8, 8, 3], [gradient_of(model, x) for x in batches])
    assert close(corrector.full_gradient, expected)


def test_any_iterable_will_do_and_is_iterated_once() -> None:
    model, batches = build(), draw(4, 4, 2)
    corrector = constant_one(model)
    corrector.refresh(iter(batches))
    from_iterator = corrector.full_gradient
    loader = DataLoader(TensorDataset(torch.cat(batches)), batch_size=4)
    corrector = GradientCorrector(model, lambda b: model(b[0]).square().mean(), Constant(1.0))
    corrector.refresh(loader)
    assert close(from_iterator, corrector.full_gradient)
    corrector.refresh(itertools.islice(loader, 1))
    assert close(corrector.full_gradient, gradient_of(model, batches[0]))


@pytest.mark.parametrize(
    "as_iterable",
    [list, iter, torch.tensor, lambda w: itertools.chain(w, itertools.repeat(1.0))],
    ids=["list", "iterator", "tensor", "endless"],
)
def test_weights_replace_the_sizes(as_iterable: Callable[[list[float]], Any]) -> None:
    model, batches = build(), draw(8, 8, 3)
    corrector = constant_one(model)
    corrector.refresh(batches, weights=as_iterable([0.5, 2.0, 7.0]))
    expected = weighted_mean([0.5, 2.0, 7.0], [gradient_of(model, x) for x in batches])
    assert close(corrector.full_gradient, expected)


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        ([1.0, 0.0, 1.0], r"weights gives 0\.0 for batch 1, expected a positive"),
        ([1.0, 1.0, -2.0], r"weights gives -2\.0 for batch 2, expected a positive"),
        ([float("nan"), 1.0, 1.0], "weights gives nan for batch 0, expected a positive"),
        ([1.0, float("inf"), 1.0], "weights gives inf for batch 1, expected a positive"),
        ([1.0, 1.0], "weights gives None for batch 2, expected a positive"),
        ([], "weights gives None for batch 0, expected a positive"),
        ([1.0] * 4, "weights has 4 numbers for 3 batches, expected one for every batch"),
    ],
)
def test_weights_that_do_not_fit(weights: list[float], sentence: str) -> None:
    model, batches = build(), draw(4, 4, 2)
    corrector = constant_one(model)
    with pytest.raises(ValueError, match=sentence):
        corrector.refresh(batches, weights=weights)
    assert corrector.num_refreshes == 0
    assert corrector.snapshot == corrector.full_gradient == {}


def test_batch_size_says_what_a_batch_counts() -> None:
    model, batches = build(), draw(8, 8, 3)
    corrector = GradientCorrector(
        model, mean_square(model), Constant(1.0), batch_size=lambda x: float(len(x)) ** 2
    )
    corrector.refresh(batches)
    expected = weighted_mean([64, 64, 9], [gradient_of(model, x) for x in batches])
    assert close(corrector.full_gradient, expected)


def test_the_coefficient_sees_the_sizes_or_the_weights() -> None:
    model, batches = build(), draw(8, 8, 3)
    recorder = Recorder()
    corrector = GradientCorrector(model, mean_square(model), recorder)
    corrector.refresh(batches)
    corrector.refresh(batches)
    corrector.refresh(batches, weights=[1.0, 2.0, 3.0])
    assert [sizes.tolist() for _, _, sizes in recorder.seen] == [[8, 8, 3], [1, 2, 3]]


def test_no_batches_is_an_error_that_says_so() -> None:
    model, batches = build(), draw(4)
    corrector = constant_one(model)
    corrector.refresh(batches)
    full = corrector.full_gradient
    with pytest.raises(ValueError, match=r"refresh\(\) got no batches"):
        corrector.refresh(iter([]))
    assert corrector.full_gradient is full
    assert corrector.num_refreshes == 1


def test_leftover_gradients_do_not_leak_in_and_stay() -> None:
    model, batches = build(), draw(8, 3)
    clean = constant_one(model)
    clean.refresh(batches)
    leftovers = {n: torch.randn_like(p) for n, p in model.named_parameters()}
    for n, p in model.named_parameters():
        p.grad = leftovers[n].clone()
    grads = [p.grad for p in model.parameters()]
    corrector = constant_one(model)
    corrector.refresh(batches)
    assert close(corrector.full_gradient, clean.full_gradient)
    for (n, p), grad in zip(model.named_parameters(), grads, strict=True):
        assert p.grad is grad
        assert torch.equal(p.grad, leftovers[n])  # type: ignore[arg-type]


def test_without_gradients_there_are_none_afterwards() -> None:
    model, batches = build(), draw(8, 3)
    constant_one(model).refresh(batches)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    "coefficient", [Constant(1.0), LinearDecay(0.5, 4), LossCovariance(), Recorder()], ids=str
)
def test_a_refresh_leaves_the_model_and_the_random_stream(coefficient: Any) -> None:
    model = build(dropout=0.5, norm=True)
    data = TensorDataset(torch.cat(draw(11)))
    loader = DataLoader(data, batch_size=4, shuffle=True)
    model[2].eval()  # type: ignore[index]  # modes are mixed

    def loss_fn(batch: Any) -> Any:
        return model(batch[0]).square().mean()

    corrector = GradientCorrector(model, loss_fn, coefficient)
    state = copy.deepcopy(model.state_dict())
    modes = {n: m.training for n, m in model.named_modules()}
    identities = [id(t) for t in [*model.parameters(), *model.buffers()]]
    stream = torch.get_rng_state()
    for _ in range(3):
        corrector.refresh(loader)
    assert torch.equal(torch.get_rng_state(), stream)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert {n: m.training for n, m in model.named_modules()} == modes
    assert [id(t) for t in [*model.parameters(), *model.buffers()]] == identities
    assert int(state["1.num_batches_tracked"]) == 0


def test_a_refresh_may_be_made_without_gradients() -> None:
    model, batches = build(), draw(8, 3)
    corrector = constant_one(model)
    with torch.no_grad():
        corrector.refresh(batches)
    assert close(corrector.full_gradient, gradient_of(model, torch.cat(batches)))


def test_the_losses_are_those_at_the_current_parameters_and_the_previous_snapshot() -> None:
    """Not those of the snapshot that is being taken, for which every estimate would be 1."""
    model, batches = build(norm=True), draw(8, 8, 3)
    recorder = Recorder()
    corrector = GradientCorrector(model, mean_square(model), recorder)
    points = []
    for i in range(3):
        corrector.refresh(batches)
        points.append(copy.deepcopy(model))
        move(model, seed=i)
    assert recorder.calls == ["advance", "advance", "observe", "advance", "observe"]
    for i, (current, previous, _) in enumerate(recorder.seen):
        expected = [
            torch.stack([mean_square(points[k])(x).detach() for x in batches]) for k in (i, i + 1)
        ]
        assert torch.allclose(previous, expected[0], rtol=1e-12)
        assert torch.allclose(current, expected[1], rtol=1e-12)
        assert not current.requires_grad
        assert not previous.requires_grad


def test_the_estimate_of_agent_is_not_identically_one() -> None:
    model, batches = build(), draw(*[6] * 12)
    coefficient = LossCovariance()
    corrector = GradientCorrector(model, mean_square(model), coefficient)
    corrector.refresh(batches)
    old = [float(mean_square(model)(x).detach()) for x in batches]
    move(model)
    corrector.refresh(batches)
    new = [float(mean_square(model)(x).detach()) for x in batches]
    covariance = np.cov(new, old)
    expected = covariance[0, 1] / covariance[1, 1]
    assert abs(expected - 1.0) > 0.05
    assert coefficient.estimate == pytest.approx(expected, rel=1e-9)
    assert corrector.coefficient_value == pytest.approx(0.1 * 0.3 * expected, rel=1e-9)


def test_where_nothing_moved_the_estimate_is_one_even_with_dropout() -> None:
    """Both losses of a batch are evaluated with the same random numbers."""
    model, batches = build(dropout=0.5), draw(*[6] * 12)
    coefficient = LossCovariance()
    corrector = GradientCorrector(model, mean_square(model), coefficient)
    corrector.refresh(batches)
    corrector.refresh(batches)
    assert coefficient.estimate == pytest.approx(1.0, abs=1e-12)


def test_different_batches_get_different_random_numbers() -> None:
    model = build(dropout=0.5)
    (x,) = draw(6)
    recorder = Recorder()
    corrector = GradientCorrector(model, mean_square(model), recorder)
    corrector.refresh([x])
    corrector.refresh([x, x, x])
    current, previous, _ = recorder.seen[0]
    assert torch.equal(current, previous)
    assert len(set(current.tolist())) == 3


def test_a_refresh_draws_the_order_of_the_training_pass_that_follows() -> None:
    """It gives the random stream back, so a shuffling loader shuffles the same way again."""
    model = build()
    loader = DataLoader(TensorDataset(torch.cat(draw(12))), batch_size=4, shuffle=True)
    orders: list[list[Tensor]] = [[], []]

    def loss_fn(batch: Any) -> Any:
        orders[0].append(batch[0])
        return model(batch[0]).mean()

    GradientCorrector(model, loss_fn, Constant(1.0)).refresh(loader)
    orders[1] = [batch[0] for batch in loader]
    assert len(orders[0]) == len(orders[1]) == 3
    assert all(torch.equal(a, b) for a, b in zip(*orders, strict=True))


def test_the_first_refresh_of_agent_only_takes_the_snapshot() -> None:
    model = build()

    def untouchable() -> Iterable[Tensor]:
        raise AssertionError("the batches were iterated")
        yield

    corrector = GradientCorrector(model, mean_square(model))
    corrector.refresh(untouchable())
    assert close(corrector.snapshot, {n: p.detach() for n, p in model.named_parameters()})
    assert corrector.full_gradient == {}
    assert corrector.coefficient_value == 0.0
    with pytest.raises(AssertionError, match="were iterated"):
        corrector.refresh(untouchable())


def test_a_coefficient_that_starts_above_zero_is_used_from_the_first_refresh() -> None:
    model, batches = build(), draw(8, 3)
    coefficient = LossCovariance()
    coefficient.smoothed = 1.0
    corrector = GradientCorrector(model, mean_square(model), coefficient)
    corrector.refresh(batches)
    assert coefficient.estimate is None
    assert corrector.coefficient_value == pytest.approx(0.1)
    assert close(corrector.full_gradient, gradient_of(model, torch.cat(batches)))


def test_constant_losses_leave_the_coefficient_and_warn() -> None:
    model, batches = build(), draw(8, 3)

    def loss_fn(x: Tensor) -> Any:
        return 0.0 * model(x).mean()

    corrector = GradientCorrector(model, loss_fn)
    corrector.refresh(batches)
    with pytest.warns(RuntimeWarning, match=r"cannot be estimated and stays 0;"):
        corrector.refresh(batches)
    assert corrector.coefficient_value == 0.0
    assert corrector.num_refreshes == 2


def test_agent_is_the_default() -> None:
    model = build()
    assert GradientCorrector(model, mean_square(model)).coefficient == LossCovariance(
        0.1, 0.3, None
    )
