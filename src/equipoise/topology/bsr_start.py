"""What Bayesian connectivity sampling starts from, and how much noise it adds; pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from equipoise.topology.distributions import Shapes

NoiseName: TypeAlias = Literal["agent", "original", "none"]

_FEWEST_VGG = 14  # layers; a smaller network of that naming is none of the published ones
_TRUNCATED_STD = 0.87962566103423978  # of a standard normal cut off at -2 and 2


def first_densities(shapes: Shapes, density: float) -> dict[str, float]:
    """Share of every layer that is active at first, as published for VGG-16, ResNets and WRNs.

    The first and the last layer have 0.6, early stages 0.1 to 0.6, all others half of the density
    of the whole; what is missing is grown by the first steps. Of any other network the first and
    the last layer have 0.6 and all others half.

    Args:
        shapes: Shape of every layer's weight by name, in the order of the network.
        density: Share of active weights over all layers, in (0, 1].

    Example:
        >>> first_densities({"a.weight": (4, 8), "b.weight": (4, 4), "c.weight": (2, 4)}, 0.1)
        {'a.weight': 0.6, 'b.weight': 0.05, 'c.weight': 0.6}

    References:
        Ozdenizci and Legenstein, "Training adversarially robust sparse networks via Bayesian
        connectivity sampling" (BSR-Net), 2021, and its published code.
    """
    names = list(shapes)
    half = density / 2.0
    is_vgg = len(names) >= _FEWEST_VGG and all(n.startswith("features.") for n in names[:13])
    found = {}
    for position, name in enumerate(names):
        if position in (0, len(names) - 1):
            found[name] = 0.6
        elif is_vgg and position < 4:
            found[name] = 0.6 if position == 1 else 0.2
        elif name.startswith("layer1."):
            found[name] = 0.2
        elif name.startswith("block1."):
            found[name] = 0.1
        else:
            found[name] = half
    return found


def budget(num_weights: int, density: float) -> int:
    """Number of active weights that is refilled after every step, rounded down.

    Example:
        >>> budget(15_302_848, 1 - 0.99)
        153028
    """
    return int(round(density, 12) * num_weights)


def half_normal(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    r"""Sizes of first weights: :math:`|z|` with z He-normal, cut off at two deviations.

    .. math:: z \sim N(0, 2 / n_\text{in}), \qquad n_\text{in} = \prod_{k > 0} \text{shape}_k

    Args:
        shape: Of the weight, first its outputs.
        generator: On the CPU; advances by one number per weight.

    Returns:
        Positive numbers, on the CPU.

    Example:
        >>> sizes = half_normal((100, 50), torch.Generator().manual_seed(0))
        >>> round(float(sizes.square().mean()), 3)
        0.04
    """
    tail = 0.5 * (1.0 + math.erf(-2.0 / math.sqrt(2.0)))
    uniform = torch.rand(tuple(shape), generator=generator)
    inside = tail + (1.0 - 2.0 * tail) * uniform
    normal = math.sqrt(2.0) * torch.erfinv(2.0 * inside - 1.0)
    deviation = math.sqrt(2.0 / math.prod(shape[1:])) / _TRUNCATED_STD
    return (normal.abs() * deviation).clamp_min(torch.finfo(torch.float32).tiny)


def noise_scale(
    kind: NoiseName, rate: float, *, step: int, steps_per_epoch: int, total_steps: int
) -> float:
    r"""Standard deviation of the noise on active weights after one step.

    "original" is :math:`10^{-6} \eta`. "agent" is
    :math:`\sigma \sqrt{2 \eta / m}` with m steps an epoch and :math:`\sigma = 10^{-6}`, ten times
    that in the second half of training.

    Args:
        kind: Whose schedule.
        rate: Learning rate of the step.
        step: Completed steps, this one included.
        steps_per_epoch: At least 1.
        total_steps: Of the training.

    Example:
        >>> noise_scale("original", 0.1, step=1, steps_per_epoch=390, total_steps=78_000)
        1e-07
    """
    if kind == "none":
        return 0.0
    if kind == "original":
        return 1e-6 * rate
    sigma = 1e-6 if 2 * step <= total_steps else 1e-5
    return sigma * math.sqrt(2.0 * rate / steps_per_epoch)


def share_out(
    count: int, sizes: Sequence[int], room: Sequence[int], rng: torch.Generator
) -> list[int]:
    """Spreads growth over layers by chance, in proportion to their sizes, where there is room.

    Args:
        count: Weights to grow.
        sizes: Weights of every layer, active or not.
        room: Inactive weights of every layer.
        rng: On the CPU.

    Returns:
        One number a layer, at most its room; together `count`, or all the room there is.

    Example:
        >>> share_out(9, [100, 100], [3, 50], torch.Generator().manual_seed(0))[0] <= 3
        True
    """
    given = [0] * len(sizes)
    left = min(count, sum(room))
    while left > 0:
        weights = [s if r > g else 0 for s, r, g in zip(sizes, room, given, strict=True)]
        drawn = torch.multinomial(
            torch.tensor(weights, dtype=torch.float64), left, replacement=True, generator=rng
        )
        counts = torch.bincount(drawn, minlength=len(sizes)).tolist()
        given = [min(r, g + n) for r, g, n in zip(room, given, counts, strict=True)]
        left = min(count, sum(room)) - sum(given)
    return given


def draw_inactive(
    active: Tensor, num_weights: int, count: int, generator: torch.Generator
) -> Tensor:
    """Draws positions that are not active, every set of them with the same probability.

    Args:
        active: Ascending flat positions, int64, on the CPU or another device.
        num_weights: Number of positions.
        count: How many to draw, at most those that are inactive.
        generator: On the CPU.

    Returns:
        Ascending positions, int64, on the device of `active`.

    Example:
        >>> draw_inactive(torch.tensor([0, 2]), 4, 2, torch.Generator())
        tensor([1, 3])
    """
    if 2 * (active.numel() + count) > num_weights:
        free = torch.ones(num_weights, dtype=torch.bool, device=active.device)
        free[active] = False
        positions = free.nonzero().squeeze(1)
        chosen = torch.randperm(positions.numel(), generator=generator)[:count]
        return positions[chosen.to(active.device)].sort().values
    taken = torch.zeros(num_weights, dtype=torch.bool, device=active.device)
    taken[active] = True
    found, missing = [active.new_empty(0)], count
    while missing > 0:
        # Exactly as many as are missing, so that none that was drawn is thrown away by choice.
        drawn = torch.randint(num_weights, (missing,), generator=generator)
        fresh = drawn.to(active.device).unique()
        fresh = fresh[~taken[fresh]]
        taken[fresh] = True
        found.append(fresh)
        missing -= fresh.numel()
    return torch.cat(found).sort().values
