import copy
import io
import math
import warnings
from typing import Any

import pytest
import torch
from torch import nn

from equipoise.topology import (
    LayerSummary,
    Rewiring,
    Topology,
    gradient_magnitude,
    rigl,
    set_rewiring,
    uniform_noise,
)


def net(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(6 * 4 * 4, 12),
        nn.ReLU(),
        nn.Linear(12, 3),
    )


def train(model: Any, optimizer: Any, steps: Any, seed: Any = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        x = torch.rand(8, 1, 6, 6, generator=generator)
        model(x).square().mean().backward()
        optimizer.step()


def sgd(model: Any) -> Any:
    return torch.optim.SGD(
        model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4
    )


def same(a: Any, b: Any) -> Any:
    return all(
        torch.equal(p, q)
        for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("distribution", ["erk", "er", "uniform"])
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.9, 0.95])
def test_the_number_of_active_weights_is_exact(distribution: Any, sparsity: Any) -> None:
    topology = Topology(net(), sparsity=sparsity, distribution=distribution)
    total = 54 + 1152 + 36
    assert topology.num_weights == total
    assert topology.num_active == round((1.0 - sparsity) * total)
    assert sum(topology.plan.values()) == topology.num_active
    assert {n: int(m.sum()) for n, m in topology.masks.items()} == dict(topology.plan)
    assert topology.density == topology.num_active / total
    assert topology.sparsity == 1.0 - topology.density
    assert topology.verify() == []


def test_a_distribution_of_the_user_has_its_own_sum() -> None:
    def first_dense(shapes: Any, density: Any) -> Any:
        return {name: 1.0 if i == 0 else density for i, name in enumerate(shapes)}

    topology = Topology(net(), sparsity=0.75, distribution=first_dense)
    assert topology.plan == {"0.weight": 54, "4.weight": 288, "6.weight": 9}


def test_bernoulli_counts_vary_and_are_then_kept() -> None:
    counts = {
        Topology(net(), sparsity=0.5, sampling="bernoulli", seed=s).num_active for s in range(5)
    }
    assert len(counts) > 1
    assert all(abs(count - 621) < 100 for count in counts)
    model = net()
    plan = rigl(100, interval=2)
    topology = Topology(model, sparsity=0.5, sampling="bernoulli", rewiring=plan)
    before = dict(topology.plan)
    optimizer = sgd(model)
    topology.attach(optimizer)
    train(model, optimizer, 6)
    assert topology.num_rewirings == 3
    assert {n: int(m.sum()) for n, m in topology.masks.items()} == before


def test_the_seed_alone_decides_the_masks_and_the_global_stream_is_untouched() -> None:
    torch.manual_seed(11)
    state = torch.get_rng_state()
    one = Topology(net(0), sparsity=0.8, seed=5)
    torch.set_rng_state(state)
    model = net(0)
    state = torch.get_rng_state()
    two = Topology(model, sparsity=0.8, seed=5)
    assert torch.equal(state, torch.get_rng_state())
    other = Topology(net(0), sparsity=0.8, seed=6)
    assert all(torch.equal(one.masks[n], two.masks[n]) for n in one.masks)
    assert not all(torch.equal(one.masks[n], other.masks[n]) for n in one.masks)


def test_masks_do_not_depend_on_layout_or_dtype() -> None:
    plain = Topology(net(), sparsity=0.8)
    for model in (net().to(memory_format=torch.channels_last), net().double(), net().bfloat16()):
        topology = Topology(model, sparsity=0.8)
        assert all(torch.equal(plain.masks[n], topology.masks[n]) for n in plain.masks)


def test_the_view_of_the_masks_cannot_be_assigned_to() -> None:
    topology = Topology(net(), sparsity=0.8)
    with pytest.raises(TypeError):
        topology.masks["0.weight"] = torch.ones(1)  # type: ignore[index]


def test_the_model_keeps_its_state_dict() -> None:
    model, plain = net(), net()
    Topology(model, sparsity=0.8)
    assert list(model.state_dict()) == list(plain.state_dict())
    assert plain.load_state_dict(model.state_dict())


