"""Maxima over tiles of 2 x 2 taken by the step before them: the same numbers as one by one."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from equipoise.engine.maps import Maps, from_maps, to_maps
from equipoise.engine.operations import Unit, can_pool, pool_maps, unit_maps
from equipoise.engine.pooling import Window
from equipoise.engine.program import PoolStep, UnitStep
from equipoise.engine.stage import Norm

kit: Any = import_module("tests.unit.engine.engine_kit")

pytestmark = kit.needs_kernels

TILES = Window(largest=True, kernel=(2, 2), stride=(2, 2))


def norm_of(scale: Tensor, shift: Tensor, update: float | None = 0.1) -> Norm:
    channels = len(scale)
    running = torch.zeros(channels), torch.ones(channels)
    return Norm(scale, shift, *running, use_batch=True, update=update, epsilon=1e-5)


def run(x: Tensor, *, fused: bool, wide: bool, border: int) -> list[Tensor]:
    """Output, gradients of input, scale and shift, and running statistics."""
    generator = torch.Generator().manual_seed(3)
    channels = x.shape[1]
    scale = torch.randn(channels, generator=generator).requires_grad_()  # of both signs
    shift = torch.randn(channels, generator=generator).requires_grad_()
    x = x.clone().requires_grad_()
    norm = norm_of(scale, shift)
    maps = to_maps(x, border=0 if wide else 1, wide=wide)
    made: Maps
    if fused:
        made = unit_maps(maps, Unit(None, norm, rectify=True, border=border, pools=True))
    else:
        made = unit_maps(maps, Unit(None, norm, rectify=True, border=0))
        made = pool_maps(made, TILES, border=border)
    assert made.form.border == (0 if wide else border)
    y = from_maps(made)
    y.backward(torch.randn(y.shape, generator=generator))
    assert x.grad is not None
    assert scale.grad is not None
    assert shift.grad is not None
    assert norm.running_mean is not None
    assert norm.running_variance is not None
    return [y.detach(), norm.running_mean, norm.running_variance, x.grad, scale.grad, shift.grad]


def numbers(samples: int, channels: int, rows: int, columns: int) -> Tensor:
    """Few different ones, so that many are equal."""
    generator = torch.Generator().manual_seed(samples)
    return torch.randint(-2, 3, (samples, channels, rows, columns), generator=generator).float()


@pytest.mark.parametrize("instructions", kit.AVAILABLE)
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize(("samples", "rows", "columns"), [(1, 2, 2), (16, 4, 6), (37, 8, 2)])
@pytest.mark.parametrize("ties", [True, False])
def test_same_as_one_by_one(
    instructions: str, wide: bool, samples: int, rows: int, columns: int, ties: bool
) -> None:
    x = numbers(samples, 5, rows, columns)
    x = x if ties else x + torch.randn(x.shape, generator=torch.Generator().manual_seed(9))
    for number_threads in (1, 2):
        with kit.chosen(instructions), kit.threads(number_threads):
            apart = run(x, fused=False, wide=wide, border=2)
            with kit.watched_memory(samples):
                fused = run(x, fused=True, wide=wide, border=2)
        for got, expected in zip(fused[:3], apart[:3], strict=True):
            assert torch.equal(got, expected)
        for got, expected in zip(fused[3:], apart[3:], strict=True):
            assert kit.difference(got, expected) < 2e-6


@pytest.mark.parametrize("instructions", kit.AVAILABLE)
@pytest.mark.parametrize("odd", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_goes_where_it_went(instructions: str, odd: float) -> None:
    x = numbers(18, 3, 4, 4) + 0.5
    x[3, 1, 2, 3] = odd
    with kit.chosen(instructions):
        apart = run(x, fused=False, wide=False, border=0)
        fused = run(x, fused=True, wide=False, border=0)
    for got, expected in zip(fused, apart, strict=True):
        assert torch.equal(got.isnan(), expected.isnan())
        kept = ~expected.isnan()
        assert torch.allclose(got[kept], expected[kept], rtol=1e-4, atol=1e-5)


def test_input_that_wants_no_gradient() -> None:
    scale, shift = torch.ones(3, requires_grad=True), torch.zeros(3, requires_grad=True)
    unit = Unit(None, norm_of(scale, shift), rectify=True, border=0, pools=True)
    from_maps(unit_maps(to_maps(numbers(5, 3, 4, 4)), unit)).sum().backward()
    assert scale.grad is not None
    assert scale.grad.any()


def block(pool: nn.Module) -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), pool),
        *(nn.Conv2d(6, 4, 3, padding=1), nn.ReLU(), nn.Flatten()),
    )


@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.MaxPool2d(3, 2, 1)])
@pytest.mark.parametrize("shape", [(19, 3, 8, 6), (4, 3, 7, 6), (3, 3, 2, 2)])
def test_networks_of_any_size(pool: nn.Module, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape, requires_grad=True)
    reference, conversion = kit.twins(block(pool), x.detach())
    network = conversion.network
    unit = kit.steps_of(network)[0]
    assert isinstance(unit, UnitStep)
    assert isinstance(unit.pool, PoolStep)
    wide = x.detach().double().requires_grad_()
    expected = reference(wide)
    y = network(x)
    assert kit.difference(y, expected) < 1e-5
    dy = torch.randn(y.shape)
    y.backward(dy)
    expected.backward(dy.double())
    assert kit.difference(x.grad, wide.grad) < 1e-5
    for name, got, wanted in kit.gradients(network, reference):
        assert kit.difference(got, wanted) < 1e-5, name
    kit.assert_same_statistics(network, reference)
    network.eval()
    reference.eval()
    assert kit.difference(network(x), reference(wide)) < 1e-5


def test_whose_maps_somebody_else_reads_are_kept() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
            self.pool = nn.MaxPool2d(2)

        def forward(self, x: Tensor) -> Tensor:
            y = torch.relu(self.norm(self.conv(x)))
            return self.pool(y).sum() + y.sum()

    reference, conversion = kit.twins(Both(), torch.randn(4, 3, 4, 4))
    assert [type(step).__name__ for step in kit.steps_of(conversion.network)][:2] == [
        "UnitStep",
        "PoolStep",
    ]
    x = torch.randn(4, 3, 4, 4)
    assert kit.difference(conversion.network(x), reference(x.double())) < 1e-5


def test_only_batch_statistics_and_even_sides() -> None:
    norm = norm_of(torch.ones(2), torch.zeros(2))
    assert can_pool(norm, TILES, 4, 2)
    assert not can_pool(norm, TILES, 4, 3)
    assert not can_pool(norm, TILES, 5, 2)
    assert not can_pool(None, TILES, 4, 2)
    assert not can_pool(norm, Window(largest=False, kernel=(2, 2), stride=(2, 2)), 4, 2)
    assert not can_pool(replace(norm, use_batch=False), TILES, 4, 2)
