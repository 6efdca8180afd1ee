"""Whole networks: what models write in their forward pass, traced and fused, against torch."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from equipoise import Topology
from equipoise.engine.convolution import Way
from equipoise.engine.layers import SparseLayer
from equipoise.engine.network import to_dense
from equipoise.engine.program import PlainStep, UnitStep

kit: Any = import_module("tests.unit.engine.engine_kit")

pytestmark = kit.needs_kernels

WIDE = Way(wide=True)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def scalar(value: Any) -> Tensor:
    """One number that depends on everything returned."""
    if isinstance(value, Tensor):
        weights = torch.linspace(-1, 1, value.numel(), dtype=value.dtype).view(value.shape)
        return (value * weights).sum()
    parts = list(value.values()) if isinstance(value, dict) else list(value)
    found: Tensor = sum(scalar(part) * (k + 1) for k, part in enumerate(parts))  # type: ignore[assignment]
    return found


def double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def assert_same_values(got: Any, expected: Any, tolerance: float) -> None:
    if isinstance(expected, Tensor):
        assert kit.difference(got, expected) < tolerance
        return
    assert type(got) is type(expected)
    if isinstance(expected, dict):
        assert list(got) == list(expected)
        got["more"] = got.pop("more", None)  # it is the caller's own, to change
        del got["more"]
        got, expected = list(got.values()), list(expected.values())
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        assert_same_values(a, b, tolerance)


def compare(
    model: nn.Module,
    *inputs: Any,
    traced: bool = True,
    tolerance: float = 1e-5,
    modes: tuple[bool, ...] = (True, False),
    **options: Any,
) -> nn.Module:
    """Outputs, gradients and statistics agree in both modes; the converted network."""
    reference, conversion = kit.twins(model, *inputs, **{"sparsity": 0.5, **options})
    assert (conversion.untraced is None) == traced, conversion.untraced
    network = conversion.network
    assert any(isinstance(m, SparseLayer) for m in network.modules())
    for training in modes:
        network.train(training)
        reference.train(training)
        network.zero_grad()
        reference.zero_grad()
        mine = [x.clone().requires_grad_() if x.is_floating_point() else x for x in inputs]
        theirs = [x.double().requires_grad_() if x.is_floating_point() else x for x in inputs]
        got, expected = network(*mine), reference(*theirs)
        assert_same_values(got, expected, tolerance)
        scalar(got).backward()
        scalar(expected).backward()
        for a, b in zip(mine, theirs, strict=True):
            assert a.grad is None or kit.difference(a.grad, b.grad) < tolerance
        for name, gradient, wanted in kit.gradients(network, reference):
            assert kit.difference(gradient, wanted) < tolerance, name
        kit.assert_same_statistics(network, reference)
    assert isinstance(network, nn.Module)
    return network


class Net(nn.Module):
    """Two convolutions and what a function makes of them."""

    def __init__(self, code: Callable[[Any, Tensor], Any], **more: nn.Module) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 6, 3, padding=1)
        self.b = nn.Conv2d(6, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.relu = nn.ReLU()
        self.loud = nn.ReLU(inplace=True)
        self.head = nn.Linear(6, 4)
        self.code = code
        for name, module in more.items():
            setattr(self, name, module)

    def forward(self, x: Tensor) -> Any:
        return self.code(self, x)


def maps(samples: int = 3) -> Tensor:
    return torch.randn(samples, 3, 5, 4)


def pooled(net: Any, y: Tensor) -> Tensor:
    found: Tensor = net.head(y.mean((2, 3)))
    return found


def _left(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    return pooled(net, F.relu(y + net.norm(net.b(y))))


def _right(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    return pooled(net, F.relu(net.norm(net.b(y)) + y))


def _twice_the_same(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    return pooled(net, y + y)


def _both_from_layers(net: Any, x: Tensor) -> Tensor:
    y = net.a(x).relu()
    return pooled(net, net.relu(net.b(y) + net.norm(y)))


def _three_terms(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    return pooled(net, F.relu(net.b(y) + y + net.norm(y)))


def _read_before_the_sum(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    z = net.b(y)
    return pooled(net, F.relu(z + y)) + pooled(net, z)


def _called_twice(net: Any, x: Tensor) -> Tensor:
    y = net.norm(net.a(x))
    return pooled(net, net.relu(net.norm(net.b(net.relu(net.b(y))))))


def _viewed(net: Any, x: Tensor) -> Tensor:
    y = F.adaptive_avg_pool2d(net.b(net.a(x)), 1)
    found: Tensor = net.head(y.view(y.size(0), -1))
    return found


def _reshaped(net: Any, x: Tensor) -> Tensor:
    y = F.avg_pool2d(net.a(x), (5, 4))
    found: Tensor = net.head(torch.flatten(y, start_dim=1))
    return found


def _other_activations(net: Any, x: Tensor) -> Tensor:
    y = F.gelu(net.norm(net.a(x)))
    return pooled(net, torch.tanh(net.b(y) * 0.5 + 1.0))


def _scaled(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    return pooled(net, torch.add(net.b(y), y, alpha=0.5))


def _concatenated(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    return pooled(net, torch.cat([y[:, :3], net.b(y)[:, 3:]], dim=1))


def _padded(net: Any, x: Tensor) -> Tensor:
    return pooled(net, F.pad(net.b(F.relu(net.a(x))), (1, 0, 0, 2)))


def _repeated_over_samples(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    return pooled(net, F.relu(net.b(y) + y[:1]))


def _repeated_over_positions(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    return pooled(net, F.relu(net.norm(net.b(y)) + y.mean((2, 3), keepdim=True)))


def _repeated_over_rows_of_features(net: Any, x: Tensor) -> Tensor:
    y = net.head(net.a(x).mean((2, 3)))
    return F.relu(y + y[:1])


def _added_number(net: Any, x: Tensor) -> Tensor:
    return pooled(net, F.relu(net.a(x) + 1.0))


def _size_added(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    return pooled(net, y.size(0) + y)


def _rows_added(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    return pooled(net, y * (y.size(2) + y.size(3)))


def _indexed(net: Any, x: Tensor) -> Tensor:
    y = net.b(F.relu(net.a(x)))
    return pooled(net, y[:, :, ::2, 1:] - y.amax((2, 3), keepdim=True))


def _attention(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    gate = torch.sigmoid(y.mean((2, 3), keepdim=True))
    return pooled(net, net.norm(net.b(y)) * gate)


def _forms(net: Any, x: Tensor) -> dict[str, Any]:
    y = net.a(x)
    z = net.norm(net.b(y)).relu()
    return {"maps": z, "pair": (y, pooled(net, z)), "list": [z.mean((2, 3))], "size": z}


def _tuple(net: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    y = F.relu(net.a(x))
    return y, pooled(net, net.b(y))


def _assigned(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    before = net.b(y)
    before += y
    before /= 2.0
    before *= y
    size = y.size(2)
    size += 2
    return pooled(net, net.norm(before) * size)


CODES = [
    *(_left, _right, _twice_the_same, _both_from_layers, _three_terms, _read_before_the_sum),
    *(_called_twice, _viewed, _reshaped, _other_activations, _scaled, _concatenated, _padded),
    *(_repeated_over_samples, _repeated_over_positions, _repeated_over_rows_of_features),
    *(_assigned, _added_number, _size_added, _rows_added, _indexed, _attention, _forms, _tuple),
]


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("code", CODES)
def test_what_a_forward_pass_may_say(code: Callable[[Any, Tensor], Any], wide: bool) -> None:
    for samples in (3, 17):
        if wide:
            compare(Net(code), maps(samples), way=lambda *_: WIDE)
        else:
            compare(Net(code), maps(samples))


def _one_layer_between_different_neighbours(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    z = F.relu(net.b(y) + net.broad(y))  # y has a border for the broad one
    return pooled(net, net.b(z) + net.b(y))


@pytest.mark.parametrize("wide", [False, True])
def test_one_layer_meets_maps_with_different_borders(wide: bool) -> None:
    code = _one_layer_between_different_neighbours
    model = Net(code, broad=nn.Conv2d(6, 6, 5, padding=2))
    if wide:
        compare(model, maps(), way=lambda *_: WIDE)
    else:
        compare(model, maps())


def _relu_read_later(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    z = net.loud(y)
    return pooled(net, net.b(z) + y)


def _relu_function_read_later(net: Any, x: Tensor) -> Tensor:
    y = net.norm(net.a(x))
    z = net.b(F.relu(y, True))
    return pooled(net, z + y)


def _relu_method_read_later(net: Any, x: Tensor) -> Tensor:
    y = net.norm(net.a(x))
    y.relu_()
    return pooled(net, net.b(y))


def _sum_read_later(net: Any, x: Tensor) -> Tensor:
    y = net.norm(net.a(x))
    z = y
    z += net.b(torch.sigmoid(y))
    return pooled(net, z * y)


def _scaled_and_read_later(net: Any, x: Tensor) -> Tensor:
    y = net.norm(net.a(x))
    z = y
    z *= 2.0
    z -= 1.0
    return pooled(net, z * y)


def _read_before_and_after(net: Any, x: Tensor) -> Tensor:
    y = net.norm(net.a(x))
    before = y.mean((2, 3))
    y.mul_(2.0)
    found: Tensor = net.head(before + y.mean((2, 3)))
    return found


def _activation_read_later(net: Any, x: Tensor) -> Tensor:
    y = net.norm(net.a(x))
    F.leaky_relu(y, 0.1, True)
    return pooled(net, net.b(y))


@pytest.mark.parametrize(
    "code",
    [
        *(_relu_read_later, _relu_function_read_later, _relu_method_read_later),
        *(_read_before_and_after, _activation_read_later),
    ],
)
def test_later_readers_see_what_was_changed_in_place(code: Callable[[Any, Tensor], Any]) -> None:
    compare(Net(code), maps())


@pytest.mark.parametrize("code", [_sum_read_later, _scaled_and_read_later])
def test_assignments_to_what_is_read_again_are_not_followed(
    code: Callable[[Any, Tensor], Any],
) -> None:
    compare(Net(code), maps(), traced=False, tolerance=1e-4)


def test_bitwise_operators_change_nothing() -> None:
    def code(net: Any, x: Tensor) -> Tensor:
        y = net.a(x)
        positive = operator.and_(y > 0, y < 1)
        return pooled(net, torch.where(operator.or_(positive, y < -1), y, net.b(y)))

    compare(Net(code), maps())


def test_parameters_and_buffers_of_the_network_itself() -> None:
    class Shifted(Net):
        def __init__(self) -> None:
            super().__init__(_left)
            self.shift = nn.Parameter(torch.randn(1, 6, 1, 1))
            self.place = nn.Parameter(torch.randn(1, 6, 5, 4))
            self.register_buffer("factor", torch.randn(6, 1, 1))
            self.row = nn.Parameter(torch.randn(1, 6))

        def forward(self, x: Tensor) -> Tensor:
            y = self.b(F.relu(self.a(x) + self.shift)) + self.place
            z = self.norm(y) * self.factor
            found: Tensor = self.head(z.mean((2, 3)) + self.row)
            return found + self.row[:, :4]

    compare(Shifted(), maps())


@pytest.mark.parametrize("kind", [nn.ReLU, nn.ReLU6, nn.Sigmoid, nn.Identity])
def test_nested_sequences(kind: type[nn.Module]) -> None:
    inner = nn.Sequential(nn.Conv2d(4, 5, 3), nn.Sequential(nn.BatchNorm2d(5), kind()))
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 4, 1), kind()),
        inner,
        nn.Sequential(nn.Flatten(), nn.Linear(30, 7), nn.BatchNorm1d(7), kind()),
        nn.Linear(7, 2),
    )
    compare(model, maps(12))


@pytest.mark.parametrize("shape", [(5, 8), (8,), (2, 5, 8), (2, 2, 3, 8)])
def test_linear_networks_of_any_dimensions(shape: tuple[int, ...]) -> None:
    model = nn.Sequential(nn.Linear(8, 9), nn.ReLU(), nn.Linear(9, 4), nn.Tanh())
    network = compare(model, torch.randn(5, 8))
    reference = to_dense(copy.deepcopy(network))
    x = torch.randn(shape)
    assert kit.difference(network(x), reference(x)) < 1e-6


def test_batch_norm_of_three_dimensions() -> None:
    model = nn.Sequential(nn.Linear(8, 9), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(9, 3))
    compare(model, torch.randn(6, 4, 8))


def test_single_images() -> None:
    model = nn.Sequential(
        *(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 5, 2)),
        *(nn.Flatten(-3), nn.Linear(5, 2)),
    )
    network = compare(model, maps())
    x = torch.randn(3, 5, 4)
    assert kit.difference(network(x), to_dense(network)(x)) < 1e-6


def test_batches_of_other_sizes_and_maps() -> None:
    network = compare(Net(_left), maps())
    plain = to_dense(network)
    for shape in ((1, 3, 5, 4), (40, 3, 5, 4), (2, 3, 9, 1), (2, 3, 1, 9), (16, 3, 12, 12)):
        x = torch.randn(shape)
        network.eval()
        plain.eval()
        assert kit.difference(network(x), plain(x)) < 1e-5


def test_an_empty_batch() -> None:
    network = compare(Net(_left), maps()).eval()
    x = torch.zeros(0, 3, 5, 4, requires_grad=True)
    y = network(x)
    assert y.shape == (0, 4)
    y.sum().backward()
    assert x.grad is not None


class Dropping(nn.Module):
    """Dropout as a function, as a module, and in place."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3), nn.Linear(6, 8)
        self.drop, self.loud = nn.Dropout(0.5), nn.Dropout(0.5, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = F.dropout(self.a(x), 0.5, training=self.training)
        y = self.loud(self.drop(y).mean((2, 3)))
        found: Tensor = self.b(y)
        return found


def test_dropout_follows_the_mode() -> None:
    model = Dropping()
    x = torch.randn(64, 3, 4, 4)
    network = compare(model, x, modes=(False,))
    assert torch.equal(network.eval()(x), network(x))
    network.train()
    assert not torch.equal(network(x), network(x))
    torch.manual_seed(1)
    first = network(x)
    torch.manual_seed(1)
    assert torch.equal(first, network(x))
    plain = to_dense(network)
    torch.manual_seed(1)
    assert kit.difference(plain(x), first) < 1e-5


def test_parts_may_be_in_another_mode() -> None:
    reference, conversion = kit.twins(Net(_right), maps(), sparsity=0.5)
    for network in (conversion.network, reference):
        network.train()
        network.get_submodule("norm").eval()
    before = conversion.network.get_submodule("norm").running_mean.clone()
    x = maps()
    assert kit.difference(conversion.network(x), reference(x.double())) < 1e-5
    assert torch.equal(conversion.network.get_submodule("norm").running_mean, before)


class Deep(nn.Module):
    """A network with blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Net(_left)
        self.last = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.last(F.relu(self.block(x)))
        return found


WATCHED = ["block.a", "block.norm", "block.head", "block", "block.relu", "last", ""]


@pytest.mark.parametrize("path", WATCHED)
@pytest.mark.parametrize("kind", ["after", "before", "backward", "before backward"])
def test_hooks_of_every_module_keep_being_called(path: str, kind: str) -> None:
    model = Deep()
    model.block.code = _right
    if path == "block.relu":
        model.block.code = _both_from_layers
    seen: list[Any] = []
    module = model.get_submodule(path)
    if kind == "after":
        module.register_forward_hook(lambda m, given, out: seen.append(out))
    elif kind == "before":
        module.register_forward_pre_hook(lambda m, given: seen.append(given[0]))
    elif kind == "backward":
        module.register_full_backward_hook(lambda m, given, out: seen.extend(out))
    else:
        module.register_full_backward_pre_hook(lambda m, out: seen.extend(out))
    x = maps()
    reference = copy.deepcopy(model)
    network = kit.converted(model, Topology(model, sparsity=0.5), x).network
    seen.clear()
    x.requires_grad_()
    network(x).sum().backward()
    assert len(seen) == 1
    assert isinstance(seen[0], Tensor), "a value, and not a stand-in of the tracing"
    del reference


def test_hooks_that_change_what_passes() -> None:
    model = Deep()
    model.block.norm.register_forward_hook(lambda m, given, out: 2.0 * out)
    model.block.register_forward_pre_hook(lambda m, given: (given[0] - 1.0,))
    compare(model, maps(), traced=False)
    model = Deep()
    model.block.norm.register_forward_hook(lambda m, given, out: 2.0 * out)
    compare(model, maps())


class Branching(nn.Module):
    """What tracing cannot follow: the code depends on the numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.a(x)).mean((2, 3))
        if y.sum() > 1e9:
            y = y * 2.0
        found: Tensor = self.b(y)
        return found


