"""Feature maps in the layout of the kernels."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import byref, c_int64
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from equipoise.engine.library import MapsArgument, SizeArgument, kernels
from equipoise.engine.memory import POOL

LANES = 16


@dataclass(frozen=True)
class Form:
    """Everything about a batch of feature maps but the numbers.

    Samples come in blocks of 16, of which the last is filled up with zeros: a batch of one sample
    takes the time and the memory of 16.

    Args:
        samples: Number of samples; blocks of 16 are filled up with zeros.
        channels: Number of channels.
        rows: Height of a map.
        columns: Width of a map.
        border: Zeros around each map, on every side.
        wide: Whether the blocks of one position lie side by side, which suits maps so small that
            a few samples would not fill the registers. Wide maps have no border.
    """

    samples: int
    channels: int
    rows: int
    columns: int
    border: int = 0
    wide: bool = False

    @property
    def blocks(self) -> int:
        """Blocks of 16 samples."""
        return -(-self.samples // LANES)

    @property
    def numbers(self) -> int:
        """Numbers that one list reaches: of one block, or of all where they lie side by side."""
        high, broad = self.rows + 2 * self.border, self.columns + 2 * self.border
        return LANES * (self.blocks if self.wide else 1) * self.channels * high * broad

    @property
    def count(self) -> int:
        """Numbers per channel that belong to a sample."""
        return self.samples * self.rows * self.columns


@dataclass(frozen=True)
class Maps:
    """A batch of feature maps.

    Args:
        data: Shape (blocks, channels, rows + 2 border, columns + 2 border, 16), float32. The
            border and the lanes without a sample are zero.
        form: Its form.
    """

    data: Tensor
    form: Form

    def argument(self) -> Any:
        """What the kernels take: the first inner element, and strides."""
        block, channel, row, column, _ = self.data.stride()
        inner = self.form.border * (row + column)
        start = self.data.data_ptr() + 4 * inner
        return byref(MapsArgument(start, block, channel, row, column))

    @property
    def start(self) -> int:
        """Address of row 0 and column 0, inside the border."""
        _, _, row, column, _ = self.data.stride()
        return self.data.data_ptr() + 4 * self.form.border * (row + column)


def new_maps(form: Form) -> Maps:
    """Maps with a zero border whose inner part is to be written before it is read."""
    side = 2 * form.border
    key = (form.blocks, form.channels, form.rows, form.columns, form.border, int(form.wide))
    if form.wide:
        shape: Sequence[int] = (form.channels, form.rows, form.columns, form.blocks, LANES)
        return Maps(POOL.take(key, shape, clear_border).permute(3, 0, 1, 2, 4), form)
    shape = (form.blocks, form.channels, form.rows + side, form.columns + side, LANES)
    return Maps(POOL.take(key, shape, partial(clear_border, border=form.border)), form)


def clear_border(data: Tensor, border: int = 0) -> None:
    """Zeros around every map; what is inside will be written."""
    if border > 0:
        for side in (slice(0, border), slice(-border, None)):
            data[:, :, side] = 0.0
            data[:, :, :, side] = 0.0


def size_argument(form: Form) -> Any:
    """Samples, channels, rows and columns for the kernels."""
    return byref(SizeArgument(form.samples, form.channels, form.rows, form.columns))


def num_threads() -> int:
    """As many as torch uses."""
    return torch.get_num_threads()


def received(gradient: Tensor, form: Form) -> Maps:
    """A gradient from autograd as maps, copied if its lanes are not in memory order."""
    if gradient.stride(-1) != 1 or 0 in gradient.stride()[:-1]:
        copy = new_maps(form)
        copy.data.copy_(gradient)
        gradient = copy.data
    return Maps(gradient, form)


def convert(plain: Tensor, form: Form) -> Maps:
    """Maps with the numbers of a plain tensor of shape (samples, channels, rows, columns)."""
    maps = new_maps(form)
    strides = (c_int64 * 4)(*plain.stride())
    kernels().to_maps(
        plain.data_ptr(), strides, maps.argument(), size_argument(form), num_threads()
    )
    return maps


def restore(maps: Maps) -> Tensor:
    """The inverse of `convert`: a contiguous tensor."""
    form = maps.form
    plain = torch.empty(form.samples, form.channels, form.rows, form.columns)
    strides = (c_int64 * 4)(*plain.stride())
    kernels().from_maps(
        maps.argument(), plain.data_ptr(), strides, size_argument(form), num_threads()
    )
    return plain


def copied(maps: Maps, form: Form) -> Maps:
    """The same numbers in another form."""
    target = new_maps(form)
    kernels().copy_maps(maps.argument(), target.argument(), size_argument(form), num_threads())
    return target


class _ToMaps(torch.autograd.Function):
    """`convert` with a gradient."""

    @staticmethod
    def forward(ctx: Any, plain: Tensor, form: Form) -> Tensor:
        ctx.form = form
        return convert(plain, form).data

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return restore(received(gradient, ctx.form)), None


class _FromMaps(torch.autograd.Function):
    """`restore` with a gradient."""

    @staticmethod
    def forward(ctx: Any, data: Tensor, form: Form) -> Tensor:
        ctx.form = form
        return restore(Maps(data, form))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return convert(gradient, ctx.form).data, None


class _Copy(torch.autograd.Function):
    """`copied` with a gradient."""

    @staticmethod
    def forward(ctx: Any, data: Tensor, form: Form, target: Form) -> Tensor:
        ctx.form, ctx.target = form, target
        return copied(Maps(data, form), target).data

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return copied(received(gradient, ctx.target), ctx.form).data, None, None


def to_maps(plain: Tensor, *, border: int = 0, wide: bool = False) -> Maps:
    """A plain batch as feature maps.

    Args:
        plain: Shape (samples, channels, rows, columns), or (samples, features); on the CPU.
        border: Zeros to leave around each map.
        wide: See `Form`.

    Raises:
        ValueError: It is not on the CPU.
    """
    if plain.device.type != "cpu":
        raise ValueError(
            f"the input is on {plain.device}, expected the cpu; move it there with .cpu()."
        )
    if plain.ndim == 2:
        plain = plain[:, :, None, None]
    samples, channels, rows, columns = plain.shape
    form = Form(samples, channels, rows, columns, 0 if wide else border, wide)
    plain = plain.float()  # outside the function, so that its gradient has the input's type
    return Maps(_ToMaps.apply(plain, form), form)


def from_maps(maps: Maps) -> Tensor:
    """Feature maps as a plain batch of shape (samples, channels, rows, columns)."""
    plain: Tensor = _FromMaps.apply(maps.data, maps.form)
    return plain


def in_form(maps: Maps, *, border: int, wide: bool) -> Maps:
    """The same maps with at least this border; themselves if they have it."""
    form = maps.form
    if form.wide == wide and form.border >= border:
        return maps
    target = Form(form.samples, form.channels, form.rows, form.columns, border, wide)
    return Maps(_Copy.apply(maps.data, form, target), target)
