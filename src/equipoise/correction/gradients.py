"""Arithmetic on gradients by name."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from equipoise.points import Named


def add_weighted(total: Named, gradient: Named, weight: float) -> None:
    """Adds a weighted gradient to a running sum that is at least single precision."""
    for name, tensor in gradient.items():
        if name not in total:
            wide = torch.promote_types(tensor.dtype, torch.float32)
            total[name] = torch.zeros_like(tensor, dtype=wide)
        total[name].add_(tensor, alpha=weight)


def next_weight(weights: Any, position: int) -> float:
    """The next weight of a refresh, which must be there, positive and finite."""
    weight = next(weights, None)
    if weight is None or not 0.0 < weight < math.inf:
        raise ValueError(
            f"weights gives {weight} for batch {position}, expected a positive, finite number for "
            "every batch; leave weights out to weigh batches by their size."
        )
    return float(weight)


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no tensor holds NaN or infinity; one synchronisation for all of them."""
    norms = [torch.linalg.vector_norm(t, ord=torch.inf) for t in tensors if t.numel() > 0]
    return not norms or bool(torch.isfinite(torch.stack([n.float() for n in norms])).all())
