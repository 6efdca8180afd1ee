"""How many samples are in a batch of any kind."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor


def num_samples(batch: Any) -> float:
    """Length of the first tensor in a batch: a tensor, or a sequence, mapping or record of them.

    Args:
        batch: For example ``images``, ``(images, labels)`` or ``{"input_ids": ...}``.

    Returns:
        The size of the first dimension of the first tensor found in order; 1 if there is none.

    Example:
        >>> import torch
        >>> num_samples((torch.zeros(8, 3), torch.zeros(8)))
        8.0
    """
    found = _first_length(batch, ())
    return 1.0 if found is None else float(found)


def _first_length(batch: Any, outer: tuple[int, ...]) -> int | None:
    """Depth-first search for a tensor; `outer` are the identities of the objects around it."""
    if isinstance(batch, Tensor):
        return int(batch.shape[0]) if batch.ndim > 0 else 1
    # A record may hold its owner or itself; such a cycle is walked once.
    if id(batch) in outer:
        return None
    lengths = (_first_length(part, (*outer, id(batch))) for part in _parts(batch))
    return next((length for length in lengths if length is not None), None)


def _parts(batch: Any) -> Iterable[Any]:
    """What a batch is made of, in order; nothing for a string, a number or a class."""
    if isinstance(batch, str | bytes | type):
        return ()
    if isinstance(batch, Mapping):
        return batch.values()
    if isinstance(batch, Sequence):
        return batch
    if is_dataclass(batch):
        return [getattr(batch, field.name) for field in fields(batch)]
    return vars(batch).values() if hasattr(batch, "__dict__") else ()
