"""What is not converted is not touched, and one sentence says why."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from equipoise import Topology, to_engine
from equipoise.engine import convert
from equipoise.engine.library import VARIABLE, unavailable_because

kit: Any = import_module("tests.unit.engine.convert_kit")
toy: Any = import_module("tests.unit.training.toy")

missing = unavailable_because()
pytestmark = pytest.mark.skipif(missing is not None, reason=str(missing))


@pytest.fixture(autouse=True)
def settled(tmp_path: Path) -> Iterator[None]:
    with kit.settled(tmp_path):
        yield


def refused(model: nn.Module, *inputs: Any, **options: Any) -> str:
    """The sentence with which a conversion is refused; nothing is changed by it."""
    topology = options.pop("topology", None) or Topology(model, sparsity=0.5)
    state, followed = copy.deepcopy(model.state_dict()), dict(topology.parameters)
    with pytest.raises(ValueError, match=r"^[^\n]*\.$") as caught:
        to_engine(model, topology, inputs if len(inputs) > 1 else inputs[0], engine="sparse")
    assert toy.differences(dict(state), dict(model.state_dict())) == []
    assert all(topology.parameters[name] is p for name, p in followed.items())
    assert topology.verify() == []
    assert not kit.sparse_layers(model) or "already" in str(caught.value)
    return str(caught.value)


class Peeking(nn.Module):
    """Looks at the weight of a layer, which a converted one does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = nn.Linear(12, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.linear(torch.relu(self.layer(x)), self.layer.weight))


class Listed(nn.Module):
    """Keeps a second reference to its layers, where no conversion finds it."""

    def __init__(self, followed: int = 0) -> None:
        super().__init__()
        self.layer, self.last = nn.Linear(12, 12), nn.Linear(12, 3)
        self.__dict__["hidden"] = [self.layer, self.last][: 2 - followed]

    def forward(self, x: Tensor) -> Tensor:
        x = x * 2 if x.sum() > 1e9 else x
        layers = [*self.__dict__["hidden"], self.last][:2]
        return layers[1](torch.relu(layers[0](x)))


class Bound(Listed):
    """Calls a method that it has kept, which knows the old modules."""

    def __init__(self) -> None:
        super().__init__()
        self.work = self.work_with_layers

    def work_with_layers(self, x: Tensor) -> Tensor:
        return self.last(self.layer(x * 2 if x.sum() > 1e9 else x))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.work(x)
        return result


def test_networks_that_cannot_be_converted() -> None:
    rows = torch.randn(6, 12)
    assert "its weights are torch.float64" in refused(kit.mlp().double(), rows.double())
    assert "its inputs are on meta" in refused(kit.mlp(), torch.empty(6, 12, device="meta"))
    assert "neither images nor rows" in refused(kit.mlp(), torch.randn(12))
    assert "neither images nor rows" in refused(kit.mlp(), (rows,), 3)
    assert "it is the whole network" in refused(nn.Linear(12, 4), rows)
    recurrent = nn.LSTM(12, 4)
    assert "no convolution or linear layer" in refused(recurrent, torch.randn(2, 6, 12))
    assert "reads the weights of its layers itself" in refused(Peeking(), rows)
    hidden = "of the layer layer, its calls are not followed"
    assert hidden in refused(Listed(), rows)
    assert hidden in refused(Bound(), rows)
    model = kit.mlp()
    assert "no layer has inactive weights" in refused(
        model, rows, topology=Topology(model, sparsity=0.0)
    )
    network, topology = kit.convert_it(kit.mlp(), rows)
    assert "it is converted already" in refused(network, rows, topology=topology)
    assert "engine is 'auto' or 'sparse'; got 'fast'." in engine_refused("fast")


def engine_refused(engine: Any) -> str:
    model = kit.mlp()
    with pytest.raises(ValueError, match="engine") as caught:
        to_engine(model, Topology(model, sparsity=0.5), torch.randn(6, 12), engine=engine)
    return str(caught.value)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
