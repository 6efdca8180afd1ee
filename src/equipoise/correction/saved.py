"""What a saved corrector must look like before any of it is used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from equipoise.points import positions_of, trainable


def check_fit(state: Mapping[str, Any], model: nn.Module) -> None:
    """Refuses saved tensors that are not like those of a model; changes nothing.

    A rewiring since the refresh may have changed how many weights are active, so a compact
    parameter's snapshot is as long as its own positions, not as the parameter is now.

    Args:
        state: Its "snapshot", "full_gradient", "positions" and "packing" are looked at.
        model: The corrector's.

    Raises:
        ValueError: With the first names that do not fit.
    """
    positions: Mapping[str, Tensor] = state["positions"]
    packing: Mapping[str, Tensor] = state["packing"]
    # Those frozen since the refresh are still in the snapshot.
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    _refuse("packing", _unlike(packing, shapes))
    shapes |= {n: tuple(index.shape) for n, index in positions.items() if n in shapes}
    shapes |= {n: (int(mask.count_nonzero()),) for n, mask in packing.items()}
    needed = trainable(model).keys() if state["snapshot"] else set()
    missing = sorted(needed - state["snapshot"].keys())
    _refuse("snapshot", _unlike(state["snapshot"], shapes) + missing)
    _refuse("full_gradient", _unlike(state["full_gradient"], shapes))
    compact = positions_of(model).keys() & state["snapshot"].keys()
    _refuse("positions", sorted(compact ^ positions.keys()))
    _refuse("positions", sorted(n for n, index in positions.items() if not _ascends(index)))


def _unlike(tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Names of the tensors that have another shape than expected."""
    return sorted(name for name, t in tensors.items() if tuple(t.shape) != shapes.get(name))


def _ascends(index: Tensor) -> bool:
    """Whether a tensor can be a list of positions."""
    return index.dtype == torch.int64 and index.ndim == 1 and bool((index.diff() > 0).all())


def _refuse(part: str, names: list[str]) -> None:
    """Names the first tensors that do not fit, if there are any."""
    if names:
        raise ValueError(
            f"the corrector's {part} does not fit this model at {', '.join(names[:3])}; "
            "load it into the model that it was saved from."
        )
