"""Properties of masks, distributions and topologies over many small cases."""

import copy
import io
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from equipoise.topology import (
    Rewiring,
    Topology,
    active_counts,
    drop_and_grow,
    er,
    erk,
    gradient_magnitude,
    rigl,
    set_rewiring,
    top_k_mask,
    uniform,
    uniform_noise,
)

few = settings(deadline=None, max_examples=25)
many = settings(deadline=None, max_examples=80)

scores = st.lists(
    st.one_of(
        st.integers(-3, 3).map(float), st.just(math.nan), st.just(math.inf), st.just(-math.inf)
    ),
    min_size=1,
    max_size=30,
).map(torch.tensor)

shapes = st.dictionaries(
    st.sampled_from("abcdefg"),
    st.lists(st.integers(1, 12), min_size=1, max_size=4).map(tuple),
    min_size=1,
    max_size=6,
)

OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.01),
}


@st.composite
def cases(draw: Any) -> Any:
    """A small net, its topology's settings, and an optimizer's name."""
    return {
        "seed": draw(st.integers(0, 10_000)),
        "width": draw(st.integers(3, 12)),
        "sparsity": draw(st.floats(0.2, 0.9)),
        "distribution": draw(st.sampled_from(["erk", "er", "uniform"])),
        "kind": draw(st.sampled_from(["static", "set", "rigl"])),
        "interval": draw(st.integers(1, 4)),
        "prune_fraction": draw(st.floats(0.05, 1.0)),
        "optimizer": draw(st.sampled_from(sorted(OPTIMIZERS))),
    }


def build(case: Any) -> Any:
    torch.manual_seed(case["seed"])
    model = nn.Sequential(
        nn.Conv2d(1, case["width"], 3),
        nn.BatchNorm2d(case["width"]),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(case["width"] * 9, case["width"]),
        nn.Tanh(),
        nn.Linear(case["width"], 2),
    )
    preset = {"static": None, "set": set_rewiring, "rigl": rigl}[case["kind"]]
    plan = preset and preset(40, interval=case["interval"], prune_fraction=case["prune_fraction"])
    topology = Topology(
        model,
        sparsity=case["sparsity"],
        distribution=case["distribution"],
        rewiring=plan,
        seed=case["seed"],
    )
    optimizer = OPTIMIZERS[case["optimizer"]](model.parameters())
    topology.attach(optimizer)
    return model, topology, optimizer


def step(model: Any, optimizer: Any, seed: Any, change: Any = None) -> None:
    optimizer.zero_grad()
    x = torch.rand(4, 1, 5, 5, generator=torch.Generator().manual_seed(seed))
    model(x).square().mean().backward()
    if change is not None:
        change(model)
    optimizer.step()


def states(topology: Any, optimizer: Any) -> Any:
    return {
        (name, key): value.clone()
        for name, weight in topology.parameters.items()
        for key, value in optimizer.state[weight].items()
        if isinstance(value, torch.Tensor) and value.shape == weight.shape
    }


@many
@given(scores, st.data())
def test_top_k_is_exact_and_breaks_ties_by_the_lower_index(values: Any, data: Any) -> None:
    k = data.draw(st.integers(0, values.numel()))
    mask = top_k_mask(values, k)
    assert int(mask.sum()) == k
    clean = [-math.inf if math.isnan(v) else v for v in values.tolist()]
    order = sorted(range(len(clean)), key=lambda i: (-clean[i], i))
    assert sorted(order[:k]) == mask.nonzero().squeeze(1).tolist()


