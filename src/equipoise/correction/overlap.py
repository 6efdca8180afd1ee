"""Where the active weights of a snapshot and those of now meet."""

from __future__ import annotations

import torch
from torch import Tensor

from equipoise.points import Named


class Overlap:
    """Carries numbers from the positions of a snapshot to the current ones, name by name.

    What it finds out about two lists of positions it remembers until either is another tensor;
    positions are replaced, never changed in place.
    """

    def __init__(self) -> None:
        self._known: dict[str, tuple[Tensor, Tensor, tuple[Tensor, Tensor] | None]] = {}

    def unify(self, there: Named, now: Named) -> Named:
        """The positions `there`, as the very tensors of `now` where they are the same ones.

        A module that recognises positions by identity then prepares for them once.
        """
        return {
            name: now[name] if name in now and self._map(name, old, now[name]) is None else old
            for name, old in there.items()
        }

    def carry(self, name: str, numbers: Tensor, there: Tensor, now: Tensor) -> Tensor:
        """Numbers at positions `there` as numbers at `now`: zero at positions that are new.

        Args:
            name: Of the parameter.
            numbers: 1-D, one for every position of `there`; not changed.
            there: Ascending positions of the numbers.
            now: Ascending positions that are asked for.

        Returns:
            `numbers` itself if the positions are the same; else 1-D, one for every one of `now`.
        """
        route = self._map(name, there, now)
        if route is None:
            return numbers
        source, new = route
        if numbers.numel() == 0:
            return numbers.new_zeros(now.shape)
        return numbers[source].masked_fill_(new, 0)

    def between(self, name: str, numbers: Tensor, there: Named, now: Named) -> Tensor:
        """The same with the positions of all compact parameters; others stay as they are."""
        if name not in there or name not in now:
            return numbers
        return self.carry(name, numbers, there[name], now[name])

    def _map(self, name: str, there: Tensor, now: Tensor) -> tuple[Tensor, Tensor] | None:
        """For every current position: its place in `there`, and whether it is not there."""
        if there is now:
            return None
        known = self._known.get(name)
        if known is None or known[0] is not there or known[1] is not now:
            known = there, now, _route(there, now)
            self._known[name] = known
        return known[2]


def _route(there: Tensor, now: Tensor) -> tuple[Tensor, Tensor] | None:
    """What `Overlap` remembers; None if the positions are the same."""
    if torch.equal(there, now):
        return None
    source = torch.searchsorted(there, now).clamp_(max=max(there.numel() - 1, 0))
    new = there[source] != now if there.numel() else torch.ones_like(now, dtype=torch.bool)
    return source, new
