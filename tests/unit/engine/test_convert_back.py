"""From a converted network to a plain one, to a copy, and to another state."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from equipoise import Topology, set_rewiring, to_dense, to_engine
from equipoise.engine import convert
from equipoise.engine.choice import Memory
from equipoise.engine.library import unavailable_because
from equipoise.engine.network import plain_state, ways_of

kit: Any = import_module("tests.unit.engine.convert_kit")
toy: Any = import_module("tests.unit.training.toy")

missing = unavailable_because()
pytestmark = pytest.mark.skipif(missing is not None, reason=str(missing))


@pytest.fixture(autouse=True)
def settled(tmp_path: Path) -> Iterator[None]:
    with kit.settled(tmp_path):
        yield


@pytest.mark.parametrize("name", kit.NETWORKS)
def test_the_way_back_is_exact(name: str) -> None:
    make, shape = kit.NETWORKS[name]
    model, x = make(), torch.randn(shape)
    topology = Topology(model, sparsity=0.7)
    twin = copy.deepcopy(model)
    network = to_engine(model, topology, x, engine="sparse")
    plain = to_dense(network)
    assert type(plain) is type(twin)
    assert to_dense(plain) is plain
    assert toy.differences(dict(plain.state_dict()), dict(twin.state_dict())) == []
    assert toy.differences(plain_state(network.state_dict()), dict(twin.state_dict())) == []
    assert [type(m) for m in plain.modules()] == [type(m) for m in twin.modules()]
    assert torch.equal(plain(x), twin(x))
    # It can be converted again.
    again = Topology(plain, sparsity=0.7)
    assert kit.sparse_layers(to_engine(plain, again, x, engine="sparse"))


def test_the_way_back_follows_the_training() -> None:
    model, x = kit.cnn(), torch.randn(kit.IMAGES)
    network, topology = kit.convert_it(model, x, rewiring=set_rewiring(20, interval=2))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    topology.attach(optimizer)
    for _ in range(5):
        optimizer.zero_grad()
        network(x).square().mean().backward()
        optimizer.step()
    assert topology.num_rewirings == 2
    plain = to_dense(network)
    for name, mask in topology.masks.items():
        assert int(plain.state_dict()[name][~mask].count_nonzero()) == 0
        path = name.removesuffix(".weight")
        assert torch.equal(plain.get_parameter(name)[mask], network.get_submodule(path).values)
    for each in (plain, network):
        each.eval()
    kit.close(plain(x), network(x))
    assert plain.get_submodule("1") is network.get_submodule("1")


def test_the_way_back_takes_what_the_network_has_now() -> None:
    """Also of modules that have parameters and children: they are others in the plain network."""
    network, _ = kit.convert_it(kit.Nested(), torch.randn(kit.IMAGES))
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state |= {name: state[name] + 1.0 for name in ("shift", "scale", "head.bias", "shell.shift")}
    network.load_state_dict(state, assign=True)
    plain = to_dense(network).state_dict()
    assert toy.differences(plain_state(state), dict(plain)) == []


def test_a_model_that_was_left_alone_comes_back_itself() -> None:
    model = kit.cnn()
    assert to_dense(model) is model


def test_a_way_back_changes_no_mode() -> None:
    """A frozen BatchNorm stays frozen, in the network as in what is made of it."""
    network, _ = kit.convert_it(kit.Nested(), torch.randn(kit.IMAGES))
    network.train()
    frozen = ("shell.0.1", "shell.0.4", "shell", "head")
    for path in frozen:
        network.get_submodule(path).training = False
    modes = {path: m.training for path, m in network.named_modules()}
    plain = to_dense(network)
    assert {path: m.training for path, m in network.named_modules()} == modes
    assert {path: m.training for path, m in plain.named_modules()} == modes
    network.eval()
    assert not any(m.training for m in to_dense(network).modules())


@pytest.mark.parametrize("sparsity", [0.7, 0.4], ids=["as many", "more"])
@pytest.mark.parametrize("make", [kit.cnn, kit.Undecided])
def test_the_state_of_a_network_with_other_masks(make: Any, sparsity: float) -> None:
    x = torch.randn(kit.IMAGES)
    source, old = kit.convert_it(make(), x, sparsity=sparsity, seed=1, distribution="uniform")
    target, new = kit.convert_it(make(), x, seed=2, distribution="uniform")
    state = copy.deepcopy(source.state_dict())
    held = dict(target.named_parameters())
    target(x).sum().backward()  # so that there are plans and gradients of the old positions
    target.load_state_dict(state)
    assert all(p is held[n] for n, p in target.named_parameters())
    assert toy.differences(dict(state), dict(target.state_dict())) == []
    if sparsity == 0.7:
        new.load_state_dict(old.state_dict())
        assert new.verify() == []
    for each in (source, target):
        each.eval()
    kit.close(source(x), target(x))
    target(x).sum().backward()
    with torch.no_grad():
        next(iter(source.parameters())).zero_()
    assert toy.differences(dict(state), dict(target.state_dict())) == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda index: index + 10**9,
        lambda index: index - 10**9,
        lambda index: index.flip(0),
        lambda index: index.float(),
        lambda index: index.clone().fill_(1),
        lambda index: index[None],
    ],
    ids=["too far", "before", "turned", "floats", "repeated", "folded"],
)
def test_positions_that_lead_anywhere_are_refused(damage: Any) -> None:
    x = torch.randn(kit.IMAGES)
    network, topology = kit.convert_it(kit.cnn(), x)
    state = network.state_dict()
    state["4.index"] = damage(state["4.index"])
    with pytest.raises(RuntimeError, match=r"4\.index holds no ascending positions"):
        network.load_state_dict(state)
    assert topology.verify() == []
    assert bool(torch.isfinite(network(x)).all())


@pytest.mark.parametrize("name", kit.NETWORKS)
def test_a_copy_is_independent(name: str) -> None:
    make, shape = kit.NETWORKS[name]
    network, topology = kit.convert_it(
        make(), torch.randn(shape), rewiring=set_rewiring(9, interval=1)
    )
    twin, x = copy.deepcopy(network), torch.randn(shape)
    for each in (network, twin):
        each.eval()
    before = twin(x)
    assert torch.equal(before, network(x))
    assert not {id(p) for p in twin.parameters()} & {id(p) for p in network.parameters()}
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    topology.attach(optimizer)
    for _ in range(2):
        optimizer.zero_grad()
        network(x).square().mean().backward()
        optimizer.step()
    assert topology.num_rewirings == 2
    assert not torch.equal(network(x), before)
    assert torch.equal(twin(x), before)
    plain = to_dense(twin)
    kit.close(plain(x), before)
    assert not {id(p) for p in plain.parameters()} & {id(p) for p in network.parameters()}


def test_the_same_conversion_again() -> None:
    model, x = kit.cnn(), (torch.randn(kit.IMAGES),)
    topology = Topology(model, sparsity=0.7)
    with toy.untimed(slow=lambda geometry: geometry.in_channels == 8):
        conversion = convert.prepare(model, topology, x, Memory(None))
    ways = ways_of(conversion.network)
    assert ways.keys() == {"0", "7"}
    network, reason = convert.convert_as_before(model, topology, x, ways)
    assert reason is None
    assert ways_of(network) == ways
    assert network.state_dict().keys() == conversion.network.state_dict().keys()
    assert torch.equal(network(*x), conversion.network(*x))
