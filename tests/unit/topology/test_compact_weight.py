"""A weight of which only the active entries exist, and the topology that works on it."""

from __future__ import annotations

import copy
from importlib import import_module
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from equipoise.topology import (
    Rewiring,
    Topology,
    gradient_magnitude,
    rigl,
    set_rewiring,
    uniform_noise,
    weight_magnitude,
)
from equipoise.topology.compact_weight import CompactWeight
from equipoise.topology.masked_weight import MaskedWeight

layers: Any = import_module("tests.unit.topology.compact_layers")

OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "adam-fused": lambda p: torch.optim.Adam(p, lr=0.01, fused=True),
    "rprop": lambda p: torch.optim.Rprop(p),
    "none yet": None,
}
SHAPE = (3, 5)


def mask_of(*active: int) -> Tensor:
    mask = torch.zeros(15, dtype=torch.bool)
    mask[list(active)] = True
    return mask.view(SHAPE)


def layer_of(mask: Tensor) -> Any:
    torch.manual_seed(0)
    return layers.Compact(torch.randn(SHAPE), mask)


def trained(mask: Tensor, name: str) -> tuple[Any, list[Any]]:
    """A layer with a gradient and, after two steps, with optimizer state."""
    layer = layer_of(mask)
    if OPTIMIZERS[name] is None:
        return layer, [torch.optim.Adam(layer.parameters())]
    optimizer = OPTIMIZERS[name]([layer.values])
    for _ in range(2):
        optimizer.zero_grad()
        layer(torch.randn(4, 5)).square().sum().backward()
        optimizer.step()
    return layer, [optimizer]


def followers(store: Any, optimizers: Any) -> dict[str, Tensor]:
    """Everything of the length of the values, in the logical shape."""
    found = {"values": store.dense()}
    if store.weight.grad is not None:
        found["grad"] = store.spread(store.weight.grad).clone()
    for optimizer in optimizers:
        for key, value in optimizer.state.get(store.weight, {}).items():
            if value.shape == store.weight.shape and value.ndim:
                found[key] = store.spread(value).clone()
    return found


masks = st.lists(st.booleans(), min_size=15, max_size=15).map(lambda m: torch.tensor(m).view(SHAPE))


@settings(deadline=None, max_examples=60)
@given(before=masks, after=masks, again=masks, name=st.sampled_from(list(OPTIMIZERS)))
def test_a_rewiring_moves_everything_that_follows_the_weight(
    before: Tensor, after: Tensor, again: Tensor, name: str
) -> None:
    if not bool(before.any()):
        before = mask_of(4)
    layer, optimizers = trained(before, name)
    store = CompactWeight(layer)
    parameter, old = store.weight, followers(store, optimizers)
    grown = after & (again | ~before)  # an active entry may be dropped and grown at once
    store.replace_(after, grown, optimizers)
    assert store.weight is parameter
    assert store.weight.shape == (int(after.sum()),)
    assert torch.equal(store.mask, after)
    assert torch.equal(layer.index, after.flatten().nonzero().squeeze(1))
    assert store.num_active == int(after.sum())
    assert torch.equal(store.ever_active, before | after)
    new = followers(store, optimizers)
    if after.any() and int(after.sum()) != 1:  # otherwise a counter has the shape of the weight too
        assert new.keys() == old.keys()
    for key, tensor in new.items():
        assert torch.equal(tensor, old[key].masked_fill(grown | ~after, 0)), key
    assert list(store.violations(optimizers)) == []


def test_as_many_weights_stay_in_the_same_memory() -> None:
    layer, (optimizer,) = trained(mask_of(1, 4, 9), "adam")
    state = optimizer.state[layer.values]
    tensors = [layer.values, layer.values.grad, state["exp_avg"], state["exp_avg_sq"]]
    places = [tensor.data_ptr() for tensor in tensors]
    CompactWeight(layer).replace_(mask_of(1, 5, 9), mask_of(5), [optimizer])
    now = [layer.values, layer.values.grad, state["exp_avg"], state["exp_avg_sq"]]
    assert all(a is b for a, b in zip(tensors, now, strict=True))
    assert places == [tensor.data_ptr() for tensor in now]


def test_numbers_that_are_not_finite_do_not_spread() -> None:
    layer = layer_of(mask_of(1, 4, 9))
    with torch.no_grad():
        layer.values.copy_(torch.tensor([1.0, float("nan"), float("inf")]))
    store = CompactWeight(layer)
    store.replace_(mask_of(1, 2, 9), mask_of(2, 9), [])
    assert layer.values.tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("after", [(1, 2, 4, 9, 11), (4,)])
