"""How many samples are in a batch of any kind."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    found = next(tensors_in(batch), None)
    if found is None or found.ndim == 0:
        return 1.0
    return float(found.shape[0])


def tensors_in(batch: Any, outer: tuple[int, ...] = ()) -> Iterator[Tensor]:
    """All tensors of a batch, depth first.

    Args:
        batch: As in `num_samples`.
        outer: Identities of the objects around it.

    Example:
        >>> import torch
        >>> [tuple(t.shape) for t in tensors_in({"x": torch.zeros(2, 3), "y": [torch.zeros(2)]})]
        [(2, 3), (2,)]
    """
    if isinstance(batch, Tensor):
        yield batch
    # A record may hold its owner or itself; such a cycle is walked once.
    elif id(batch) not in outer:
        for part in _parts(batch):
            yield from tensors_in(part, (*outer, id(batch)))


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
