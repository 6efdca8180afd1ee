"""Momentum-based variance reduction: the same batch, twice, at two points."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from equipoise.correction import (
    AgentRecursion,
    Constant,
    FixedRecursion,
    GradientCorrector,
    LossCovariance,
    MomentumCorrector,
    StormRecursion,
    loss_regression,
)
from equipoise.measure import unmeasured
from equipoise.topology import Topology, set_rewiring

Named = dict[str, Tensor]


def build(dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).to(dtype)


def draw(steps: int = 6, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(5, 3, generator=generator, dtype=dtype) for _ in range(steps)]


def loss_of(model: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda x: (model(x) - x.sum(dim=1, keepdim=True)).square().mean()


def gradient(model: nn.Module, x: Tensor) -> Named:
    """By automatic differentiation of a copy, without anything of the corrector."""
    model = copy.deepcopy(model)
    model.zero_grad()
    loss_of(model)(x).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def train(
    corrector: Any, model: nn.Module, batches: list[Tensor], *, scale: float = 1.0, lr: float = 0.1
) -> list[Named]:
    """The corrected gradient of every step, unscaled."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    found = []
    for x in batches:
        optimizer.zero_grad()
        corrector.backward(x, scale=scale)
        for p in model.parameters():
            assert p.grad is not None
            p.grad.div_(scale)
        found.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
        optimizer.step()
    return found


def reference(share: float, *, reuse: bool = False, lr: float = 0.1) -> list[Named]:
    """The recursion written down again; `reuse` is the mistake of several ports."""
    model = build()
    previous: nn.Module | None = None
    direction: Named = {}
    last: Named = {}
    found = []
    for x in draw():
        new = gradient(model, x)
        if previous is None:
            direction = new
        else:
            old = last if reuse else gradient(previous, x)
            direction = {n: new[n] + (1 - share) * (direction[n] - old[n]) for n in new}
        previous, last = copy.deepcopy(model), new
        with torch.no_grad():
            for n, p in model.named_parameters():
                p.sub_(direction[n], alpha=lr)
        found.append(direction)
    return found


def distance(a: list[Named], b: list[Named]) -> float:
    pairs = [(one[n], two[n]) for one, two in zip(a, b, strict=True) for n in one]
    return max(float((p - q).abs().max()) for p, q in pairs)


@pytest.mark.parametrize("share", [0.1, 0.7, 1.0])
def test_the_same_batch_is_evaluated_at_both_points(share: float) -> None:
    model = build()
    found = train(MomentumCorrector(model, loss_of(model), FixedRecursion(share)), model, draw())
    assert distance(found, reference(share)) < 1e-13
    if share < 1.0:
        assert distance(found, reference(share, reuse=True)) > 1e-2


def test_storm_is_that_of_its_paper() -> None:
    k, c, w = 0.3, 5.0, 0.2
    model = build()
    storm = MomentumCorrector(model, loss_of(model), StormRecursion(k, c, w))
    optimizer = torch.optim.SGD(model.parameters(), lr=k)
    other = build()
    before: nn.Module | None = None
    direction: Named = {}
    total, share = w, 1.0
    for x in draw():
        optimizer.zero_grad()
        storm.backward(x)
        optimizer.step()
        new = gradient(other, x)
        total += sum(float(g.square().sum()) for g in new.values())
        rate = k / total ** (1 / 3)
        if before is not None:
            old = gradient(before, x)
            direction = {n: new[n] + (1 - share) * (direction[n] - old[n]) for n in new}
        else:
            direction = new
        before = copy.deepcopy(other)
        with torch.no_grad():
            for n, p in other.named_parameters():
                p.sub_(direction[n], alpha=rate)
        share = min(1.0, c * rate**2)
        for p, q in zip(model.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-11, atol=1e-13)
    assert 0.0 < share < 1.0