def test_training_goes_on_after_growing_or_shrinking_while_an_old_loss_lives(
    after: tuple[int, ...], dtype: torch.dtype
) -> None:
    layer = layer_of(mask_of(1, 4, 9)).to(dtype)
    optimizer = torch.optim.Adam(layer.parameters())
    fired = []
    layer.values.register_hook(lambda g: fired.append(g.shape[0]))

    def loss() -> Any:
        return layer(torch.ones(2, 5, dtype=dtype)).square().sum()

    kept = loss()
    kept.backward()
    optimizer.step()
    CompactWeight(layer).replace_(mask_of(*after), mask_of(), [optimizer])
    kept_too = loss()
    kept_too.backward()
    optimizer.step()
    assert layer.values.grad.shape == layer.values.shape == (len(after),)
    assert layer.values.dtype == dtype
    assert fired == [3, len(after)]


def test_the_mask_follows_the_index() -> None:
    layer = layer_of(mask_of(1, 4, 9))
    store = CompactWeight(layer)
    mask = store.mask
    assert torch.equal(mask, mask_of(1, 4, 9))
    assert store.mask is mask
    layer.set_index_(torch.tensor([0, 4, 9]))
    assert torch.equal(store.mask, mask_of(0, 4, 9))
    assert torch.equal(mask, mask_of(1, 4, 9))
    assert (store.num_weights, store.shape, store.is_dense) == (15, SHAPE, False)
    assert CompactWeight(layer_of(mask_of(*range(15)))).is_dense


def test_taking_the_same_mask_moves_nothing() -> None:
    layer, _ = trained(mask_of(1, 4, 9), "adam")
    store = CompactWeight(layer)
    index, version = layer.index, layer.values._version
    store.take_(mask_of(1, 4, 9), mask_of(1, 2, 4, 9))
    assert layer.index is index
    assert layer.values._version == version
    assert torch.equal(store.ever_active, mask_of(1, 2, 4, 9))


@pytest.mark.parametrize("other", [(4, 7, 9), (4, 7, 9, 10), (4,)])
def test_taking_another_mask_keeps_what_stays_and_leaves_optimizers_alone(
    other: tuple[int, ...],
) -> None:
    layer, (optimizer,) = trained(mask_of(1, 4, 9), "sgd")
    store = CompactWeight(layer)
    old, momentum = store.dense(), optimizer.state[layer.values]["momentum_buffer"]
    kept = momentum.clone()
    store.take_(mask_of(*other), mask_of(*range(12)))
    assert torch.equal(store.dense(), old.masked_fill(~(mask_of(1, 4, 9) & mask_of(*other)), 0))
    assert store.num_active == len(other)
    assert torch.equal(store.mask, mask_of(*other))
    assert layer.values.grad.shape == layer.values.shape
    assert optimizer.state[layer.values]["momentum_buffer"] is momentum
    assert torch.equal(momentum, kept)


@pytest.mark.parametrize(
    ("index", "values", "expected"),
    [
        ([1, 4], 3, ["has 3 values for 2 positions", "has 2 active weights where the plan says 3"]),
        ([1, 4, 4], 3, ["has positions that are not ascending and unique"]),
        ([4, 1, 9], 3, ["has positions that are not ascending and unique"]),
        ([1, 4, 15], 3, ["has 1 positions outside of its 15 weights"]),
        ([-1, 4, 9], 3, ["has 1 positions outside of its 15 weights"]),
        ([1, 4, 9], 3, []),
    ],
)
def test_violations_are_found(index: list[int], values: int, expected: list[str]) -> None:
    layer = layer_of(mask_of(1, 4, 9))
    store = CompactWeight(layer)
    layer.set_index_(torch.tensor(index))
    layer.values.data = torch.ones(values)
    assert list(store.violations([])) == expected


def test_entries_are_spread_over_zeros_or_over_what_is_given() -> None:
    store = CompactWeight(layer_of(mask_of(1, 14)))
    onto = torch.full(SHAPE, 7.0, dtype=torch.float64)
    entries = torch.tensor([2.0, 3.0])
    expected = torch.zeros(15)
    expected[1], expected[14] = 2.0, 3.0
    assert torch.equal(store.spread(entries), expected.view(SHAPE))
    filled = store.spread(entries, onto)
    assert torch.equal(filled, torch.where(store.mask, expected.view(SHAPE), 7.0).double())
    assert bool((onto == 7.0).all())


