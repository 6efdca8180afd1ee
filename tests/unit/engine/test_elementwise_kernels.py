"""Kernels other than the sparse maps themselves, against torch in double precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import byref, c_int64
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from equipoise.engine.library import (
    VARIABLE,
    MapsArgument,
    SizeArgument,
    kernels,
    unavailable_because,
)

INSTRUCTIONS = ("avx512", "avx2", "portable")
NAN = float("nan")
INF = float("inf")
LANES = 16

# Samples, channels, rows, columns: full and partial blocks, rows shorter and longer than 16.
SHAPES = [
    (1, 3, 8, 8),
    (3, 1, 1, 1),
    (16, 5, 2, 2),
    (17, 2, 3, 4),
    (17, 20, 1, 1),
    (32, 3, 4, 32),
    (40, 3, 7, 7),
    (40, 2, 32, 3),
    (48, 17, 1, 2),
]
FORMS = [(0, False), (1, False), (2, False), (0, True), (1, True)]


@contextmanager
def chosen(instructions: str) -> Iterator[None]:
    """Makes `kernels()` those of one instruction set."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, instructions)
        yield


def missing(instructions: str) -> str | None:
    """Why this processor or build lacks an instruction set."""
    with chosen(instructions):
        return unavailable_because()


def call(name: str, instructions: str, *arguments: Any) -> None:
    """Calls one kernel of one instruction set."""
    plain = [
        a.argument() if isinstance(a, Maps) else a.data_ptr() if isinstance(a, Tensor) else a
        for a in arguments
    ]
    with chosen(instructions):
        getattr(kernels(), name)(*plain)


class Maps:
    """Maps whose border and unwritten numbers are NaN, to see who reads or writes them."""

    def __init__(self, shape: tuple[int, ...], border: int, wide: bool) -> None:
        samples, channels, rows, columns = shape
        self.samples, self.border = samples, border
        blocks = -(-samples // LANES)
        height, width = rows + 2 * border, columns + 2 * border
        if wide:
            data = torch.full((channels, height, width, blocks, LANES), NAN)
            self.data = data.permute(3, 0, 1, 2, 4)
        else:
            self.data = torch.full((blocks, channels, height, width, LANES), NAN)
        self.inner = self.data[
            :, :, border : border + rows, border : border + columns
        ]  # (blocks, channels, rows, columns, lanes)

    def put(self, x: Tensor) -> Maps:
        blocks = self.inner.shape[0]
        lanes = torch.zeros(blocks * LANES, *x.shape[1:])
        lanes[: self.samples] = x
        self.inner.copy_(lanes.unflatten(0, (blocks, LANES)).permute(0, 2, 3, 4, 1))
        return self

    def lanes(self) -> Tensor:
        """All lanes in order: (blocks * 16, channels, rows, columns), a copy."""
        return self.inner.permute(0, 4, 1, 2, 3).flatten(0, 1).contiguous()

    def get(self) -> Tensor:
        """What was written, after a look at what must be kept."""
        lanes = self.lanes()
        assert (lanes[self.samples :] == 0).all(), "a lane without a sample is not zero"
        outside = self.data.isnan()
        outside[
            :,
            :,
            self.border : self.border + self.inner.shape[2],
            self.border : self.border + self.inner.shape[3],
        ] = True
        assert outside.all(), "the border was written"
        return lanes[: self.samples]

    def argument(self) -> Any:
        block, channel, row, column, _ = self.data.stride()
        return byref(MapsArgument(self.inner.data_ptr(), block, channel, row, column))


def size_of(shape: tuple[int, ...]) -> Any:
    return byref(SizeArgument(*shape))


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def same(a: Tensor, b: Tensor) -> bool:
    """Equal bit for bit, but for the sign of zero and the kind of NaN."""
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(0), b.nan_to_num(0))


def cases() -> Iterator[tuple[tuple[int, int, int, int], int, bool]]:
    for shape, (border, wide) in product(SHAPES, FORMS):
        yield shape, border, wide


@pytest.fixture(params=INSTRUCTIONS)
def instructions(request: Any) -> str:
    if reason := missing(request.param):
        pytest.skip(reason)
    return str(request.param)


