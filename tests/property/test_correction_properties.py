"""Properties of the correction over random nets, partitions and coefficients."""

from __future__ import annotations

import copy
import math
from typing import Any, NamedTuple

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from equipoise.correction import Constant, GradientCache, GradientCorrector, loss_regression

TOLERANCE = 1e-10
Grads = dict[str, Tensor]
seeds = st.integers(0, 2**31 - 1)
coefficients = st.floats(-2.0, 2.0)


class Case(NamedTuple):
    """A net, a ragged partition of data, and the net after it was moved from there."""

    model: nn.Module
    batches: list[Tensor]
    moved: nn.Module


@st.composite
def cases(draw: st.DrawFn) -> Case:
    generator = torch.Generator().manual_seed(draw(seeds))
    norm = draw(st.booleans())
    widths = draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    activation = draw(st.sampled_from([nn.Tanh, nn.ReLU, nn.GELU, nn.Softplus]))
    layers: list[nn.Module] = []
    for fan_in, width in zip([3, *widths], widths, strict=False):
        layers.append(nn.Linear(fan_in, width, bias=draw(st.booleans())))
        layers += [nn.BatchNorm1d(width)] if norm else []
        layers.append(activation())
    model = nn.Sequential(*layers, nn.Linear(widths[-1], 1)).double()
    # With batch statistics a batch of one has no gradient at all, and one of two hardly any.
    sizes = draw(st.lists(st.integers(3 if norm else 1, 6), min_size=1, max_size=5))
    batches = [torch.randn(n, 3, generator=generator, dtype=torch.float64) for n in sizes]
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for p in moved.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return Case(model, batches, moved)


def loss(model: nn.Module, x: Tensor) -> Any:
    return (model(x) - x.sum(dim=1, keepdim=True)).square().mean()


def take_gradients(model: nn.Module) -> Grads:
    taken = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return taken


def plain(model: nn.Module, x: Tensor) -> Grads:
    torch.autograd.backward(loss(model, x))
    return take_gradients(model)


def corrected(
    case: Case, constant: float, weights: list[float] | None = None, **options: Any
) -> list[Grads]:
    """Corrected gradients of all batches at the moved parameters, the snapshot being before."""
    model = copy.deepcopy(case.model)
    corrector: GradientCorrector[Tensor]
    corrector = GradientCorrector(model, lambda x: loss(model, x), Constant(constant), **options)
    corrector.refresh(case.batches, weights=weights)
    model.load_state_dict(case.moved.state_dict())
    gradients = []
    for x in case.batches:
        corrector.backward(x)
        gradients.append(take_gradients(model))
    return gradients


def mean(weights: list[float], gradients: list[Grads]) -> Grads:
    total = sum(weights)
    return {
        n: torch.stack([g[n] * (w / total) for w, g in zip(weights, gradients, strict=True)]).sum(0)
        for n in gradients[0]
    }


def close(a: Grads, b: Grads, scale: float) -> bool:
    return a.keys() == b.keys() and all(
        bool(((a[n] - b[n]).abs() <= TOLERANCE * scale).all()) for n in a
    )


def largest(gradients: list[Grads]) -> float:
    return max(1.0, *(float(t.abs().max()) for g in gradients for t in g.values()))


@given(cases(), coefficients)
@settings(max_examples=40, deadline=None)
def test_over_the_partition_the_corrected_gradient_is_the_full_gradient(
    case: Case, constant: float
) -> None:
    sizes = [float(len(x)) for x in case.batches]
    expected = [plain(case.moved, x) for x in case.batches]
    found = corrected(case, constant)
    assert close(mean(sizes, found), mean(sizes, expected), largest(found + expected))


@given(cases(), coefficients, st.data())
@settings(max_examples=20, deadline=None)
def test_with_weights_the_weighted_mean_is(
    case: Case, constant: float, data: st.DataObject
) -> None:
    n = len(case.batches)
    weights = data.draw(st.lists(st.floats(0.1, 10.0), min_size=n, max_size=n))
    expected = [plain(case.moved, x) for x in case.batches]
    found = corrected(case, constant, weights)
    assert close(mean(weights, found), mean(weights, expected), largest(found + expected))


@given(cases(), coefficients)
@settings(max_examples=25, deadline=None)
def test_the_corrected_gradient_is_a_line_in_the_coefficient(case: Case, constant: float) -> None:
    at_0, at_1, at_c = (corrected(case, c) for c in (0.0, 1.0, constant))
    for zero, one, found in zip(at_0, at_1, at_c, strict=True):
        line = {n: zero[n] + constant * (one[n] - zero[n]) for n in zero}
        assert close(found, line, largest([zero, one, found]))