@many
@given(scores, scores, st.integers(0, 40), st.integers(0, 10_000))
def test_drop_and_grow_conserves_and_obeys_its_scores(
    drop: Any, grow: Any, asked: Any, seed: Any
) -> None:
    size = min(drop.numel(), grow.numel())
    drop, grow = drop[:size], grow[:size]
    mask = torch.rand(size, generator=torch.Generator().manual_seed(seed)) < 0.5
    new, grown = drop_and_grow(mask, drop, grow, asked)
    replaced = min(asked, int(mask.sum()), size - int(mask.sum()))
    kept = new & ~grown
    assert int(new.sum()) == int(mask.sum())
    assert int(grown.sum()) == replaced
    assert not bool((kept & ~mask).any()), "only active entries survive"
    assert not bool((grown & ~new).any())
    drop, grow = (s.nan_to_num(-math.inf, math.inf, -math.inf) for s in (drop, grow))
    dropped = mask & ~kept
    if bool(dropped.any()) and bool(kept.any()):
        assert bool(drop[dropped].max() <= drop[kept].min())
    passed_over = ~new
    if bool(grown.any()) and bool(passed_over.any()):
        assert bool(grow[grown].min() >= grow[passed_over].max())


@many
@given(shapes, st.floats(0.001, 1.0), st.sampled_from([uniform, er, erk]))
def test_distributions_hit_the_target_and_counts_are_exact(
    layers: Any, density: Any, distribution: Any
) -> None:
    sizes = {name: math.prod(shape) for name, shape in layers.items()}
    total = sum(sizes.values())
    densities = distribution(layers, density)
    assert all(0.0 <= value <= 1.0 + 1e-12 for value in densities.values())
    assert sum(densities[n] * sizes[n] for n in sizes) == pytest.approx(density * total, rel=1e-9)
    wanted = round(density * total)
    if wanted < len(sizes):
        with pytest.raises(ValueError, match="cannot be spread"):
            active_counts(layers, densities, wanted)
        return
    counts = active_counts(layers, densities, wanted)
    assert sum(counts.values()) == wanted
    assert all(1 <= counts[name] <= sizes[name] for name in sizes)
    if all(densities[n] * sizes[n] >= 1 for n in sizes):
        assert all(abs(counts[n] - densities[n] * sizes[n]) < 1 + 1e-6 for n in sizes)


@few
@given(cases())
def test_counts_and_zeros_hold_after_every_step(case: Any) -> None:
    model, topology, optimizer = build(case)
    total = topology.num_weights
    assert topology.num_active == round((1.0 - case["sparsity"]) * total)
    bound, last = topology.density, topology.exploration_rate
    for number in range(1, 7):
        step(model, optimizer, number)
        assert {n: int(m.sum()) for n, m in topology.masks.items()} == dict(topology.plan)
        assert topology.verify() == []
        if topology.rewiring is not None and topology.rewiring.due(number):
            bound += topology.density * topology.rewiring.fraction_at(number)
        assert last <= topology.exploration_rate <= bound + 1e-12
        last = topology.exploration_rate
    assert topology.num_steps == 6
    expected = 0 if case["kind"] == "static" else 6 // case["interval"]
    assert topology.num_rewirings == expected


@few
@given(cases().filter(lambda case: case["kind"] != "static"))
def test_a_rewiring_moves_dropped_and_grown_weights_only(case: Any) -> None:
    case = case | {"interval": 3}
    model, topology, optimizer = build(case)
    shadow_case = case | {"kind": "static"}
    shadow, fixed, shadow_optimizer = build(shadow_case)
    for number in range(1, 3):
        step(model, optimizer, number)
        step(shadow, shadow_optimizer, number)
    masks = dict(topology.masks)
    step(model, optimizer, 3)
    if not topology.rewiring.replaces_step:
        step(shadow, shadow_optimizer, 3)
    assert topology.num_rewirings == 1
    mine, theirs = states(topology, optimizer), states(fixed, shadow_optimizer)
    for name, weight in topology.parameters.items():
        old, new = masks[name], topology.masks[name]
        reference = fixed.parameters[name]
        fresh = ~(old & new)
        assert not bool(weight.detach()[fresh].any()), "dropped, grown and inactive are zero"
        changed = weight.detach() != reference.detach()
        touched = changed & old & new
        # What differs among weights active before and after was dropped and regrown at once.
        assert not bool(weight.detach()[touched].any())
        for (layer, key), value in mine.items():
            if layer == name:
                assert not bool(value[fresh | touched].any())
                survivors = old & new & (weight.detach() != 0)
                assert torch.equal(value[survivors], theirs[layer, key][survivors])


