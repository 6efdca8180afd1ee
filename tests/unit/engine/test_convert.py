"""What `to_engine` promises, whatever network it is given."""

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

from equipoise import Topology, to_dense, to_engine
from equipoise.engine import convert
from equipoise.engine.choice import Memory
from equipoise.engine.library import unavailable_because
from equipoise.engine.network import EngineNetwork

kit: Any = import_module("tests.unit.engine.convert_kit")
toy: Any = import_module("tests.unit.training.toy")

missing = unavailable_because()
pytestmark = pytest.mark.skipif(missing is not None, reason=str(missing))


@pytest.fixture(autouse=True)
def settled(tmp_path: Path) -> Iterator[None]:
    with kit.settled(tmp_path):
        yield


@pytest.mark.parametrize("mode", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", kit.NETWORKS)
def test_it_computes_what_the_masked_network_computes(name: str, mode: bool) -> None:
    """Results, gradients of the active weights and of the input (as attacks need), statistics."""
    make, shape = kit.NETWORKS[name]
    model = make()
    topology = Topology(model, sparsity=0.7)
    twin, x = copy.deepcopy(model), torch.randn(shape)
    network = to_engine(model, topology, x, engine="sparse")
    assert len(kit.sparse_layers(network)) >= 3
    assert isinstance(network, EngineNetwork) == (name != "not followed")
    images = [x.clone().requires_grad_() for _ in range(2)]
    results = []
    for each, image in zip((network, twin), images, strict=True):
        each.train(mode)
        result = each(image)
        result.square().mean().backward()
        results.append(result)
    kit.close(*results)
    assert images[0].grad is not None
    kit.close(images[0].grad, images[1].grad)
    kit.assert_same_gradients(network, twin)
    for path, buffer in twin.named_buffers():
        kit.close(network.get_buffer(path).float(), buffer.float())
    (gradient,) = torch.autograd.grad(network(images[0]).sum(), images[0])
    (expected,) = torch.autograd.grad(twin(images[1]).sum(), images[1])
    kit.close(gradient, expected)


def test_names_shapes_and_what_is_shared() -> None:
    model = kit.Nested()
    names = [name for name, _ in model.named_parameters()]
    paths = {path for path, _ in model.named_modules()}
    plain = dict(model.named_parameters()) | dict(model.named_buffers())
    network, topology = kit.convert_it(model, torch.randn(kit.IMAGES))
    found = [name for name, _ in network.named_parameters()]
    assert [name.replace("values", "weight") for name in found] == names
    assert {path for path, _ in network.named_modules()} == paths
    layers = kit.sparse_layers(network)
    assert len(layers) == 3
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        path, _, kind = name.rpartition(".")
        if path in layers and kind != "bias":
            assert kind in ("values", "index", "shape")
        else:
            assert tensor is plain[name]
    for path, layer in layers.items():
        weight = plain[f"{path}.weight"]
        assert layer.values.shape == layer.index.shape == (topology.plan[f"{path}.weight"],)
        assert tuple(layer.shape.tolist()) == tuple(weight.shape)
        assert torch.equal(layer.dense_weight(), weight)
        assert topology.parameters[f"{path}.weight"] is layer.values
    assert topology.verify() == []


def test_the_given_model_and_the_random_numbers_stay() -> None:
    model = kit.Nested()
    topology = Topology(model, sparsity=0.7)
    model.eval()
    model.shell.train()
    state, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    random = torch.get_rng_state()
    network = to_engine(
        model, topology, torch.randn(kit.IMAGES, generator=torch.Generator()), engine="sparse"
    )
    assert torch.equal(torch.get_rng_state(), random)
    assert toy.differences(dict(state), dict(model.state_dict())) == []
    assert [m.training for m in model.modules()] == modes
    assert [m.training for m in network.modules()] == modes
    assert not any(m._forward_pre_hooks for m in (*model.modules(), *network.modules()))


def test_a_frozen_norm_uses_and_keeps_its_statistics() -> None:
    model, x = kit.cnn(), torch.randn(kit.IMAGES)
    topology = Topology(model, sparsity=0.7)
    twin = copy.deepcopy(model)
    network = to_engine(model, topology, x, engine="sparse")
    for each in (network, twin):
        each.train()
        each.get_submodule("1").eval()
    kit.close(network(x), twin(x))
    assert int(network.get_buffer("1.num_batches_tracked")) == 0
    network.get_submodule("1").train()
    network(x)
    assert int(network.get_buffer("1.num_batches_tracked")) == 1


class Noisy(nn.Module):
    """Its own code asks for its mode."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.layer(x), 0.5, self.training) + (1.0 if self.training else 0.0)


def test_a_part_in_another_mode_than_the_whole() -> None:
    """The two ways to follow the code are all in training and all in evaluation mode."""
    model, x = nn.Sequential(Noisy(), Noisy(), nn.Linear(12, 3)), torch.randn(6, 12)
    topology = Topology(model, sparsity=0.7)
    twin = copy.deepcopy(model)
    network = to_engine(model, topology, x, engine="sparse")
    for modes in ((True, True), (True, False), (False, True), (False, False)):
        results = []
        for each in (network, twin):
            each.train(modes[0] or modes[1])
            for path, mode in zip(("0", "1"), modes, strict=True):
                each.get_submodule(path).train(mode)
            torch.manual_seed(3)
            results.append(each(x))
        kit.close(*results)
    results[0].sum().backward()
    assert all(layer.values.grad is not None for layer in kit.sparse_layers(network).values())


@pytest.mark.parametrize("by", ["weight", "bias", "norm"])
def test_what_is_frozen_stays_frozen(by: str) -> None:
    model, x = kit.cnn(), torch.randn(kit.IMAGES)
    topology = Topology(model, sparsity=0.7)
    frozen: Any = {"weight": model[4].weight, "bias": model[4].bias, "norm": model[1].weight}[by]
    frozen.requires_grad_(False)
    twin = copy.deepcopy(model)
    network = to_engine(model, topology, x, engine="sparse")
    for each in (network, twin):
        each(x).square().mean().backward()
    kit.assert_same_gradients(network, twin)
    back = dict(to_dense(network).named_parameters())
    expected = {name: p.requires_grad for name, p in twin.named_parameters()}
    assert {name: p.requires_grad for name, p in back.items()} == expected
    assert sum(not needed for needed in expected.values()) == 1


class Shared(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        if kind == "module":
            self.second = self.first
        elif kind == "weight":
            self.second.weight = self.first.weight
        self.last = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.second(torch.relu(self.first(x)))))


@pytest.mark.parametrize("kind", ["module", "weight"])
def test_what_is_shared_is_left_to_torch(kind: str) -> None:
    model, x = Shared(kind), torch.randn(6, 8)
    topology = Topology(model, sparsity=0.5)
    twin = copy.deepcopy(model)
    conversion = convert.prepare(model, topology, (x,), Memory(None), always=True)
    shared = {c.reason for c in conversion.layers if c.path != "last"}
    assert shared == {"its weight is shared with another layer"}
    network = to_engine(model, topology, x, engine="sparse")
    assert list(kit.sparse_layers(network)) == ["last"]
    for each in (network, twin):
        each(x).square().mean().backward()
    kit.assert_same_gradients(network, twin)
    plain = to_dense(network)
    assert plain.get_parameter("first.weight") is plain.get_parameter("second.weight")


def test_a_module_that_is_called_twice_is_converted_once() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.last = nn.Linear(8, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.layer(torch.relu(self.layer(x))))

    model, x = Twice(), torch.randn(6, 8)
    topology = Topology(model, sparsity=0.5)
    twin = copy.deepcopy(model)
    network = to_engine(model, topology, x, engine="sparse")
    assert len(kit.sparse_layers(network)) == 2
    for each in (network, twin):
        each(x).square().mean().backward()
    kit.assert_same_gradients(network, twin)


def test_a_layer_that_is_called_by_the_name_of_its_argument() -> None:
    class ByName(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(8, 8), nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(input=torch.relu(self.first(input=x))[:, :, None, None])

    model, x = ByName(), torch.randn(6, 8)
    network, _ = kit.convert_it(model, x, sparsity=0.5)
    assert len(kit.sparse_layers(network)) == 2
    kit.close(network(x), model(x))


def test_why_a_network_is_not_followed_is_said() -> None:
    model, x = kit.Undecided(), torch.randn(kit.IMAGES)
    topology = Topology(model, sparsity=0.7)
    conversion = convert.prepare(model, topology, (x,), Memory(None), always=True)
    assert conversion.fault is None
    assert conversion.untraced is not None
    assert "control flow" in conversion.untraced
    assert isinstance(conversion.network, kit.Undecided)
    assert len(kit.sparse_layers(conversion.network)) == 3
    kit.close(conversion.network(x, scale=3.0), model(x, scale=3.0))
    followed = convert.prepare(model.body, Topology(model.body, sparsity=0.7), (x,), Memory(None))
    assert followed.untraced is None


class AnyNumber(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(12, 4)

    def forward(self, *inputs: Tensor, **named: Tensor) -> Tensor:
        return self.layer(inputs[0]) + sum(inputs[1:], torch.zeros(())) + sum(named.values())


class Several(AnyNumber):
    def forward(self, *inputs: Tensor) -> Tensor:  # type: ignore[override]
        result: Tensor = self.layer(inputs[0]) + 1.0
        return result


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.side = nn.Linear(12, 4), nn.Linear(3, 4)

    def forward(self, input: Tensor, other: Tensor) -> Tensor:  # noqa: A002
        return torch.relu(self.layer(input)) - self.side(other)


def test_arguments_by_name_and_of_any_number() -> None:
    x, y = torch.randn(5, 12), torch.randn(5, 3)
    model = TwoInputs()
    network, _ = kit.convert_it(model, x, y)
    expected = network(x, y)
    kit.close(expected, model(x, y))
    assert torch.equal(network(x, other=y), expected)
    assert torch.equal(network(other=y, input=x), expected)
    assert isinstance(network, EngineNetwork)
    free = AnyNumber()
    several, _ = kit.convert_it(free, x)
    alone, _ = kit.convert_it(Several(), x)
    assert alone(x).shape == (5, 4)
    four = torch.randn(5, 4)
    kit.close(several(x, four, more=four), free(x, four, more=four))


@pytest.mark.parametrize(
    ("given", "named", "said"),
    [
        ((), {}, r"got 0 positional arguments, expected 2"),
        ((1,), {}, r"got 1 positional arguments, expected 2"),
        ((1, 2, 3), {}, r"got 3 positional arguments, expected 2"),
        ((1,), {"another": 2}, "missing a required argument: 'other'"),
        ((1, 2), {"other": 2}, "multiple values for argument 'other'"),
        ((), {"other": 2}, "missing a required argument: 'input'"),
    ],
)
def test_wrong_arguments(given: tuple[Any, ...], named: dict[str, Any], said: str) -> None:
    network, _ = kit.convert_it(TwoInputs(), torch.randn(5, 12), torch.randn(5, 3))
    with pytest.raises(TypeError, match=said):
        network(*given, **named)


def test_an_input_that_is_no_batch_of_the_others() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(12, 4)

        def forward(self, x: Tensor, table: Tensor, factor: Tensor) -> Tensor:
            return self.layer(x) @ table * factor

    given = torch.randn(5, 12), torch.randn(4, 4), torch.tensor(2.0)
    model = nn.ModuleList([Scaled()])[0]
    network, _ = kit.convert_it(model, *given)
    kit.close(network(*given), model(*given))


def test_gradients_accumulate_and_are_clipped_as_usual() -> None:
    model, x = kit.cnn(), torch.randn(kit.IMAGES)
    topology = Topology(model, sparsity=0.7)
    twin = copy.deepcopy(model)
    network = to_engine(model, topology, x, engine="sparse")
    for each in (network, twin):
        for part in x.split(3):
            (each(part).square().mean() / 2).backward()
    kit.assert_same_gradients(network, twin)
    for name, parameter in twin.named_parameters():
        if name in topology.masks and parameter.grad is not None:
            parameter.grad *= topology.masks[name]
    norms = [nn.utils.clip_grad_norm_(each.parameters(), 0.01) for each in (network, twin)]
    kit.close(*norms)
    kit.assert_same_gradients(network, twin)


def test_a_gradient_scaler_that_is_off_and_one_that_is_on() -> None:
    for enabled in (False, True):
        network, topology = kit.convert_it(kit.cnn(), torch.randn(kit.IMAGES))
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
        topology.attach(optimizer)
        scaler = torch.amp.GradScaler("cpu", enabled=enabled, init_scale=64.0)
        before = network.get_submodule("4").values.detach().clone()
        scaler.scale(network(torch.randn(kit.IMAGES)).square().mean()).backward()
        scaler.step(optimizer)
        scaler.update()
        assert topology.num_steps == 1
        assert not torch.equal(network.get_submodule("4").values, before)


@pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("make", [kit.cnn, kit.Undecided])
def test_evaluation_without_gradients_and_training_after_it(make: Any, without: Any) -> None:
    """Whatever is prepared in an evaluation serves the training that follows, and the reverse."""
    model, x = make(), torch.randn(kit.IMAGES)
    topology = Topology(model, sparsity=0.7)
    twin = copy.deepcopy(model)
    network = to_engine(model, topology, x, engine="sparse")
    for _ in range(2):
        results = []
        for each in (network, twin):
            each.eval()
            with without():
                results.append(each(x))
                assert not results[-1].requires_grad
            each.train()
            each.zero_grad()
            each(x).square().mean().backward()
        kit.close(*results)
        kit.assert_same_gradients(network, twin)


@pytest.mark.parametrize("name", kit.NETWORKS)
def test_autocast_around_it(name: str) -> None:
    make, shape = kit.NETWORKS[name]
    model, x = make(), torch.randn(shape)
    topology = Topology(model, sparsity=0.7)
    twin = copy.deepcopy(model)
    network = to_engine(model, topology, x, engine="sparse")
    results = []
    for each in (network, twin):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            result = each(x)
            result.float().square().mean().backward()
        results.append(result.float())
    torch.testing.assert_close(results[0], results[1], rtol=0.1, atol=0.1)
    assert all(
        bool(torch.isfinite(p.grad).all()) for p in network.parameters() if p.grad is not None
    )


def test_checkpointed_activations() -> None:
    from torch.utils.checkpoint import checkpoint

    network, _ = kit.convert_it(kit.cnn(), torch.randn(kit.IMAGES))
    network.get_submodule("1").eval()
    x = torch.randn(kit.IMAGES, requires_grad=True)
    network(x).sum().backward()
    expected = {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}
    network.zero_grad()
    checkpoint(network, x, use_reentrant=False).sum().backward()
    for name, parameter in network.named_parameters():
        kit.close(parameter.grad, expected[name]) if parameter.grad is not None else None
