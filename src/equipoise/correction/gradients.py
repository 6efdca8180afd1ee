"""Arithmetic on gradients by name."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

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


@contextmanager
def set_aside(parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """What was accumulated before is out of the way inside, and added to on leaving."""
    before = {n: p.grad for n, p in parameters.items() if p.grad is not None}
    for name in before:
        parameters[name].grad = None
    try:
        yield
    finally:
        with torch.no_grad():
            for name, gradient in before.items():
                arrived = parameters[name].grad
                if arrived is not None:
                    gradient.add_(arrived)
                parameters[name].grad = gradient
