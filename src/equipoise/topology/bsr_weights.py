r"""One weight of Bayesian connectivity sampling, under a mask or compact.

Mathematics knows :math:`W = s\,\theta` where :math:`\theta > 0` and 0 elsewhere. Kept is
:math:`w = s\,\theta`: a gradient step, decay and momentum act on it as they act on theta, because
the sign only reflects them. A weight is active where :math:`s\,w > 0`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from equipoise.topology.bsr_start import draw_inactive
from equipoise.topology.compact_weight import CompactWeight

FRESH = 1e-12
"""Size of a weight that has just been grown."""


class SignedWeight(Protocol):
    """What `ConnectivitySampling` asks of a weight."""

    sign: Tensor
    """+1 or -1 for every weight, active or not, int8, logical shape; never changes."""

    @property
    def weight(self) -> nn.Parameter:
        """The parameter that an optimizer trains."""
        ...  # pragma: no cover

    @property
    def num_weights(self) -> int:
        """Number of entries, active or not."""
        ...  # pragma: no cover

    @property
    def num_active(self) -> int:
        """Number of active entries; between `cross_` and `grow_`, of those that survived."""
        ...  # pragma: no cover

    @property
    def mask(self) -> Tensor:
        """Bool, True = active, logical shape; replaced, never changed in place."""
        ...  # pragma: no cover

    def open_(self) -> None:
        """Before a step: what is kept aside takes part in it."""
        ...  # pragma: no cover

    def close_(self) -> None:
        """After a step that was not taken, or at any time: inactive entries are zero."""
        ...  # pragma: no cover

    def cross_(self, noise: float, generator: torch.Generator) -> None:
        """After a step: adds noise to active entries; those of the wrong sign become inactive."""
        ...  # pragma: no cover

    def grow_(
        self, count: int, generator: torch.Generator, optimizers: Iterable[Optimizer]
    ) -> Tensor:
        """Grows so many inactive entries at random; returns flat positions that are active now.

        All that were not active before the step are among them, in no order.
        """
        ...  # pragma: no cover

    def take_(self, mask: Tensor, hidden: Tensor | None) -> None:
        """Takes a saved mask, and what was kept aside."""
        ...  # pragma: no cover


class SignedMasked:
    """A dense parameter that is zero where inactive; what theta is there is kept aside.

    Inactive entries go on as published: they decay, and drift with the velocity that they have
    left. Gradients at inactive entries are zeroed before a step, as the gate of the
    reparametrisation does.

    Args:
        weight: The parameter; its values at `mask` have the signs of `sign`.
        mask: Bool, True = active, same shape.
        sign: int8, same shape.
    """

    def __init__(self, weight: nn.Parameter, mask: Tensor, sign: Tensor) -> None:
        self.weight = weight
        self.sign = sign.to(weight.device)
        self.hidden = torch.zeros_like(weight.detach())
        self.mask: Tensor
        self.num_active: int
        self._set(mask.to(weight.device))

    @property
    def num_weights(self) -> int:
        """Number of entries, active or not."""
        return self.weight.numel()

    @torch.no_grad()
    def open_(self) -> None:
        """Puts theta of the inactive entries, with its sign, in its place."""
        self._follow_device()
        self.weight.copy_(torch.where(self.mask, self.weight, self.hidden))

    @torch.no_grad()
    def close_(self) -> None:
        """Zeroes the inactive entries."""
        self._follow_device()
        self.weight.masked_fill_(~self.mask, 0)

    @torch.no_grad()
    def cross_(self, noise: float, generator: torch.Generator) -> None:
        """Adds noise where active, then finds out who is active now."""
        if noise > 0.0:
            drawn = torch.randn(self.num_active, generator=generator) * noise
            self.weight[self.mask] += drawn.to(self.weight)
        self._set(self.weight * self.sign > 0.0)

    @torch.no_grad()
    def grow_(
        self, count: int, generator: torch.Generator, optimizers: Iterable[Optimizer]
    ) -> Tensor:
        """Grows, and puts what is inactive aside; optimizer state is not touched, as published."""
        del optimizers
        positions = self.mask.flatten().nonzero().squeeze(1)
        if count:
            grown = draw_inactive(positions, self.num_weights, count, generator)
            flags = torch.zeros(self.num_weights, dtype=torch.bool, device=grown.device)
            flags[grown] = True
            fresh = flags.view(self.mask.shape)
            self.weight.copy_(torch.where(fresh, FRESH * self.sign, self.weight))
            self._set(self.mask | fresh)
            positions = torch.cat([positions, grown])
        self.hidden = torch.where(self.mask, 0.0, self.weight)
        self.weight.masked_fill_(~self.mask, 0)
        return positions

    def take_(self, mask: Tensor, hidden: Tensor | None) -> None:
        """Takes a saved mask and what was kept aside; active values are the model's own."""
        self._set(mask.to(self.weight.device, copy=True))
        blank = torch.zeros_like(self.weight.detach())
        self.hidden = blank if hidden is None else blank.copy_(hidden)
        self.close_()

    def _set(self, mask: Tensor) -> None:
        self.mask = mask
        self.num_active = int(mask.sum())

    def _follow_device(self) -> None:
        """The model may have moved to another device."""
        device = self.weight.device
        self.mask, self.sign = self.mask.to(device), self.sign.to(device)
        self.hidden = self.hidden.to(device)


