"""Candidates for the way to run a layer, timed against each other and against torch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import linear

from equipoise.engine.convolution import (
    Geometry,
    Plan,
    Tiling,
    Way,
    convolve,
    input_gradient,
    weight_gradient,
)
from equipoise.engine.csr import Pattern, csr_linear
from equipoise.engine.maps import Form, Maps, clear_border, convert, new_maps, restore

# Tiles worth trying, as (rows, columns); what the registers do not hold the kernels make smaller.
_SINGLE = ((1, 8), (1, 16), (2, 4), (2, 8), (4, 4), (1, 4), (1, 6), (2, 2))
_PAIRS = ((1, 8, 2), (2, 4, 2), (1, 4, 2), (2, 2, 2), (1, 2, 2))
_QUADS = ((2, 2, 4), (1, 4, 4), (2, 3, 4), (1, 1, 4))
_BLOCKS = (0, 16, 32)
# Densities from which it can pay that two or four rows share what they read.
_PAIRS_FROM = 0.2
_QUADS_FROM = 0.4
_TIMED_BATCH = 32
_REPEATS = 3
_FINALISTS = 4
_LARGEST_BATCH = 128  # finalists are timed with the whole batch, up to this
_FLUSHED = 12 << 20  # numbers, more than a last-level cache holds


def orders(rows: int, columns: int) -> Iterator[bool]:
    """Whether maps of this size may lie wide, or must."""
    points = rows * columns
    if points > 1:
        yield False
    # A list for single positions has an entry for each of them, so it grows with the map.
    if points <= 4:
        yield True


def _tilings(rows: int, columns: int, *, density: float, channels: int, wide: bool) -> list[Tiling]:
    """Tilings worth timing for maps of this size."""
    blocks = [b for b in _BLOCKS if b < channels]
    groups = {1: True, 2: density >= _PAIRS_FROM, 4: density >= _QUADS_FROM}
    if wide:
        tiles = [(1, 8, 1), (1, 4, 1), (1, 16, 1), (1, 4, 4), (1, 8, 2), (1, 2, 4)]
    else:
        fitting = [t for t in _SINGLE if t[0] <= rows and t[1] <= columns] or [(1, 1)]
        shared = [t for t in _PAIRS + _QUADS if t[0] <= rows and t[1] <= columns]
        tiles = [(*tile, 1) for tile in fitting] + shared
    return [Tiling(b, *tile) for b in blocks for tile in tiles if groups[tile[2]]]


@dataclass(frozen=True)
class Trials:
    """A layer that is to be timed in one order of memory.

    Args:
        geometry: The layer.
        positions: Of its active weights.
        rows: Height of its input maps.
        columns: Their width.
        wide: Whether maps lie wide.
    """

    geometry: Geometry
    positions: Tensor
    rows: int
    columns: int
    wide: bool

    def plan(self, way: Way) -> Plan:
        """A plan for it."""
        return Plan(
            *(self.geometry, self.positions, replace(way, wide=self.wide), self.rows, self.columns),
            0 if self.wide else self.geometry.border,
            0 if self.wide else self.geometry.gradient_border(self.rows, self.columns),
        )

    def products(self, samples: int) -> list[Callable[[Tiling], Callable[[], object]]]:
        """Forward pass, gradient of the input and of the weights: a tiling becomes a call."""
        plain = self.plan(Way())
        x = _noise(plain.in_form(samples))
        dy = _noise(plain.out_form(samples, plain.gradient_border))
        values = torch.full((self.positions.numel(),), 0.01)

        def forward(tiling: Tiling) -> Callable[[], object]:
            plan = self.plan(Way(forward=tiling, weight=tiling))
            return lambda: convolve(plan, values, x, 0)

        def for_input(tiling: Tiling) -> Callable[[], object]:
            plan = self.plan(Way(input=tiling))
            return lambda: input_gradient(plan, values, dy)

        def for_weights(tiling: Tiling) -> Callable[[], object]:
            plan = self.plan(Way(forward=tiling, weight=tiling))
            return lambda: weight_gradient(plan, x, dy)

        return [forward, for_input, for_weights]


def fastest_tilings(trials: Trials, batch: int, density: float) -> tuple[float, Way]:
    """The best tilings for one order in memory, and their seconds per sample.

    All are timed for the forward pass of a few samples, the best of those for all three products
    of a whole batch, with maps that are in no cache, as in a network.

    Args:
        trials: The layer.
        batch: Samples in a training batch.
        density: Share of its weights that is active.
    """
    few = batch if trials.wide else min(batch, _TIMED_BATCH)
    channels = max(trials.geometry.in_channels, trials.geometry.out_channels)
    out = trials.geometry.output(trials.rows, trials.columns)
    tilings = _tilings(*out, density=density, channels=channels, wide=trials.wide)
    ranked = [tiling for _, tiling in _ranked(tilings, trials.products(few)[0])]
    single = [tiling for tiling in ranked if tiling.group == 1][:_FINALISTS]
    finalists = list(dict.fromkeys((*ranked[:_FINALISTS], *single)))
    if not trials.wide:
        finalists.append(replace(ranked[0], ahead=0))
    whole = min(batch, max(few, _LARGEST_BATCH))
    other = torch.zeros(_FLUSHED)
    best = [
        _ranked(finalists, product, before=lambda: other.add_(1.0))[0]
        for product in trials.products(whole)
    ]
    forward, for_input, for_weights = (tiling for _, tiling in best)
    seconds = sum(shortest for shortest, _ in best) / whole
    return seconds, Way(forward, for_input, for_weights, trials.wide)


def _ranked(
    tilings: Iterable[Tiling],
    make: Callable[[Tiling], Callable[[], object]],
    before: Callable[[], object] = lambda: None,
) -> list[tuple[float, Tiling]]:
    """Tilings by their shortest time; one that is far behind is not timed again."""
    found: list[tuple[float, Tiling]] = []
    best = math.inf
    for tiling in tilings:
        run = make(tiling)
        run()  # makes the list
        shortest = math.inf
        for _ in range(_REPEATS):
            before()
            start = time.perf_counter()
            run()
            shortest = min(shortest, time.perf_counter() - start)
            if shortest > 1.3 * best:
                break
        best = min(best, shortest)
        found.append((shortest, tiling))
    return sorted(found, key=lambda pair: pair[0])


def torch_seconds(geometry: Geometry, rows: int, columns: int, batch: int) -> float:
    """Seconds per sample by torch, with the dense weight and the faster memory format.

    What takes the place of a layer between layers of the kernels: changes of layout are included.
    """
    if _is_linear(geometry, rows, columns):
        samples, outputs, inputs = min(batch, _LARGEST_BATCH), *geometry.weight_shape[:2]
        best = _shortest(dense_linear(samples, inputs, outputs))
    else:
        samples = min(batch, _TIMED_BATCH)
        best = _convolution_seconds(geometry, rows, columns, samples)
    out = geometry.output(rows, columns)
    maps = (
        _noise(Form(samples, geometry.in_channels, rows, columns)),
        _noise(Form(samples, geometry.out_channels, *out)),
    )

    def change_layout() -> None:
        for each in maps:
            convert(restore(each), each.form)

    return (best + _shortest(change_layout)) / samples


def _is_linear(geometry: Geometry, rows: int, columns: int) -> bool:
    """Whether a layer is the same as a linear one: points, each seen once and whole."""
    points = rows == columns == 1 and geometry.groups == 1
    return points and geometry == Geometry(geometry.out_channels, geometry.in_channels)


def _convolution_seconds(geometry: Geometry, rows: int, columns: int, samples: int) -> float:
    """Seconds of a convolution by torch, all three products, in the faster memory format."""
    out = geometry.output(rows, columns)
    plans = [
        (
            torch.rand(samples, geometry.in_channels, rows, columns).contiguous(memory_format=kind),
            torch.rand(samples, geometry.out_channels, *out).contiguous(memory_format=kind),
            torch.rand(geometry.weight_shape).contiguous(memory_format=kind),
        )
        for kind in (torch.contiguous_format, torch.channels_last)
    ]
    sides = (geometry.stride, geometry.padding, geometry.dilation)

    def run(x: Tensor, dy: Tensor, weight: Tensor) -> None:
        torch.conv2d(x, weight, None, *sides, geometry.groups)
        torch.ops.aten.convolution_backward(
            *(dy, x, weight, None, *sides, False, (0, 0), geometry.groups, (True, True, False))
        )

    return min(_shortest(partial(run, *plan)) for plan in plans)


def dense_linear(samples: int, inputs: int, outputs: int) -> Callable[[], object]:
    """A linear layer by torch with its dense weight: forward and backward pass of one batch."""
    x = torch.rand(samples, inputs, requires_grad=True)
    dy = torch.rand(samples, outputs)
    weight = torch.full((outputs, inputs), 0.01, requires_grad=True)
    return lambda: torch.autograd.grad(linear(x, weight), (x, weight), dy)


def csr_seconds(geometry: Geometry, positions: Tensor, batch: int) -> tuple[float, float]:
    """Seconds per sample of a linear layer by torch's CSR products, and with the dense weight.

    Args:
        geometry: The layer.
        positions: Of its active weights.
        batch: Samples in a training batch.
    """
    outputs, inputs = geometry.weight_shape[:2]
    pattern = Pattern(positions, outputs, inputs)
    x = torch.rand(batch, inputs, requires_grad=True)
    dy = torch.rand(batch, outputs)
    values = torch.full((positions.numel(),), 0.01, requires_grad=True)

    def sparse() -> None:
        torch.autograd.grad(csr_linear(x, values, None, pattern), (x, values), dy)

    dense = dense_linear(batch, inputs, outputs)
    # In turns, so that both meet the same disturbances.
    times = [(_shortest(sparse), _shortest(dense)) for _ in range(_REPEATS)]
    return min(a for a, _ in times) / batch, min(b for _, b in times) / batch


def _shortest(run: Callable[[], object]) -> float:
    """The least of a few timings, after a first call that does not count."""
    run()
    found = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return min(found)


def _noise(form: Form) -> Maps:
    """Maps with numbers that are neither zero nor denormal."""
    maps = new_maps(form)
    maps.data.fill_(0.5)
    clear_border(maps.data, form.border)  # the memory goes back to the pool
    return maps