class TestLayout:
    @staticmethod
    def tensors(shape: tuple[int, int, int, int]) -> Iterator[tuple[str, Tensor]]:
        n, c, h, w = shape
        yield "contiguous", numbers(n, c, h, w)
        yield "channels last", numbers(n, h, w, c).permute(0, 3, 1, 2)
        yield "samples last", numbers(c, h, w, n).permute(3, 0, 1, 2)
        yield "turned", numbers(n, c, w, h).transpose(2, 3)
        yield "channels between", numbers(n, h, c, w).transpose(1, 2)
        yield "cropped", numbers(n, c, h + 2, w + 3)[:, :, 1 : 1 + h, 2 : 2 + w]
        yield "every second", numbers(n, c, 2 * h, 2 * w)[:, :, ::2, ::2]

    def test_to_maps(self, instructions: str) -> None:
        for shape, border, wide in cases():
            for name, x in self.tensors(shape):
                for threads in (1, 2):
                    out = Maps(shape, border, wide)
                    strides = (c_int64 * 4)(*x.stride())
                    call("to_maps", instructions, x, strides, out, size_of(shape), threads)
                    assert torch.equal(out.get(), x), (shape, border, wide, name)

    def test_repeated_numbers(self, instructions: str) -> None:
        for shape in SHAPES:
            n, c, h, w = shape
            for x in (
                numbers(n, 1, h, w).expand(shape),
                numbers(1, c, h, w).expand(shape),
                numbers(n, c, 1, 1).expand(shape),
                numbers(1, 1, 1, w).expand(shape),
                torch.ones(()).expand(shape),
            ):
                out = Maps(shape, 1, False)
                strides = (c_int64 * 4)(*x.stride())
                call("to_maps", instructions, x, strides, out, size_of(shape), 1)
                assert torch.equal(out.get(), x)

    def test_from_maps(self, instructions: str) -> None:
        for shape, border, wide in cases():
            maps = Maps(shape, border, wide).put(numbers(*shape))
            for name, x in self.tensors(shape):
                whole = x if x._base is None else x._base
                for threads in (1, 2):
                    whole.fill_(7.0)
                    strides = (c_int64 * 4)(*x.stride())
                    call("from_maps", instructions, maps, x, strides, size_of(shape), threads)
                    assert torch.equal(x, maps.get()), (shape, border, wide, name)
                    x.fill_(7.0)
                    assert (whole == 7.0).all(), (shape, name, "written outside of the tensor")

    def test_long_samples(self, instructions: str) -> None:
        """Longer than what one task takes, and not a multiple of it."""
        for shape in ((17, 5, 23, 41), (33, 2100, 1, 1), (2, 3, 37, 64)):
            n, c, h, w = shape
            for x in (numbers(n, c, h, w), numbers(n, h, w, c).permute(0, 3, 1, 2)):
                for border, wide in FORMS:
                    maps = Maps(shape, border, wide)
                    strides = (c_int64 * 4)(*x.stride())
                    call("to_maps", instructions, x, strides, maps, size_of(shape), 2)
                    assert torch.equal(maps.get(), x)
                    back = torch.empty_like(x)
                    strides = (c_int64 * 4)(*back.stride())
                    call("from_maps", instructions, maps, back, strides, size_of(shape), 2)
                    assert torch.equal(back, x)

    def test_copy_between_all_forms(self, instructions: str) -> None:
        for shape in SHAPES:
            x = numbers(*shape)
            for (border, wide), (to_border, to_wide) in product(FORMS, FORMS):
                maps = Maps(shape, border, wide).put(x)
                for threads in (1, 2):
                    out = Maps(shape, to_border, to_wide)
                    call("copy_maps", instructions, maps, out, size_of(shape), threads)
                    assert torch.equal(out.get(), x)


