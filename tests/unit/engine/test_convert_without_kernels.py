"""Networks where there are no kernels: linear layers by torch CSR, all else with masks."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from equipoise import Topology, to_dense, to_engine
from equipoise.engine import convert
from equipoise.engine.choice import Memory
from equipoise.engine.convolution import Way
from equipoise.engine.explain import explain
from equipoise.engine.library import VARIABLE
from equipoise.engine.network import EngineNetwork, ways_of

kit: Any = import_module("tests.unit.engine.convert_kit")
engine_kit: Any = import_module("tests.unit.engine.engine_kit")

SAID = "the kernels are switched off by EQUIPOISE_KERNELS=off; unset it to use them"


@pytest.fixture(autouse=True)
def settled(tmp_path: Path) -> Iterator[None]:
    with kit.settled(tmp_path):
        yield


@pytest.mark.parametrize("name", kit.NETWORKS)
def test_every_linear_layer_and_no_other(name: str) -> None:
    make, shape = kit.NETWORKS[name]
    model, x = make(), torch.randn(shape)
    topology = Topology(model, sparsity=0.7)
    reference = make()
    reference.load_state_dict(model.state_dict())
    masked = {n: m for n, m in model.named_modules() if f"{n}.weight" in topology.masks}
    linear = {n for n, m in masked.items() if isinstance(m, nn.Linear)}
    linear = {n for n in linear if not bool(topology.masks[f"{n}.weight"].all())}
    with kit.only_csr():
        network = to_engine(model, topology, x, engine="sparse")
        found = network(x)
        assert set(kit.sparse_layers(network)) == linear != set()
        assert set(ways_of(network).values()) == {Way(csr=True)}
        assert not isinstance(network, EngineNetwork)
        kit.close(found, reference(x))
        found.square().sum().backward()
        reference(x).square().sum().backward()
        for path, module in network.named_modules():
            if isinstance(module, nn.Conv2d):
                assert module is model.get_submodule(path)
        kit.assert_same_gradients(network, reference)
        plain = to_dense(network)
        assert list(plain.state_dict()) == list(reference.state_dict())
        kit.close(plain(x), reference(x))
        assert topology.verify() == []


def test_it_is_said_once_with_the_reason() -> None:
    model, x = kit.mlp(), torch.randn(6, 12)
    expected = f"^linear layers are run by torch CSR where that is faster, since {SAID}.$"
    with kit.only_csr(), pytest.warns(UserWarning, match=expected) as told:
        network = to_engine(model, Topology(model, sparsity=0.7), x)
    assert len(told) == 1
    assert told[0].filename == __file__
    assert kit.sparse_layers(network)
    model = kit.mlp()
    with kit.only_csr(), warnings.catch_warnings():
        warnings.simplefilter("error")
        to_engine(model, Topology(model, sparsity=0.7), x, engine="sparse")


def test_masks_where_they_are_faster() -> None:
    model, x = kit.mlp(), torch.randn(6, 12)
    topology = Topology(model, sparsity=0.7)
    with kit.only_csr(layer=0.5):
        with pytest.warns(UserWarning, match=f"^the engine is not used: {SAID}; training goes on"):
            assert to_engine(model, topology, x) is model
        # Nobody asked for this stand-in by name, so it is not forced.
        with pytest.raises(ValueError, match=f"^the engine cannot run this network: {SAID}; use"):
            to_engine(model, topology, x, engine="sparse")
    assert topology.parameters["0.weight"] is model.get_parameter("0.weight")


def test_masks_where_the_whole_step_is_not_faster() -> None:
    model, x = kit.mlp(), torch.randn(6, 12)
    expected = f"^the engine is not used: {SAID}; training goes on with masks.$"
    with kit.only_csr(step=1.01), pytest.warns(UserWarning, match=expected):
        assert to_engine(model, Topology(model, sparsity=0.7), x) is model


def test_a_torch_without_such_products() -> None:
    model, x = kit.mlp(), torch.randn(6, 12)
    topology = Topology(model, sparsity=0.7)
    with kit.only_csr(has_csr=False):
        found = explain(model, topology, (x,), engine="sparse")
        assert found.reason == SAID
        assert found.way(found.layers[0]) == "torch: this torch has no CSR products"


def test_the_plan_names_it() -> None:
    model, x = kit.cnn(), torch.randn(kit.IMAGES)
    with kit.only_csr():
        found = explain(model, Topology(model, sparsity=0.5, distribution="uniform"), (x,))
        ways = {layer.path: found.way(layer) for layer in found.layers}
        assert ways == {
            "0": "torch: there are no kernels",
            "4": "torch: there are no kernels",
            "7": "torch CSR",
        }
        assert [found.layer_gain(layer) for layer in found.layers] == [1.0, 1.0, 2.0]
        assert (found.where, found.has_kernels) == ("torch CSR, 1 thread", False)
        assert found.verdict.endswith(
            "2.0 times as fast as with masks on this machine (" + ("torch CSR, 1 thread).")
        )


@pytest.mark.parametrize("kernels", ["off", "auto"])
def test_it_goes_on_as_it_began(kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where there are kernels by now: their sums have another order."""
    monkeypatch.setenv(VARIABLE, kernels)
    model, x = kit.mlp(), torch.randn(6, 12)
    topology = Topology(model, sparsity=0.7)
    ways = {"0": Way(csr=True), "2": Way(csr=True)}
    network, reason = convert.convert_as_before(model, topology, (x,), ways)
    assert reason is None
    assert ways_of(network) == ways
    kit.close(network(x), model(x))


def test_what_the_kernels_ran_is_not_run_by_csr(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "off")
    model = kit.mlp()
    topology = Topology(model, sparsity=0.7)
    ways = {"0": Way(csr=True), "2": Way()}
    found = convert.convert_as_before(model, topology, (torch.randn(6, 12),), ways)
    assert found == (model, SAID)


@engine_kit.needs_kernels
def test_kernels_are_preferred_where_there_are_any() -> None:
    """Nothing there times CSR."""
    model, x = kit.mlp(), torch.randn(6, 12)
    conversion = convert.prepare(model, Topology(model, sparsity=0.7), (x,), Memory(None))
    assert not any(way.csr for way in ways_of(conversion.network).values())