# The topology.


class Twice(nn.Module):
    """Uses one layer two times in a pass."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Any:
        return self.layer(torch.tanh(self.layer(x)))


class Recorder:
    """A growth score that writes down what it is given."""

    def __init__(self) -> None:
        self.weights: list[Tensor] = []
        self.gradients: list[Tensor] = []

    def __call__(self, weight: Any, gradient: Any, mask: Any, generator: Any) -> Any:
        self.weights.append(weight.clone())
        self.gradients.append(gradient.clone())
        return gradient.abs()


def square(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return Twice(nn.Linear(6, 6))


def pair(rewiring: Any, build: Any = square) -> list[tuple[nn.Module, Topology, Any]]:
    """Model, attached topology and optimizer, masked and compact."""
    found = []
    for compact in (False, True):
        model = build()
        topology = Topology(model, sparsity=0.6, rewiring=copy.copy(rewiring()))
        if compact:
            model = layers.compact_copy(model, topology)
            topology.rebind_(layers.compact_stores(model), model=model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        topology.attach(optimizer)
        found.append((model, topology, optimizer))
    return found


def step(model: nn.Module, optimizer: Any, seed: int) -> None:
    x = torch.randn(7, 6, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    F.mse_loss(model(x), x).backward()
    optimizer.step()


def test_a_layer_that_is_used_twice_gives_the_gradient_of_both_uses() -> None:
    runs = pair(lambda: rigl(12, interval=2))
    for model, _, optimizer in runs:
        for number in range(12):
            step(model, optimizer, number)
    (_, masked, _), (_, compact, _) = runs
    assert layers.same(dict(masked.masks), dict(compact.masks))
    assert layers.same(layers.dense_weights(masked), layers.dense_weights(compact))
    assert compact.num_rewirings == 4


def test_scores_see_the_logical_weight_and_the_dense_gradient() -> None:
    score = Recorder()
    runs = pair(lambda: Rewiring(total_steps=10, interval=1, grow=score, replaces_step=True))
    for model, _, optimizer in runs:
        step(model, optimizer, 0)
    assert torch.equal(score.weights[0], score.weights[1])
    assert torch.equal(score.gradients[0], score.gradients[1])
    assert bool((score.gradients[1][score.weights[1] == 0] != 0).all())


def test_corrected_scores_see_the_raw_gradient_at_inactive_weights() -> None:
    raw, corrected = Recorder(), Recorder()
    for score, signal in ((raw, "raw"), (corrected, "corrected")):
        plan = {"total_steps": 10, "interval": 1, "grow": score, "signal": signal}
        model, topology, optimizer = pair(lambda plan=plan: Rewiring(**plan))[1]
        mask = topology.masks["layer.weight"]
        layer = layers.layers_of(model)["layer.weight"]
        F.mse_loss(model(torch.ones(3, 6)), torch.zeros(3, 6)).backward()
        layer.values.grad.mul_(-5.0)
        active = layer.values.grad.clone()
        optimizer.step()
    assert torch.equal(corrected.gradients[0][mask], active)
    assert torch.equal(corrected.gradients[0][~mask], raw.gradients[0][~mask])
    assert not torch.equal(raw.gradients[0][mask], active)


def test_dense_gradients_are_computed_for_a_rewiring_only() -> None:
    model, topology, optimizer = pair(lambda: rigl(100, interval=5, stop=20))[1]
    layer = layers.layers_of(model)["layer.weight"]
    counts = []
    for number in range(30):
        step(model, optimizer, number)
        counts.append(layer.num_dense_gradients)
        layer.num_dense_gradients = 0
    assert counts == [2 if number in (4, 9, 14, 19) else 0 for number in range(30)]
    assert layer.num_offers == 60
    assert topology.num_rewirings == 4


@pytest.mark.parametrize("signal", ["raw", "corrected"])
def test_random_growth_never_asks_for_a_dense_gradient(signal: Any) -> None:
    model, topology, optimizer = pair(lambda: set_rewiring(30, interval=5, signal=signal))[1]
    for number in range(30):
        step(model, optimizer, number)
    assert layers.layers_of(model)["layer.weight"].num_offers == 0
    assert topology.num_rewirings == 4
    assert topology.exploration_rate > topology.density


def test_a_dense_layer_is_never_asked() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 40), nn.Linear(40, 2))

    def first_dense(shapes: Any, density: float) -> dict[str, float]:
        return {name: 1.0 if name == "0.weight" else 0.2 for name in shapes}

    plan = rigl(4, interval=1)
    topology = Topology(model, sparsity=0.7, rewiring=plan, distribution=first_dense)
    model = layers.compact_copy(model, topology)
    topology.rebind_(layers.compact_stores(model), model=model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    topology.attach(optimizer)
    model(torch.randn(3, 4)).sum().backward()
    optimizer.step()
    asked = {n: m.num_dense_gradients for n, m in layers.layers_of(model).items()}
    assert asked == {"0.weight": 0, "1.weight": 1, "2.weight": 1}


def test_gradients_of_other_passes_are_not_mixed_in() -> None:
    """An attack on the inputs goes backward through the layer too; so does a pass that fails."""
    runs = pair(lambda: rigl(10, interval=1))
    for model, _, optimizer in runs:
        x = torch.randn(7, 6, generator=torch.Generator().manual_seed(1), requires_grad=True)
        optimizer.zero_grad()
        torch.autograd.grad(model(x).square().sum() * 100, x)
        with pytest.raises(ZeroDivisionError):
            _failing(model, x)
        optimizer.zero_grad()
        F.mse_loss(model(x), torch.ones(7, 6)).backward()
        optimizer.step()
    (_, masked, _), (model, compact, _) = runs
    assert compact.num_rewirings == 1
    assert layers.same(dict(masked.masks), dict(compact.masks))


def _failing(model: Any, x: Tensor) -> None:
    """A backward pass that breaks off between the two uses of the layer."""
    middle = torch.tanh(model.layer(x))
    middle.register_hook(lambda gradient: 1 / 0)
    (model.layer(middle) * 100).sum().backward()


def test_layers_that_offer_for_every_backward_pass_are_understood() -> None:
    """A custom function cannot tell whether its parameters' gradients were asked for."""
    model, topology, _ = pair(lambda: rigl(10, interval=1))[1]
    layer = layers.layers_of(model)["layer.weight"]
    seen: list[Tensor] = []
    watched = topology._weights["layer.weight"].watch(lambda: True, seen.append)
    other = torch.full(layer.weight_shape, 9.0)

    def attack(gradient: Tensor) -> None:
        layer.gather_dense(lambda: other)

    x = torch.randn(7, 6, requires_grad=True)
    y = x * 1.0
    y.register_hook(attack)
    torch.autograd.grad(y.sum(), x)
    model(torch.ones(2, 6)).sum().backward()
    assert len(seen) == 1
    assert torch.equal(seen[0][topology.masks["layer.weight"]], layer.values.grad)
    watched.remove()


