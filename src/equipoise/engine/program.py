"""A network as a list of steps that keep feature maps in the kernels' layout.

Steps name the modules that they use by path and find them at every call, so parameters and
buffers that are swapped for the time of a call (snapshots) are the ones that count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from equipoise.engine.convolution import Way
from equipoise.engine.layers import Dense, Plans, SparseLayer, bias_of, geometry_of
from equipoise.engine.maps import Maps, from_maps, in_form, to_maps
from equipoise.engine.operations import (
    Gather,
    Unit,
    can_pool,
    pool_maps,
    share_maps,
    unit_maps,
)
from equipoise.engine.pooling import Window
from equipoise.engine.stage import Norm


@dataclass(frozen=True)
class Flat:
    """Feature maps of single points that stand for a matrix (samples, features)."""

    maps: Maps


Value = Any
"""A plain tensor or object, `Maps`, or `Flat`."""


@dataclass(frozen=True)
class DenseWay:
    """How a layer that keeps its dense weight is run by the kernels."""

    way: Way
    plans: Plans
    positions: Tensor


@dataclass(frozen=True)
class Context:
    """What the steps of one call share.

    Args:
        module: Finds a module of the network by its path.
        attribute: Finds a parameter or buffer by its path.
        dense: Ways of the layers that are not sparse, by path.
        borders: Zeros that the readers of a value need around it, by the value's name.
    """

    module: Callable[[str], nn.Module]
    attribute: Callable[[str], Any]
    dense: Mapping[str, DenseWay]
    borders: Mapping[str, int]


class Step(Protocol):
    """One step: reads named values, makes one."""

    @property
    def out(self) -> str:
        """Name of the value that it makes."""
        ...  # pragma: no cover

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the values that it reads."""
        ...  # pragma: no cover

    def run(self, values: Mapping[str, Value], context: Context) -> Value:
        """Makes the value."""
        ...  # pragma: no cover


@dataclass(frozen=True)
class UnitStep:
    """Convolution or linear layer, BatchNorm, residual and ReLU; all but one optional.

    Pooling may follow BatchNorm and ReLU where there is no residual.
    """

    out: str
    input: str
    layer: str | None
    norm: str | None = None
    residual: str | None = None
    rectify: bool = False
    pool: PoolStep | None = None

    @property
    def inputs(self) -> tuple[str, ...]:
        """The input and the residual."""
        return (self.input,) if self.residual is None else (self.input, self.residual)

    def run(self, values: Mapping[str, Value], context: Context) -> Value:
        """Runs the fused kernels, or torch where the values have no place in their layout."""
        source = values[self.input]
        residual = None if self.residual is None else values[self.residual]
        layer = None if self.layer is None else context.module(self.layer)
        if not self._suits_kernels(source, residual, layer):
            return self._plain(source, residual, layer, context)
        weight = bias = plan = gather = None
        if layer is None:
            x = as_maps(source)
        else:
            assert isinstance(layer, SparseLayer | nn.Conv2d | nn.Linear)
            way, index, plans, weight, gather = self._weights(layer, context)
            geometry, bias = geometry_of(layer), bias_of(layer)
            x = as_maps(source, border=geometry.border, wide=way.wide)
            plan = plans.find(geometry, index, way, x)
        norm = None if self.norm is None else norm_call(context.module(self.norm))
        border = context.borders.get(self.out, 0)
        unit = Unit(plan, norm, rectify=self.rectify, border=border, gather=gather)
        window = None if self.pool is None else self.pool.window
        if window is not None:
            size = (x.form.rows, x.form.columns) if plan is None else plan.out
            pools = can_pool(norm, window, *size)
            unit = replace(unit, pools=pools, border=border if pools else 0)
        added = None if residual is None else as_maps(residual)
        made = unit_maps(x, unit, values=weight, bias=bias, residual=added)
        if window is not None and not unit.pools:
            made = pool_maps(made, window, border=border)
        return Flat(made) if _is_matrix(source) else made

    def _weights(
        self, layer: SparseLayer | Dense, context: Context
    ) -> tuple[Way, Tensor, Plans, Tensor, Gather | None]:
        """How a layer is run, and with what."""
        if isinstance(layer, SparseLayer):
            return layer.way, layer.index, layer.plans, layer.values, layer.gather
        assert self.layer is not None
        known = context.dense[self.layer]
        return known.way, known.positions, known.plans, layer.weight.reshape(-1), None

    def _suits_kernels(self, source: Value, residual: Value, layer: nn.Module | None) -> bool:
        """Whether the values are batches of maps, or matrices, as the layer takes them."""
        if layer is None and self.norm is None and isinstance(source, Tensor):
            return False  # adding and rectifying plain tensors is torch's work
        if isinstance(source, Tensor) and not _is_plain_batch(source):
            return False
        linear = layer.is_linear if isinstance(layer, SparseLayer) else isinstance(layer, nn.Linear)
        if layer is not None and linear != _is_matrix(source):
            return False
        if not isinstance(source, Tensor | Maps | Flat):
            return False
        if self.residual is None:
            return True
        if not isinstance(residual, Tensor | Maps | Flat):
            return False
        if isinstance(residual, Tensor) and not _is_plain_batch(residual):
            return False
        if _is_matrix(source) != _is_matrix(residual):
            return False
        samples, channels, rows, columns = _sizes(source)
        if layer is not None:
            assert isinstance(layer, SparseLayer | nn.Conv2d | nn.Linear)
            geometry = geometry_of(layer)
            channels, (rows, columns) = geometry.out_channels, geometry.output(rows, columns)
        # A smaller residual is repeated, which is torch's work.
        return (samples, channels, rows, columns) == _sizes(residual)

    def _plain(
        self, source: Value, residual: Value, layer: nn.Module | None, context: Context
    ) -> Value:
        """The same with torch."""
        value = as_plain(source)
        value = value if layer is None else layer(value)
        value = value if self.norm is None else context.module(self.norm)(value)
        value = value if self.residual is None else value + as_plain(residual)
        value = torch.relu(value) if self.rectify else value
        return value if self.pool is None else self.pool.run({self.pool.input: value}, context)


