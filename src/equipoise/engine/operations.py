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
    """

    plan: Plan | None
    norm: Norm | None
    rectify: bool
    border: int
    gather: Gather | None = None


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
            y = convolve(unit.plan, values, x, unit.border if plain else 0)
        else:
            y = x
        ctx.unit, ctx.form, ctx.residual_form, ctx.plain = unit, form, residual_form, plain
        if plain:
            ctx.y_form = ctx.z_form = y.form
            ctx.affine = None
            ctx.save_for_backward(data, values, None, None)
            return y.data
        made = bordered(y.form, unit.border)
        if unit.norm is None:
            affine = Affine(None, bias, None, None, use_batch=False)
            z = run_stage(y, affine, residual, made, rectify=unit.rectify)
        else:
            z, affine = run_normalised(y, bias, unit.norm, residual, made, rectify=unit.rectify)
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
        data, values, y_data, z_data = ctx.saved_tensors
        unit: Unit = ctx.unit
        needs_input, needs_values, needs_bias, needs_scale, needs_shift, needs_residual = (
            ctx.needs_input_grad[:6]
        )
        dz = received(gradient, ctx.z_form)
        plan = unit.plan
        grads: list[Any] = [None] * 9
        dy = dz
        if not ctx.plain:
            z = None if z_data is None else Maps(z_data, ctx.z_form)
            # Without a norm the stage's input is never read; its output has the same strides.
            y = Maps(y_data, ctx.y_form) if y_data is not None else (z or dz)
            wanted = needs_input or needs_values
            input_form = ctx.form
            if plan is not None:
                input_form = bordered(ctx.y_form, plan.gradient_border)
            result = stage_gradients(
                *(dz, y, z, ctx.affine),
                rectify=unit.rectify,
                input_form=input_form if wanted else None,
                residual_form=ctx.residual_form if needs_residual else None,
                parameters=needs_bias or needs_scale or needs_shift,
            )
            grads[2] = result.bias if needs_bias else None
            grads[3] = result.norm_scale if needs_scale else None
            grads[4] = result.norm_shift if needs_shift else None
            grads[5] = None if result.residual is None else result.residual.data
            if result.input is None:
                return tuple(grads)
            dy = result.input
        if plan is None:
            grads[0] = dy.data
            return tuple(grads)
        if needs_values:
            grads[1] = weight_gradient(plan, Maps(data, ctx.form), dy)
            if unit.gather is not None:
                x = Maps(data, ctx.form)
                unit.gather(lambda: dense_weight_gradient(plan, x, dy))
        if needs_input:
            grads[0] = input_gradient(plan, values, _with_border(dy, plan)).data
        return tuple(grads)


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
    if unit.plan is not None:
        return Maps(data, unit.plan.out_form(x.form.samples, unit.border))
    return Maps(data, bordered(x.form, unit.border))


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
        ctx.save_for_backward(*((data, out.data) if window.largest else ()))
        return out.data

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        saved = ctx.saved_tensors
        x = Maps(saved[0], ctx.form) if saved else None
        out = Maps(saved[1], ctx.out_form) if saved else None
        d_out = received(gradient, ctx.out_form)
        return pooling.pool_gradient(ctx.window, d_out, ctx.form, x, out).data, None, None, None


def pool_maps(x: Maps, window: Window, *, border: int) -> Maps:
    """Pooled maps with this border."""
    data = _Pool.apply(x.data, x.form, window, border)
    return Maps(data, pooling.pooled_form(x.form, window, border))


def _with_border(dy: Maps, plan: Plan) -> Maps:
    """The gradient with the border that the transposed convolution reads."""
    if plan.way.wide or dy.form.border == plan.gradient_border:
        return dy
    return copied(dy, bordered(dy.form, plan.gradient_border))


def _of(form: Form | None) -> Form:
    assert form is not None
    return form
