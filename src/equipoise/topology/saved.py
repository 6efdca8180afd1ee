"""What a saved topology must look like before any of it is used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

FORMAT = 1

_KEYS = ("masks", "ever_active", "num_steps", "num_rewirings", "generator")


def check_state(
    state: Mapping[str, Any], shapes: Mapping[str, Sequence[int]], plan: Mapping[str, int] | None
) -> None:
    """Refuses a saved state that does not fit a topology; changes nothing.

    Args:
        state: What was saved.
        shapes: Shape of every masked weight.
        plan: Number of active weights of every layer; None if any number will do.

    Raises:
        ValueError: With the first differences in one sentence.
    """
    if state.get("format") != FORMAT:
        raise ValueError(
            f"the topology state has format {state.get('format')!r} and this version reads format "
            f"{FORMAT}; load it with the version that saved it."
        )
    missing = [key for key in _KEYS if key not in state]
    if missing:
        raise ValueError(
            f"the topology state lacks {', '.join(missing)}; pass what state_dict() returned."
        )
    found = list(islice(_differences(state, shapes, plan), 4))
    if found:
        more = "; and more" if len(found) > 3 else ""
        raise ValueError(
            f"the topology state does not fit this model and sparsity; first differences: "
            f"{'; '.join(found[:3])}{more}."
        )


def _differences(
    state: Mapping[str, Any], shapes: Mapping[str, Sequence[int]], plan: Mapping[str, int] | None
) -> Iterator[str]:
    """Every way in which the saved tensors are not the expected ones."""
    for part in ("masks", "ever_active"):
        tensors: Mapping[str, Tensor] = state[part]
        for name in sorted(tensors.keys() ^ shapes.keys()):
            yield f"{name} is only in the {'state' if name in tensors else 'model'}"
        for name, shape in shapes.items():
            tensor = tensors.get(name)
            if tensor is None:
                continue
            if tensor.dtype != torch.bool:
                yield f"{name} has {part} of {tensor.dtype}, expected torch.bool"
            elif tuple(tensor.shape) != tuple(shape):
                yield f"{name} has shape {tuple(tensor.shape)}, expected {tuple(shape)}"
            elif part == "masks" and plan is not None and int(tensor.sum()) != plan[name]:
                yield f"{name} has {int(tensor.sum())} active weights, expected {plan[name]}"
