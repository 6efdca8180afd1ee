"""Convolutions, and linear layers as convolutions of single points, over the active weights."""

from __future__ import annotations

from ctypes import byref, c_int64
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from typing import Any

import torch
from torch import Tensor

from equipoise.engine.library import GeometryArgument, GridArgument, kernels
from equipoise.engine.lists import Former, SparseList, make_list, updated_list
from equipoise.engine.maps import LANES, Form, Maps, new_maps, num_threads

Pair = tuple[int, int]


@dataclass(frozen=True)
class Geometry:
    """A convolution; `in_channels` counts all groups. A linear layer has a kernel of 1."""

    out_channels: int
    in_channels: int
    kernel: Pair = (1, 1)
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """Shape of the logical weight as a convolution's."""
        return (self.out_channels, self.in_channels // self.groups, *self.kernel)

    @property
    def num_weights(self) -> int:
        """Weights, active or not."""
        return (
            self.out_channels * (self.in_channels // self.groups) * self.kernel[0] * self.kernel[1]
        )

    def output(self, rows: int, columns: int) -> Pair:
        """Size of the output maps for inputs of this size."""
        sizes = []
        for size, k, s, p, d in zip(
            (rows, columns), self.kernel, self.stride, self.padding, self.dilation, strict=True
        ):
            sizes.append((size + 2 * p - d * (k - 1) - 1) // s + 1)
        return sizes[0], sizes[1]

    @property
    def border(self) -> int:
        """Zeros that must surround the input; what windows reach beyond is never more."""
        return max(self.padding)

    def gradient_border(self, rows: int, columns: int) -> int:
        """Zeros that must surround the gradient of the output."""
        needed = 0
        for side, out in enumerate(self.output(rows, columns)):
            s, p, d = self.stride[side], self.padding[side], self.dilation[side]
            last = (rows, columns)[side] - 1
            lowest = -((d * (self.kernel[side] - 1) - p) // s)
            highest = (last + p) // s
            needed = max(needed, -lowest, highest - (out - 1))
        return needed

    def argument(self) -> Any:
        """For the kernels."""
        pairs = [(c_int64 * 2)(*p) for p in (self.kernel, self.stride, self.padding, self.dilation)]
        within = self.in_channels // self.groups
        return byref(GeometryArgument(self.out_channels, within, self.groups, *pairs))


@dataclass(frozen=True)
class Tiling:
    """How one list is cut and run.

    Args:
        block: Channels that are read together; 0 for all.
        rows: Rows of positions that are held in registers.
        columns: Columns of them.
        group: Output rows that share their entries: 1, 2 or 4.
        ahead: Whether what the next rows of positions read is fetched early: 1 or 0.
    """

    block: int = 0
    rows: int = 1
    columns: int = 8
    group: int = 1
    ahead: int = 1


@dataclass(frozen=True)
class Way:
    """How a layer is run: the tiling of each of its three products, and its order in memory.

    With `csr` none of that counts: torch's CSR products run it, on plain tensors.
    """

    forward: Tiling = Tiling()
    input: Tiling = Tiling()
    weight: Tiling = Tiling()
    wide: bool = False
    csr: bool = False


@dataclass(frozen=True)
class _Phase:
    """Input positions that a strided convolution reaches with the same weights."""

    start: Pair
    size: Pair
    entries: SparseList


@dataclass(frozen=True, eq=False)
class Plan:
    """A convolution of maps of one form by the weights at some positions; the lists are made once.

    Args:
        geometry: The convolution.
        positions: Of the active weights, int64, ascending.
        way: How it is run.
        rows: Height of the input maps.
        columns: Their width.
        border: Of the input maps.
        gradient_border: Of the gradients of the output maps.
        former: Lists of a plan that differs in its positions only, to make the lists from.
    """

    geometry: Geometry
    positions: Tensor
    way: Way
    rows: int
    columns: int
    border: int
    gradient_border: int
    former: Former | None = None
    made: dict[str, SparseList] = field(init=False, default_factory=dict)
    out: Pair = field(init=False)

    def __post_init__(self) -> None:
        """Sizes that everything needs."""
        object.__setattr__(self, "out", self.geometry.output(self.rows, self.columns))

    def out_form(self, samples: int, border: int) -> Form:
        """Form of the output."""
        wide = self.way.wide
        return Form(samples, self.geometry.out_channels, *self.out, 0 if wide else border, wide)

    def in_form(self, samples: int) -> Form:
        """Form of the input, and of its gradient."""
        channels, border = self.geometry.in_channels, self.border
        return Form(samples, channels, self.rows, self.columns, border, self.way.wide)

    @cached_property
    def forward_list(self) -> SparseList:
        """Reads the input."""
        return self._list("forward", self.way.forward, self.border, (self.rows, self.columns))

    @cached_property
    def weight_list(self) -> SparseList:
        """Reads the input, for the gradient of the weights."""
        forward, weight = self.way.forward, self.way.weight
        # Tiles are chosen when a list is used; only what cuts it makes another list.
        if (forward.block, forward.group) == (weight.block, weight.group):
            return self.forward_list
        return self._list("weight", self.way.weight, self.border, (self.rows, self.columns))

    @cached_property
    def phases(self) -> list[_Phase]:
        """Read the gradient of the output, and write that of the input."""
        size = (self.rows, self.columns)
        if self.way.wide:
            entries = self._list("input", self.way.input, 0, self.out, transposed=True)
            return [_Phase((0, 0), size, entries)]
        found = []
        for phase in product(*(range(s) for s in self.geometry.stride)):
            part = tuple(
                -(-(whole - p) // s)
                for whole, p, s in zip(size, phase, self.geometry.stride, strict=True)
            )
            if min(part) <= 0:
                continue
            entries = self._list(
                *(f"input {phase}", self.way.input, self.gradient_border, self.out),
                transposed=True,
                phase=phase,
            )
            found.append(_Phase((phase[0], phase[1]), (part[0], part[1]), entries))
        return found

    def _list(
        self,
        name: str,
        tiling: Tiling,
        border: int,
        read: Pair,
        *,
        transposed: bool = False,
        phase: Any = (0, 0),
    ) -> SparseList:
        """Makes a list, from the one of the former plan with this name if there is one."""
        row = (read[1] + 2 * border) * LANES
        strides = ((read[0] + 2 * border) * row, row, LANES)
        maps = None
        if self.way.wide:
            written = (self.rows, self.columns) if transposed else self.out
            maps = read, written
        options: Any = {"transposed": transposed, "phase": phase, "maps": maps}
        known = None if self.former is None else self.former.take(name, self.positions)
        if known is None:
            made = make_list(self.geometry, self.positions, strides, tiling, **options)
        else:
            made = updated_list(*known, self.geometry, self.positions, strides, tiling, **options)
        self.made[name] = made
        return made


def convolve(plan: Plan, values: Tensor, x: Maps, border: int) -> Maps:
    """The output maps, with a border of this width.

    Args:
        plan: For maps of the form of `x`.
        values: The active weights, 1-D, contiguous.
        x: The input.
        border: Of the result; wide maps have none.
    """
    y = new_maps(plan.out_form(x.form.samples, border))
    stride = plan.geometry.stride
    grid = _grid(plan, x, y, stride, plan.way.forward, plan.out, (1, 1), plan.forward_list)
    scale = x.form.blocks if plan.way.wide else 1
    kernels().apply(plan.forward_list.argument(scale), grid, values.data_ptr(), x.start, y.start)
    return y


def input_gradient(plan: Plan, values: Tensor, dy: Maps) -> Maps:
    """Gradient of the input: the transposed map applied to that of the output."""
    dx = new_maps(plan.in_form(dy.form.samples))
    _, _, row, column, _ = dx.data.stride()
    scale = dy.form.blocks if plan.way.wide else 1
    for phase in plan.phases:
        start = dx.start + 4 * (phase.start[0] * row + phase.start[1] * column)
        spread = (1, 1) if plan.way.wide else plan.geometry.stride
        grid = _grid(plan, dy, dx, (1, 1), plan.way.input, phase.size, spread, phase.entries)
        kernels().apply(phase.entries.argument(scale), grid, values.data_ptr(), dy.start, start)
    return dx


def weight_gradient(plan: Plan, x: Maps, dy: Maps) -> Tensor:
    """Gradient of the active weights only, 1-D."""
    gradient = torch.zeros(plan.positions.numel())
    entries = plan.weight_list
    stride = plan.geometry.stride
    grid = _grid(plan, x, dy, stride, plan.way.weight, plan.out, (1, 1), entries)
    scale = x.form.blocks if plan.way.wide else 1
    kernels().weight_gradient(entries.argument(scale), grid, x.start, dy.start, gradient.data_ptr())
    return gradient


def _grid(
    plan: Plan,
    read: Maps,
    written: Maps,
    step: Pair,
    tiling: Tiling,
    size: Pair,
    spread: Pair,
    entries: SparseList,
) -> Any:
    """Which positions are read (every `step`) and written (every `spread`)."""
    block, channel, row, column, _ = written.data.stride()
    if plan.way.wide:
        # One row of the list writes one position, and the blocks lie side by side.
        blocks = read.form.blocks
        numbers = (1, 1, blocks, 0, 0, LANES, 0, 0, LANES, blocks * LANES, 0, 0, 0, 0, 0)
        return byref(GridArgument(*numbers, entries.last_row, 1, tiling.columns, num_threads(), 0))
    in_block, in_channel, in_row, in_column, _ = read.data.stride()
    return byref(
        GridArgument(
            *(read.form.blocks, *size),
            *(in_block, step[0] * in_row, step[1] * in_column),
            *(block, spread[0] * row, spread[1] * column, channel),
            *(read.form.rows, step[0], in_row, read.form.channels, in_channel),
            *(entries.last_row, tiling.rows, tiling.columns, num_threads(), tiling.ahead),
        )
    )
