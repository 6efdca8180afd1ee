"""What a topology needs of one weight, however its active entries are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class Removable(Protocol):
    """A hook that can be taken away again."""

    def remove(self) -> None:
        """Takes it away; a second call does nothing."""
        ...  # pragma: no cover


class Store(Protocol):
    """One weight of which some entries are active.

    Positions, masks and scores have the logical shape, that of the weight as mathematics knows
    it; the trained parameter, its gradient and the optimizer's state may have another.
    """

    @property
    def weight(self) -> nn.Parameter:
        """The parameter that an optimizer trains."""
        ...  # pragma: no cover

    @property
    def shape(self) -> torch.Size:
        """The logical shape."""
        ...  # pragma: no cover

    @property
    def mask(self) -> Tensor:
        """Bool, True = active, logical shape; replaced, never changed in place."""
        ...  # pragma: no cover

    @property
    def ever_active(self) -> Tensor:
        """Bool, logical shape: what was active at any time; never changed in place."""
        ...  # pragma: no cover

    @property
    def num_active(self) -> int:
        """Number of active entries that is to be kept."""
        ...  # pragma: no cover

    @property
    def num_weights(self) -> int:
        """Number of entries, active or not."""
        ...  # pragma: no cover

    @property
    def is_dense(self) -> bool:
        """Whether all entries are active."""
        ...  # pragma: no cover

    @property
    def is_compact(self) -> bool:
        """Whether the parameter and its gradient hold the active entries only."""
        ...  # pragma: no cover

    def clear_(self, optimizer: Optimizer | None = None) -> None:
        """Zeroes inactive entries of the parameter and of the optimizer's state for it."""
        ...  # pragma: no cover

    def replace_(self, mask: Tensor, grown: Tensor, optimizers: Iterable[Optimizer]) -> None:
        """Takes a new mask; dropped and grown entries start at zero, the others stay."""
        ...  # pragma: no cover

    def take_(self, mask: Tensor, ever_active: Tensor) -> None:
        """Takes a saved mask and record; no optimizer's state is changed."""
        ...  # pragma: no cover

    def dense(self) -> Tensor:
        """The logical weight, detached; for reading only."""
        ...  # pragma: no cover

    def spread(self, entries: Tensor, onto: Tensor | None = None) -> Tensor:
        """Puts entries that lie like the parameter where they belong in the logical shape.

        Args:
            entries: Same shape as `weight`; not changed.
            onto: What stands everywhere else, logical shape; not changed; default zeros.
        """
        ...  # pragma: no cover

    def watch(self, due: Callable[[], bool], seen: Callable[[Tensor], None]) -> Removable:
        """Calls `seen` with the raw dense gradient of every backward pass for which `due()` holds.

        Args:
            due: Asked in the backward pass, before a dense gradient is computed for this.
            seen: Called once a pass, before the gradient is added to ``weight.grad``; the tensor
                has the logical shape and is the callee's to read, not to keep.

        Returns:
            What ends it.
        """
        ...  # pragma: no cover

    def violations(self, optimizers: Iterable[Optimizer]) -> Iterator[str]:
        """What is not as it should be, each in words that follow the name of the weight."""
        ...  # pragma: no cover


class CompactLayer(Protocol):
    """A layer that owns its active weights only; what a `CompactWeight` needs of it."""

    values: nn.Parameter
    """The active weights, 1-D, in the order of `index`."""

    gather_dense: Callable[[Callable[[], Tensor]], None] | None
    """If not None, the layer calls it in every backward pass of its live parameter, before the
    gradient of `values` is returned, with a function that computes the dense gradient (logical
    shape) of that pass. Passes at a snapshot do not call it."""

    @property
    def index(self) -> Tensor:
        """Flat positions of `values`, 1-D int64, ascending; replaced, never changed in place."""
        ...  # pragma: no cover

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """The logical shape."""
        ...  # pragma: no cover

    def set_index_(self, index: Tensor) -> None:
        """Takes new positions and lets go of what follows from the old; `values` is not its job."""
        ...  # pragma: no cover


class LayerSummary(NamedTuple):
    """One masked weight in `Topology.summary`."""

    name: str
    shape: tuple[int, ...]
    density: float
    num_active: int


def summary_of(name: str, store: Store) -> LayerSummary:
    """One row of `Topology.summary`."""
    density = store.num_active / store.num_weights
    return LayerSummary(name, tuple(store.shape), density, store.num_active)


def check_stores(old: Mapping[str, Store], new: Mapping[str, Store], model: nn.Module) -> None:
    """Refuses stores that do not hold the same weights in the same state; changes nothing.

    Args:
        old: By name.
        new: By name.
        model: Whose parameters the new ones hold.

    Raises:
        ValueError: With the first difference in one sentence.
    """
    of_model = {id(parameter) for parameter in model.parameters()}
    for name in sorted(old.keys() ^ new.keys()):
        where = "the topology has no" if name in new else "the stores lack the"
        raise ValueError(
            f"{where} weight {name}; give one store for every masked weight, by its name."
        )
    for name, known in old.items():
        store = new[name]
        if tuple(store.shape) != tuple(known.shape):
            raise ValueError(
                f"the store of {name} has shape {tuple(store.shape)}, expected "
                f"{tuple(known.shape)}; make it from the same layer."
            )
        if not torch.equal(store.mask, known.mask.to(store.mask.device)):
            raise ValueError(
                f"the store of {name} has other active weights than the topology; make it from "
                f"the mask of the topology."
            )
        if id(store.weight) not in of_model:
            raise ValueError(
                f"the store of {name} trains a parameter that {type(model).__name__} does not "
                f"have; pass the model that it was made from."
            )