def test_it_reduces_the_variance_of_a_slow_walk() -> None:
    """Near a point that hardly moves, the direction is an average of many batches."""
    model = build()
    corrector = MomentumCorrector(model, loss_of(model), FixedRecursion(0.05))
    found = train(corrector, model, draw(80), lr=1e-4)[40:]
    plain = build()
    noisy = [gradient(plain, x) for x in draw(80)[40:]]

    def variance(rows: list[Named]) -> float:
        flat = torch.stack([torch.cat([t.flatten() for t in row.values()]) for row in rows])
        return float(flat.var(dim=0).sum())

    assert variance(found) < 0.3 * variance(noisy)


@pytest.mark.parametrize("recursion", [FixedRecursion(0.2), StormRecursion(0.1, 20.0, 0.1)])
def test_micro_batches_make_the_step_of_their_union(recursion: Any) -> None:
    """For a storm up to its norm, which is the mean of those of the micro-batches."""
    whole, parts = build(), build()
    one = MomentumCorrector(whole, loss_of(whole), copy.deepcopy(recursion))
    two = MomentumCorrector(parts, loss_of(parts), copy.deepcopy(recursion))
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (whole, parts)]
    for x in draw():
        for optimizer in optimizers:
            optimizer.zero_grad()
        one.backward(x)
        for piece in (x, x):  # twice the same, so that the norms agree too
            two.backward(piece, scale=0.5)
        for p, q in zip(whole.parameters(), parts.parameters(), strict=True):
            torch.testing.assert_close(q.grad, p.grad, rtol=1e-10, atol=1e-13)
        for optimizer in optimizers:
            optimizer.step()


def test_a_skipped_step_is_done_again() -> None:
    """As after an overflow: gradients are cleared, parameters have not moved."""
    model, again = build(), build()
    one = MomentumCorrector(model, loss_of(model))
    two = MomentumCorrector(again, loss_of(again))
    expected = train(one, model, draw()[:3])
    optimizer = torch.optim.SGD(again.parameters(), lr=0.1)
    for number, x in enumerate(draw()[:3]):
        if number == 2:
            optimizer.zero_grad()
            two.backward(x * torch.inf)
        optimizer.zero_grad()
        two.backward(x)
        found = {n: p.grad for n, p in again.named_parameters()}
        for n, g in expected[number].items():
            assert found[n] is not None
            torch.testing.assert_close(found[n], g, rtol=0, atol=0)
        optimizer.step()


def test_the_scale_is_the_same_at_every_power_of_two() -> None:
    one, two = build(torch.float32), build(torch.float32)
    batches = draw(dtype=torch.float32)
    plain = train(MomentumCorrector(one, loss_of(one)), one, batches)
    scaled = train(MomentumCorrector(two, loss_of(two)), two, batches, scale=1024.0)
    assert distance(plain, scaled) == 0.0


class Part(nn.Module):
    """One masked weight."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([1.0, 2.0, 0.0, 0.0], dtype=torch.float64))


def test_after_a_rewiring_direction_and_old_point_are_masked_and_grown_weights_start_at_0() -> None:
    model = Part()
    masks = {"w": torch.tensor([True, True, False, False])}
    seen: list[Tensor] = []

    def loss_fn(x: Tensor) -> Tensor:
        seen.append(model.w.detach().clone())
        return (model.w * x).square().sum() / 2

    corrector = MomentumCorrector(model, loss_fn, FixedRecursion(0.5), masks=lambda: masks)
    x = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    corrector.backward(x)
    first = model.w.grad
    assert first is not None
    first = first.clone()
    with torch.no_grad():  # the second weight goes, the third comes
        model.w.copy_(torch.tensor([0.5, 0.0, 0.0, 0.0]))
    masks = {"w": torch.tensor([True, False, True, False])}
    model.zero_grad()
    corrector.backward(x)
    torch.testing.assert_close(seen[-1], torch.tensor([1.0, 0, 0, 0], dtype=torch.float64))
    direction = torch.stack([first[0], *torch.zeros(3, dtype=torch.float64)])
    old, new = x.square() * seen[-1], x.square() * model.w.detach()
    torch.testing.assert_close(model.w.grad, new + 0.5 * (direction - old))


def test_buffers_and_random_numbers_are_those_of_one_pass() -> None:
    def make() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))

    model, plain = make(), make()
    corrector = MomentumCorrector(model, loss_of(model))
    for x in draw(3, torch.float32):
        plain.load_state_dict(model.state_dict())
        torch.manual_seed(3)
        loss_of(plain)(x)
        stream = torch.get_rng_state()
        torch.manual_seed(3)
        model.zero_grad()
        corrector.backward(x)
        assert torch.equal(torch.get_rng_state(), stream)
        for name, buffer in model.named_buffers():
            assert torch.equal(buffer, plain.get_buffer(name))
        with torch.no_grad():
            for p in model.parameters():
                assert p.grad is not None
                p.sub_(p.grad, alpha=0.1)


def test_dropout_is_the_same_at_both_points() -> None:
    """At a point that moves by next to nothing the direction then stays what it was."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 1)).double()
    corrector = MomentumCorrector(model, loss_of(model), FixedRecursion(1e-9))
    found = train(corrector, model, draw(4), lr=1e-12)
    for each in found[1:]:
        for n, g in each.items():
            torch.testing.assert_close(g, found[0][n], rtol=1e-6, atol=1e-6)