class SignedCompact:
    """The active entries of an engine layer; inactive ones do not exist.

    So theta and the velocity of an inactive entry are forgotten, and a grown one starts anew.

    Args:
        store: The layer's active entries.
        sign: int8, logical shape.
    """

    def __init__(self, store: CompactWeight, sign: Tensor) -> None:
        self.store = store
        self.sign = sign
        self._alive: Tensor | None = None

    @property
    def weight(self) -> nn.Parameter:
        """The parameter, 1-D: one number per active weight."""
        return self.store.weight

    @property
    def num_weights(self) -> int:
        """Number of entries, active or not."""
        return self.store.num_weights

    @property
    def num_active(self) -> int:
        """Number of active entries; between `cross_` and `grow_`, of those that survived."""
        return self.store.num_active if self._alive is None else int(self._alive.sum())

    @property
    def mask(self) -> Tensor:
        """Bool, logical shape."""
        return self.store.mask

    def open_(self) -> None:
        """Nothing is kept aside."""

    def close_(self) -> None:
        """Inactive entries do not exist."""
        self._alive = None

    @torch.no_grad()
    def cross_(self, noise: float, generator: torch.Generator) -> None:
        """Adds noise, then finds out who is still active."""
        values = self.store.weight
        if noise > 0.0:
            values.add_(torch.randn(values.shape, generator=generator).mul_(noise).to(values))
        self._alive = values.detach() * self._signs(self.store.index) > 0.0

    @torch.no_grad()
    def grow_(
        self, count: int, generator: torch.Generator, optimizers: Iterable[Optimizer]
    ) -> Tensor:
        """Moves values, gradient and optimizer state to the new positions."""
        assert self._alive is not None, "cross_ comes before grow_"
        before, alive, self._alive = self.store.index, self._alive, None
        if count == 0 and bool(alive.all()):
            return before[:0]
        kept = before.masked_select(alive)
        grown = draw_inactive(kept, self.num_weights, count, generator)
        # Both ascend, so they are merged and not sorted.
        places = torch.searchsorted(kept, grown)
        places += torch.arange(count, device=places.device)
        fresh = torch.zeros(len(kept) + count, dtype=torch.bool, device=kept.device)
        fresh[places] = True
        index = kept.new_empty(fresh.shape).masked_scatter_(~fresh, kept)
        index[places] = grown
        self.store.move_(index, alive, fresh, optimizers)
        self.store.weight[places] = FRESH * self._signs(grown).to(self.store.weight)
        return grown

    def take_(self, mask: Tensor, hidden: Tensor | None) -> None:
        """Takes a saved mask; values are the layer's own."""
        del hidden
        self._alive = None
        self.store.take_(mask, mask)

    def _signs(self, index: Tensor) -> Tensor:
        """Signs at flat positions."""
        return self.sign.flatten()[index]
