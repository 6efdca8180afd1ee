"""Draws the masks that a topology starts with."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor

from equipoise.topology.distributions import (
    Distribution,
    Shapes,
    active_counts,
    distribution_named,
)
from equipoise.topology.masks import bernoulli_mask, random_mask

Sampling: TypeAlias = Literal["exact", "bernoulli"]


def draw_masks(
    shapes: Shapes,
    *,
    sparsity: float,
    distribution: str | Distribution,
    sampling: Sampling,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Draws one random mask per layer.

    Args:
        shapes: Shape of every layer's weight.
        sparsity: Fraction of weights removed, in [0, 1).
        distribution: Name or function that gives the density of every layer.
        sampling: "exact" draws as many active weights as planned, over all layers exactly the
            rounded density times the number of weights for a named distribution; "bernoulli"
            draws every weight on its own, so the counts vary around the plan.
        generator: A generator on the CPU.

    Returns:
        Bool masks on the CPU.

    Raises:
        ValueError: A setting is outside its range, or the sparsity leaves a layer without a weight.

    Example:
        >>> masks = draw_masks({"a": (4, 4)}, sparsity=0.75, distribution="erk", sampling="exact",
        ...                    generator=torch.Generator().manual_seed(0))
        >>> int(masks["a"].sum())
        4
    """
    _check_sparsity(sparsity)
    if sampling not in ("exact", "bernoulli"):
        raise ValueError(f"sampling is one of 'exact', 'bernoulli'; got {sampling!r}.")
    density = 1.0 - sparsity
    named = isinstance(distribution, str)
    spread = distribution_named(distribution) if isinstance(distribution, str) else distribution
    densities = spread(shapes, density)
    num_weights = sum(torch.Size(shape).numel() for shape in shapes.values())
    # A function of the user's own may leave some layers dense on top, so its sum is its own.
    counts = active_counts(shapes, densities, round(density * num_weights) if named else None)
    if sampling == "exact":
        return {n: random_mask(shape, counts[n], generator) for n, shape in shapes.items()}
    return {n: bernoulli_mask(shape, densities[n], generator) for n, shape in shapes.items()}


def _check_sparsity(sparsity: float) -> None:
    """Refuses a sparsity outside [0, 1), with a hint for percentages."""
    if not 0.0 <= sparsity < 1.0:
        hint = f"; for {sparsity:g} % pass {sparsity / 100:g}" if 1.0 < sparsity < 100.0 else ""
        raise ValueError(
            f"sparsity is the fraction of weights removed, in [0, 1); got {sparsity}{hint}."
        )