def test_an_old_gradient_that_is_not_finite_leaves_the_step_plain() -> None:
    model = build()
    poisoned = False

    def loss_fn(x: Tensor) -> Tensor:
        first = next(model.parameters())
        moved = bool((first.detach() != at).any())
        factor = torch.inf if poisoned and moved else 1.0
        return loss_of(model)(x) * factor

    at = next(model.parameters()).detach().clone()
    corrector = MomentumCorrector(model, loss_fn)
    x, y = draw(2)
    train(corrector, model, [x])
    at = next(model.parameters()).detach().clone()
    poisoned = True
    model.zero_grad()
    with pytest.warns(RuntimeWarning, match="parameters before is not finite"):
        corrector.backward(y)
    for n, g in gradient(model, y).items():
        torch.testing.assert_close(dict(model.named_parameters())[n].grad, g)


def test_the_estimate_of_agent_comes_from_pairs_of_one_step() -> None:
    model = build()
    coefficient = LossCovariance(scaling=0.5, smoothing=1.0)
    corrector = MomentumCorrector(model, loss_of(model), AgentRecursion(coefficient))
    points = []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    corrector.refresh([])
    for x in draw():
        points.append(copy.deepcopy(model))
        optimizer.zero_grad()
        corrector.backward(x)
        optimizer.step()
    assert corrector.coefficient_value == 0.0
    corrector.refresh([])
    with torch.no_grad():
        now = torch.stack([loss_of(m)(x) for m, x in zip(points[1:], draw()[1:], strict=True)])
        old = torch.stack([loss_of(m)(x) for m, x in zip(points[:-1], draw()[1:], strict=True)])
    expected = loss_regression(now, old, torch.ones(5))
    assert expected is not None
    assert coefficient.estimate == pytest.approx(expected.slope, rel=1e-12)
    assert corrector.coefficient_value == pytest.approx(0.5 * expected.slope)
    assert corrector.coefficient is coefficient


def test_of_the_snapshot_correction_the_share_of_the_newest_gradient_remains() -> None:
    """Every gradient of the recursion corrected, written down again."""
    share, constant = 0.3, 0.8
    model, other = build(), build()
    snapshots = GradientCorrector(model, loss_of(model), Constant(constant))
    corrector = MomentumCorrector(model, loss_of(model), FixedRecursion(share), snapshots=snapshots)
    corrector.refresh(draw())
    snapshot = copy.deepcopy(other)
    parts = [gradient(snapshot, x) for x in draw()]
    full = {n: sum(p[n] for p in parts) / len(parts) for n in parts[0]}

    def corrected(at: nn.Module, x: Tensor) -> Named:
        new, old = gradient(at, x), gradient(snapshot, x)
        return {n: new[n] - constant * (old[n] - full[n]) for n in new}

    found = train(corrector, model, draw())
    before, direction = other, corrected(other, draw()[0])
    for number, x in enumerate(draw()):
        if number:
            new, old = corrected(other, x), corrected(before, x)
            direction = {n: new[n] + (1 - share) * (direction[n] - old[n]) for n in new}
        for n, g in direction.items():
            torch.testing.assert_close(found[number][n], g, rtol=1e-10, atol=1e-12)
        before = copy.deepcopy(other)
        with torch.no_grad():
            for n, p in other.named_parameters():
                p.sub_(direction[n], alpha=0.1)


