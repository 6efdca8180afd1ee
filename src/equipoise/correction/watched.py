"""The step of a corrector whose coefficient sees the gradients themselves."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from equipoise.correction.activity import Activity
from equipoise.correction.gradients import all_finite, set_aside
from equipoise.correction.overlap import Overlap
from equipoise.correction.plain import accumulate
from equipoise.measure import Measure
from equipoise.points import (
    Loss,
    Named,
    device_of,
    positions_of,
    random_state,
    replayed,
    value_and_gradient_at,
)


@runtime_checkable
class Watching(Protocol):
    """What a corrector asks of a coefficient that sees gradients, beside `Coefficient`.

    At every step `plan` is asked first, before anything of the batch is known; after an old pass
    `shift` and `watch` follow.
    """

    def plan(self, num_groups: int) -> Tensor | None:
        """One coefficient for each parameter, float64; None to leave the old pass out."""
        ...  # pragma: no cover

    def shift(self, differences: Named) -> Named:
        """Old gradients minus their mean, as they enter the correction."""
        ...  # pragma: no cover

    def watch(self, a: Tensor, b: Tensor, s: Tensor, size: Tensor) -> None:
        """Takes in the dot products of one step, each of shape ``(num_groups,)``.

        Args:
            a: Of the new gradient minus the full one with the old one minus the full one.
            b: Of the old gradient minus the full one with itself.
            s: Of the new gradient minus the full one with itself.
            size: Of the new gradient with itself.
        """
        ...  # pragma: no cover

    def rewired(self) -> None:
        """Which weights are active has changed since the last step."""
        ...  # pragma: no cover


class Parts(Protocol):
    """What a step needs of its corrector."""

    model: nn.Module
    full_gradient: Named
    _active: Activity
    positions: Named
    _measure: Measure
    _overlap: Overlap

    def _snapshot_point(self) -> Named: ...  # pragma: no cover


def watched_step(
    parts: Parts, watching: Watching, loss: Loss, samples: float, scale: float
) -> Tensor:
    """One step: asks for the plan, makes the passes, corrects, and shows what was seen."""
    active, measure = parts._active, parts._measure
    if active.has_changed():
        watching.rewired()
    weights = watching.plan(len(parts.full_gradient))
    state = random_state(device_of(parts.model))
    with set_aside(active.parameters()):
        with measure("new_gradient", samples=samples, forwards=1, backwards=1):
            value = accumulate(loss, scale)
        if weights is not None:
            with measure("old_gradient", samples=samples, forwards=1, backwards=1):
                with replayed(state):
                    point = parts._snapshot_point()
                    _, old = value_and_gradient_at(parts.model, point, loss, scale=scale)
                there, now = parts.positions, positions_of(parts.model)

                def here(name: str, numbers: Tensor) -> Tensor:
                    return parts._overlap.between(name, numbers, there, now)

                correct_watched(watching, active, parts.full_gradient, old, weights, scale, here)
    return value


@torch.no_grad()
def correct_watched(
    watching: Watching,
    active: Activity,
    full_gradient: Named,
    old: Named,
    weights: Tensor,
    scale: float,
    here: Callable[[str, Tensor], Tensor],
) -> None:
    """Shows the gradients to the coefficient and adds the correction that it has planned.

    Args:
        watching: The coefficient.
        active: Knows the parameters, with the new gradients, and where they are corrected.
        full_gradient: At the snapshot, by name.
        old: Gradients of the batch at the snapshot, by name, scaled.
        weights: From `Watching.plan`, in the order of `full_gradient`.
        scale: Of the new and old gradients.
        here: Carries numbers at the positions of the snapshot to those of now, by name.
    """
    parameters = active.parameters()
    new = {n: p.grad for n, p in parameters.items() if p.grad is not None}
    if not all_finite(new.values()):
        return  # a gradient scaler skips the step
    if not all_finite(old.values()):
        warn_of_old()
        return
    raw = {
        name: old[name].to(full.dtype) / scale - full if name in old else -full
        for name, full in full_gradient.items()
    }
    products = []
    for (name, shifted), weight in zip(watching.shift(raw).items(), weights.tolist(), strict=True):
        if name not in parameters:  # frozen since the refresh
            products.append((0.0, 0.0, 0.0, 0.0))
            continue
        parameter, gradient = parameters[name], new.get(name)
        difference = active.twice(name, here(name, shifted))
        # The mean of the old gradients as it is known by now; the new ones are near it as well.
        known = full_gradient[name]
        if shifted is not raw[name]:
            known = known + (raw[name] - shifted)
        centred = -here(name, known)
        if gradient is not None:
            centred = centred + gradient.to(centred.dtype) / scale
        centred = active.twice(name, centred)
        size = 0.0 if gradient is None else _dot(gradient, gradient) / scale**2
        a, b = _dot(centred, difference), _dot(difference, difference)
        products.append((a, b, _dot(centred, centred), size))
        if weight != 0.0:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad.sub_(difference.to(parameter.grad.dtype), alpha=weight * scale)
    watching.watch(*torch.tensor(products, dtype=torch.float64).unbind(1))


def warn_of_old() -> None:
    """An old gradient is not finite."""
    warnings.warn(
        "an old gradient is not finite, so this step stays uncorrected; "
        "lower the loss scale or refresh more often if this repeats.",
        RuntimeWarning,
        stacklevel=4,
    )


def _dot(a: Tensor, b: Tensor) -> float:
    """Dot product of two tensors of any shape."""
    return float((a * b).sum(dtype=torch.float64))
