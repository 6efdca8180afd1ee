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


def run_normalised(
    y: Maps,
    bias: Tensor | None,
    norm: Norm,
    residual: Maps | None,
    form: Form,
    *,
    rectify: bool,
    pools: bool = False,
) -> tuple[Maps, Affine]:
    """A stage with BatchNorm of `y + bias`: its output, and what its backward pass needs.

    Running statistics are updated as `norm` says.

    Args:
        y: Input of the stage.
        bias: Added to it, or None.
        norm: The BatchNorm.
        residual: Added before the rectifier, or None.
        form: Of the output.
        rectify: Whether a ReLU follows.
        pools: Whether that is followed by the maxima over tiles of 2 x 2; with batch statistics,
            a rectifier and no residual only.
    """
    if not norm.use_batch:
        affine = _by_running_statistics(bias, norm)
        return run_stage(y, affine, residual, form, rectify=rectify), affine
    if y.form.count < 2:
        raise ValueError(
            f"BatchNorm got {y.form.count} number per channel in training mode, expected more "
            "than 1; give larger batches."
        )
    z, channels = new_maps(form), y.form.channels
    mean, variance, inverse, scale, shift = torch.empty(5, channels)
    # Named, so that copies live until the call is over.
    gamma, beta = _contiguous(norm.scale), _contiguous(norm.shift)
    known = size_argument(y.form), _address(gamma), _address(beta), norm.epsilon
    written = [each.data_ptr() for each in (mean, variance, inverse, scale, shift)]
    if pools:
        kernels().normalise_pool(y.argument(), z.argument(), *known, *written, num_threads())
    else:
        kernels().normalise(
            *(y.argument(), None if residual is None else residual.argument(), z.argument()),
            *(*known, int(rectify), *written, num_threads()),
        )
    if norm.update is not None and norm.running_mean is not None:
        assert norm.running_variance is not None
        whole = mean if bias is None else mean + bias.detach()
        unbiased = variance * (y.form.count / (y.form.count - 1))
        norm.running_mean.lerp_(whole.to(norm.running_mean.dtype), norm.update)
        norm.running_variance.lerp_(unbiased.to(norm.running_variance.dtype), norm.update)
    return z, Affine(scale, shift, mean, inverse, use_batch=True)


def _by_running_statistics(bias: Tensor | None, norm: Norm) -> Affine:
    """The factor and addend of BatchNorm in evaluation mode."""
    assert norm.running_mean is not None
    assert norm.running_variance is not None
    mean = norm.running_mean if bias is None else norm.running_mean - bias.detach()
    inverse = (norm.running_variance + norm.epsilon).rsqrt()
    scale = inverse if norm.scale is None else inverse * norm.scale.detach()
    shift = -mean * scale if norm.shift is None else norm.shift.detach() - mean * scale
    return Affine(scale.contiguous(), shift.contiguous(), mean, inverse, use_batch=False)


def run_stage(
    y: Maps,
    affine: Affine,
    residual: Maps | None,
    form: Form,
    *,
    rectify: bool,
    out: Maps | None = None,
) -> Maps:
    """Output maps f(scale * y + shift + residual), in the given form; `out` may be an operand."""
    z = new_maps(form) if out is None else out
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
    pools: bool = False,
) -> StageGradients:
    """Backward pass of `run_stage`, or of `run_normalised`.

    Args:
        dz: Gradient of the output.
        y: The stage's input.
        z: Its output, needed if there was a residual before a rectifier.
        affine: Of the forward pass.
        rectify: Whether the output was rectified.
        input_form: Form of the input's gradient; None if it is not wanted.
        residual_form: Form of the residual's gradient; None if it is not wanted.
        parameters: Whether gradients of bias and norm are wanted.
        pools: Whether maxima over tiles of 2 x 2 followed.
    """
    dy = None if input_form is None else new_maps(input_form)
    dr = None if residual_form is None else new_maps(residual_form)
    arguments = [None if maps is None else maps.argument() for maps in (dz, y, z, dy, dr)]
    size, relu = size_argument(dz.form), int(rectify)
    scale, shift = _address(affine.scale), _address(affine.shift)
    channels = dz.form.channels
    if affine.use_batch:
        assert affine.mean is not None
        assert affine.inverse_deviation is not None
        norm_scale, norm_shift = torch.empty(2, channels)
        known = scale, shift, affine.mean.data_ptr(), affine.inverse_deviation.data_ptr()
        written = norm_scale.data_ptr(), norm_shift.data_ptr(), num_threads()
        if pools:
            given = arguments[0], arguments[1], arguments[3], size_argument(y.form)
            kernels().normalise_pool_backward(*given, *known, *written)
        else:
            kernels().normalise_backward(*arguments, size, *known, relu, *written)
        # Batch statistics take a constant out again, so its gradient is exactly zero.
        return StageGradients(dy, dr, torch.zeros(channels), norm_scale, norm_shift)
    stage = (*arguments[:3], scale, shift)
    bias, wide_scale, wide_shift = None, None, None
    if parameters:
        sums, products = torch.empty(2, channels, dtype=torch.float64)
        kernels().affine_sums(
            *(*stage, size, relu, sums.data_ptr(), products.data_ptr(), num_threads())
        )
        bias = sums.float()
        if affine.mean is not None:
            assert affine.inverse_deviation is not None
            assert affine.scale is not None
            centred = products - affine.mean.double() * sums
            wide_scale, wide_shift = (centred * affine.inverse_deviation).float(), sums.float()
            bias = (sums * affine.scale).float()
    if dy is not None or dr is not None:
        kernels().affine_backward(
            *(*stage, scale, None, None, *arguments[3:], size, relu, num_threads())
        )
    return StageGradients(dy, dr, bias, wide_scale, wide_shift)


def bordered(form: Form, border: int) -> Form:
    """The same form with this border; wide maps have none."""
    return form if form.wide else replace(form, border=border)


def _address(numbers: Tensor | None) -> int | None:
    return None if numbers is None else numbers.data_ptr()


def _contiguous(numbers: Tensor | None) -> Tensor | None:
    # Only addresses are read, so there is nothing to detach, and each call of torch takes time.
    return numbers if numbers is None or numbers.is_contiguous() else numbers.detach().contiguous()
