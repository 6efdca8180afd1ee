"""What follows a convolution, in one pass over the maps: normalisation, residual, rectifier."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from equipoise.engine.library import kernels
from equipoise.engine.maps import Form, Maps, new_maps, num_threads, size_argument


@dataclass(frozen=True)
class Norm:
    """One call of a BatchNorm layer.

    Args:
        scale: Its weight, or None for ones.
        shift: Its bias, or None for zeros.
        running_mean: Changed in place if `update` is not None.
        running_variance: Likewise.
        use_batch: Whether to normalise by the batch's own statistics.
        update: Weight of the batch in the running statistics; None leaves them alone.
        epsilon: Added to the variance.
    """

    scale: Tensor | None
    shift: Tensor | None
    running_mean: Tensor | None
    running_variance: Tensor | None
    use_batch: bool
    update: float | None
    epsilon: float


@dataclass(frozen=True)
class Affine:
    """What the backward pass needs of a stage's forward pass; every tensor has a number a channel.

    Args:
        scale: Factor of the input, or None for 1.
        shift: Addend, or None for 0.
        mean: Subtracted by the normalisation, in terms of the stage's input; None without one.
        inverse_deviation: 1 / sqrt(variance + epsilon); None without normalisation.
        use_batch: Whether mean and deviation depend on the input.
    """

    scale: Tensor | None
    shift: Tensor | None
    mean: Tensor | None
    inverse_deviation: Tensor | None
    use_batch: bool


@dataclass(frozen=True)
class StageGradients:
    """Gradients of a stage: of its input, residual, added bias and the norm's two parameters."""

    input: Maps | None
    residual: Maps | None
    bias: Tensor | None
    norm_scale: Tensor | None
    norm_shift: Tensor | None


def statistics(y: Maps) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of every channel."""
    mean, variance = torch.empty(y.form.channels), torch.empty(y.form.channels)
    kernels().statistics(
        y.argument(), size_argument(y.form), mean.data_ptr(), variance.data_ptr(), num_threads()
    )
    return mean, variance


def normalised(y: Maps, bias: Tensor | None, norm: Norm) -> Affine:
    """The factor and addend by which `norm` acts on `y + bias`; updates running statistics."""
    use_batch = norm.use_batch
    if use_batch:
        if y.form.count < 2:
            raise ValueError(
                f"BatchNorm got {y.form.count} number per channel in training mode, expected more "
                "than 1; give larger batches."
            )
        mean, variance = statistics(y)
        if norm.update is not None and norm.running_mean is not None:
            assert norm.running_variance is not None
            whole = mean if bias is None else mean + bias
            unbiased = variance * (y.form.count / max(1, y.form.count - 1))
            norm.running_mean.lerp_(whole.to(norm.running_mean.dtype), norm.update)
            norm.running_variance.lerp_(unbiased.to(norm.running_variance.dtype), norm.update)
    else:
        assert norm.running_mean is not None
        assert norm.running_variance is not None
        mean = norm.running_mean if bias is None else norm.running_mean - bias
        variance = norm.running_variance
    inverse = (variance + norm.epsilon).rsqrt()
    scale = inverse if norm.scale is None else inverse * norm.scale
    shift = -mean * scale if norm.shift is None else norm.shift - mean * scale
    return Affine(scale.contiguous(), shift.contiguous(), mean, inverse, use_batch)


def run_stage(y: Maps, affine: Affine, residual: Maps | None, form: Form, *, rectify: bool) -> Maps:
    """Output maps f(scale * y + shift + residual), in the given form."""
    z = new_maps(form)
    kernels().affine(
        y.argument(),
        _address(affine.scale),
        _address(affine.shift),
        None if residual is None else residual.argument(),
        z.argument(),
        size_argument(form),
        int(rectify),
        num_threads(),
    )
    return z


def stage_gradients(
    dz: Maps,
    y: Maps,
    z: Maps | None,
    affine: Affine,
    *,
    rectify: bool,
    input_form: Form | None,
    residual_form: Form | None,
    parameters: bool,
) -> StageGradients:
    """Backward pass of `run_stage`.

    Args:
        dz: Gradient of the output.
        y: The stage's input.
        z: Its output, needed if there was a residual before a rectifier.
        affine: Of the forward pass.
        rectify: Whether the output was rectified.
        input_form: Form of the input's gradient; None if it is not wanted.
        residual_form: Form of the residual's gradient; None if it is not wanted.
        parameters: Whether gradients of bias and norm are wanted.
    """
    compared = None if z is None else z.argument()
    scale, shift = _address(affine.scale), _address(affine.shift)
    known = (dz.argument(), y.argument(), compared, scale, shift)
    size = size_argument(dz.form)
    bias = norm_scale = norm_shift = linear = constant = None
    if parameters or affine.use_batch:
        channels = dz.form.channels
        sums, products = torch.empty(2, channels, dtype=torch.float64)
        kernels().affine_sums(
            *(*known, size, int(rectify)),
            *(sums.data_ptr(), products.data_ptr(), num_threads()),
        )
        if affine.mean is None:
            bias = sums.float()
        else:
            assert affine.inverse_deviation is not None
            assert affine.scale is not None
            mean, inverse = affine.mean.double(), affine.inverse_deviation.double()
            wide_scale = (products - mean * sums) * inverse
            norm_scale, norm_shift = wide_scale.float(), sums.float()
            # Batch statistics take a constant out again, so its gradient is exactly zero.
            bias = torch.zeros(channels) if affine.use_batch else (sums * affine.scale).float()
            if affine.use_batch:
                factor = affine.scale.double()
                per_number = -factor * inverse * wide_scale / dz.form.count
                linear = per_number.float()
                constant = (-factor * sums / dz.form.count - per_number * mean).float()
    dy = None if input_form is None else new_maps(input_form)
    dr = None if residual_form is None else new_maps(residual_form)
    if dy is not None or dr is not None:
        kernels().affine_backward(
            *known,
            *(_address(affine.scale), _address(linear), _address(constant)),
            None if dy is None else dy.argument(),
            None if dr is None else dr.argument(),
            *(size, int(rectify), num_threads()),
        )
    return StageGradients(dy, dr, bias, norm_scale, norm_shift)


def bordered(form: Form, border: int) -> Form:
    """The same form with this border; wide maps have none."""
    return form if form.wide else replace(form, border=border)


def _address(numbers: Tensor | None) -> int | None:
    return None if numbers is None else numbers.data_ptr()
