"""Maxima and means over windows of feature maps."""

from __future__ import annotations

from ctypes import c_int64
from dataclasses import dataclass
from typing import Any

from equipoise.engine.library import kernels
from equipoise.engine.maps import Form, Maps, new_maps, num_threads, size_argument

Pair = tuple[int, int]


@dataclass(frozen=True)
class Window:
    """A pooling layer.

    Args:
        largest: Whether it takes the maximum; else the mean.
        kernel: Size of the window.
        stride: Distance between windows.
        padding: On every side: minus infinity for maxima, zeros for means.
        count_padding: Whether padded zeros count in a mean.
    """

    largest: bool
    kernel: Pair
    stride: Pair
    padding: Pair = (0, 0)
    count_padding: bool = True

    def output(self, rows: int, columns: int) -> Pair:
        """Size of the output for inputs of this size."""
        sizes = [
            (size + 2 * p - k) // s + 1
            for size, k, s, p in zip(
                (rows, columns), self.kernel, self.stride, self.padding, strict=True
            )
        ]
        return sizes[0], sizes[1]

    def argument(self) -> Any:
        """Kernel, stride and padding of the rows, then of the columns."""
        numbers = zip(self.kernel, self.stride, self.padding, strict=True)
        return (c_int64 * 6)(*(n for side in numbers for n in side))


def pooled_form(form: Form, window: Window, border: int) -> Form:
    """Form of the pooled maps."""
    out = window.output(form.rows, form.columns)
    return Form(form.samples, form.channels, *out, 0 if form.wide else border, form.wide)


def pool(x: Maps, window: Window, border: int) -> Maps:
    """The pooled maps, with a border of this width."""
    out = new_maps(pooled_form(x.form, window, border))
    known = (size_argument(x.form), out.form.rows, out.form.columns, window.argument())
    if window.largest:
        kernels().max_pool(x.argument(), out.argument(), *known, num_threads())
    else:
        counted = int(window.count_padding)
        kernels().average_pool(x.argument(), out.argument(), *known, counted, num_threads())
    return out


def pool_gradient(window: Window, d_out: Maps, form: Form, x: Maps | None) -> Maps:
    """Gradient of the input of a pool; `x` is its input, for maxima."""
    dx = new_maps(form)
    known = (size_argument(form), d_out.form.rows, d_out.form.columns, window.argument())
    if window.largest:
        assert x is not None
        kernels().max_pool_backward(
            *(x.argument(), d_out.argument(), dx.argument(), *known),
            num_threads(),
        )
    else:
        kernels().average_pool_backward(
            *(d_out.argument(), dx.argument(), *known), int(window.count_padding), num_threads()
        )
    return dx