class TestStatistics:
    @staticmethod
    def statistics(
        instructions: str, x: Tensor, border: int = 0, wide: bool = False, threads: int = 1
    ) -> tuple[Tensor, Tensor]:
        shape = tuple(x.shape)
        maps = Maps(shape, border, wide).put(x)
        mean, variance = torch.full((2, shape[1]), NAN)
        call("statistics", instructions, maps, size_of(shape), mean, variance, threads)
        return mean, variance

    def test_against_torch(self, instructions: str) -> None:
        for shape, border, wide in cases():
            x = 3 * numbers(*shape) + 1
            mean, variance = self.statistics(instructions, x, border, wide)
            exact = x.double().transpose(0, 1).flatten(1)
            torch.testing.assert_close(mean, exact.mean(1).float(), rtol=1e-6, atol=1e-6)
            expected = exact.var(1, correction=0).float()
            torch.testing.assert_close(variance, expected, rtol=2e-6, atol=1e-10)
            again = self.statistics(instructions, x, border, wide, threads=2)
            assert same(torch.stack(again), torch.stack((mean, variance)))

    @pytest.mark.parametrize("level", [1e3, -1e3, 1e5])
    def test_far_from_zero(self, instructions: str, level: float) -> None:
        for shape in ((40, 3, 7, 7), (128, 2, 16, 16), (300, 5, 1, 1)):
            x = numbers(*shape) + level
            mean, variance = self.statistics(instructions, x, 1)
            exact = x.double().transpose(0, 1).flatten(1)
            torch.testing.assert_close(mean, exact.mean(1).float(), rtol=1e-7, atol=0)
            expected = exact.var(1, correction=0).float()
            torch.testing.assert_close(variance, expected, rtol=1e-5, atol=0)

    def test_level_that_moves(self, instructions: str) -> None:
        """The first samples are zeros, the rest narrow around a large number."""
        for zeros in (1, 16, 32):
            x = numbers(512, 2, 4, 4) + 1e4
            x[:zeros] = 0
            _, variance = self.statistics(instructions, x)
            expected = x.double().transpose(0, 1).flatten(1).var(1, correction=0).float()
            torch.testing.assert_close(variance, expected, rtol=1e-5, atol=0)

    def test_constant_has_no_variance(self, instructions: str) -> None:
        for shape in ((17, 2, 3, 4), (1, 2, 1, 1)):
            mean, variance = self.statistics(instructions, torch.full(shape, 0.1))
            assert (mean == torch.tensor(0.1)).all()
            assert (variance >= 0).all()
            assert (variance < 1e-15).all()

    def test_infinity_and_nan(self, instructions: str) -> None:
        for position in (0, 5, 39):
            x = numbers(40, 4, 16, 16)
            x[position, 0, 3, 1] = INF
            x[position, 1, 0, 0] = NAN
            x[position, 2, 0, 0] = -INF
            mean, variance = self.statistics(instructions, x)
            assert mean[0] == INF
            assert mean[1].isnan()
            assert mean[2] == -INF
            assert variance[:3].isnan().all()
            assert variance[3].isfinite()