def test_removing_lets_the_layer_go() -> None:
    model, topology, _ = pair(lambda: rigl(10, interval=1))[1]
    layer = layers.layers_of(model)["layer.weight"]
    assert layer.gather_dense is not None
    handle: Any = topology._attachment
    handle.remove()
    assert layer.gather_dense is None
    assert not layer.values._backward_hooks
    handle.remove()


def test_a_layer_without_a_gradient_is_left_as_it_is() -> None:
    for rewiring in (rigl, set_rewiring):
        _, topology, optimizer = pair(lambda make=rewiring: make(10, interval=1))[1]
        before = topology.masks["layer.weight"]
        optimizer.step()
        assert topology.num_rewirings == 1
        assert torch.equal(topology.masks["layer.weight"], before)


def test_needs_gradient_is_false_for_scores_that_are_known_not_to_read_it() -> None:
    def needs(drop: Any, grow: Any) -> bool:
        return Rewiring(total_steps=100, interval=10, drop=drop, grow=grow).needs_gradient

    assert not needs(weight_magnitude, uniform_noise)
    assert not needs(uniform_noise, weight_magnitude)
    assert needs(weight_magnitude, gradient_magnitude)
    assert needs(gradient_magnitude, uniform_noise)
    assert needs(weight_magnitude, lambda w, g, m, r: w.abs())


# Rebinding.