@given(cases(), coefficients)
@settings(max_examples=20, deadline=None)
def test_where_nothing_moved_it_is_a_mixture_with_the_full_gradient(
    case: Case, constant: float
) -> None:
    still = case._replace(moved=case.model)
    raw = [plain(copy.deepcopy(case.model), x) for x in case.batches]
    full = mean([float(len(x)) for x in case.batches], raw)
    for g, found in zip(raw, corrected(still, constant), strict=True):
        mixture = {n: (1 - constant) * g[n] + constant * full[n] for n in g}
        assert close(found, mixture, largest([g, full, found]))


@given(cases(), st.integers(0, 4), st.floats(0.1, 8.0))
@settings(max_examples=20, deadline=None)
def test_the_order_of_the_batches_and_the_unit_of_the_weights_do_not_matter(
    case: Case, shift: int, unit: float
) -> None:
    turn = shift % len(case.batches)
    turned = case._replace(batches=case.batches[turn:] + case.batches[:turn])
    first = corrected(case, 0.7)
    second = corrected(turned, 0.7, [unit * len(x) for x in turned.batches])
    back = second[len(second) - turn :] + second[: len(second) - turn]
    for a, b in zip(first, back, strict=True):
        assert close(a, b, largest([a, b]))


moderate = st.floats(-1e3, 1e3, width=32)


@given(cases(), coefficients, seeds)
@settings(max_examples=40, deadline=None)
def test_with_masks_and_stored_gradients_it_still_is_at_the_active_weights(
    case: Case, constant: float, seed: int
) -> None:
    """Masks that move between snapshot and steps; inactive weights are 0 at both."""
    generator = torch.Generator().manual_seed(seed)
    then, now = (
        {
            n: torch.rand(p.shape, generator=generator) < 0.5
            for n, p in case.model.named_parameters()
            if p.ndim == 2
        }
        for _ in range(2)
    )
    with torch.no_grad():
        for model, masks in ((case.model, then), (case.moved, now)):
            for n, mask in masks.items():
                model.get_parameter(n).mul_(mask)
    current = iter([then, *[now] * len(case.batches)])
    found = corrected(case, constant, masks=lambda: next(current), cache=GradientCache())
    at_once = iter([then, *[now] * len(case.batches)])
    recomputed = corrected(case, constant, masks=lambda: next(at_once))
    sizes = [float(len(x)) for x in case.batches]
    new = [plain(case.moved, x) for x in case.batches]
    assert close(mean(sizes, found), mean(sizes, new), largest(found + new))
    for one, two, three in zip(found, recomputed, new, strict=True):
        assert all(torch.equal(one[name], two[name]) for name in one)
        for name, mask in then.items():
            alone = ~(mask & now[name])
            assert torch.equal(one[name][alone], three[name][alone])


pairs = st.lists(st.tuples(moderate, moderate, st.floats(0.125, 64.0)), min_size=2, max_size=30)
anything = st.floats(width=32, allow_nan=True, allow_infinity=True)
any_size = st.one_of(st.floats(0.0, math.inf, width=32), st.just(math.nan))


@given(pairs, st.floats(-3.0, 3.0), st.floats(-10.0, 10.0))
@settings(max_examples=100, deadline=None)
def test_the_slope_is_equivariant(
    rows: list[tuple[float, float, float]], factor: float, offset: float
) -> None:
    current, previous, sizes = torch.tensor(rows, dtype=torch.float64).T
    found = loss_regression(current, previous, sizes)
    assume(found is not None)
    assert found is not None
    assume(float((previous - previous.mean()).abs().max()) > 1.0)
    changed = loss_regression(factor * current + offset * previous, previous, sizes)
    assert changed is not None
    expected = factor * found.slope + offset
    assert math.isclose(
        changed.slope, expected, rel_tol=1e-6, abs_tol=1e-6 * (1 + abs(found.slope))
    )
    assert abs(found.correlation) <= 1.0 + 1e-9


@given(st.lists(st.tuples(anything, anything, any_size), max_size=6))
@settings(max_examples=150, deadline=None)
def test_there_is_a_finite_estimate_or_none(rows: list[tuple[float, float, float]]) -> None:
    tensors = torch.tensor(rows).reshape(-1, 3).T
    found = loss_regression(*tensors)
    assert found is None or all(map(math.isfinite, found))
