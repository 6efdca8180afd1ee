"""What the rest of the house asks of the owner of the masks, whatever moves them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from equipoise.topology.rewiring import Rewiring
from equipoise.topology.store import LayerSummary, Removable, Store


class MaskOwner(Protocol):
    """`Topology` and `ConnectivitySampling`, to those who need not tell them apart."""

    rewiring: Rewiring | None
    """When and how the masks change; None where that is not a plan of drops and growth."""

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """What an optimizer trains of the masked weights, by name."""
        ...  # pragma: no cover

    @property
    def masks(self) -> Mapping[str, Tensor]:
        """The masks by name, True = active."""
        ...  # pragma: no cover

    @property
    def plan(self) -> Mapping[str, int]:
        """Number of active weights that a layer has, or is expected to have."""
        ...  # pragma: no cover

    @property
    def num_active(self) -> int:
        """Number of active weights."""
        ...  # pragma: no cover

    @property
    def num_weights(self) -> int:
        """Number of masked weights, active or not."""
        ...  # pragma: no cover

    @property
    def sparsity(self) -> float:
        """Share of the masked weights that is inactive, as it really is."""
        ...  # pragma: no cover

    @property
    def exploration_rate(self) -> float:
        """Share of all masked weights that was active at any time so far."""
        ...  # pragma: no cover

    @property
    def num_rewirings(self) -> int:
        """Number of rewirings so far."""
        ...  # pragma: no cover

    def attach(self, *optimizers: Optimizer) -> Removable:
        """Follows the optimizers from now on."""
        ...  # pragma: no cover

    def rebind_(self, stores: Mapping[str, Store], *, model: nn.Module | None = None) -> None:
        """Follows the same weights where they are kept in another way."""
        ...  # pragma: no cover

    def verify(self, *optimizers: Optimizer) -> list[str]:
        """One sentence per broken promise."""
        ...  # pragma: no cover

    def summary(self) -> list[LayerSummary]:
        """One row per masked weight."""
        ...  # pragma: no cover

    def state_dict(self) -> dict[str, Any]:
        """Everything that a later run needs to go on."""
        ...  # pragma: no cover

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        ...  # pragma: no cover