def bindable() -> tuple[nn.Module, Topology, nn.Module]:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    topology = Topology(model, sparsity=0.5, rewiring=set_rewiring(50, interval=5))
    for _ in range(10):  # so that more was active than is
        topology.advance_({n: p.detach() for n, p in topology.parameters.items()})
    assert topology.exploration_rate > topology.density
    return model, topology, layers.compact_copy(model, topology)


def test_names_and_record_go_on_and_parameters_are_the_new_ones() -> None:
    model, topology, other = bindable()
    before = topology.state_dict()
    stores = layers.compact_stores(other)
    topology.rebind_(dict(reversed(stores.items())), model=other)
    assert list(topology.parameters) == ["0.weight", "2.weight"]
    assert topology.parameters["0.weight"] is other.get_parameter("0.values")
    after = topology.state_dict()
    assert layers.same(before["masks"], after["masks"])
    assert layers.same(before["ever_active"], after["ever_active"])
    assert topology.masks["0.weight"].shape == (6, 4)
    assert topology.verify() == []
    with pytest.raises(ValueError, match="trains none of the masked weights"):
        topology.attach(torch.optim.SGD(model.parameters()))


def test_a_topology_that_is_attached_is_not_rebound() -> None:
    model, topology, other = bindable()
    with (
        topology.attach(torch.optim.SGD(model.parameters())),
        pytest.raises(ValueError, match=r"is attached to an optimizer; remove\(\) the handle"),
    ):
        topology.rebind_(layers.compact_stores(other), model=other)
    assert topology.parameters["0.weight"] is model.get_parameter("0.weight")


def test_stores_that_do_not_fit_are_refused_and_nothing_changes() -> None:
    model, topology, other = bindable()
    good = layers.compact_stores(other)
    wide: Any = nn.Linear(5, 6)
    moved = layers.Compact(model.get_parameter("0.weight"), ~topology.masks["0.weight"])
    cases = [
        ({"0.weight": good["0.weight"]}, "lack the weight 2.weight"),
        (good | {"1.weight": good["0.weight"]}, "has no weight 1.weight"),
        (
            good | {"0.weight": MaskedWeight(wide.weight, torch.ones(6, 5, dtype=torch.bool))},
            r"of 0.weight has shape \(6, 5\), expected \(6, 4\)",
        ),
        (good | {"0.weight": CompactWeight(moved)}, "of 0.weight has other active weights"),
        (layers.compact_stores(copy.deepcopy(other)), "trains a parameter that Sequential does"),
    ]
    for stores, message in cases:
        with pytest.raises(ValueError, match=message):
            topology.rebind_(stores, model=other)
        assert topology.parameters["0.weight"] is model.get_parameter("0.weight")


@pytest.mark.parametrize("sampling", ["exact", "bernoulli"])
def test_a_state_is_the_same_for_both_kinds(sampling: Any) -> None:
    def make(seed: int, compact: bool) -> tuple[nn.Module, Topology]:
        torch.manual_seed(0)
        model: nn.Module = nn.Sequential(nn.Linear(10, 12), nn.Linear(12, 3))
        topology = Topology(model, sparsity=0.5, sampling=sampling, seed=seed)
        if compact:
            model = layers.compact_copy(model, topology)
            topology.rebind_(layers.compact_stores(model), model=model)
        return model, topology

    for source, target in ((False, True), (True, False), (True, True)):
        state = make(1, source)[1].state_dict()
        _, topology = make(2, target)
        common = {n: topology.masks[n] & mask for n, mask in state["masks"].items()}
        old = layers.dense_weights(topology)
        topology.load_state_dict(state)
        assert layers.same(dict(topology.masks), state["masks"])
        assert layers.same(dict(topology.ever_active), state["ever_active"])
        assert topology.plan == {n: int(m.sum()) for n, m in state["masks"].items()}
        assert topology.verify() == []
        for name, weight in layers.dense_weights(topology).items():
            assert torch.equal(weight, old[name].masked_fill(~common[name], 0))
        for name, mask in topology.masks.items():
            assert mask is not state["masks"][name]


def test_by_hand_a_compact_topology_advances_like_a_masked_one() -> None:
    runs = pair(lambda: rigl(10, interval=1))
    for _, topology, optimizer in runs:
        gradient = torch.randn(6, 6, generator=torch.Generator().manual_seed(5))
        topology.advance_({"layer.weight": gradient}, optimizer)
    (_, masked, _), (_, compact, _) = runs
    assert layers.same(dict(masked.masks), dict(compact.masks))
    assert compact.num_rewirings == 1