class TestAffine:
    def test_against_torch(self, instructions: str) -> None:
        for shape, border, wide in cases():
            y, r = numbers(*shape), numbers(*shape, seed=1)
            scale, shift = numbers(shape[1], seed=2), numbers(shape[1], seed=3)
            for has_scale, has_shift, has_residual, relu in product((0, 1), repeat=4):
                expected = y.double()
                if has_scale:
                    expected = expected * scale.double()[:, None, None]
                if has_shift:
                    expected = expected + shift.double()[:, None, None]
                if has_residual:
                    expected = expected + r.double()
                if relu:
                    expected = expected.relu()
                results = []
                for threads in (1, 2):
                    z = Maps(shape, 1 - border if border < 2 else 2, wide)
                    call(
                        *("affine", instructions, Maps(shape, border, wide).put(y)),
                        *(scale if has_scale else None, shift if has_shift else None),
                        Maps(shape, 1, wide).put(r) if has_residual else None,
                        *(z, size_of(shape), relu, threads),
                    )
                    results.append(z.get())
                torch.testing.assert_close(results[0].double(), expected, rtol=1e-6, atol=1e-6)
                assert same(*results)

    @pytest.mark.parametrize("onto", ["y", "residual"])
    def test_in_place(self, instructions: str, onto: str) -> None:
        for shape, border, wide in cases():
            y, r = numbers(*shape), numbers(*shape, seed=1)
            scale, shift = numbers(shape[1], seed=2), numbers(shape[1], seed=3)
            maps, residual = Maps(shape, border, wide).put(y), Maps(shape, border, wide).put(r)
            target = maps if onto == "y" else residual
            call(
                *("affine", instructions, maps, scale, shift, residual, target),
                *(size_of(shape), 1, 2),
            )
            expected = (y * scale[:, None, None] + shift[:, None, None] + r).relu()
            torch.testing.assert_close(target.get(), expected, rtol=1e-5, atol=1e-5)

    def test_infinity_and_nan(self, instructions: str) -> None:
        special = torch.tensor([NAN, INF, -INF, -1.0, 0.0, 2.0])
        shape = (6, 3, 2, 2)
        y = special[:, None, None, None].expand(shape)
        scale, shift = torch.tensor([1.0, -2.0, INF]), torch.tensor([0.5, NAN, 1.0])
        for relu in (0, 1):
            z = Maps(shape, 1, False)
            maps = Maps(shape, 0, False).put(y)
            call("affine", instructions, maps, scale, shift, None, z, size_of(shape), relu, 1)
            expected = y * scale[:, None, None] + shift[:, None, None]
            assert same(z.get(), expected.relu() if relu else expected)

    def test_blocks_in_different_orders(self, instructions: str) -> None:
        shape = (40, 3, 7, 7)
        y, r = numbers(*shape), numbers(*shape, seed=1)
        for wide in product((False, True), repeat=3):
            z = Maps(shape, 0, wide[2])
            maps, residual = Maps(shape, 0, wide[0]).put(y), Maps(shape, 0, wide[1]).put(r)
            call("affine", instructions, maps, None, None, residual, z, size_of(shape), 0, 1)
            assert torch.equal(z.get(), y + r)


class Backward:
    """Random operands of the backward kernels, and the gradient behind the gate."""

    def __init__(self, shape: tuple[int, int, int, int], relu: int, known: bool) -> None:
        channels = shape[1]
        self.dz, self.y = numbers(*shape), numbers(*shape, seed=1)
        self.scale, self.shift, self.a, self.b, self.c = (
            numbers(channels, seed=seed) for seed in range(2, 7)
        )
        z = torch.addcmul(self.shift[:, None, None], self.y, self.scale[:, None, None])
        # A residual, so that z says something that y does not.
        self.z = (z + numbers(*shape, seed=7) if known else z).relu()
        self.gradient = torch.where(self.z > 0, self.dz, 0.0) if relu else self.dz


class TestAffineSums:
    def test_against_torch(self, instructions: str) -> None:
        for (shape, border, wide), relu, known in product(cases(), (0, 1), (False, True)):
            of = Backward(shape, relu, known)
            dz, y = Maps(shape, 1, wide).put(of.dz), Maps(shape, border, wide).put(of.y)
            z = Maps(shape, 2, wide).put(of.z) if known else None
            results = []
            for threads in (1, 2):
                found = torch.full((2, shape[1]), NAN, dtype=torch.float64)
                call(
                    *("affine_sums", instructions, dz, y, z, of.scale, of.shift),
                    *(size_of(shape), relu, found[0], found[1], threads),
                )
                results.append(found)
            g, exact = of.gradient.double(), of.y.double()
            expected = torch.stack((g.sum((0, 2, 3)), (g * exact).sum((0, 2, 3))))
            torch.testing.assert_close(results[0], expected, rtol=1e-6, atol=2e-5)
            assert torch.equal(*results)

    def test_only_sums(self, instructions: str) -> None:
        for relu in (0, 1):
            shape = (17, 2, 3, 4)
            of = Backward(shape, relu, True)
            dz, z = Maps(shape, 0, False).put(of.dz), Maps(shape, 0, False).put(of.z)
            sums = torch.full((2,), NAN, dtype=torch.float64)
            call(
                *("affine_sums", instructions, dz, None, z, None, None),
                *(size_of(shape), relu, sums, None, 1),
            )
            torch.testing.assert_close(sums, of.gradient.double().sum((0, 2, 3)), rtol=1e-6, atol=0)

    def test_scale_and_shift_of_the_gate_may_be_missing(self, instructions: str) -> None:
        shape = (17, 2, 3, 4)
        dz, y = numbers(*shape), numbers(*shape, seed=1)
        maps = Maps(shape, 0, False).put(dz), Maps(shape, 0, False).put(y)
        sums, products = torch.zeros(2, 2, dtype=torch.float64)
        call(
            *("affine_sums", instructions, *maps, None, None, None),
            *(size_of(shape), 1, sums, products, 1),
        )
        expected = (dz * (y > 0)).double().sum((0, 2, 3))
        torch.testing.assert_close(sums, expected, rtol=1e-5, atol=1e-6)

    def test_far_from_zero(self, instructions: str) -> None:
        """Products minus mean times sums is what BatchNorm's gradient is made of."""
        shape = (128, 2, 8, 8)
        dz, y = numbers(*shape) + 0.5, numbers(*shape, seed=1) + 1000
        found = torch.zeros(2, 2, dtype=torch.float64)
        maps = Maps(shape, 0, False).put(dz), Maps(shape, 0, False).put(y)
        call(
            *("affine_sums", instructions, *maps, None, None, None),
            *(size_of(shape), 0, found[0], found[1], 1),
        )
        centred = y.double() - y.double().mean((0, 2, 3), keepdim=True)
        expected = (dz.double() * centred).sum((0, 2, 3))
        mean = y.double().mean((0, 2, 3))
        torch.testing.assert_close(found[1] - mean * found[0], expected, rtol=1e-5, atol=1e-2)


