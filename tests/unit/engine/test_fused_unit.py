"""Convolution, bias, BatchNorm, residual and ReLU in one step, against torch's modules."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from importlib import import_module
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from equipoise.engine.convolution import Geometry, Tiling, Way
from equipoise.engine.program import UnitStep

kit: Any = import_module("tests.unit.engine.engine_kit")

pytestmark = kit.needs_kernels


class Block(nn.Module):
    """One unit; the residual is on the side that is asked for, or missing."""

    def __init__(
        self,
        layer: nn.Module | None,
        norm: nn.Module | None,
        residual: str | None = None,
        rectify: str | None = "function",
    ) -> None:
        super().__init__()
        self.layer, self.norm = layer, norm
        self.residual, self.rectify = residual, rectify
        self.relu = nn.ReLU()

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        y = x if self.layer is None else self.layer(x)
        y = y if self.norm is None else self.norm(y)
        if self.residual == "left":
            y = other + y
        elif self.residual == "right":
            y = y + other
        elif self.residual == "in place":
            y += other
        elif self.residual == "method":
            y = y.add(other)
        elif self.residual == "torch":
            y = torch.add(other, y)
        if self.rectify == "function":
            return F.relu(y)
        if self.rectify == "module":
            return self.relu(y)
        if self.rectify == "method":
            return y.relu()
        if self.rectify == "in place":
            return F.relu(y, inplace=True)
        return y


WIDE = Way(wide=True)
FAR = Way(Tiling(2, 2, 2, 2), Tiling(3, 1, 4), Tiling(0, 1, 2, 4))


def way(given: Way) -> Callable[[Geometry, float, int], Way]:
    return lambda geometry, density, rows: given


def shake(norm: nn.Module) -> None:
    """Gives a norm numbers that it would not start with."""
    for name, tensor in [*norm.named_parameters(), *norm.named_buffers()]:
        if tensor.dtype == torch.float32:
            positive = name in ("running_var", "weight")
            tensor.data = torch.rand(tensor.shape) + 0.5 if positive else torch.randn(tensor.shape)


def compare(
    block: nn.Module,
    x: Tensor,
    other: Tensor,
    training: bool,
    given: Way,
    calls: int = 2,
    tolerance: float = 2e-5,
) -> None:
    """Outputs, all gradients and running statistics agree with torch in double precision."""
    block.train(training)
    reference, conversion = kit.twins(block, x, other, sparsity=0.5, way=way(given))
    assert conversion.untraced is None
    network = conversion.network
    (step,) = kit.steps_of(network, training=training)
    assert isinstance(step, UnitStep), "all of it in one step"
    with kit.watched_memory(len(x)):
        for call in range(calls):
            a, b = (t.detach().roll(call).requires_grad_() for t in (x, other))
            c, d = (t.detach().double().requires_grad_() for t in (a, b))
            y, expected = network(a, b), reference(c, d)
            dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(call))
            y.backward(dy)
            expected.backward(dy.double())
            assert kit.difference(y, expected) < tolerance
            assert (b.grad is None) == (d.grad is None)
            for got, wanted in ((a.grad, c.grad), (b.grad, d.grad)):
                assert got is None or kit.difference(got, wanted) < tolerance
    for name, got, wanted in kit.gradients(network, reference):
        assert kit.difference(got, wanted) < tolerance, name
    kit.assert_same_statistics(network, reference)


def convolution(bias: bool) -> nn.Module:
    return nn.Conv2d(5, 6, 3, 2, 1, bias=bias)


def with_maps(samples: int = 18) -> tuple[Tensor, Tensor]:
    torch.manual_seed(samples)
    return torch.randn(samples, 5, 5, 7), torch.randn(samples, 6, 3, 4)


def norms() -> Iterator[tuple[str, Callable[[int], nn.Module]]]:
    """Every way to set up a BatchNorm."""
    yield "plain", lambda n: nn.BatchNorm2d(n)
    yield "cumulative", lambda n: nn.BatchNorm2d(n, momentum=None)
    yield "fast", lambda n: nn.BatchNorm2d(n, momentum=0.9, eps=1e-2)
    yield "frozen mean", lambda n: nn.BatchNorm2d(n, momentum=0.0)
    yield "without parameters", lambda n: nn.BatchNorm2d(n, affine=False)
    yield "without statistics", lambda n: nn.BatchNorm2d(n, track_running_stats=False)
    yield "bare", lambda n: nn.BatchNorm2d(n, affine=False, track_running_stats=False)


NORMS = dict(norms())


@pytest.mark.parametrize("given", [Way(), WIDE, FAR], ids=["plain", "wide", "far"])
@pytest.mark.parametrize("residual", [None, "left", "right"])
@pytest.mark.parametrize("rectify", [None, "function"])
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_every_combination(
    given: Way, residual: str | None, rectify: str | None, normed: bool, training: bool
) -> None:
    x, other = with_maps()
    for bias in (False, True):
        norm = nn.BatchNorm2d(6) if normed else None
        if norm is not None:
            shake(norm)
        compare(Block(convolution(bias), norm, residual, rectify), x, other, training, given)


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_every_batch_norm(kind: str, training: bool, bias: bool) -> None:
    x, other = with_maps(17)
    norm = NORMS[kind](6)
    shake(norm)
    compare(Block(convolution(bias), norm, "right"), x, other, training, Way(), calls=3)


@pytest.mark.parametrize("residual", ["in place", "method", "torch"])
@pytest.mark.parametrize("rectify", ["module", "method", "in place"])
def test_every_way_to_write_it(residual: str, rectify: str) -> None:
    x, other = with_maps(3)
    compare(Block(convolution(True), nn.BatchNorm2d(6), residual, rectify), x, other, True, Way())


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("rectify", [None, "module"])
@pytest.mark.parametrize("residual", [None, "left"])
@pytest.mark.parametrize("samples", [2, 16, 33])
def test_of_a_linear_layer(
    training: bool, rectify: str | None, residual: str | None, samples: int
) -> None:
    torch.manual_seed(0)
    x, other = torch.randn(samples, 20), torch.randn(samples, 12)
    for norm, bias in product((None, nn.BatchNorm1d(12)), (False, True)):
        layer = nn.Linear(20, 12, bias=bias)
        # Of two samples, BatchNorm makes numbers near one and minus one, whatever they were.
        tolerance = 2e-4 if samples == 2 else 2e-5
        block = Block(layer, copy.deepcopy(norm), residual, rectify)
        compare(block, x, other, training, WIDE, tolerance=tolerance)


class After(nn.Module):
    """A unit without a layer, behind one; the layer in front makes maps."""

    def __init__(self, norm: nn.Module | None, residual: bool, rectify: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.norm, self.residual, self.rectify = norm, residual, rectify
        self.last = nn.Conv2d(4, 4, 5, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        z = torch.sigmoid(y) if self.norm is None else self.norm(torch.sigmoid(y))
        z = z + y if self.residual else z
        z = F.relu(z) if self.rectify else z
        return self.last(z) + y.mean()


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("rectify", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("wide", [False, True])
def test_without_a_layer(
    normed: bool, residual: bool, rectify: bool, training: bool, wide: bool
) -> None:
    torch.manual_seed(1)
    x = torch.randn(20, 3, 4, 3)
    norm = nn.BatchNorm2d(4) if normed else None
    if norm is not None:
        shake(norm)
    block = After(norm, residual, rectify).train(training)
    reference, conversion = kit.twins(block, x, sparsity=0.5, way=way(Way(wide=wide)))
    assert conversion.untraced is None
    network = conversion.network
    with kit.watched_memory(len(x)):
        a, c = x.clone().requires_grad_(), x.double().requires_grad_()
        y, expected = network(a), reference(c)
        y.square().sum().backward()
        expected.square().sum().backward()
    assert kit.difference(y, expected) < 1e-5
    assert kit.difference(a.grad, c.grad) < 1e-5
    for name, got, wanted in kit.gradients(network, reference):
        assert kit.difference(got, wanted) < 1e-5, name
    kit.assert_same_statistics(network, reference)


@pytest.mark.parametrize("frozen", ["values", "bias", "norm", "input", "all but the input"])
@pytest.mark.parametrize("training", [False, True])
def test_what_is_frozen_gets_no_gradient(frozen: str, training: bool) -> None:
    x, other = with_maps(5)
    block = Block(convolution(True), nn.BatchNorm2d(6), "right").train(training)
    reference, conversion = kit.twins(block, x, other, sparsity=0.5)
    network = conversion.network
    for module in (network, reference):
        for name, parameter in module.named_parameters():
            kind = "norm" if "norm" in name else "bias" if "bias" in name else "values"
            parameter.requires_grad_(frozen not in (kind, "all but the input"))
    a, c = x.clone(), x.double()
    if frozen != "input":
        a.requires_grad_()
        c.requires_grad_()
    network(a, other).sum().backward()
    reference(c, other.double()).sum().backward()
    assert (a.grad is None) == (frozen == "input")
    if a.grad is not None:
        assert kit.difference(a.grad, c.grad) < 2e-5
    found = [name for name, *_ in kit.gradients(network, reference)]
    assert len(found) == sum(p.requires_grad for p in network.parameters())
    for name, got, wanted in kit.gradients(network, reference):
        assert kit.difference(got, wanted) < 2e-5, name


@pytest.mark.parametrize("samples", [1, 2])
def test_training_with_one_number_per_channel_is_refused(samples: int) -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    reference, conversion = kit.twins(model, torch.zeros(4, 4), sparsity=0.5)
    before = copy.deepcopy(model[1].running_mean)
    if samples == 1:
        for each, type_ in ((conversion.network, torch.float32), (reference, torch.float64)):
            with pytest.raises(ValueError, match="more than 1"):
                each(torch.zeros(1, 4, dtype=type_))
        assert torch.equal(model[1].running_mean, before)  # type: ignore[arg-type]
        conversion.network.eval()
    assert conversion.network(torch.zeros(samples, 4)).isfinite().all()


def test_one_sample_with_several_positions_is_normalised() -> None:
    x, other = with_maps(1)
    compare(Block(convolution(False), nn.BatchNorm2d(6)), x, other, True, Way())


def _numerically(function: Callable[..., Tensor], *inputs: Tensor) -> None:
    """Gradients agree with differences of the function's own values."""

    def widened(*given: Tensor) -> Tensor:
        return function(*(t.float() for t in given)).double()

    wide = [t.double().requires_grad_() for t in inputs]
    assert torch.autograd.gradcheck(widened, wide, eps=5e-3, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("given", [Way(), WIDE], ids=["plain", "wide"])
def test_gradients_are_those_of_its_own_values(training: bool, given: Way) -> None:
    torch.manual_seed(3)
    norm = nn.BatchNorm2d(3)
    shake(norm)
    block = Block(nn.Conv2d(2, 3, 3, padding=1), norm, "right", None)
    x, other = torch.randn(3, 2, 3, 3), torch.randn(3, 3, 3, 3)
    block.train(training)
    _, conversion = kit.twins(block, x, other, sparsity=0.5, way=way(given))
    network = conversion.network
    parameters = dict(network.named_parameters())

    def call(data: Tensor, added: Tensor, *given: Tensor) -> Tensor:
        named = dict(zip(parameters, given, strict=True))
        found: Tensor = torch.func.functional_call(network, named, (data, added))
        return found

    _numerically(call, x, other, *(p.detach() for p in parameters.values()))
