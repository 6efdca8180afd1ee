"""Pooling layers and means within a network, against torch's."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from equipoise.engine.convolution import Way
from equipoise.engine.program import PoolStep

kit: Any = import_module("tests.unit.engine.engine_kit")

pytestmark = kit.needs_kernels

POOLS: list[nn.Module] = [
    nn.MaxPool2d(2),
    nn.MaxPool2d(3, 2, 1),
    nn.MaxPool2d((2, 3), (1, 2), (1, 0)),
    nn.MaxPool2d(4, 1, 2),
    nn.AvgPool2d(2),
    nn.AvgPool2d(3, 2, 1),
    nn.AvgPool2d(3, 1, 1, count_include_pad=False),
    nn.AvgPool2d((1, 4), (2, 3)),
    nn.AdaptiveAvgPool2d(1),
    nn.AdaptiveAvgPool2d((1, 1)),
]
PLAIN: list[nn.Module] = [
    nn.MaxPool2d(3, 2, ceil_mode=True),
    nn.MaxPool2d(2, dilation=2),
    nn.AvgPool2d(3, 2, ceil_mode=True),
    nn.AvgPool2d(2, divisor_override=3),
    nn.AdaptiveAvgPool2d(2),
    nn.AdaptiveMaxPool2d(1),
]


class Mean(nn.Module):
    """The mean over rows and columns, as methods and functions write it."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        match self.how:
            case "method":
                return x.mean((2, 3))
            case "kept":
                return x.mean(dim=[-2, -1], keepdim=True)
            case "function":
                return torch.mean(x, dim=(3, 2))
            case "one":
                return x.mean(3)
            case _:
                return x.mean((1, 2))


def compare(pool: nn.Module, x: Tensor, wide: bool, in_kernels: bool, pads: bool) -> None:
    """A pool behind a convolution, and before one if it gives maps."""
    layers = [nn.Conv2d(3, 5, 3, padding=1), pool]
    if pads:
        layers.append(nn.Conv2d(5, 4, 3, padding=1))
    model = nn.Sequential(*layers)
    given = Way(wide=wide)
    reference, conversion = kit.twins(model, x, sparsity=0.3, way=lambda *_: given)
    network = conversion.network
    assert isinstance(kit.steps_of(network)[1], PoolStep) == in_kernels
    with kit.watched_memory(len(x)):
        a, c = x.clone().requires_grad_(), x.double().requires_grad_()
        y, expected = network(a), reference(c)
        dy = torch.randn(y.shape)
        y.backward(dy)
        expected.backward(dy.double())
    assert kit.difference(y, expected) < 1e-5
    assert kit.difference(a.grad, c.grad) < 1e-5
    for name, got, wanted in kit.gradients(network, reference):
        assert kit.difference(got, wanted) < 1e-5, name


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("samples", [3, 16, 17])
@pytest.mark.parametrize("pool", POOLS + PLAIN, ids=str)
def test_pooling_layers(pool: nn.Module, samples: int, wide: bool) -> None:
    torch.manual_seed(samples)
    x = torch.randn(samples, 3, 6, 7)
    compare(pool, x, wide, in_kernels=pool in POOLS, pads=True)


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("how", ["method", "kept", "function", "one", "others"])
def test_means(how: str, wide: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 3, 4, 3)
    in_kernels = how in ("method", "kept", "function")
    compare(Mean(how), x, wide, in_kernels=in_kernels, pads=how == "kept")


@settings(max_examples=40, deadline=None)
@given(
    st.booleans(),
    st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(0, 2)),
    st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(0, 2)),
    st.tuples(st.integers(1, 20), st.integers(1, 7), st.integers(1, 7)),
    st.booleans(),
)
def test_any_window(
    largest: bool,
    high: tuple[int, int, int],
    broad: tuple[int, int, int],
    size: tuple[int, int, int],
    wide: bool,
) -> None:
    kernel, stride, padding = ((a, b) for a, b in zip(high, broad, strict=True))
    padding = (min(padding[0], kernel[0] // 2), min(padding[1], kernel[1] // 2))
    rows, columns = max(size[1], kernel[0]), max(size[2], kernel[1])
    kind = nn.MaxPool2d if largest else nn.AvgPool2d
    torch.manual_seed(rows)
    x = torch.randn(size[0], 3, rows, columns)
    compare(kind(kernel, stride, padding), x, wide, in_kernels=True, pads=True)


@pytest.mark.parametrize("pool", [POOLS[0], POOLS[4], POOLS[8]], ids=str)
def test_what_is_no_batch_of_maps_is_torch_s_work(pool: nn.Module) -> None:
    model = nn.Sequential(pool, nn.Flatten(-3), nn.Linear(12, 4))
    x = torch.randn(2, 12, 2, 2)
    if not isinstance(pool, nn.AdaptiveAvgPool2d):
        x = torch.randn(2, 3, 4, 4)
    reference, conversion = kit.twins(model, x, sparsity=0.5)
    network = conversion.network
    for batch in (x, x[0], x[0].clone()):
        got, expected = network(batch), reference(batch.double())
        assert kit.difference(got, expected) < 1e-6
    got = network.get_submodule("0")(x.double())
    assert got.dtype == torch.float64


class Sequence(nn.Module):
    """Means over dimensions that are not rows and columns, though they are numbered so."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        return y.mean(dim=(-2, -1))


def test_a_mean_over_the_last_two_of_three_dimensions() -> None:
    model = Sequence()
    x = torch.randn(3, 4, 6)
    reference, conversion = kit.twins(model, x, sparsity=0.5)
    assert conversion.untraced is None
    assert kit.difference(conversion.network(x), reference(x.double())) < 1e-6