class TestAffineBackward:
    def test_against_torch(self, instructions: str) -> None:
        options = product(cases(), (0, 1), (False, True), (0, 1), (0, 1))
        for (shape, border, wide), relu, known, has_linear, has_residual in options:
            of = Backward(shape, relu, known)
            dz, y = Maps(shape, 1, wide).put(of.dz), Maps(shape, border, wide).put(of.y)
            z = Maps(shape, 2, wide).put(of.z) if known else None
            results = []
            for threads in (1, 2):
                dy, dr = Maps(shape, border, wide), Maps(shape, 1, wide)
                call(
                    *("affine_backward", instructions, dz, y, z, of.scale, of.shift, of.a),
                    *((of.b, of.c) if has_linear else (None, None)),
                    *(dy, dr if has_residual else None, size_of(shape), relu, threads),
                )
                results.append(dy.get())
                if has_residual:
                    assert same(dr.get(), of.gradient)
            a, b, c = (v.double()[:, None, None] for v in (of.a, of.b, of.c))
            expected = a * of.gradient.double()
            if has_linear:
                expected = expected + b * of.y.double() + c
            torch.testing.assert_close(results[0].double(), expected, rtol=1e-5, atol=2e-6)
            assert same(*results)

    def test_missing_operands(self, instructions: str) -> None:
        shape = (17, 2, 3, 4)
        of = Backward(shape, 1, True)
        dz, y, z = (Maps(shape, 0, False).put(v) for v in (of.dz, of.y, of.z))
        dy, dr = Maps(shape, 1, False), Maps(shape, 1, False)
        nothing = (None, None, None, None, None)
        known = (size_of(shape), 1, 1)
        call("affine_backward", instructions, dz, y, z, *nothing, dy, None, *known)
        assert same(dy.get(), of.gradient)
        call("affine_backward", instructions, dz, y, z, *nothing, None, dr, *known)
        assert same(dr.get(), of.gradient)
        # Neither b nor the gate asks for y.
        again = Maps(shape, 1, False)
        call("affine_backward", instructions, dz, None, z, *nothing, again, None, *known)
        assert same(again.get(), of.gradient)
        call("affine_backward", instructions, dz, None, z, *nothing, None, None, *known)

    @pytest.mark.parametrize("onto", ["dz", "y"])
    def test_in_place(self, instructions: str, onto: str) -> None:
        for shape, border, wide in cases():
            of = Backward(shape, 1, False)
            dz, y = Maps(shape, border, wide).put(of.dz), Maps(shape, border, wide).put(of.y)
            target = dz if onto == "dz" else y
            call(
                *("affine_backward", instructions, dz, y, None, of.scale, of.shift),
                *(of.a, of.b, of.c, target, None, size_of(shape), 1, 2),
            )
            a, b, c = (v[:, None, None] for v in (of.a, of.b, of.c))
            expected = a * of.gradient + b * of.y + c
            torch.testing.assert_close(target.get(), expected, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("known", [False, True])
    def test_gate_like_that_of_torch(self, instructions: str, known: bool) -> None:
        special = torch.tensor([NAN, INF, -INF, -1.0, 0.0, -0.0, 2.0])
        shape = (7, 1, 1, 1)
        y = special.reshape(shape).requires_grad_()
        dz = numbers(*shape)
        z = y.relu()
        (expected,) = torch.autograd.grad(z, y, dz)
        dr = Maps(shape, 0, False)
        call(
            *("affine_backward", instructions, Maps(shape, 0, False).put(dz)),
            Maps(shape, 0, False).put(y.detach()),
            Maps(shape, 0, False).put(z.detach()) if known else None,
            *(None, None, None, None, None, None, dr, size_of(shape), 1, 1),
        )
        assert same(dr.get(), expected)

    def test_infinite_coefficients_leave_empty_lanes_alone(self, instructions: str) -> None:
        shape = (3, 2, 2, 2)
        of = Backward(shape, 0, False)
        for value in (INF, NAN):
            wild = torch.full((2,), value)
            for coefficients in ((wild, None, None), (None, wild, None), (None, None, wild)):
                dy = Maps(shape, 0, False)
                dz, y = Maps(shape, 0, False).put(of.dz), Maps(shape, 0, False).put(of.y)
                call(
                    *("affine_backward", instructions, dz, y, None, None, None),
                    *(*coefficients, dy, None, size_of(shape), 0, 1),
                )
                assert not dy.get().isfinite().any()


Side = tuple[int, int, int]
Window = tuple[Side, Side]

# Kernel, stride and padding of the rows, then of the columns.
WINDOWS: list[Window] = [
    ((2, 2, 0), (2, 2, 0)),
    ((3, 2, 1), (3, 2, 1)),
    ((3, 1, 1), (3, 1, 1)),
    ((2, 1, 0), (3, 3, 1)),
    ((2, 3, 0), (2, 3, 0)),
    ((3, 3, 0), (3, 3, 0)),
    ((1, 2, 0), (1, 1, 0)),
    ((4, 4, 2), (2, 2, 1)),
]


def pool_cases() -> Iterator[tuple[tuple[int, int, int, int], Window]]:
    for shape in SHAPES:
        yield shape, ((shape[2], shape[2], 0), (shape[3], shape[3], 0))  # the whole map
        for window in WINDOWS:
            kernels_fit = all(
                kernel <= extent + 2 * padding
                for (kernel, _, padding), extent in zip(window, shape[2:], strict=True)
            )
            if kernels_fit:
                yield shape, window


class Pools:
    """Pools of one instruction set and one form of maps, with one and with two threads."""

    def __init__(
        self, instructions: str, border: int = 0, wide: bool = False, ceil: bool = False
    ) -> None:
        self.instructions, self.border, self.wide, self.ceil = instructions, border, wide, ceil

    def torch(self, window: Window) -> dict[str, Any]:
        names = ("kernel_size", "stride", "padding")
        sides = zip(names, zip(*window, strict=True), strict=True)
        return {"ceil_mode": self.ceil, **dict(sides)}

    def run(
        self, name: str, window: Window, inputs: list[Tensor], sizes: list[Any], *more: int
    ) -> Tensor:
        """`sizes` are the shapes of the input, of the output, and of what is to be written."""
        results = []
        for threads in (1, 2):
            written = Maps(tuple(sizes[2]), self.border, self.wide)
            read = [Maps(tuple(x.shape), self.border, self.wide).put(x) for x in inputs]
            plain = (c_int64 * 6)(*window[0], *window[1])
            known = (size_of(tuple(sizes[0])), *sizes[1][2:], plain, *more, threads)
            call(name, self.instructions, *read, written, *known)
            results.append(written.get())
        assert same(*results)
        return results[0]

    def check_largest(self, x: Tensor, window: Window) -> None:
        x = x.clone().requires_grad_()
        expected = F.max_pool2d(x, **self.torch(window))
        d_out = numbers(*expected.shape, seed=9)
        (gradient,) = torch.autograd.grad(expected, x, d_out)
        x, shape = x.detach(), expected.shape
        found = self.run("max_pool", window, [x], [x.shape, shape, shape])
        assert same(found, expected.detach())
        inputs = [x, d_out]
        found = self.run("max_pool_backward", window, inputs, [x.shape, shape, x.shape])
        torch.testing.assert_close(found, gradient, rtol=1e-6, atol=1e-6)

    def check_mean(self, x: Tensor, window: Window, count: int) -> None:
        exact = x.double().requires_grad_()
        expected = F.avg_pool2d(exact, **self.torch(window), count_include_pad=bool(count))
        d_out = numbers(*expected.shape, seed=9)
        (gradient,) = torch.autograd.grad(expected, exact, d_out.double())
        shape = expected.shape
        found = self.run("average_pool", window, [x], [x.shape, shape, shape], count)
        torch.testing.assert_close(
            found.double(), expected.detach(), rtol=1e-6, atol=1e-6, equal_nan=True
        )
        sizes = [x.shape, shape, x.shape]
        found = self.run("average_pool_backward", window, [d_out], sizes, count)
        torch.testing.assert_close(found.double(), gradient, rtol=1e-6, atol=1e-6)


def drawn(data: st.DataObject) -> tuple[Tensor, Window, Pools]:
    """Numbers with ties, a window that torch takes for them, and any pools."""
    shape = [data.draw(st.integers(1, most)) for most in (35, 3, 9, 9)]
    sides = []
    for extent in shape[2:]:
        kernel = data.draw(st.integers(1, extent))
        stride, padding = data.draw(st.integers(1, 4)), data.draw(st.integers(0, kernel // 2))
        sides.append((kernel, stride, padding))
    usable = [name for name in INSTRUCTIONS if missing(name) is None]
    if not usable:
        pytest.skip("no kernels")
    border, wide = data.draw(st.sampled_from(FORMS))
    instructions, ceil = data.draw(st.sampled_from(usable)), data.draw(st.booleans())
    x = numbers(*shape).mul(2).round()
    return x, (sides[0], sides[1]), Pools(instructions, border, wide, ceil)


class TestMaxPool:
    def test_against_torch(self, instructions: str) -> None:
        for (shape, window), (border, wide) in product(pool_cases(), FORMS):
            # All numbers below the zeros of the border.
            Pools(instructions, border, wide).check_largest(numbers(*shape) - 9, window)

    @pytest.mark.parametrize("window", WINDOWS[:3])
    def test_ties_infinities_and_nan(self, instructions: str, window: Window) -> None:
        generator = torch.Generator().manual_seed(0)
        values = torch.tensor([-INF, -INF, -1.0, 0.0, -0.0, 1.0, INF, NAN])
        for kinds in (6, 8):
            index = torch.randint(0, kinds, (40, 3, 9, 9), generator=generator)
            Pools(instructions, 1).check_largest(values[index], window)
        for value in (-INF, NAN):
            Pools(instructions).check_largest(torch.full((3, 1, 4, 4), value), window)

    @given(data=st.data())
    @settings(max_examples=60, deadline=None)
    def test_any_window(self, data: st.DataObject) -> None:
        x, window, pools = drawn(data)
        pools.check_largest(x, window)


class TestAveragePool:
    def test_against_torch(self, instructions: str) -> None:
        for (shape, window), (border, wide) in product(pool_cases(), FORMS):
            for count in (0, 1):
                Pools(instructions, border, wide).check_mean(numbers(*shape), window, count)

    @pytest.mark.parametrize("window", WINDOWS[:3])
    def test_infinity_stays_in_its_windows(self, instructions: str, window: Window) -> None:
        x = numbers(17, 2, 6, 6)
        x[0, 0, 2, 2], x[16, 1, 5, 5] = INF, NAN
        Pools(instructions, 1).check_mean(x, window, 1)

    @given(data=st.data())
    @settings(max_examples=60, deadline=None)
    def test_any_window(self, data: st.DataObject) -> None:
        x, window, pools = drawn(data)
        pools.check_mean(x, window, data.draw(st.integers(0, 1)))