def test_untraceable_networks_run_layer_by_layer() -> None:
    compare(Branching(), maps(), traced=False)


class Optional(nn.Module):
    """An argument with a default, which a program cannot know."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 5)

    def forward(self, x: Tensor, factor: float = 2.0) -> Tensor:
        found: Tensor = self.a(x) * factor
        return found


def test_defaults_keep_working() -> None:
    network = compare(Optional(), torch.randn(3, 4), traced=False)
    x = torch.ones(2, 4)
    assert kit.difference(network(x, factor=4.0), 2.0 * network(x)) < 1e-6


def test_two_inputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 5), nn.Linear(6, 5)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return torch.relu(self.a(x) + self.b(y))

    network = compare(Two(), torch.randn(3, 4), torch.randn(3, 6))
    assert len(kit.steps_of(network)) == 2
    x, y = torch.randn(3, 4), torch.randn(3, 6)
    assert torch.equal(network(y=y, x=x), network(x, y))
    for wrong in ((x,), (x, y, y)):
        with pytest.raises(TypeError):
            network(*wrong)


def test_layers_without_a_kernel_stay_torch_s() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"),
        *(nn.BatchNorm2d(4), nn.ReLU(), nn.ConvTranspose2d(4, 6, 2), nn.ReLU()),
        *(nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(48, 2)),
    )
    network = compare(model, maps())
    kinds = [type(m).__name__ for m in network.children()]
    assert kinds[0] == "Conv2d"
    assert kinds[3] == "ConvTranspose2d"
    assert "SparseLayer" in kinds
    assert isinstance(kit.steps_of(network)[0], PlainStep)


def test_shared_weights_stay_shared() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
            self.c = nn.Linear(6, 3)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.c(F.relu(self.b(F.relu(self.a(x)))))
            return found

    network = compare(Tied(), torch.randn(4, 6))
    assert network.get_submodule("a").weight is network.get_submodule("b").weight


def test_residual_blocks_are_one_step_per_convolution() -> None:
    network = compare(Net(_left), maps())
    steps = kit.steps_of(network)
    units = [step for step in steps if isinstance(step, UnitStep)]
    assert [(u.layer, u.norm, u.residual is not None, u.rectify) for u in units] == [
        ("a", None, False, False),
        ("b", "norm", True, True),
        ("head", None, False, False),
    ]
    assert not any(isinstance(step, PlainStep) for step in steps)


def test_copies_are_independent() -> None:
    network = compare(Net(_right), maps()).eval()
    x = maps()
    y = network(x)
    twin = copy.deepcopy(network)
    assert torch.equal(twin(x), y)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert torch.equal(network(x), y)
    assert not twin(x).any()
    dense = to_dense(twin)
    assert not any(p.any() for p in dense.parameters())


def test_the_plain_network_of_a_converted_one() -> None:
    model = Net(_right)
    plain = copy.deepcopy(model)
    topology = Topology(model, sparsity=0.5)
    masked = copy.deepcopy(model)
    network = kit.converted(model, topology, maps()).network
    dense = to_dense(network)
    assert type(dense) is Net
    assert list(dense.state_dict()) == list(plain.state_dict())
    assert str(dense) == str(plain)
    x = maps()
    assert torch.equal(dense.eval()(x), masked.eval()(x))
    assert kit.difference(dense(x), network.eval()(x)) < 1e-5


def test_values_swapped_for_one_call_count() -> None:
    network = compare(Net(_right), maps()).eval()
    x = maps()
    named = {name: torch.randn_like(p) for name, p in network.named_parameters()}
    before = network(x)
    swapped = torch.func.functional_call(network, named, (x,))
    assert torch.equal(network(x), before)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(named[name])
    assert torch.equal(network(x), swapped)


def test_channels_last_and_strided_inputs() -> None:
    network = compare(Net(_right), maps()).eval()
    x = torch.randn(4, 6, 5, 8)
    y = network(x[:, ::2, :, 1::2].contiguous())
    assert torch.equal(network(x[:, ::2, :, 1::2]), y)
    last = x[:, ::2, :, 1::2].contiguous(memory_format=torch.channels_last)
    assert torch.equal(network(last), y)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert torch.equal(network(last), y)
    one = x[:1, ::2, :, 1::2]
    assert torch.equal(network(one.expand(4, -1, -1, -1))[3], network(one)[0])


def test_automatic_casting_keeps_the_engine_s_precision() -> None:
    network = compare(Net(_other_activations), maps()).eval()
    x = maps()
    y = network(x)
    with torch.autocast("cpu", torch.bfloat16):
        low = network(x)
    assert kit.difference(low, y) < 2e-2


def test_networks_of_another_precision_are_refused() -> None:
    network = compare(Net(_right), maps()).eval()
    for change in (network.double, network.half, network.bfloat16):
        change()
        with pytest.raises((ValueError, RuntimeError)):
            network(maps())
    network.float()
    assert network(maps()).isfinite().all()


def _two_heads(net: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    y = F.relu(net.norm(net.a(x)))
    return net.b(y).mean((1, 2, 3)), (net.b(y) + y).mean((1, 2, 3))


@pytest.mark.parametrize("wide", [False, True])
def test_readers_that_the_loss_does_not_depend_on_have_no_gradient(wide: bool) -> None:
    """Gradients of a value with several readers are added up by us, whichever of them arrive."""
    options = {"way": lambda *_: WIDE} if wide else {}
    x = maps()
    reference, conversion = kit.twins(Net(_two_heads), x, sparsity=0.5, **options)
    for used in (0, 1):
        mine, theirs = x.clone().requires_grad_(), x.double().requires_grad_()
        conversion.network.zero_grad()
        reference.zero_grad()
        scalar(conversion.network(mine)[used]).backward()
        scalar(reference(theirs)[used]).backward()
        assert kit.difference(mine.grad, theirs.grad) < 1e-5
        for name, gradient, wanted in kit.gradients(conversion.network, reference):
            assert kit.difference(gradient, wanted) < 1e-5, name


def test_sums_of_gradients_take_no_fresh_memory() -> None:
    def block(net: Any, x: Tensor) -> Tensor:
        y = F.relu(net.norm(net.a(x)))
        return pooled(net, F.relu(net.b(net.relu(net.b(y))) + y))

    _, conversion = kit.twins(Net(block), maps(), sparsity=0.5)
    loss = scalar(conversion.network(maps()))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        loss.backward()
    names = {event.key for event in profile.key_averages()}
    assert "_ShareBackward" in names
    assert "aten::add" not in names