def test_a_network_on_a_card() -> None:
    assert "on cuda:0" in refused(kit.mlp(), torch.randn(6, 12, device="cuda"))
    assert "on cuda:0" in refused(kit.mlp().cuda(), torch.randn(6, 12))


def test_only_the_layers_that_are_not_followed_are_left() -> None:
    model, x = Listed(followed=1), torch.randn(6, 12)
    topology = Topology(model, sparsity=0.5)
    twin = copy.deepcopy(model)
    network = to_engine(model, topology, x, engine="sparse")
    assert list(kit.sparse_layers(network)) == ["last"]
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    topology.attach(optimizer)
    for each in (network, twin):
        each(x).square().mean().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_a_layer_that_is_also_called_past_its_module() -> None:
    class Both(Listed):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + self.last(self.layer(x))

    assert "of the layer layer, its calls are not followed" in refused(Both(), torch.randn(6, 12))


def test_a_topology_of_another_model() -> None:
    other = nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 8))
    for model in (other, kit.mlp()):
        said = refused(kit.mlp(), torch.randn(6, 12), topology=Topology(model, sparsity=0.5))
        assert "the topology masks 0.weight, which is no weight of this Sequential" in said


@pytest.mark.parametrize("engine", ["auto", "sparse"])
def test_a_topology_that_is_attached(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert, "too_small", lambda *passed: None)
    monkeypatch.setattr(convert, "speed_up", lambda *passed: 2.0)
    model, x = kit.mlp(), torch.randn(6, 12)
    topology = Topology(model, sparsity=0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = topology.attach(optimizer)
    with pytest.raises(ValueError, match=r"^this topology is attached to an optimizer; [^\n]*\.$"):
        to_engine(model, topology, x, engine=engine)
    assert topology.parameters["0.weight"] is model[0].weight
    model(x).sum().backward()
    optimizer.step()
    assert (topology.num_steps, topology.verify()) == (1, [])
    handle.remove()
    assert kit.sparse_layers(to_engine(model, topology, x, engine=engine))


def test_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = kit.mlp(), torch.randn(6, 12)
    topology = Topology(model, sparsity=0.5)
    followed = dict(topology.parameters)
    monkeypatch.setenv(VARIABLE, "off")
    with pytest.warns(UserWarning, match="^the engine is not used: the kernels are switch") as told:
        assert to_engine(model, topology, x) is model
    assert len(told) == 1
    assert told[0].filename == __file__
    assert all(topology.parameters[name] is p for name, p in followed.items())
    assert "switched off by EQUIPOISE_KERNELS=off" in refused(model, x, topology=topology)


def test_a_conversion_that_computes_something_else_is_not_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The last check, whatever went wrong before it."""
    from equipoise.engine import network as networks

    forward = networks.EngineNetwork.forward
    monkeypatch.setattr(networks.EngineNetwork, "forward", lambda self, x: forward(self, x) * 1.01)
    assert "converted it gives other results" in refused(kit.cnn(), torch.randn(kit.IMAGES))
    monkeypatch.setattr(networks.EngineNetwork, "forward", lambda self, x: forward(self, x)[:, :2])
    assert "converted it gives other results" in refused(kit.cnn(), torch.randn(kit.IMAGES))


def test_a_transformer_keeps_masks_and_trains() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 24, dropout=0.0, batch_first=True)
    model = nn.Sequential(nn.Linear(12, 16), layer)
    x = torch.randn(4, 5, 12)
    topology = Topology(model, sparsity=0.5)
    assert refused(model, x, topology=topology) == (
        "the engine cannot run this network: its code reads the weights of its layers itself, as "
        "torch's transformers do; use masks instead."
    )
    assert {"1.linear1.weight", "1.linear2.weight"} <= topology.masks.keys()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with topology.attach(optimizer):
        before = layer.linear1.weight.detach().clone()
        for _ in range(2):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
        assert topology.verify() == []
    assert not torch.equal(layer.linear1.weight, before)
