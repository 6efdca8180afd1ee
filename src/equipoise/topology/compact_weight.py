"""One weight of which only the active entries exist."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from equipoise.topology.masked_weight import state_like
from equipoise.topology.store import CompactLayer, Removable


class CompactWeight:
    """The active entries of a layer's weight, and the record of which were ever active.

    All that follows the parameter has its shape, one number per active weight: gradient,
    optimizer state, snapshots. There is nothing to clear at a step; a rewiring moves every such
    tensor to the new positions.

    Args:
        layer: Its `values` and `index` are the weight; not changed until `replace_` or `take_`.
        ever_active: Bool, logical shape; default: what is active now.
    """

    def __init__(self, layer: CompactLayer, ever_active: Tensor | None = None) -> None:
        self._layer = layer
        self._derived: tuple[Tensor, Tensor] | None = None
        self.num_weights = math.prod(layer.weight_shape)
        self.num_active = layer.index.numel()
        self.ever_active = self.mask if ever_active is None else ever_active
        self.is_compact = True

    @property
    def weight(self) -> nn.Parameter:
        """The parameter, 1-D: one number per active weight."""
        return self._layer.values

    @property
    def shape(self) -> torch.Size:
        """The logical shape."""
        return torch.Size(self._layer.weight_shape)

    @property
    def mask(self) -> Tensor:
        """Bool, logical shape; follows the layer's index."""
        index = self._layer.index
        if self._derived is None or self._derived[0] is not index:
            mask = torch.zeros(self.num_weights, dtype=torch.bool, device=index.device)
            mask[index] = True
            self._derived = index, mask.view(self.shape)
        return self._derived[1]

    @property
    def is_dense(self) -> bool:
        """Whether all entries are active."""
        return self.num_active == self.num_weights

    def clear_(self, optimizer: Optimizer | None = None) -> None:
        """Does nothing: inactive entries do not exist."""

    def replace_(self, mask: Tensor, grown: Tensor, optimizers: Iterable[Optimizer]) -> None:
        """Takes a new mask, of any number of active entries; dropped and grown ones are forgotten.

        Surviving entries keep value, gradient and state bit for bit. Where the number stays the
        same, all tensors stay the same objects; the parameter does in any case.
        """
        index = _positions(mask, self._layer.index)
        mask = mask.to(index.device)
        self._move_through_(index, self.mask & mask & ~grown.to(index.device), optimizers)
        self._derived = self._layer.index, mask
        self.num_active = index.numel()
        self.ever_active = self.ever_active.to(index.device) | self._derived[1]

    @property
    def index(self) -> Tensor:
        """Ascending flat positions of the active entries."""
        return self._layer.index

    def move_(
        self, index: Tensor, stays: Tensor, fresh: Tensor, optimizers: Iterable[Optimizer]
    ) -> None:
        """Takes other positions, of any number; the record of what was ever active stays.

        Args:
            index: Ascending flat positions.
            stays: Bool, one for each of the old positions: which of them keep their numbers.
            fresh: Bool, one for each position in `index`: which start at zero; the others are
                those that stay.
            optimizers: Their state moves too.
        """
        self._move_(index, stays, fresh, optimizers)
        self.num_active = index.numel()

    def take_(self, mask: Tensor, ever_active: Tensor) -> None:
        """Takes a saved mask and record, whatever their number; entries that are new are zero.

        Optimizer state is not changed, because it is loaded on its own, before or after.
        """
        index = _positions(mask, self._layer.index)
        if not torch.equal(index, self._layer.index):
            self._move_through_(index, self.mask & mask.to(index.device), ())
        self.num_active = index.numel()
        self.ever_active = ever_active.to(index.device)

    def dense(self) -> Tensor:
        """The logical weight, a copy."""
        return self.spread(self._layer.values.detach())

    def spread(self, entries: Tensor, onto: Tensor | None = None) -> Tensor:
        """Entries by position, in the logical shape; `onto` or zero at inactive ones."""
        flat = entries.new_zeros(self.num_weights) if onto is None else onto.flatten()
        return flat.scatter(0, self._layer.index, entries.to(flat.dtype)).view(self.shape)

    def watch(self, due: Callable[[], bool], seen: Callable[[Tensor], None]) -> Removable:
        """Calls `seen` with the dense gradient of every backward pass for which `due()` holds."""
        return _Watch(self._layer, lambda: not self.is_dense and due(), seen)

    def violations(self, optimizers: Iterable[Optimizer]) -> Iterator[str]:
        """What is not as it should be, each in words that follow the name of the weight."""
        del optimizers  # their state has no place for anything inactive
        index, num_values = self._layer.index, self._layer.values.numel()
        if num_values != index.numel():
            yield f"has {num_values} values for {index.numel()} positions"
        if index.numel() != self.num_active:
            yield f"has {index.numel()} active weights where the plan says {self.num_active}"
        if bool((index.diff() <= 0).any()):
            yield "has positions that are not ascending and unique"
        outside = int(((index < 0) | (index >= self.num_weights)).sum())
        if outside:
            yield f"has {outside} positions outside of its {self.num_weights} weights"

    def _move_through_(
        self, index: Tensor, survivors: Tensor, optimizers: Iterable[Optimizer]
    ) -> None:
        """Moves to new positions what is at `survivors`, bool in the logical shape."""
        survivors = survivors.flatten()
        self._move_(index, survivors[self._layer.index], ~survivors[index], optimizers)

    @torch.no_grad()
    def _move_(
        self, index: Tensor, stays: Tensor, fresh: Tensor, optimizers: Iterable[Optimizer]
    ) -> None:
        """Moves all that follows the parameter to new positions; see `move_`."""
        old, weight = self._layer.index, self._layer.values
        # Found before anything moves, because state is known by the shape of the parameter.
        states = [
            (optimizer.state[weight], key, value)
            for optimizer in optimizers
            for key, value in state_like(optimizer, weight)
        ]
        assert weight.numel() == old.numel(), "a compact layer has one value per position"
        remap = _remap(stays, fresh)
        for state, key, value in states:
            _put_(state, key, value, remap(value))
        values, gradient = remap(weight.detach()), weight.grad
        if index.numel() == old.numel():
            weight.copy_(values)
            if gradient is not None:
                gradient.copy_(remap(gradient))
        else:
            moved = None if gradient is None else remap(gradient)
            resize_(weight, values)
            weight.grad = moved
        self._layer.set_index_(index)