@dataclass(frozen=True)
class PoolStep:
    """A pooling layer; without a window the mean of every map.

    Args:
        out: Name of the value that it makes.
        input: Name of the value that it reads.
        window: Of the pooling layer; None for the mean of every map.
        otherwise: What torch does for values that are no batch of maps.
        flat: Whether rows and columns are dropped.
    """

    out: str
    input: str
    window: Window | None
    otherwise: PlainStep
    flat: bool = False

    @property
    def inputs(self) -> tuple[str, ...]:
        """The input."""
        return (self.input,)

    def run(self, values: Mapping[str, Value], context: Context) -> Value:
        """Pools; a plain value becomes maps first, which the next layer wants anyway."""
        given = values[self.input]
        if _is_matrix(given) or (isinstance(given, Tensor) and not _is_plain_batch(given)):
            return self.otherwise.run(values, context)
        x = as_maps(values[self.input])
        whole = (x.form.rows, x.form.columns)
        window = self.window or Window(largest=False, kernel=whole, stride=whole)
        made = pool_maps(x, window, border=context.borders.get(self.out, 0))
        return Flat(made) if self.flat else made


@dataclass(frozen=True)
class FlattenStep:
    """Maps of single points as a matrix; other values as torch flattens them."""

    out: str
    input: str

    @property
    def inputs(self) -> tuple[str, ...]:
        """The input."""
        return (self.input,)

    def run(self, values: Mapping[str, Value], context: Context) -> Value:
        """Flattens all but the first dimension."""
        del context
        value = values[self.input]
        if isinstance(value, Flat):
            return value
        if isinstance(value, Maps) and value.form.rows == value.form.columns == 1:
            return Flat(value)
        return torch.flatten(as_plain(value), 1)


@dataclass(frozen=True)
class PlainStep:
    """Anything else: called with plain tensors."""

    out: str
    inputs: tuple[str, ...]
    call: Callable[[Mapping[str, Value], Context], Value]

    def run(self, values: Mapping[str, Value], context: Context) -> Value:
        """Calls it."""
        plain = {name: as_plain(values[name]) for name in self.inputs}
        return self.call(plain, context)


