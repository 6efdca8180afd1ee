"""Which weights were active at the snapshot, which are now, and whether that has changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from equipoise.correction.columns import Masked
from equipoise.points import Named, positions_of, trainable


class Activity:
    """The masks of a model as a corrector sees them.

    Args:
        model: The corrector's.
        masks: Of this model; None where every position of a parameter is corrected.
    """

    def __init__(self, model: nn.Module, masks: Masked | None) -> None:
        self._model = model
        self._masks = masks
        self._at_snapshot: Named = {}
        self._places: Named = {}
        self._seen: list[Tensor] = []

    def parameters(self) -> dict[str, nn.Parameter]:
        """The trainable parameters by name."""
        return trainable(self._model)

    def take_snapshot(self) -> None:
        """Remembers what is active now; masks are replaced, never changed in place."""
        self._at_snapshot = self._now()
        self._places = positions_of(self._model)
        self._seen = self._structure()

    def has_changed(self) -> bool:
        """Whether other weights are active than at the snapshot; True once for each rewiring.

        A function of what is active then and now, so that a resumed run sees the same.
        """
        now, before = self._structure(), self._seen
        self._seen = now
        if len(now) == len(before) and all(a is b for a, b in zip(now, before, strict=True)):
            return False
        there = {**self._at_snapshot, **self._places}
        here = {**self._now(), **positions_of(self._model)}
        return there.keys() != here.keys() or not all(
            torch.equal(here[name], there[name].to(here[name].device)) for name in there
        )

    def twice(self, name: str, numbers: Tensor) -> Tensor:
        """Numbers of a parameter, zero but where it was active at the snapshot and is now."""
        if name not in self._at_snapshot or self._masks is None:
            return numbers
        mask, before = self._masks.masks[name], self._at_snapshot[name].to(numbers.device)
        return numbers * (before if mask is before else mask & before)

    def state_dict(self) -> dict[str, Any]:
        """The masks at the snapshot; nothing without masks."""
        return {"masks": dict(self._at_snapshot)} if self._at_snapshot else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self._at_snapshot = {n: m.clone() for n, m in state.get("masks", {}).items()}
        self._places = dict(state.get("positions", {}))
        self._seen = []

    def _now(self) -> Named:
        """Masks of the shape of their parameters."""
        if self._masks is None:
            return {}
        known = trainable(self._model)
        masks = self._masks.masks
        return {n: m for n, m in masks.items() if n in known and m.shape == known[n].shape}

    def _structure(self) -> list[Tensor]:
        """The tensors that say which weights are active."""
        return [*self._now().values(), *positions_of(self._model).values()]