def _positions(mask: Tensor, like: Tensor) -> Tensor:
    """Flat positions of the active entries, ascending, on the device of `like`."""
    return mask.to(like.device).flatten().nonzero().squeeze(1)


def _remap(stays: Tensor, fresh: Tensor) -> Callable[[Tensor], Tensor]:
    """What carries the numbers that stay to where nothing is fresh; zero elsewhere."""
    kept = stays.nonzero().squeeze(1)
    if kept.numel() == 0:
        return lambda numbers: numbers.new_zeros(fresh.shape)
    source = kept.new_zeros(fresh.shape)
    source.masked_scatter_(~fresh, kept)
    return lambda numbers: numbers.index_select(0, source).masked_fill_(fresh, 0)


def _put_(state: dict[str, Any], key: str, old: Tensor, new: Tensor) -> None:
    """Writes new numbers into a state tensor, or where their number differs, in its place."""
    if old.shape == new.shape:
        old.copy_(new)
    else:
        state[key] = new


def resize_(weight: nn.Parameter, values: Tensor) -> None:
    """Gives a parameter another length; it stays the same object.

    A graph that is still alive (a loss kept for logging) holds on to the accumulator of the
    gradient, which insists on the old length. Passing through another dtype makes torch let go
    of it; a change of length alone does not.
    """
    weight.grad = None
    other = torch.float32 if values.dtype == torch.float64 else torch.float64
    weight.data = values.new_empty(0, dtype=other)
    weight.data = values


class _Watch:
    """The dense gradients of a layer, one a backward pass, also where it is used several times."""

    def __init__(
        self, layer: CompactLayer, due: Callable[[], bool], seen: Callable[[Tensor], None]
    ) -> None:
        self._layer = layer
        parts: dict[int, Tensor] = {}  # by the pass that they belong to

        def gather(dense: Callable[[], Tensor]) -> None:
            if not due():
                return
            # Parts of another pass were never delivered: it failed, or asked for other gradients
            # than those of the parameters. They must not be mixed into this one.
            current = _pass()
            known = parts.get(current)
            parts.clear()
            parts[current] = dense().detach() if known is None else known + dense().detach()

        def arrived(gradient: Tensor) -> None:
            del gradient  # of the active entries; it tells that the layer has no more to add
            whole = parts.pop(_pass(), None)
            parts.clear()
            if whole is not None:
                seen(whole)

        self._gather = layer.gather_dense = gather
        self._hook = layer.values.register_hook(arrived)

    def remove(self) -> None:
        """Tells the layer that nobody wants dense gradients any more."""
        if self._layer.gather_dense is self._gather:
            self._layer.gather_dense = None
        self._hook.remove()


def _pass() -> int:
    """A number of the backward pass that is under way; torch tells checkpoints apart by it too."""
    return torch._C._current_graph_task_id()
