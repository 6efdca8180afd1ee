"""BSR-Net's connectivity: signs for life, crossings, growth to one budget, what is kept aside."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from equipoise.models import create
from equipoise.topology import ConnectivitySampling, sparse_parameters
from equipoise.topology.bsr_start import (
    budget,
    draw_inactive,
    first_densities,
    half_normal,
    noise_scale,
    share_out,
)
from equipoise.training.optimizers import SGDW

STARTS = [
    # model, classes, density: active weights at first, budget (both as published)
    ("vgg16", 10, 0.01, 144_124, 153_028),
    ("vgg16", 10, 0.1, 820_945, 1_530_284),
    ("wrn_28_4", 10, 0.01, 56_467, 58_418),
    ("wrn_28_4", 10, 0.1, 307_139, 584_184),
    ("resnet18", 10, 0.01, 88_640, 111_643),
    ("resnet18", 10, 0.1, 584_090, 1_116_435),
    ("vgg16", 100, 0.01, 157_948, 153_258),
    ("wrn_28_4", 100, 0.01, 70_291, 58_648),
    ("resnet18", 100, 0.01, 116_288, 112_104),
]


@pytest.mark.parametrize(("model", "classes", "density", "first", "target"), STARTS)
def test_numbers_of_the_published_starts(
    model: str, classes: int, density: float, first: int, target: int
) -> None:
    with torch.device("meta"):
        network = create(model, num_classes=classes)
    shapes = {name: tuple(p.shape) for name, p in sparse_parameters(network).items()}
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    shares = first_densities(shapes, round(1 - (1 - density), 12))
    assert sum(int(shares[name] * sizes[name]) for name in sizes) == first
    assert budget(sum(sizes.values()), 1.0 - (1.0 - density)) == target


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 4)
    )


def sampled(model: nn.Module, **changes: Any) -> ConnectivitySampling:
    settings: dict[str, Any] = {
        "sparsity": 0.5,
        "total_steps": 40,
        "steps_per_epoch": 10,
        "noise": "none",
    }
    return ConnectivitySampling(model, **(settings | changes))


def data(seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(64, 12, generator=generator)
    return x, (x[:, :4]).argmax(1)


def optimizer_of(model: nn.Module, kind: Any = SGDW, **settings: Any) -> Any:
    return kind(
        model.parameters(), **({"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3} | settings)
    )


def step(model: nn.Module, optimizer: Any, batch: tuple[Tensor, Tensor] | None = None) -> None:
    x, y = data() if batch is None else batch
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()


def test_signs_never_change_and_the_budget_is_refilled() -> None:
    model = network()
    topology = sampled(model, noise="agent")
    optimizer = optimizer_of(model)
    topology.attach(optimizer)
    signs = {name: sign.clone() for name, sign in topology.signs.items()}
    assert topology.num_active < topology.budget
    moved = 0
    before = {name: mask.clone() for name, mask in topology.masks.items()}
    for _ in range(40):
        step(model, optimizer)
        assert topology.num_active >= topology.budget
        assert topology.verify() == []
        moved += sum(int((before[n] != m).sum()) for n, m in topology.masks.items())
        before = {name: mask.clone() for name, mask in topology.masks.items()}
    assert moved > 100
    assert topology.num_rewirings == topology.num_steps == 40
    for name, sign in topology.signs.items():
        assert torch.equal(sign, signs[name])
        weight = topology.parameters[name].detach()
        assert bool((weight * sign >= 0).all())
    assert topology.exploration_rate > topology.density


class ByTheta:
    """The published update written out: theta and sign, a gate, SGDW, growth where told."""

    def __init__(self, model: nn.Sequential, topology: ConnectivitySampling) -> None:
        self.sign = {n: s.float() for n, s in topology.signs.items()}
        self.theta = {
            n: (p.detach() * self.sign[n]).clone() for n, p in topology.parameters.items()
        }
        self.bias = {n: p.detach().clone() for n, p in model.named_parameters() if "bias" in n}
        every = [*self.theta, *self.bias]
        self.velocity = {n: torch.zeros(()) for n in every}
        self.model = copy.deepcopy(model)

    def step(self, rate: float, decay: float, grown: dict[str, Tensor] | None = None) -> None:
        leaves = {n: t.clone().requires_grad_() for n, t in (self.theta | self.bias).items()}
        point = {
            n: self.sign[n] * leaf.clamp_min(0) if n in self.sign else leaf
            for n, leaf in leaves.items()
        }
        x, y = data()
        loss = F.cross_entropy(torch.func.functional_call(self.model, point, (x,)), y)
        gradients = torch.autograd.grad(loss, list(leaves.values()))
        for (name, leaf), gradient in zip(leaves.items(), gradients, strict=True):
            gate = (leaf > 0).float() if name in self.sign else 1.0
            self.velocity[name] = 0.9 * self.velocity[name] - rate * gradient * gate
            moved = (leaf * (1 - decay) + self.velocity[name]).detach()
            (self.theta if name in self.theta else self.bias)[name] = moved

    def grow(self, masks: dict[str, Tensor]) -> int:
        """Connects what is active there and not here; the number of those."""
        count = 0
        for name, mask in masks.items():
            fresh = mask & (self.theta[name] <= 0)
            assert not bool((~mask & (self.theta[name] > 0)).any()), "crossed there, but not here"
            self.theta[name] = torch.where(fresh, 1e-12, self.theta[name])
            count += int(fresh.sum())
        return count


def test_it_follows_theta_and_sign_step_by_step() -> None:
    """Inactive weights included: they decay, and drift with the velocity that they have left."""
    model = network()
    topology = sampled(model)
    reference = ByTheta(model, topology)
    optimizer = optimizer_of(model)
    topology.attach(optimizer)
    grown = 0
    for number in range(12):
        step(model, optimizer)
        reference.step(0.1, 1e-3)
        grown += reference.grow(dict(topology.masks))
        for name, theta in reference.theta.items():
            sign, weight = reference.sign[name], topology.parameters[name].detach()
            assert torch.allclose(weight, sign * theta.clamp_min(0), atol=2e-6), (number, name)
            hidden = topology.hidden[name]
            assert torch.allclose(hidden, sign * theta.clamp_max(0), atol=2e-6), (number, name)
    assert grown > 50


def test_over_budget_nothing_is_pruned_and_nothing_grows() -> None:
    model = network()
    topology = sampled(
        model, sparsity=0.8, first=lambda shapes, density: dict.fromkeys(shapes, 0.5)
    )
    optimizer = optimizer_of(model, lr=1e-6, weight_decay=0.0)
    topology.attach(optimizer)
    first = topology.num_active
    assert first > topology.budget
    before = {name: mask.clone() for name, mask in topology.masks.items()}
    step(model, optimizer)
    assert first >= topology.num_active > topology.budget
    assert all(bool((mask <= before[name]).all()) for name, mask in topology.masks.items())


def corrected(correction: str) -> tuple[dict[str, Tensor], dict[str, Tensor], Any]:
    """Two steps, the second with a large correction everywhere; hidden before and after it."""
    model = network()
    topology = sampled(model, correction=correction)
    optimizer = optimizer_of(model, weight_decay=0.0, momentum=0.0)
    topology.attach(optimizer)
    topology.mark_snapshot_()
    was_active = {name: mask.clone() for name, mask in topology.masks.items()}
    for _ in range(3):
        step(model, optimizer)
    masks = {name: mask.clone() for name, mask in topology.masks.items()}
    before = {name: hidden.clone() for name, hidden in topology.hidden.items()}
    x, y = data()
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    for name, parameter in topology.parameters.items():
        assert parameter.grad is not None
        parameter.grad += 1e-3 * topology.signs[name]  # moves theta down by the rate times this
    optimizer.step()
    after = dict(topology.hidden)
    moved = {}
    for name, mask in masks.items():
        still = ~mask & ~topology.masks[name]
        moved[name] = ((after[name] - before[name]).abs() > 1e-6) & still
    return moved, {n: was_active[n] & ~masks[n] for n in masks}, topology


def test_corrections_leave_inactive_weights_alone() -> None:
    moved, _, _ = corrected("active")
    assert not any(bool(each.any()) for each in moved.values())


def test_corrections_move_inactive_weights_where_the_published_code_does() -> None:
    moved, left_since_the_snapshot, topology = corrected("all")
    assert sum(int(each.sum()) for each in moved.values()) > 0
    for name, each in moved.items():
        # Weights that were inactive at the snapshot have no correction there either.
        assert bool((each <= left_since_the_snapshot[name]).all())
    assert topology.verify() == []


def test_a_correction_can_connect_again_in_the_published_way() -> None:
    model = network()
    topology = sampled(
        model,
        correction="all",
        sparsity=0.5,
        first=lambda shapes, density: dict.fromkeys(shapes, 0.5),
    )
    optimizer = optimizer_of(model, momentum=0.0, weight_decay=0.0, lr=0.5)
    topology.attach(optimizer)
    topology.mark_snapshot_()
    for _ in range(3):
        step(model, optimizer)
    inactive = {name: ~mask for name, mask in topology.masks.items()}
    optimizer.zero_grad()
    F.cross_entropy(model(data()[0]), data()[1]).backward()
    for name, parameter in topology.parameters.items():
        assert parameter.grad is not None
        parameter.grad -= 10.0 * topology.signs[name]
    optimizer.step()
    large = [(topology.parameters[n].detach().abs() > 1.0) & inactive[n] for n in topology.masks]
    assert sum(int(each.sum()) for each in large) > 0


def test_gradients_at_inactive_weights_do_not_reach_the_optimizer() -> None:
    model = network()
    topology = sampled(model)
    optimizer = optimizer_of(model)
    topology.attach(optimizer)
    before = {name: mask.clone() for name, mask in topology.masks.items()}
    step(model, optimizer)
    for name, parameter in topology.parameters.items():
        velocity = optimizer.state[parameter]["velocity"]
        assert int(velocity[~before[name]].count_nonzero()) == 0
        assert int(velocity[before[name]].count_nonzero()) > 0


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_any_optimizer_will_do(kind: Any) -> None:
    model = network()
    topology = sampled(model, noise="original")
    optimizer = kind(model.parameters(), lr=1e-2 if kind is torch.optim.AdamW else 0.3)
    with topology.attach(optimizer):
        first = F.cross_entropy(model(data()[0]), data()[1]).item()
        for _ in range(60):
            step(model, optimizer)
        assert F.cross_entropy(model(data()[0]), data()[1]).item() < first / 2
    assert topology.verify() == []
    assert topology.num_steps == 60


def test_going_on_from_a_saved_state_is_exact() -> None:
    ends = []
    for stops in (False, True):
        model = network()
        topology, optimizer = sampled(model, noise="agent", correction="all"), optimizer_of(model)
        bond = topology.attach(optimizer)
        for _ in range(5):
            step(model, optimizer)
        topology.mark_snapshot_()
        if stops:
            saved = copy.deepcopy(
                (model.state_dict(), topology.state_dict(), optimizer.state_dict())
            )
            bond.remove()
            model = network(seed=9)
            topology = sampled(model, noise="agent", correction="all", seed=77)
            optimizer = optimizer_of(model)
            topology.attach(optimizer)
            model.load_state_dict(saved[0])
            topology.load_state_dict(saved[1])
            optimizer.load_state_dict(saved[2])
        for _ in range(5):
            step(model, optimizer)
        ends.append((model.state_dict(), topology.state_dict()))
    (one, left), (two, right) = ends
    assert all(torch.equal(one[name], two[name]) for name in one)
    for part in ("masks", "signs", "hidden", "ever_active", "snapshot"):
        assert all(torch.equal(left[part][n], right[part][n]) for n in left[part]), part
    assert left["num_steps"] == right["num_steps"]
    assert torch.equal(left["generator"], right["generator"])


def test_a_step_that_a_scaler_skips_changes_nothing() -> None:
    model = network()
    topology, optimizer = sampled(model), optimizer_of(model)
    topology.attach(optimizer)
    step(model, optimizer)
    before = copy.deepcopy((model.state_dict(), topology.state_dict()))
    optimizer.found_inf = torch.ones(())
    weights = [p.detach().clone() for p in model.parameters()]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        group["weight_decay"] = 0.0
        group["momentum"] = 0.0
    step(model, optimizer)
    assert all(torch.equal(a, b.detach()) for a, b in zip(weights, model.parameters(), strict=True))
    now = topology.state_dict()
    assert now["num_steps"] == before[1]["num_steps"]
    assert all(torch.equal(now["hidden"][n], before[1]["hidden"][n]) for n in now["hidden"])


def test_first_weights_have_the_published_spread() -> None:
    sizes = half_normal((400, 200), torch.Generator().manual_seed(0))
    deviation = math.sqrt(2 / 200)
    assert float(sizes.square().mean().sqrt()) == pytest.approx(deviation, rel=0.01)
    assert float(sizes.max()) <= 2 * deviation / 0.8796 * 1.001
    assert float(sizes.min()) > 0.0


def test_noise_schedules() -> None:
    at = {"steps_per_epoch": 390, "total_steps": 78_000}
    assert noise_scale("none", 0.1, step=1, **at) == 0.0
    assert noise_scale("agent", 0.04, step=1, **at) == pytest.approx(1.43e-8, rel=1e-2)
    late = noise_scale("agent", 0.04, step=39_001, **at)
    assert late == pytest.approx(10 * noise_scale("agent", 0.04, step=39_000, **at))


def test_growth_is_spread_by_size_and_goes_where_there_is_room() -> None:
    rng = torch.Generator().manual_seed(0)
    counts = share_out(10_000, [300, 100], [10**6, 10**6], rng)
    assert sum(counts) == 10_000
    assert counts[0] == pytest.approx(7500, abs=200)
    assert share_out(50, [1000, 10], [3, 100], rng) == [3, 47]
    assert share_out(50, [10, 10], [3, 4], rng) == [3, 4]
    assert share_out(0, [10, 10], [3, 4], rng) == [0, 0]


@pytest.mark.parametrize(("size", "active", "count"), [(40, 4, 6), (40, 30, 6), (6, 2, 4)])
def test_every_inactive_position_is_equally_likely(size: int, active: int, count: int) -> None:
    known = torch.randperm(size, generator=torch.Generator().manual_seed(1))[:active].sort().values
    generator = torch.Generator().manual_seed(0)
    seen, rounds = torch.zeros(size), 1500
    for _ in range(rounds):
        drawn = draw_inactive(known, size, count, generator)
        assert drawn.numel() == count
        assert bool((drawn.diff() > 0).all())
        seen[drawn] += 1
    assert float(seen[known].sum()) == 0.0
    share = count / (size - active)
    free = torch.ones(size, dtype=torch.bool)
    free[known] = False
    deviation = math.sqrt(max(share * (1 - share), 1e-9) / rounds)
    assert float((seen[free] / rounds - share).abs().max()) <= 5 * deviation + 1e-9


def test_a_full_network_takes_no_more() -> None:
    model = network()
    topology = sampled(model, sparsity=0.001)
    optimizer = optimizer_of(model)
    topology.attach(optimizer)
    for _ in range(3):
        step(model, optimizer)
        assert topology.num_active >= topology.budget


def test_verify_sees_what_is_wrong() -> None:
    model = network()
    topology = sampled(model)
    name = next(iter(topology.masks))
    with torch.no_grad():
        topology.parameters[name].neg_()
    assert "active weights without their sign" in topology.verify()[0]
    with torch.no_grad():
        topology.parameters[name].neg_().add_(1.0)
    assert any("inactive weights that are not zero" in found for found in topology.verify())
    topology.apply_()
    assert not any("inactive" in found for found in topology.verify())


def test_mistakes_get_a_sentence() -> None:
    with pytest.raises(ValueError, match="takes a sparsity above 0"):
        sampled(network(), sparsity=0.0)
    with pytest.raises(ValueError, match="no trainable weight to mask"):
        sampled(nn.BatchNorm1d(3))
    model = network()
    topology, optimizer = sampled(model), optimizer_of(model)
    topology.attach(optimizer)
    with pytest.raises(ValueError, match="attached already"):
        topology.attach(optimizer)
    with pytest.raises(ValueError, match="expected 'connectivity sampling'"):
        topology.load_state_dict({"format": 1})
    other = sampled(nn.Linear(12, 24)).state_dict()
    with pytest.raises(ValueError, match="does not fit this model"):
        topology.load_state_dict(other)
    with pytest.raises(ValueError, match="before it is attached"):
        topology.rebind_({})
