"""How a topology follows optimizers: by their public step hooks and by gradient hooks."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from equipoise.measure import Measure
from equipoise.topology.rewiring import Rewiring
from equipoise.topology.store import Removable, Store


class Follower(Protocol):
    """What an attachment needs of the owner of the masks."""

    rewiring: Rewiring | None

    @property
    def rewires_next(self) -> bool:
        """Whether the next completed step is due for a rewiring."""
        ...  # pragma: no cover

    def advance_(self, gradients: Mapping[str, Tensor], *optimizers: Optimizer) -> None:
        """Counts one completed step and rewires if one is due."""
        ...  # pragma: no cover


class Attachment:
    """The bond between a topology and its optimizers; `Topology.attach` makes it.

    As a context manager it removes itself at the end.

    Args:
        topology: Told of every completed step of the last optimizer.
        weights: The masked weights by name.
        optimizers: In the order in which they are stepped.
        measure: Opened as ``"topology"`` around the work of the step hooks.
        on_remove: Called once, at removal.
    """

    def __init__(
        self,
        topology: Follower,
        weights: Mapping[str, Store],
        optimizers: Sequence[Optimizer],
        measure: Measure,
        on_remove: Callable[[], None],
    ) -> None:
        self.optimizers = tuple(optimizers)
        self._topology = topology
        self._weights = dict(weights)
        self._measure = measure
        self._on_remove = on_remove
        self._raw: dict[str, Tensor] = {}
        self._aside: list[tuple[nn.Parameter, Tensor]] = []
        self._warned = False
        self._owned = [
            [
                weight
                for weight in weights.values()
                if id(weight.weight) in _parameter_ids(optimizer)
            ]
            for optimizer in optimizers
        ]
        self._handles: list[Removable] = []
        for optimizer in self.optimizers:
            self._handles.append(optimizer.register_step_pre_hook(self._before_step))
            self._handles.append(optimizer.register_step_post_hook(self._after_step))
        for name, weight in self._weights.items():
            if self._sees_raw(weight):
                self._handles.append(weight.watch(self._is_due, self._gatherer(name)))

    def remove(self) -> None:
        """Lets go of the optimizers; the masks stay as they are. A second call does nothing."""
        if not self._handles:
            return
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._raw.clear()
        self._on_remove()

    def __enter__(self) -> Attachment:
        """Returns itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Removes itself."""
        self.remove()

    def _sees_raw(self, weight: Store) -> bool:
        """Whether the scores of this weight see gradients that its parameter does not keep."""
        rewiring = self._topology.rewiring
        if rewiring is None:
            return False
        return rewiring.needs_gradient if weight.is_compact else rewiring.signal == "raw"

    def _is_due(self) -> bool:
        """Whether the coming step rewires, so that its raw gradients are wanted."""
        return self._topology.rewires_next

    def _gatherer(self, name: str) -> Callable[[Tensor], None]:
        """Adds up what arrives; called before that is added to what is there."""
        weight = self._weights[name].weight

        def gather(gradient: Tensor) -> None:
            # Told by the gradient and not by the step, because a step may have been skipped.
            begins = weight.grad is None or not bool(weight.grad.any())
            known = None if begins else self._raw.get(name)
            arrived = gradient.detach()
            self._raw[name] = arrived.clone() if known is None else known + arrived

        return gather

    def _before_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Sets the gradients aside if a rewiring is to take the place of this step."""
        rewiring = self._topology.rewiring
        if rewiring is None or not rewiring.replaces_step or not self._topology.rewires_next:
            return
        if _closure(args, kwargs) is not None:
            self._warn_of_closure()
            return
        with self._measure("topology"):
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self._aside.append((parameter, parameter.grad))
                        parameter.grad = None

    def _after_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Restores what was set aside, masks, and after the last optimizer counts the step."""
        del args, kwargs
        with self._measure("topology"):
            for parameter, gradient in self._aside:
                parameter.grad = gradient
            self._aside.clear()
            if was_skipped(optimizer):
                return
            position = next(i for i, known in enumerate(self.optimizers) if known is optimizer)
            for weight in self._owned[position]:
                weight.clear_(optimizer)
            if position == len(self.optimizers) - 1:
                self._topology.advance_(self._gradients(), *self.optimizers)

    def _gradients(self) -> dict[str, Tensor]:
        """The gradients that the scores of a due rewiring see; empty at other steps."""
        rewiring = self._topology.rewiring
        if rewiring is None or not self._topology.rewires_next:
            return {}
        raw, self._raw = self._raw, {}
        found = {}
        for name, weight in self._weights.items():
            gradient = weight.weight.grad
            if gradient is None:
                continue
            if not self._sees_raw(weight):
                found[name] = weight.spread(gradient)
            elif name in raw:
                corrected = rewiring.signal == "corrected"
                found[name] = weight.spread(gradient, raw[name]) if corrected else raw[name]
        return found

    def _warn_of_closure(self) -> None:
        """Says once that a step with a closure is taken all the same."""
        if not self._warned:
            self._warned = True
            warnings.warn(
                "replaces_step has no effect on a step with a closure, because the closure "
                "computes its gradients inside the step: the step is taken, then rewired.",
                UserWarning,
                stacklevel=4,
            )


class Trained(Protocol):
    """Something with a parameter that an optimizer trains."""

    @property
    def weight(self) -> nn.Parameter:
        """The parameter."""
        ...  # pragma: no cover


def check_optimizers(
    model: nn.Module, weights: Mapping[str, Trained], optimizers: Sequence[Optimizer]
) -> None:
    """Refuses optimizers that do not train the masked weights of this model.

    An optimizer of other parameters of the same model may be listed beside the ones that own
    masked weights, because a rewiring that replaces a step must hold it back too.

    Raises:
        ValueError: An optimizer is listed twice or trains nothing of the model, or a masked weight
            has no optimizer.
    """
    if len({id(optimizer) for optimizer in optimizers}) < len(optimizers):
        raise ValueError("the same optimizer is listed twice; list every optimizer once.")
    owned = [_parameter_ids(optimizer) for optimizer in optimizers]
    of_model = {id(parameter) for parameter in model.parameters()}
    for optimizer, ids in zip(optimizers, owned, strict=True):
        if not ids & of_model:
            raise ValueError(
                f"{type(optimizer).__name__} trains none of the masked weights "
                f"({_some(list(weights))}); attach the optimizer of this model."
            )
    everything = set().union(*owned)
    missing = [name for name, masked in weights.items() if id(masked.weight) not in everything]
    if missing:
        raise ValueError(
            f"no attached optimizer trains {_some(missing)}; attach every optimizer of the masked "
            f"weights in one call."
        )


def _parameter_ids(optimizer: Optimizer) -> set[int]:
    """Identities of all parameters of an optimizer."""
    return {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}


def _some(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    shown = ", ".join(names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown


def _closure(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> object:
    """The closure given to a step; hooks receive the optimizer itself as the first argument."""
    return kwargs.get("closure", args[1] if len(args) > 1 else None)


def was_skipped(optimizer: Optimizer) -> bool:
    """Whether a fused step left everything as it was because a scaled gradient overflowed.

    Fused optimizers are called all the same; the gradient scaler tells them by this attribute.
    """
    return float(getattr(optimizer, "found_inf", 0.0) or 0.0) > 0.0