def test_apply_zeroes_even_nan_and_infinity_and_is_idempotent() -> None:
    model = net()
    optimizer = torch.optim.AdamW(model.parameters())
    train(model, optimizer, 1)
    topology = Topology(model, sparsity=0.8)
    weight = topology.parameters["4.weight"]
    active = weight.detach()[topology.masks["4.weight"]].clone()
    moments = optimizer.state[weight]["exp_avg"]
    with torch.no_grad():
        weight[~topology.masks["4.weight"]] = math.nan
        moments[~topology.masks["4.weight"]] = -math.inf
    topology.apply_(optimizer)
    assert topology.verify(optimizer) == []
    assert torch.equal(weight.detach()[topology.masks["4.weight"]], active)
    before = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    topology.apply_(optimizer)
    assert all(
        torch.equal(a, b)
        for a, b in zip(before[0].values(), model.state_dict().values(), strict=True)
    )
    assert torch.equal(before[1]["state"][4]["exp_avg"], moments)


def test_apply_leaves_nan_at_active_weights_to_be_seen() -> None:
    model = nn.Linear(4, 4)
    topology = Topology(model, sparsity=0.5)
    nn.init.constant_(model.weight, math.nan)
    topology.apply_()
    assert int(model.weight.isnan().sum()) == 8


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_apply_is_the_masked_fill_for_every_dtype_and_layout(
    dtype: Any, memory_format: Any
) -> None:
    model: Any = nn.Conv2d(3, 5, 3)
    model.to(dtype=dtype, memory_format=memory_format)
    before = model.weight.detach().clone()
    topology = Topology(model, sparsity=0.5)
    assert torch.equal(model.weight, before.masked_fill(~topology.masks["weight"], 0))
    assert model.weight.is_contiguous(memory_format=memory_format)


def test_a_model_may_change_layout_and_dtype_after_the_topology_was_made() -> None:
    model = net()
    topology = Topology(model, sparsity=0.8)
    for change in ({"memory_format": torch.channels_last}, {"dtype": torch.float64}):
        model.to(**change)
        with torch.no_grad():
            for parameter in topology.parameters.values():
                parameter.fill_(1.0)
        topology.apply_()
        assert topology.verify() == []
        assert int(model[4].weight.count_nonzero()) == topology.plan["4.weight"]


def test_sparsity_zero_is_bitwise_the_plain_loop() -> None:
    sparse, plain = net(), net()
    plan = rigl(100, interval=2)
    with pytest.warns(UserWarning, match="no effect on a topology in which every weight is active"):
        topology = Topology(sparse, sparsity=0.0, rewiring=plan)
    assert all(bool(mask.all()) for mask in topology.masks.values())
    one, two = sgd(sparse), sgd(plain)
    topology.attach(one)
    train(sparse, one, 6)
    train(plain, two, 6)
    assert same(sparse, plain)
    assert (topology.num_steps, topology.num_rewirings, topology.exploration_rate) == (6, 0, 1.0)


def test_static_masks_stay() -> None:
    model = net()
    topology = Topology(model, sparsity=0.8)
    before = {name: mask.clone() for name, mask in topology.masks.items()}
    optimizer = sgd(model)
    topology.attach(optimizer)
    train(model, optimizer, 5)
    assert all(torch.equal(before[n], topology.masks[n]) for n in before)
    assert topology.exploration_rate == topology.density
    assert topology.num_rewirings == 0


def test_exploration_counts_every_weight_that_was_ever_active() -> None:
    model = net()
    topology = Topology(model, sparsity=0.8, rewiring=set_rewiring(100, interval=1))
    seen = {name: mask.clone() for name, mask in topology.masks.items()}
    optimizer = sgd(model)
    topology.attach(optimizer)
    for step in range(5):
        train(model, optimizer, 1, seed=step)
        for name, mask in topology.masks.items():
            seen[name] |= mask
    assert all(torch.equal(seen[n], topology.ever_active[n]) for n in seen)
    total = sum(int(mask.sum()) for mask in seen.values())
    assert topology.exploration_rate == total / topology.num_weights > topology.density
    assert topology.exploration_rates["4.weight"] == int(seen["4.weight"].sum()) / 1152


def test_masks_handed_out_are_not_changed_later() -> None:
    model = net()
    topology = Topology(model, sparsity=0.8, rewiring=set_rewiring(100, interval=1))
    handed, seen = topology.masks["4.weight"], topology.ever_active["4.weight"]
    copies = handed.clone(), seen.clone()
    optimizer = sgd(model)
    topology.attach(optimizer)
    train(model, optimizer, 2)
    assert torch.equal(handed, copies[0])
    assert torch.equal(seen, copies[1])
    assert not torch.equal(handed, topology.masks["4.weight"])


