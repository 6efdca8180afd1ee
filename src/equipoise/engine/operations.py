"""The engine's differentiable operations; each keeps what its backward pass needs and no more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from equipoise.engine import pooling
from equipoise.engine.convolution import Plan, convolve, input_gradient, weight_gradient
from equipoise.engine.maps import Form, Maps, copied, received, restore
from equipoise.engine.pooling import Window
from equipoise.engine.stage import (
    Affine,
    Norm,
    bordered,
    run_normalised,
    run_stage,
    stage_gradients,
)

Gather = Callable[[Callable[[], Tensor]], None]


@dataclass(frozen=True)
class Unit:
    """What one call of `unit` does besides its tensors.

    Args:
        plan: The convolution; None for a stage alone.
        norm: BatchNorm, or None.
        rectify: Whether a ReLU follows.
        border: Of the output.
        gather: Is offered the dense weight gradient in the backward pass; None if nobody asks.
        pools: Whether the maxima over tiles of 2 x 2 follow; see `can_pool`.
    """

    plan: Plan | None
    norm: Norm | None
    rectify: bool
    border: int
    gather: Gather | None = None
    pools: bool = False


class _Unit(torch.autograd.Function):
    """Convolution, bias, BatchNorm, residual and ReLU, each but one of them optional."""

    @staticmethod
    def forward(
        ctx: Any,
        data: Tensor,
        values: Tensor | None,
        bias: Tensor | None,
        _norm_scale: Tensor | None,
        _norm_shift: Tensor | None,
        residual_data: Tensor | None,
        form: Form,
        residual_form: Form | None,
        unit: Unit,
    ) -> Tensor:
        x = Maps(data, form)
        residual = None if residual_data is None else Maps(residual_data, _of(residual_form))
        plain = unit.norm is None and bias is None and residual is None and not unit.rectify
        if unit.plan is not None:
            assert values is not None
            values = values.detach().contiguous()
            # With the border of its gradient, so that both have one form and share their memory.
            border = unit.border if plain else unit.plan.gradient_border
            y = convolve(unit.plan, values, x, border)
        else:
            y = x
        ctx.unit, ctx.form, ctx.residual_form, ctx.plain = unit, form, residual_form, plain
        if plain:
            ctx.y_form = ctx.z_form = y.form
            ctx.affine = None
            ctx.save_for_backward(data, values, None, None)
            return y.data
        made = _made(y.form, unit)
        if unit.norm is None:
            affine = Affine(None, bias, None, None, use_batch=False)
            z = run_stage(y, affine, residual, made, rectify=unit.rectify)
        else:
            z, affine = run_normalised(
                *(y, bias, unit.norm, residual, made), rectify=unit.rectify, pools=unit.pools
            )
        ctx.affine, ctx.y_form, ctx.z_form = affine, y.form, z.form
        ctx.compares = unit.rectify and (residual is not None or unit.norm is None)
        # y is read again for the norm's sums, or for the sign of what was rectified.
        ctx.save_for_backward(
            data if unit.plan is not None else None,
            values,
            y.data if unit.norm is not None else None,
            z.data if ctx.compares else None,
        )
        return z.data

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        data, values, *stage = ctx.saved_tensors
        _let_go(ctx)
        unit: Unit = ctx.unit
        plan = unit.plan
        needs_input, needs_values = ctx.needs_input_grad[:2]
        dz = received(gradient, ctx.z_form)
        grads: list[Any] = [None] * 9
        dy: Maps | None = dz
        if not ctx.plain:
            grads[2:6], dy = _stage_backward(ctx, dz, stage)
        if plan is None or dy is None:
            grads[0] = None if dy is None else dy.data
            return tuple(grads)
        if needs_values:
            x, kept = Maps(data, ctx.form), dy
            grads[1] = weight_gradient(plan, x, dy)
            if unit.gather is not None:
                unit.gather(lambda: dense_weight_gradient(plan, x, kept))
        if needs_input:
            grads[0] = input_gradient(plan, values, _with_border(dy, plan)).data
        return tuple(grads)


def _stage_backward(
    ctx: Any, dz: Maps, saved: list[Tensor | None]
) -> tuple[list[Tensor | None], Maps | None]:
    """Gradients of bias, norm and residual, and that of the stage's input.

    Args:
        ctx: Of a unit with a stage.
        dz: Gradient of its output.
        saved: Input and output of the stage; emptied, so that their memory can be used again.
    """
    unit: Unit = ctx.unit
    needs_input, needs_values, *needs = ctx.needs_input_grad[:6]
    z_data, y_data = saved.pop(), saved.pop()
    z = None if z_data is None else Maps(z_data, ctx.z_form)
    # Without a norm the stage's input is never read; its output has the same strides.
    y = Maps(y_data, ctx.y_form) if y_data is not None else (z or dz)
    input_form = ctx.form
    if unit.plan is not None:
        input_form = bordered(ctx.y_form, unit.plan.gradient_border)
    result = stage_gradients(
        *(dz, y, z, ctx.affine),
        rectify=unit.rectify,
        input_form=input_form if needs_input or needs_values else None,
        residual_form=ctx.residual_form if needs[3] else None,
        parameters=any(needs[:3]),
        pools=unit.pools,
    )
    found = (result.bias, result.norm_scale, result.norm_shift)
    residual = None if result.residual is None else result.residual.data
    wanted = [g if need else None for g, need in zip(found, needs[:3], strict=True)]
    return [*wanted, residual], result.input


def _let_go(ctx: Any) -> None:
    """Lets the saved tensors go as soon as the caller does, unless the graph is kept."""
    if hasattr(ctx, "maybe_clear_saved_tensors"):  # not in the oldest versions of torch
        ctx.maybe_clear_saved_tensors()


def unit_maps(
    x: Maps,
    unit: Unit,
    *,
    values: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Maps | None = None,
) -> Maps:
    """One fused step of a network.

    Args:
        x: The input maps; for a convolution with the plan's border.
        unit: What to do.
        values: Active weights of the convolution.
        bias: Added to its output, or None.
        residual: Added before the rectifier, or None.
    """
    norm = unit.norm
    for each in (values, bias, *(() if norm is None else (norm.scale, norm.shift))):
        if each is not None and (each.dtype != torch.float32 or each.device.type != "cpu"):
            raise ValueError(
                f"a parameter is {each.dtype} on {each.device}, expected torch.float32 on cpu; "
                "convert the network back with .float() and .cpu()."
            )
    data = _Unit.apply(
        x.data,
        values,
        bias,
        None if norm is None else norm.scale,
        None if norm is None else norm.shift,
        None if residual is None else residual.data,
        x.form,
        None if residual is None else residual.form,
        unit,
    )
    form = x.form if unit.plan is None else unit.plan.out_form(x.form.samples, 0)
    return Maps(data, _made(form, unit))


_TILES = Window(largest=True, kernel=(2, 2), stride=(2, 2))


def can_pool(norm: Norm | None, window: Window, rows: int, columns: int) -> bool:
    """Whether a unit with a rectifier and no residual can take the maxima of its maps itself."""
    tiles = window == _TILES and rows % 2 == columns % 2 == 0
    return tiles and norm is not None and norm.use_batch


def _made(form: Form, unit: Unit) -> Form:
    """Form of the output of a unit, from that of its convolution."""
    if unit.pools:
        return pooling.pooled_form(form, _TILES, unit.border)
    return bordered(form, unit.border)


def dense_weight_gradient(plan: Plan, x: Maps, dy: Maps) -> Tensor:
    """Gradient of every weight, active or not, in the shape of the convolution's weight.

    A dense product, so torch's: it is needed at rewirings by gradient only.
    """
    geometry = plan.geometry
    plain_x = restore(x).contiguous(memory_format=torch.channels_last)
    plain_dy = restore(dy).contiguous(memory_format=torch.channels_last)
    weight = torch.empty(geometry.weight_shape).contiguous(memory_format=torch.channels_last)
    gradient: Tensor = torch.ops.aten.convolution_backward(
        *(plain_dy, plain_x, weight, None, geometry.stride, geometry.padding, geometry.dilation),
        *(False, (0, 0), geometry.groups, (False, True, False)),
    )[1]
    return gradient.contiguous()


class _Pool(torch.autograd.Function):
    """Maximum or mean over windows."""

    @staticmethod
    def forward(ctx: Any, data: Tensor, form: Form, window: Window, border: int) -> Tensor:
        x = Maps(data, form)
        out = pooling.pool(x, window, border)
        ctx.form, ctx.out_form, ctx.window = form, out.form, window
        ctx.save_for_backward(data if window.largest else None)
        return out.data

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (data,) = ctx.saved_tensors
        x = None if data is None else Maps(data, ctx.form)
        d_out = received(gradient, ctx.out_form)
        return pooling.pool_gradient(ctx.window, d_out, ctx.form, x).data, None, None, None


def pool_maps(x: Maps, window: Window, *, border: int) -> Maps:
    """Pooled maps with this border."""
    data = _Pool.apply(x.data, x.form, window, border)
    return Maps(data, pooling.pooled_form(x.form, window, border))


class _Share(torch.autograd.Function):
    """The same maps for several readers; their gradients are added up in place.

    Autograd itself would write each sum to fresh memory, border included.
    """

    @staticmethod
    def forward(ctx: Any, data: Tensor, form: Form, readers: int) -> tuple[Tensor, ...]:
        ctx.form = form
        ctx.set_materialize_grads(False)
        return tuple(data.view_as(data) for _ in range(readers))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        total: Maps | None = None
        for gradient in gradients:
            if gradient is None:
                continue
            part = received(gradient, ctx.form)
            total = part if total is None else _added(total, part)
        return None if total is None else total.data, None, None


def _added(total: Maps, part: Maps) -> Maps:
    """The sum, in the memory of `total`."""
    nothing = Affine(None, None, None, None, use_batch=False)
    return run_stage(total, nothing, part, total.form, rectify=False, out=total)


def share_maps(x: Maps, readers: int) -> list[Maps]:
    """One and the same maps for each reader; each must be used once."""
    return [Maps(data, x.form) for data in _Share.apply(x.data, x.form, readers)]


def _with_border(dy: Maps, plan: Plan) -> Maps:
    """The gradient with the border that the transposed convolution reads."""
    if plan.way.wide or dy.form.border == plan.gradient_border:
        return dy
    return copied(dy, bordered(dy.form, plan.gradient_border))


def _of(form: Form | None) -> Form:
    assert form is not None
    return form