@dataclass(frozen=True)
class Program:
    """The steps of a network, in order.

    Args:
        arguments: Names of the values that the caller gives.
        steps: In an order in which everything is made before it is read.
        result: Makes what the network returns from the values that it names.
        results: Names of those values.
        last_use: For every step, the values that nobody reads after it.
    """

    arguments: tuple[str, ...]
    steps: tuple[Step, ...]
    result: Callable[[Mapping[str, Value]], Any]
    results: tuple[str, ...]
    last_use: tuple[tuple[str, ...], ...]

    def run(self, given: Mapping[str, Value], context: Context) -> Any:
        """What the network returns, in plain tensors."""
        values: dict[str, Value] = dict(given)
        for step, done in zip(self.steps, self.last_use, strict=True):
            read = {name: _for_one_reader(values[name]) for name in set(step.inputs)}
            values[step.out] = shared(step.run(read, context), self._readers[step.out])
            for name in done:
                values.pop(name, None)
        return self.result(
            {name: as_plain(_for_one_reader(values[name])) for name in set(self.results)}
        )

    @cached_property
    def _readers(self) -> Counter[str]:
        """How many steps read each value; returning it counts as one more."""
        return Counter(chain(*(set(step.inputs) for step in self.steps), set(self.results)))


class Shared:
    """A value with several readers: one alias for each.

    Args:
        aliases: As many as there are readers.
    """

    def __init__(self, aliases: list[Value]) -> None:
        self._aliases = aliases

    def take(self) -> Value:
        """The alias for the next reader."""
        return self._aliases.pop()


def shared(value: Value, readers: int) -> Value:
    """The value for so many readers, whose gradients are then added up without fresh memory."""
    maps = value.maps if isinstance(value, Flat) else value
    if readers < 2 or not isinstance(maps, Maps) or not maps.data.requires_grad:
        return value
    aliases = share_maps(maps, readers)
    return Shared([Flat(alias) if isinstance(value, Flat) else alias for alias in aliases])


def _for_one_reader(value: Value) -> Value:
    return value.take() if isinstance(value, Shared) else value


def uses(steps: tuple[Step, ...], results: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """For every step, the values whose last reader it is, or which nobody reads."""
    kept = set(results)
    done: list[tuple[str, ...]] = []
    for step in reversed(steps):
        last = {name for name in (*step.inputs, step.out) if name not in kept}
        kept |= last
        done.append(tuple(sorted(last)))
    return tuple(reversed(done))


def as_maps(value: Value, *, border: int = 0, wide: bool | None = None) -> Maps:
    """A value in the kernels' layout, with at least this border; any order in memory if None."""
    if isinstance(value, Flat):
        value = value.maps
    if isinstance(value, Tensor):
        return to_maps(value, border=border, wide=bool(wide))
    assert isinstance(value, Maps)
    if wide is None:
        return value
    return in_form(value, border=0 if wide else border, wide=wide)


def as_plain(value: Value) -> Value:
    """A value as plain torch code takes it."""
    if isinstance(value, Flat):
        return from_maps(value.maps).flatten(1)
    return from_maps(value) if isinstance(value, Maps) else value


def norm_call(module: nn.Module) -> Norm:
    """One call of a BatchNorm layer: counts it as torch does, in training mode."""
    assert isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)
    counted = module.num_batches_tracked
    update = None
    if module.training and module.track_running_stats and counted is not None:
        counted.add_(1)
        update = module.momentum
        if update is None:
            update = 1.0 / float(counted)
    use_batch = module.training or module.running_mean is None
    return Norm(
        *(module.weight, module.bias, module.running_mean, module.running_var),
        *(use_batch, update, module.eps),
    )


def _is_matrix(value: Value) -> bool:
    """Whether a value stands for (samples, features)."""
    return isinstance(value, Flat) or (isinstance(value, Tensor) and value.ndim == 2)


def _is_plain_batch(value: Tensor) -> bool:
    """Whether the kernels can take a plain tensor."""
    known = value.dtype in (torch.float32, torch.bfloat16, torch.float16)
    return value.ndim in (2, 4) and known and value.device.type == "cpu" and value.numel() > 0


def _sizes(value: Value) -> tuple[int, ...]:
    """Samples, channels, rows and columns."""
    if isinstance(value, Tensor):
        return (*value.shape, 1, 1)[:4]
    form = value.maps.form if isinstance(value, Flat) else value.form
    return form.samples, form.channels, form.rows, form.columns


def dense_way(module: Dense, way: Way) -> DenseWay:
    """How to run a layer that keeps its dense weight."""
    return DenseWay(way, Plans(), torch.arange(module.weight.numel()))