def test_a_layer_without_a_gradient_is_left_as_it_is() -> None:
    model = nn.ModuleDict({"used": nn.Linear(6, 6), "unused": nn.Linear(6, 6)})
    topology = Topology(model, sparsity=0.5, rewiring=rigl(10, interval=1, replaces_step=False))
    before = dict(topology.masks)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    topology.attach(optimizer)
    model["used"](torch.rand(3, 6)).square().sum().backward()
    optimizer.step()
    assert topology.num_rewirings == 1
    assert torch.equal(before["unused.weight"], topology.masks["unused.weight"])
    assert not torch.equal(before["used.weight"], topology.masks["used.weight"])


def test_a_score_sees_weight_gradient_mask_and_generator() -> None:
    seen = []

    def score(weight: Any, gradient: Any, mask: Any, generator: Any) -> Any:
        seen.append((weight.clone(), gradient.clone(), mask.clone(), type(generator)))
        return weight.abs()

    model = nn.Linear(6, 6)
    plan = Rewiring(total_steps=10, interval=1, drop=score, grow=gradient_magnitude)
    topology = Topology(model, sparsity=0.5, rewiring=plan)
    mask = topology.masks["weight"]
    gradient = torch.rand(6, 6)
    topology.advance_({"weight": gradient})
    weight, got, got_mask, kind = seen[0]
    assert torch.equal(got, gradient)
    assert torch.equal(got_mask, mask)
    assert not weight.requires_grad
    assert kind is torch.Generator


def test_verify_names_every_kind_of_violation() -> None:
    model = net()
    optimizer = sgd(model)
    topology = Topology(model, sparsity=0.8)
    handle = topology.attach(optimizer)
    train(model, optimizer, 1)
    assert topology.verify() == []
    inactive = (~topology.masks["4.weight"]).nonzero()[:2].T.unbind()
    weight = topology.parameters["4.weight"]
    with torch.no_grad():
        weight[inactive] = math.nan
        optimizer.state[weight]["momentum_buffer"][inactive] = 1.0
    assert topology.verify() == [
        "4.weight has 2 inactive weights that are not zero.",
        "4.weight has 2 entries of SGD state 'momentum_buffer' at inactive weights.",
    ]
    handle.remove()
    assert len(topology.verify()) == 1
    assert len(topology.verify(optimizer)) == 2
    topology.apply_(optimizer)
    topology.masks["6.weight"].fill_(True)
    (message,) = topology.verify()
    assert (
        message
        == f"6.weight has 36 active weights where the plan says {topology.plan['6.weight']}."
    )


def test_summary_and_repr_say_what_is_active() -> None:
    topology = Topology(net(), sparsity=0.75, distribution="uniform")
    assert topology.summary()[1] == LayerSummary("4.weight", (12, 96), 0.25, 288)
    assert [row.num_active for row in topology.summary()] == list(topology.plan.values())
    assert repr(topology) == (
        "Topology(310 of 1242 weights active in 3 layers, sparsity 0.7504, static)"
    )


@pytest.mark.parametrize(
    ("sparsity", "message"),
    [
        (90, r"in \[0, 1\); got 90; for 90 % pass 0\.9\."),
        (99.5, r"got 99\.5; for 99\.5 % pass 0\.995\."),
        (1.0, r"got 1\.0\."),
        (-0.1, r"got -0\.1\."),
        (math.nan, r"got nan\."),
        (100, r"got 100\."),
    ],
)
def test_a_sparsity_outside_its_range_is_refused(sparsity: Any, message: Any) -> None:
    with pytest.raises(ValueError, match=message):
        Topology(net(), sparsity=sparsity)


def test_what_cannot_be_masked_is_refused() -> None:
    with pytest.raises(ValueError, match=r"LayerNorm has no trainable weight to mask"):
        Topology(nn.LayerNorm(4), sparsity=0.5)
    with pytest.raises(ValueError, match=r"Linear has no trainable weight to mask"):
        Topology(nn.Linear(4, 4), sparsity=0.5, include=lambda name, p: False)
    with pytest.raises(ValueError, match=r"unknown distribution 'erkk', .* did you mean 'erk'"):
        Topology(net(), sparsity=0.5, distribution="erkk")
    with pytest.raises(ValueError, match=r"sampling is one of .*; got 'random'"):
        Topology(net(), sparsity=0.5, sampling="random")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"1 active weights cannot be spread over 3 layers"):
        Topology(net(), sparsity=0.9991)


def test_include_chooses_the_parameters() -> None:
    topology = Topology(net(), sparsity=0.5, include=lambda name, p: name == "4.weight")
    assert list(topology.masks) == ["4.weight"]
    one_dimension = Topology(net(), sparsity=0.5, include=lambda name, p: name == "4.bias")
    assert one_dimension.plan == {"4.bias": 6}


