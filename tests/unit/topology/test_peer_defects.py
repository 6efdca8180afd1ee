"""Defects that other libraries of sparse training have had; each stays out of this one."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

from equipoise.topology import Topology, distribution_names, rigl, rigl_itop, set_rewiring


def mlp(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(20, 30), nn.LayerNorm(30), nn.ReLU(), nn.Linear(30, 5))


def step(model: Any, optimizer: Any, seed: Any = 0) -> None:
    optimizer.zero_grad()
    x = torch.rand(6, 20, generator=torch.Generator().manual_seed(seed))
    model(x).square().sum().backward()
    optimizer.step()


def test_grown_weights_really_become_zero() -> None:
    # Elsewhere the zeroed tensor was computed and thrown away; grown weights kept old values.
    model = mlp()
    topology = Topology(model, sparsity=0.8, rewiring=set_rewiring(40, interval=1))
    before = dict(topology.masks)
    with torch.no_grad():
        for weight in topology.parameters.values():
            weight.fill_(0.5)  # inactive weights included
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    topology.attach(optimizer)
    with torch.no_grad():
        for weight in topology.parameters.values():
            weight.fill_(0.5)
    step(model, optimizer)
    for name, mask in topology.masks.items():
        grown = mask & ~before[name]
        assert int(grown.sum()) > 0
        assert not bool(topology.parameters[name][grown].any())
    assert topology.verify() == []


def test_no_moments_are_left_behind_outside_the_mask() -> None:
    # Elsewhere AdamW kept hundreds of stale first and second moments of dropped weights.
    model = mlp()
    topology = Topology(model, sparsity=0.8, rewiring=rigl(40, interval=2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, amsgrad=True)
    topology.attach(optimizer)
    for seed in range(6):
        step(model, optimizer, seed)
    for name, weight in topology.parameters.items():
        for key in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
            assert not bool(optimizer.state[weight][key][~topology.masks[name]].any())


def test_normalisation_is_never_masked_and_attention_always_is() -> None:
    # Elsewhere LayerNorm was pruned and in_proj_weight was forgotten.
    names = set(Topology(nn.TransformerEncoderLayer(8, 2, 16), sparsity=0.5).masks)
    assert names == {
        "self_attn.in_proj_weight",
        "self_attn.out_proj.weight",
        "linear1.weight",
        "linear2.weight",
    }
    assert set(Topology(mlp(), sparsity=0.5).masks) == {"0.weight", "3.weight"}


def test_a_step_with_a_closure_is_no_type_error() -> None:
    # Elsewhere step was replaced by a function that takes no closure.
    model = mlp()
    topology = Topology(model, sparsity=0.5, rewiring=rigl_itop(40, interval=1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    topology.attach(optimizer)

    def closure() -> Any:
        optimizer.zero_grad()
        loss = model(torch.ones(2, 20)).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) is not None
    assert topology.num_rewirings == 1
    assert type(optimizer).step is torch.optim.SGD.step


@pytest.mark.parametrize("name", distribution_names())
def test_every_distribution_name_works_and_others_are_refused_in_words(name: Any) -> None:
    # Elsewhere one was a bare AssertionError, and an unknown one a NameError inside the message.
    assert Topology(mlp(), sparsity=0.9, distribution=name).num_active == 75
    with pytest.raises(ValueError, match=f"unknown distribution '{name}x'"):
        Topology(mlp(), sparsity=0.9, distribution=f"{name}x")


class Foreign(torch.optim.Optimizer):
    """An optimizer that nobody has heard of, with state of several shapes and kinds."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.1})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                state["speed"] = state.get("speed", torch.zeros_like(p)) + p.grad
                state["double"] = state["speed"].double()
                state["seen"] = state["speed"] != 0
                state["rows"] = p.grad.sum(0)
                state["note"] = "text"
                p.sub_(state["speed"], alpha=group["lr"])


@pytest.mark.parametrize("preset", [set_rewiring, rigl])
def test_an_unknown_optimizer_is_no_error(preset: Any) -> None:
    # Elsewhere rewiring raised for every optimizer state that was not known by its class.
    model = mlp()
    topology = Topology(model, sparsity=0.8, rewiring=preset(40, interval=2))
    optimizer = Foreign(model.parameters())
    topology.attach(optimizer)
    for seed in range(4):
        step(model, optimizer, seed)
        assert topology.verify() == []
    state = optimizer.state[topology.parameters["0.weight"]]
    assert state["rows"].shape == (20,)
    assert state["note"] == "text"
    assert bool(state["rows"].any())


def test_cycles_of_making_and_dropping_topologies_do_not_mix_them_up() -> None:
    # Elsewhere a cache was keyed by the address of an object that had died.
    for seed in range(30):
        model = mlp(seed)
        topology = Topology(model, sparsity=0.8, seed=seed, rewiring=rigl(40, interval=2))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        with topology.attach(optimizer):
            step(model, optimizer, seed)
            step(model, optimizer, seed)
        assert topology.verify(optimizer) == []
        del model, topology, optimizer


def test_resuming_keeps_the_masks() -> None:
    # Elsewhere a resumed run drew new masks.
    model = mlp()
    topology = Topology(model, sparsity=0.8, seed=1)
    state, weights = topology.state_dict(), copy.deepcopy(model.state_dict())
    other = mlp(1)
    resumed = Topology(other, sparsity=0.8, seed=2)
    other.load_state_dict(weights)
    resumed.load_state_dict(state)
    assert all(torch.equal(topology.masks[n], resumed.masks[n]) for n in topology.masks)
    assert all(torch.equal(p, weights[n]) for n, p in other.state_dict().items())


def test_sparsity_zero_works_with_every_optimizer() -> None:
    # Elsewhere a dense run crashed for want of a mask, and any optimizer but SGD as well.
    for make in (torch.optim.SGD, torch.optim.Adam):
        model = mlp()
        topology = Topology(model, sparsity=0.0)
        optimizer = make(model.parameters(), lr=0.01)
        topology.attach(optimizer)
        step(model, optimizer)
        assert topology.num_steps == 1


def test_momentum_and_decay_do_not_revive_weights() -> None:
    # Elsewhere momentum moved inactive weights away from zero after the mask was applied.
    model = mlp()
    topology = Topology(model, sparsity=0.8)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1
    )
    step(model, optimizer)  # momentum is dense before the topology is attached
    topology.attach(optimizer)
    assert topology.verify() == [line for line in topology.verify() if "momentum_buffer" in line], (
        "the weights are clean at once"
    )
    for seed in range(5):
        step(model, optimizer, seed)
        assert topology.verify() == []


def test_the_mask_survives_a_gradient_that_is_not_a_number() -> None:
    # 0 * nan = nan: elsewhere a multiplied mask let one bad batch reach inactive weights.
    model = mlp()
    topology = Topology(model, sparsity=0.8, rewiring=rigl_itop(40, interval=1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    topology.attach(optimizer)
    (model(torch.ones(2, 20)).sum() * math.nan).backward()
    optimizer.step()
    assert topology.verify() == []
    assert {n: int(m.sum()) for n, m in topology.masks.items()} == dict(topology.plan)


def test_the_model_evaluated_between_epochs_is_the_trained_one() -> None:
    # Elsewhere masks changed after the last step of an epoch and before its evaluation.
    model = mlp()
    topology = Topology(model, sparsity=0.8, rewiring=rigl(40, interval=3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    topology.attach(optimizer)
    step(model, optimizer)
    before = model(torch.ones(1, 20)).detach()
    topology.apply_(optimizer)
    assert torch.equal(before, model(torch.ones(1, 20)))
