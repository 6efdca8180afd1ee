"""One weight under a mask, and everything that must be zero where the mask is False."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def state_like(optimizer: Optimizer, weight: nn.Parameter) -> Iterator[tuple[str, Tensor]]:
    """Finds the optimizer's state tensors that hold one value per weight.

    They are found by their shape, so no optimizer has to be known by its type.

    Args:
        optimizer: Any optimizer; state that it does not have is not created.
        weight: One of its parameters, or of another optimizer.

    Returns:
        Key and tensor, of the same shape as `weight`.
    """
    if weight not in optimizer.state:
        return
    for key, value in optimizer.state[weight].items():
        if isinstance(value, Tensor) and value.shape == weight.shape:
            yield str(key), value


class MaskedWeight:
    """A parameter, its mask, and the record of which of its entries were ever active.

    Masks are replaced, never changed in place, so a tensor handed out stays what it was.

    Args:
        weight: The parameter; not changed until `clear_`.
        mask: Bool, True = active, same shape; it is moved to the parameter's device.
    """

    def __init__(self, weight: nn.Parameter, mask: Tensor) -> None:
        self.weight = weight
        self.mask: Tensor
        self.ever_active: Tensor
        self.num_active: int
        self.is_compact = False
        self._eraser: _Eraser | None
        self.take_(mask, mask)

    @property
    def shape(self) -> torch.Size:
        """Shape of the parameter, its mask and its record."""
        return self.weight.shape

    @property
    def num_weights(self) -> int:
        """Number of entries, active or not."""
        return self.weight.numel()

    @property
    def is_dense(self) -> bool:
        """Whether all entries are active, so that there is nothing to do."""
        return self.num_active == self.weight.numel()

    @torch.no_grad()
    def clear_(self, optimizer: Optimizer | None = None) -> None:
        """Zeroes the inactive entries of the weight and of the optimizer's state for it."""
        if self.is_dense:
            return
        weight = self.weight.detach()
        if self._eraser is None or not self._eraser.fits(weight):
            # The model may have moved to another device since.
            self.mask = self.mask.to(weight.device)
            self.ever_active = self.ever_active.to(weight.device)
            self._eraser = _Eraser(self.mask, weight)
        self._eraser.clear_(weight)
        if optimizer is not None:
            for _, state in state_like(optimizer, self.weight):
                self._eraser.clear_(state)

    @torch.no_grad()
    def replace_(self, mask: Tensor, grown: Tensor, optimizers: Iterable[Optimizer]) -> None:
        """Takes a new mask of as many active entries; dropped and grown entries start at zero."""
        self.mask = mask
        self.ever_active = self.ever_active | mask
        self._eraser = None
        stale = grown | ~mask
        self.weight.masked_fill_(stale, 0)
        for optimizer in optimizers:
            for _, state in state_like(optimizer, self.weight):
                state.masked_fill_(stale, 0)

    def take_(self, mask: Tensor, ever_active: Tensor) -> None:
        """Takes a saved mask and record, whatever their number; the weight is not changed."""
        self.mask = mask.to(self.weight.device)
        self.ever_active = ever_active.to(self.weight.device)
        self.num_active = int(mask.sum())
        self._eraser = None

    def dense(self) -> Tensor:
        """The weight itself, detached; its inactive entries are there, as zeros."""
        return self.weight.detach()

    def spread(self, entries: Tensor, onto: Tensor | None = None) -> Tensor:
        """Returns `entries`, which have their place already."""
        del onto
        return entries

    def watch(self, due: Callable[[], bool], seen: Callable[[Tensor], None]) -> RemovableHandle:
        """Calls `seen` with every gradient that arrives while `due()` holds."""

        def arrived(gradient: Tensor) -> None:
            if due():
                seen(gradient)

        hook: RemovableHandle = self.weight.register_hook(arrived)
        return hook

    def violations(self, optimizers: Iterable[Optimizer]) -> Iterator[str]:
        """What is not as it should be, each in words that follow the name of the weight."""
        actual = int(self.mask.sum())
        if actual != self.num_active:
            yield f"has {actual} active weights where the plan says {self.num_active}"
        inactive = ~self.mask
        stray = int(self.weight.detach()[inactive].count_nonzero())
        if stray:
            yield f"has {stray} inactive weights that are not zero"
        for optimizer in optimizers:
            for key, state in state_like(optimizer, self.weight):
                stray = int(state[inactive].count_nonzero())
                if stray:
                    kind = type(optimizer).__name__
                    yield f"has {stray} entries of {kind} state {key!r} at inactive weights"


class _Eraser:
    """A mask in the form in which it is cheapest to apply at every step.

    Multiplication by the mask would leave NaN and infinity in place (0 * nan = nan). On the CPU
    a bitwise "and" with words of all ones or all zeros is exact and several times faster than a
    masked fill; elsewhere the masked fill is as fast and needs less memory.
    """

    def __init__(self, mask: Tensor, weight: Tensor) -> None:
        self._inactive: Tensor | None = None
        self._keep: Tensor | None = None
        self._mask = mask
        self._form = _form(weight)
        integer = _INTEGERS.get(weight.element_size())
        if weight.device.type == "cpu" and integer is not None:
            # Laid out like the weight, so that both are read in memory order.
            self._keep = torch.empty_like(weight, dtype=integer).copy_(mask).neg_()

    def fits(self, weight: Tensor) -> bool:
        """Whether it was made for a weight of this device, layout and width."""
        return self._form == _form(weight)

    def clear_(self, tensor: Tensor) -> None:
        """Zeroes the inactive entries of a weight or of state of the same shape."""
        keep = self._keep
        if keep is not None and tensor.element_size() == keep.element_size():
            tensor.view(keep.dtype).bitwise_and_(keep)
            return
        if self._inactive is None:
            self._inactive = ~self._mask
        tensor.masked_fill_(self._inactive, 0)


def _form(weight: Tensor) -> tuple[torch.device, tuple[int, ...], int]:
    """What an eraser must match: device, layout in memory, bytes per entry."""
    return weight.device, weight.stride(), weight.element_size()