def resumable(seed: Any, sampling: Any = "exact") -> Any:
    model = net(seed)
    topology = Topology(
        model,
        sparsity=0.8,
        seed=seed,
        sampling=sampling,
        rewiring=set_rewiring(40, interval=3, stop=1.0),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    topology.attach(optimizer)
    return model, topology, optimizer


@pytest.mark.parametrize("sampling", ["exact", "bernoulli"])
@pytest.mark.parametrize("topology_first", [True, False])
def test_a_resumed_run_is_bitwise_the_uninterrupted_one(sampling: Any, topology_first: Any) -> None:
    straight = resumable(0, sampling)
    for step in range(14):
        train(straight[0], straight[2], 1, seed=step)
    first = resumable(0, sampling)
    for step in range(7):
        train(first[0], first[2], 1, seed=step)
    buffer = io.BytesIO()
    torch.save([part.state_dict() for part in first], buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    second = resumable(9, sampling)
    order = [1, 0, 2] if topology_first else [0, 1, 2]
    for i in order:
        second[i].load_state_dict(saved[i])
    for step in range(7, 14):
        train(second[0], second[2], 1, seed=step)
    assert same(straight[0], second[0])
    one, two = straight[1].state_dict(), second[1].state_dict()
    for part in ("masks", "ever_active"):
        assert all(torch.equal(one[part][n], two[part][n]) for n in one[part])
    assert torch.equal(one["generator"], two["generator"])
    assert (two["num_steps"], two["num_rewirings"]) == (14, 4)


def test_loading_copies_and_masks_the_weights() -> None:
    source = Topology(net(), sparsity=0.8, seed=1)
    state = source.state_dict()
    model = net()
    target = Topology(model, sparsity=0.8, seed=2)
    with torch.no_grad():
        for parameter in target.parameters.values():
            parameter.fill_(1.0)
    target.load_state_dict(state)
    assert target.verify() == []
    state["masks"]["4.weight"].fill_(True)
    assert target.verify() == []


def broken(change: Any) -> Any:
    state = Topology(net(), sparsity=0.8).state_dict()
    change(state)
    return state


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update(format=2), r"has format 2 and this version reads format 1"),
        (lambda s: s.pop("generator"), r"lacks generator; pass what state_dict\(\) returned"),
        (lambda s: s["masks"].pop("4.weight"), r"4\.weight is only in the model"),
        (
            lambda s: s["masks"].update(extra=torch.ones(1, dtype=torch.bool)),
            r"first differences: extra is only in the state\.",
        ),
        (
            lambda s: s["masks"].update({"4.weight": torch.ones(2, 2, dtype=torch.bool)}),
            r"4\.weight has shape \(2, 2\), expected \(12, 96\)",
        ),
        (
            lambda s: s["ever_active"].update({"4.weight": torch.ones(12, 96)}),
            r"4\.weight has ever_active of torch\.float32, expected torch\.bool",
        ),
        (
            lambda s: s["masks"]["6.weight"].fill_(True),
            r"6\.weight has 36 active weights, expected \d+\.",
        ),
        (lambda s: (s["masks"].clear(), s["ever_active"].clear()), r"; and more\."),
    ],
)
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(
    change: Any, message: Any
) -> None:
    target = Topology(net(), sparsity=0.8, seed=3)
    before = dict(target.masks)
    with pytest.raises(ValueError, match=message):
        target.load_state_dict(broken(change))
    assert all(target.masks[name] is mask for name, mask in before.items())


def test_a_state_of_another_sparsity_is_refused_unless_counts_are_drawn() -> None:
    state = Topology(net(), sparsity=0.9).state_dict()
    with pytest.raises(ValueError, match="does not fit this model and sparsity"):
        Topology(net(), sparsity=0.8).load_state_dict(state)
    drawn = Topology(net(), sparsity=0.8, sampling="bernoulli")
    drawn.load_state_dict(state)
    assert drawn.num_active == 124


def test_nothing_warns_in_ordinary_use() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = net()
        plan = Rewiring(total_steps=20, interval=2, grow=uniform_noise)
        topology = Topology(model, sparsity=0.8, rewiring=plan)
        optimizer = sgd(model)
        with topology.attach(optimizer):
            train(model, optimizer, 4)
        assert repr(topology).endswith("2 rewirings so far)")


@pytest.mark.parametrize("wrong", ["rigl", rigl])
def test_a_rewiring_of_another_kind_is_answered_with_what_to_write(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"write for example rigl\(total_steps\)"):
        Topology(nn.Linear(8, 8), sparsity=0.5, rewiring=wrong)
