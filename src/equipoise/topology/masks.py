"""Pure functions of masks: choose, draw, drop and grow, measure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def top_k_mask(scores: Tensor, k: int) -> Tensor:
    r"""Marks exactly `k` entries with the largest scores.

    .. math:: M_i = 1 \iff i \text{ is among the first } k \text{ by } (-s_i, i)

    Ties go to the lower flat (row-major) index and NaN counts as minus infinity, so the answer
    depends on the scores only, not on the device, the memory layout or the algorithm. `scores`
    is not changed.

    Args:
        scores: One number per weight, larger is chosen first; any shape and real dtype.
        k: Number of entries to choose, in [0, number of scores].

    Returns:
        Bool tensor, same shape and device as `scores`, with exactly `k` True entries.

    Raises:
        ValueError: `k` is outside its range.

    Example:
        >>> top_k_mask(torch.tensor([3.0, 1.0, 3.0, 3.0]), 2)
        tensor([ True, False,  True, False])
    """
    flat = scores.detach().flatten()
    if not 0 <= k <= flat.numel():
        raise ValueError(f"k is a number of entries in [0, {flat.numel()}]; got {k}.")
    if k in (0, flat.numel()):
        return torch.full(scores.shape, k > 0, dtype=torch.bool, device=scores.device)
    if flat.is_floating_point():
        flat = flat.nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf)
    threshold = _kth_largest(flat, k)
    chosen = flat > threshold
    ties = (flat == threshold).nonzero().squeeze(1)
    chosen[ties[: k - int(chosen.sum())]] = True
    return chosen.view(scores.shape)


def _kth_largest(flat: Tensor, k: int) -> Tensor:
    """The k-th largest entry; selection takes linear time where a sort does not."""
    if flat.device.type == "cpu":
        return flat.kthvalue(flat.numel() - k + 1).values
    # On accelerators kthvalue is refused under deterministic algorithms; topk is not.
    return flat.topk(k, sorted=False).values.amin()


def drop_and_grow(
    mask: Tensor, drop_score: Tensor, grow_score: Tensor, num_replaced: int
) -> tuple[Tensor, Tensor]:
    """Drops the active entries with the lowest scores and grows as many of all others.

    Every entry that is inactive after the drop is a candidate for growth, so an entry may be
    dropped and grown at once; it then counts as grown. The number of active entries does not
    change, and no argument is changed. Ties and NaN are handled as in `top_k_mask`.

    Args:
        mask: Bool, True = active.
        drop_score: Same shape as `mask`; the lowest active ones are dropped.
        grow_score: Same shape as `mask`; the highest candidates are grown.
        num_replaced: Number of entries to drop; capped at the number of active and at the number
            of inactive entries, so a dense mask is left alone.

    Returns:
        The new mask and the mask of the grown entries, both Bool, same shape as `mask`.

    Example:
        >>> mask = torch.tensor([True, True, False, False])
        >>> weight = torch.tensor([5.0, 1.0, 0.0, 0.0])
        >>> gradient = torch.tensor([0.0, 0.0, 2.0, 3.0])
        >>> drop_and_grow(mask, weight.abs(), gradient.abs(), 1)
        (tensor([ True, False, False,  True]), tensor([False, False, False,  True]))

    References:
        Mocanu et al., "Scalable training of artificial neural networks with adaptive sparse
        connectivity inspired by network science" (SET), 2018. Evci et al., "Rigging the lottery"
        (RigL), 2020, Algorithm 1.
    """
    num_active = int(mask.sum())
    num_replaced = min(num_replaced, num_active, mask.numel() - num_active)
    # Selecting among the active entries only, so that no score of theirs, not even minus
    # infinity, can lose to an inactive entry.
    kept_ones = top_k_mask(drop_score.masked_select(mask), num_active - num_replaced)
    kept = torch.zeros_like(mask).masked_scatter_(mask, kept_ones)
    candidates = ~kept
    grown_ones = top_k_mask(grow_score.masked_select(candidates), num_replaced)
    grown = torch.zeros_like(mask).masked_scatter_(candidates, grown_ones)
    return kept | grown, grown


def num_to_replace(prune_fraction: float, num_active: int) -> int:
    r"""Number of active weights that one rewiring replaces.

    .. math:: n = \lfloor f \, n_\text{active} \rfloor

    The floor forgives the rounding of the product: a fraction of 0.29 of 100 weights is 29.

    Args:
        prune_fraction: In [0, 1].
        num_active: Active weights of the layer.

    Example:
        >>> num_to_replace(0.1, 30), num_to_replace(0.29, 100), num_to_replace(0.3, 9)
        (3, 29, 2)
    """
    return math.floor(prune_fraction * num_active * (1.0 + 1e-12))


def random_mask(shape: Sequence[int], num_active: int, generator: torch.Generator) -> Tensor:
    """Draws a mask with exactly `num_active` True entries, all such masks equally likely.

    Args:
        shape: Shape of the mask.
        num_active: In [0, number of entries].
        generator: A generator on the CPU; it advances by one number per entry.

    Returns:
        Bool tensor on the CPU.

    Example:
        >>> int(random_mask((3, 4), 5, torch.Generator().manual_seed(0)).sum())
        5
    """
    return top_k_mask(torch.rand(tuple(shape), generator=generator), num_active)


def bernoulli_mask(shape: Sequence[int], density: float, generator: torch.Generator) -> Tensor:
    """Draws every entry on its own, True with probability `density`.

    At least one entry is True, because a layer without any would cut the network.

    Args:
        shape: Shape of the mask, at least one entry.
        density: In [0, 1].
        generator: A generator on the CPU; it advances by one number per entry.

    Returns:
        Bool tensor on the CPU.

    Example:
        >>> bool(bernoulli_mask((3, 4), 1.0, torch.Generator().manual_seed(0)).all())
        True
    """
    noise = torch.rand(tuple(shape), generator=generator)
    mask = noise < density
    return mask if bool(mask.any()) else top_k_mask(noise, 1)


def density(masks: Mapping[str, Tensor]) -> float:
    """Share of the entries of all masks together that is True.

    Args:
        masks: At least one entry in all.

    Example:
        >>> density({"a": torch.tensor([True, False]), "b": torch.tensor([False, False])})
        0.25
    """
    return sum(int(m.sum()) for m in masks.values()) / sum(m.numel() for m in masks.values())