def test_the_passes_are_those_that_are_made() -> None:
    told: list[tuple[str, int, int]] = []

    def measure(part: str, /, **cost: Any) -> Any:
        told.append((part, cost.get("forwards", 0), cost.get("backwards", 0)))
        return unmeasured(part)

    model = build()
    train(MomentumCorrector(model, loss_of(model), measure=measure), model, draw()[:2])
    assert told == [("new_gradient", 1, 1), ("new_gradient", 1, 1), ("old_gradient", 1, 1)]
    told.clear()
    rule = AgentRecursion(LossCovariance())
    train(MomentumCorrector(model, loss_of(model), rule, measure=measure), model, draw()[:2])
    assert told == [("new_gradient", 1, 1), ("new_gradient", 1, 1), ("old_gradient", 1, 0)]


@pytest.mark.parametrize("bad", [0.0, -0.1, 1.1, float("nan")])
def test_a_share_is_in_its_range(bad: float) -> None:
    with pytest.raises(ValueError, match=r"share is that of the newest gradient, in \(0, 1\]"):
        FixedRecursion(bad)


@pytest.mark.parametrize("name", ["step_size", "strength", "offset"])
@pytest.mark.parametrize("bad", [0.0, -1.0, float("inf"), float("nan")])
def test_the_constants_of_a_storm_are_above_0(name: str, bad: float) -> None:
    with pytest.raises(ValueError, match=f"{name} is above 0 and finite"):
        StormRecursion(**{name: bad})


def test_the_state_of_another_corrector_or_model_is_refused() -> None:
    model = build()
    corrector = MomentumCorrector(model, loss_of(model))
    with pytest.raises(ValueError, match="of another corrector"):
        corrector.load_state_dict(GradientCorrector(model, loss_of(model)).state_dict())
    train(corrector, model, draw()[:1])
    other = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1)).double()
    with pytest.raises(ValueError, match=r"do not fit this model at 0\.bias, 0\.weight"):
        MomentumCorrector(other, loss_of(other)).load_state_dict(corrector.state_dict())
    storm = MomentumCorrector(model, loss_of(model), StormRecursion())
    with pytest.raises(ValueError, match="the state has no 'sum' for StormRecursion"):
        storm.load_state_dict(corrector.state_dict())


@pytest.mark.parametrize("rewired", [False, True])
def test_layers_that_keep_active_weights_only_follow_masked_ones(rewired: bool) -> None:
    layers: Any = import_module("tests.unit.topology.compact_layers")
    ends = []
    for compact in (False, True):
        torch.manual_seed(0)
        model: nn.Module = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)).double()
        rule = set_rewiring(20, interval=2) if rewired else None
        topology = Topology(model, sparsity=0.5, rewiring=rule, seed=1)
        if compact:
            model = layers.compact_copy(model, topology)
            topology.rebind_(layers.compact_stores(model), model=model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        topology.attach(optimizer)
        corrector = MomentumCorrector(
            model, loss_of(model), FixedRecursion(0.2), masks=partial(getattr, topology, "masks")
        )
        for x in draw(12):
            optimizer.zero_grad()
            corrector.backward(x)
            optimizer.step()
        ends.append(layers.dense_weights(topology))
        assert topology.num_rewirings == (6 if rewired else 0)
    for name, weight in ends[0].items():
        torch.testing.assert_close(ends[1][name], weight, rtol=1e-10, atol=1e-12)
