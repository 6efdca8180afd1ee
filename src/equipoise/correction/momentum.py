"""Momentum-based variance reduction: the step before is the snapshot."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Generic

import torch
from torch import Tensor, nn

from equipoise.correction.batches import num_samples
from equipoise.correction.coefficients import Coefficient
from equipoise.correction.correctors import GradientCorrector
from equipoise.correction.gradients import all_finite
from equipoise.correction.overlap import Overlap
from equipoise.correction.plain import AnyBatch, accumulate
from equipoise.correction.recursions import AgentRecursion, FixedRecursion, Recursion
from equipoise.correction.storage import Masks, no_masks
from equipoise.measure import Measure, unmeasured
from equipoise.points import (
    Named,
    RandomState,
    device_of,
    positions_of,
    random_state,
    replayed,
    trainable,
    value_and_gradient_at,
    value_at,
)

FORMAT = 1
_TENSORS = ("here", "previous", "direction", "sum", "positions", "masks")


class MomentumCorrector(Generic[AnyBatch]):
    r"""Corrects each gradient with that of the *same* batch at the parameters of the step before.

    .. math:: d_t = g_{B_t}(\theta_t) + w_t\,\bigl(d_{t-1} - g_{B_t}(\theta_{t-1})\bigr)

    and `p.grad` becomes :math:`d_t` (MVR, STORM). The gradient before, of another batch, would not
    do in the place of :math:`g_{B_t}(\theta_{t-1})`: its noise does not cancel. Two passes a step,
    no snapshot pass. What it leaves alone and takes for granted is as for `GradientCorrector`.

    A step begins when a parameter has moved since the last call; calls in between add up as micro-
    batches of one step, or repeat it if the gradients were cleared (a gradient scaler skipped it).
    After a rewiring the direction and the parameters before are those of the weights that were
    active then and are now; grown weights start at zero in both.

    The recursion is a momentum of its own, so use an optimizer without. Memory between steps: four
    times the trainable parameters.

    Args:
        model: The model that `loss_fn` evaluates; on one device.
        loss_fn: Takes one batch and returns its mean loss, a scalar; closes over `model`.
        recursion: The weights w; default: `FixedRecursion()`.
        snapshots: Corrects every gradient of the recursion. Of its correction the share
            :math:`1 - w_t` remains, since the rest is the same in both gradients and cancels.
        batch_size: Number of samples in a batch; default: the length of the first tensor in it.
        measure: Told about every pass.
        masks: Says which entries of which parameters are active.

    Example:
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> corrector = MomentumCorrector(model, lambda x: model(x).square().mean())
        >>> for batch in [torch.ones(4, 2), torch.zeros(4, 2)]:
        ...     optimizer.zero_grad()
        ...     loss = corrector.backward(batch)
        ...     optimizer.step()
        >>> corrector.coefficient_value
        0.9

    References:
        Cutkosky and Orabona, Momentum-based variance reduction in non-convex SGD (STORM), 2019.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[[AnyBatch], Tensor],
        recursion: Recursion | None = None,
        *,
        snapshots: GradientCorrector[AnyBatch] | None = None,
        batch_size: Callable[[AnyBatch], float] = num_samples,
        measure: Measure = unmeasured,
        masks: Masks = no_masks,
    ) -> None:
        self.model = model
        self.loss_fn = loss_fn
        self.recursion: Recursion = FixedRecursion() if recursion is None else recursion
        self.snapshots = snapshots
        self._batch_size = batch_size
        self._measure = measure
        self._masks = masks
        self._overlap = Overlap()
        # At the latest call: parameters, positions and masks; the sum of what was given out.
        self._here: Named = {}
        self._now_positions: Named = {}
        self._now_masks: Named = {}
        self._sum: Named = {}
        self._scale_sum = 0.0
        self._norm_sum = 0.0
        self._factor = 1.0
        # Of the step before that.
        self._previous: Named = {}
        self._direction: Named = {}
        self._pairs: list[tuple[Tensor, Tensor, float]] = []

    @property
    def coefficient_value(self) -> float:
        """Weight of the old gradient at the next step; 0 before the first."""
        return self.recursion.weight if self._here else 0.0

    @property
    def coefficient(self) -> Coefficient | None:
        """The one that estimates from losses, if there is one."""
        if isinstance(self.recursion, AgentRecursion):
            return self.recursion.coefficient
        return None if self.snapshots is None else self.snapshots.coefficient

    def refresh(
        self,
        batches: Iterable[AnyBatch],
        *,
        weights: Iterable[float] | None = None,
        scale: float = 1.0,
    ) -> None:
        """Lets the coefficient observe the losses since the last refresh, and snapshots refresh.

        Without snapshots `batches` is not iterated.
        """
        if self.snapshots is not None:
            self.snapshots.refresh(batches, weights=weights, scale=scale)
        if isinstance(self.recursion, AgentRecursion) and self._pairs:
            current, previous, sizes = zip(*self._pairs, strict=True)
            counts = torch.tensor(sizes, dtype=torch.float64)
            self.recursion.coefficient.observe(torch.stack(current), torch.stack(previous), counts)
            self._pairs.clear()

    def backward(self, batch: AnyBatch, *, scale: float = 1.0) -> Tensor:
        r"""Accumulates :math:`s\,d_t` of one batch into ``p.grad``.

        Args:
            batch: Whatever `loss_fn` takes.
            scale: As in `GradientCorrector.backward`.

        Returns:
            The loss at the current parameters, detached, unscaled. Shape ``()``.

        Raises:
            ValueError: `loss_fn` did not return a scalar that depends on the model's parameters.

        Example:
            >>> model = torch.nn.Linear(2, 1)
            >>> corrector = MomentumCorrector(model, lambda x: model(x).mean())
            >>> corrector.backward(torch.ones(4, 2)).shape
            torch.Size([])
        """
        self._begin()
        loss = partial(self.loss_fn, batch)
        samples = self._batch_size(batch)
        state = random_state(device_of(self.model))
        before = {n: p.grad.clone() for n, p in self._trained() if p.grad is not None}
        with self._measure("new_gradient", samples=samples, forwards=1, backwards=1):
            value = accumulate(loss, scale)
        self._observe_norm(before, scale)
        weight = self.recursion.weight if self._previous else 0.0
        if weight != 0.0:
            with self._measure("old_gradient", samples=samples, forwards=1, backwards=1):
                old_value, weight = self._add_old(loss, state, weight, scale)
            self._keep_pair(value, old_value, samples)
        elif self._previous and self._estimates():
            with self._measure("old_gradient", samples=samples, forwards=1):
                self._keep_pair(value, self._old_value(loss, state), samples)
        if self.snapshots is not None:
            self.snapshots.add_correction(batch, state, share=1.0 - weight, scale=scale)
        self._remember(before, scale)
        return value

    def state_dict(self) -> dict[str, Any]:
        """Both points, the direction and the rule; plain tensors and numbers, the live ones."""
        return {
            "format": FORMAT,
            "here": dict(self._here),
            "previous": dict(self._previous),
            "direction": dict(self._direction),
            "sum": dict(self._sum),
            "positions": dict(self._now_positions),
            "masks": dict(self._now_masks),
            "scale_sum": self._scale_sum,
            "norm_sum": self._norm_sum,
            "factor": self._factor,
            "pairs": [list(pair) for pair in self._pairs],
            "recursion": self.recursion.state_dict(),
            "snapshots": None if self.snapshots is None else self.snapshots.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`; continues bit for bit.

        Raises:
            ValueError: The state belongs to another format, model or rule.
        """
        if state.get("format") != FORMAT or not set(_TENSORS) <= state.keys():
            raise ValueError(
                f"the corrector state has format {state.get('format')} or is of another corrector, "
                f"expected {FORMAT} of a MomentumCorrector; load it into what it was saved from."
            )
        self._check_fit(state)
        try:
            self.recursion.load_state_dict(state["recursion"])
        except KeyError as error:
            raise ValueError(
                f"the state has no {error} for {type(self.recursion).__name__}; "
                "give the corrector the recursion that it was saved with."
            ) from error
        if self.snapshots is not None:
            self.snapshots.load_state_dict(state["snapshots"])
        device = device_of(self.model)
        parts = ({n: t.to(device).clone() for n, t in state[part].items()} for part in _TENSORS)
        self._here, self._previous, self._direction, self._sum, positions, masks = parts
        self._now_positions, self._now_masks = positions, masks
        self._scale_sum, self._norm_sum = float(state["scale_sum"]), float(state["norm_sum"])
        self._factor = float(state["factor"])
        self._pairs = [(now.to(device), old.to(device), n) for now, old, n in state["pairs"]]

    def _trained(self) -> Iterable[tuple[str, nn.Parameter]]:
        return trainable(self.model).items()

    @torch.no_grad()
    def _begin(self) -> None:
        """Finds out which step this call belongs to, and starts it if it is a new one."""
        if self._here and self._moved():
            self.recursion.advance()
            self._previous, self._direction = self._here, self._given_out()
            self._carry()
        elif self._here and any(p.grad is not None and p.grad.any() for _, p in self._trained()):
            return
        self._here = {name: p.detach().clone() for name, p in self._trained()}
        self._now_positions = {n: i for n, i in positions_of(self.model).items() if n in self._here}
        self._now_masks = {n: m for n, m in self._masks().items() if n in self._here}
        self._sum, self._scale_sum, self._norm_sum, self._factor = {}, 0.0, 0.0, 1.0

    def _moved(self) -> bool:
        """Whether any parameter is another than at the latest call."""
        for name, parameter in self._trained():
            known = self._here.get(name)
            if known is None or known.shape != parameter.shape or not torch.equal(known, parameter):
                return True
        return False

    def _given_out(self) -> Named:
        """The direction of the step that is over; nothing where a call failed half-way."""
        if self._scale_sum == 0.0:
            return {}
        return {name: total / self._scale_sum for name, total in self._sum.items()}

    def _carry(self) -> None:
        """Brings direction and parameters of the step before to the weights of now."""
        positions, masks = positions_of(self.model), self._masks()
        for name, there in self._now_positions.items():
            for tensors in (self._previous, self._direction):
                if name in tensors:
                    now = positions[name]
                    tensors[name] = self._overlap.carry(name, tensors[name], there, now)
        for name, then in self._now_masks.items():
            now = masks.get(name, then)
            if name in self._previous:
                self._previous[name] = self._previous[name] * now
            if name in self._direction:
                self._direction[name] = self._direction[name] * (then & now)

    @torch.no_grad()
    def _observe_norm(self, before: Named, scale: float) -> None:
        """Shows the rule the squared norm of the new gradient, the mean over micro-batches."""
        if isinstance(self.recursion, FixedRecursion | AgentRecursion):
            return
        square = torch.zeros((), dtype=torch.float64, device=device_of(self.model))
        for name, parameter in self._trained():
            if parameter.grad is not None:
                gradient = parameter.grad - before[name] if name in before else parameter.grad
                mask = self._now_masks.get(name)
                gradient = gradient if mask is None else gradient * mask
                square += (gradient / scale).double().square().sum()
        self._norm_sum += scale * float(square)
        self.recursion.see(self._norm_sum / (self._scale_sum + scale))

    def _old_value(self, loss: Callable[[], Tensor], state: RandomState) -> Tensor:
        """The loss at the parameters before, with the random numbers of the new one."""
        with torch.no_grad(), replayed(state):
            return value_at(self.model, self._previous, loss).detach()

    def _add_old(
        self, loss: Callable[[], Tensor], state: RandomState, weight: float, scale: float
    ) -> tuple[Tensor, float]:
        """Adds ``weight * (scale * direction - old)``; the old loss and the weight used."""
        with replayed(state):
            value, old = value_and_gradient_at(self.model, self._previous, loss, scale=scale)
        if not all_finite(old.values()):
            # Where the new gradient is not finite either, a gradient scaler skips the step.
            if not all_finite(p.grad for _, p in self._trained() if p.grad is not None):
                return value, 0.0
            warnings.warn(
                "the gradient at the parameters before is not finite, so this step stays "
                "uncorrected; lower the loss scale or the learning rate if this repeats.",
                RuntimeWarning,
                stacklevel=3,
            )
            return value, 0.0
        with torch.no_grad():
            for name, parameter in self._trained():
                if name not in old and name not in self._direction:
                    continue
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                extra = torch.zeros_like(parameter)
                if name in self._direction:
                    extra.add_(self._direction[name], alpha=scale)
                if name in old:
                    extra.sub_(old[name])
                parameter.grad.add_(extra, alpha=weight)
        return value, weight

    def _estimates(self) -> bool:
        """Whether the losses of a batch at both points are wanted."""
        rule = self.recursion
        return isinstance(rule, AgentRecursion) and not rule.coefficient.idle

    def _keep_pair(self, value: Tensor, old_value: Tensor, samples: float) -> None:
        """Keeps the losses of a batch at both points for the next estimate."""
        if self._estimates():
            self._pairs.append((value.detach(), old_value, samples))

    @torch.no_grad()
    def _remember(self, before: Named, scale: float) -> None:
        """Adds what this call gave out to the sum; gives the optimizer its factor times it."""
        factor = self.recursion.factor
        for name, parameter in self._trained():
            if parameter.grad is None:
                continue
            given = parameter.grad - before[name] if name in before else parameter.grad.clone()
            known = self._sum.get(name)
            total = given if known is None else known + given
            if factor != 1.0 or self._factor != 1.0:
                parameter.grad.copy_(total).mul_(factor)
                if name in before:
                    parameter.grad.add_(before[name])
                    if known is not None:
                        parameter.grad.sub_(known, alpha=self._factor)
            self._sum[name] = total
        self._scale_sum += scale
        self._factor = factor

    def _check_fit(self, state: Mapping[str, Any]) -> None:
        """Refuses points that are not like those of the model."""
        shapes = {name: tuple(p.shape) for name, p in self.model.named_parameters()}
        shapes |= {n: tuple(i.shape) for n, i in state["positions"].items() if n in shapes}
        wrong = sorted(
            name for name, t in state["here"].items() if tuple(t.shape) != shapes.get(name)
        )
        if wrong:
            raise ValueError(
                f"the corrector's parameters do not fit this model at {', '.join(wrong[:3])}; "
                "load it into the model that it was saved from."
            )