@few
@given(cases(), st.floats(-2.0, 2.0))
def test_growth_sees_the_raw_gradient(case: Any, factor: Any) -> None:
    seen: list[torch.Tensor] = []

    def grow(weight: Any, gradient: Any, mask: Any, generator: Any) -> Any:
        seen.append(gradient.clone())
        return gradient.abs()

    model, _, optimizer = build(case | {"kind": "static"})
    # No layer is dense and every one replaces all it has, so growth is asked in each.
    plan = Rewiring(
        total_steps=10, interval=1, grow=grow, prune_fraction=1.0, stop=1.0, schedule="constant"
    )
    topology = Topology(model, sparsity=case["sparsity"], distribution="uniform", rewiring=plan)
    topology.attach(optimizer)
    raw: list[torch.Tensor] = []

    def change(model: Any) -> None:
        raw.extend(model.get_parameter(n).grad.clone() for n in topology.masks)
        for p in model.parameters():
            p.grad.mul_(factor).add_(1.0)

    for number in range(2):
        step(model, optimizer, number, change)
    assert len(seen) == len(raw) > 0
    assert all(torch.equal(a, b) for a, b in zip(seen, raw, strict=True))


@few
@given(cases(), st.integers(0, 5))
def test_saving_and_loading_goes_on_bit_by_bit(case: Any, at: Any) -> None:
    straight = build(case)
    for number in range(at):
        step(straight[0], straight[2], number)
    buffer = io.BytesIO()
    torch.save([part.state_dict() for part in straight], buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    resumed = build(case)
    for part, state in zip(resumed, saved, strict=True):
        part.load_state_dict(state)
    again = resumed[1].state_dict()
    assert all(torch.equal(again["masks"][n], m) for n, m in saved[1]["masks"].items())
    assert all(torch.equal(again["ever_active"][n], m) for n, m in saved[1]["ever_active"].items())
    assert torch.equal(again["generator"], saved[1]["generator"])
    assert [again[k] for k in ("format", "num_steps", "num_rewirings")] == [
        saved[1][k] for k in ("format", "num_steps", "num_rewirings")
    ]
    for number in range(at, at + 4):
        step(straight[0], straight[2], number)
        step(resumed[0], resumed[2], number)
    for one, two in zip(
        straight[0].state_dict().values(), resumed[0].state_dict().values(), strict=True
    ):
        assert torch.equal(one, two)
    assert all(torch.equal(straight[1].masks[n], m) for n, m in resumed[1].masks.items())


@few
@given(cases())
def test_applying_twice_is_applying_once(case: Any) -> None:
    model, topology, optimizer = build(case)
    step(model, optimizer, 0)
    for weight in topology.parameters.values():
        nn.init.normal_(weight)
    topology.apply_(optimizer)
    once = copy.deepcopy(model.state_dict()), states(topology, optimizer)
    topology.apply_(optimizer)
    assert all(
        torch.equal(a, b)
        for a, b in zip(once[0].values(), model.state_dict().values(), strict=True)
    )
    assert all(torch.equal(v, states(topology, optimizer)[k]) for k, v in once[1].items())


@few
@given(cases(), st.sampled_from([uniform_noise, gradient_magnitude]))
def test_equal_seeds_give_equal_runs(case: Any, grow: Any) -> None:
    runs = []
    for _ in range(2):
        torch.rand(3)  # the global stream must not matter
        model, topology, optimizer = build(case)
        for number in range(4):
            step(model, optimizer, number)
        runs.append(topology)
    assert all(torch.equal(runs[0].masks[n], runs[1].masks[n]) for n in runs[0].masks)
    assert runs[0].exploration_rate == runs[1].exploration_rate
