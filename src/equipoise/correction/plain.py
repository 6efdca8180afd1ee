"""What every corrector offers, and the one that corrects nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Generic, Protocol

from torch import Tensor, nn
from typing_extensions import TypeVar

from equipoise.correction.batches import num_samples
from equipoise.measure import Measure, unmeasured
from equipoise.points import checked

AnyBatch = TypeVar("AnyBatch", default=Any)
Contra = TypeVar("Contra", contravariant=True)


class Corrector(Protocol[Contra]):
    """What a training loop asks of a corrector."""

    @property
    def coefficient_value(self) -> float:
        """Weight of the old gradient at the next step."""
        ...  # pragma: no cover

    def refresh(
        self,
        batches: Iterable[Contra],
        *,
        weights: Iterable[float] | None = None,
        scale: float = 1.0,
    ) -> None:
        """Takes a new snapshot and the full gradient over `batches`."""
        ...  # pragma: no cover

    def backward(self, batch: Contra, *, scale: float = 1.0) -> Tensor:
        """Accumulates the gradient of one batch into ``p.grad``."""
        ...  # pragma: no cover

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs."""
        ...  # pragma: no cover

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        ...  # pragma: no cover


class NoCorrection(Generic[AnyBatch]):
    """Plain back-propagation behind the corrector's interface.

    Args:
        model: The model that `loss_fn` evaluates.
        loss_fn: Takes one batch and returns its mean loss, a scalar; closes over `model`.
        measure: Told about every pass.

    Example:
        >>> import torch
        >>> model = nn.Linear(2, 1)
        >>> corrector = NoCorrection(model, lambda x: model(x).square().mean())
        >>> corrector.backward(torch.ones(4, 2)).shape
        torch.Size([])
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[[AnyBatch], Tensor],
        *,
        measure: Measure = unmeasured,
    ) -> None:
        self.model = model
        self.loss_fn = loss_fn
        self._measure = measure

    @property
    def coefficient_value(self) -> float:
        """Always 0."""
        return 0.0

    def refresh(
        self,
        batches: Iterable[AnyBatch],
        *,
        weights: Iterable[float] | None = None,
        scale: float = 1.0,
    ) -> None:
        """Does nothing; `batches` is not iterated."""

    def backward(self, batch: AnyBatch, *, scale: float = 1.0) -> Tensor:
        """The same as ``loss_fn(batch).backward()``; see `GradientCorrector.backward`."""
        with self._measure("new_gradient", samples=num_samples(batch), forwards=1, backwards=1):
            return accumulate(partial(self.loss_fn, batch), scale)

    def state_dict(self) -> dict[str, Any]:
        """Empty: there is no state."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Does nothing."""


def accumulate(loss: Callable[[], Tensor], scale: float) -> Tensor:
    """Back-propagates ``scale * loss()`` into ``p.grad``; returns the detached, unscaled loss."""
    value = checked(loss())
    if not value.requires_grad:
        raise ValueError(
            "loss_fn returned a loss without a gradient, expected one that depends on trainable "
            "parameters of the model; check for torch.no_grad(), detach() or a frozen model."
        )
    (value if scale == 1.0 else value * scale).backward()
    return value.detach()
