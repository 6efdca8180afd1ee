"""Pure functions from the shapes of the layers and one density to the density of each layer."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

Shapes: TypeAlias = Mapping[str, Sequence[int]]
Distribution: TypeAlias = Callable[[Shapes, float], dict[str, float]]
"""``(shapes, density) -> {name: density of that layer, in [0, 1]}``."""


def uniform(shapes: Shapes, density: float) -> dict[str, float]:
    r"""Gives every layer the same density, :math:`d_l = d`.

    Args:
        shapes: Shape of every layer's weight.
        density: Share of active weights, in (0, 1].

    Raises:
        ValueError: `density` is outside its range.

    Example:
        >>> uniform({"a": (4, 4), "b": (2, 4)}, 0.25)
        {'a': 0.25, 'b': 0.25}
    """
    _check_density(density)
    return dict.fromkeys(shapes, float(density))


def er(shapes: Shapes, density: float) -> dict[str, float]:
    r"""Erdos-Renyi: the density falls with the number of units on both sides.

    .. math:: d_l = \min\Bigl(1, \epsilon \frac{n_\text{in} + n_\text{out}}
        {n_\text{in} n_\text{out}}\Bigr), \qquad \sum_l d_l N_l = d \sum_l N_l

    The first two dimensions of a shape are its channels; further ones are ignored here. Layers
    that would exceed 1 become dense, and :math:`\epsilon` is found again for the others.

    Args:
        shapes: Shape of every layer's weight.
        density: Share of active weights over all layers, in (0, 1].

    Raises:
        ValueError: `density` is outside its range.

    Example:
        >>> er({"a": (8, 8), "b": (1, 8)}, 0.5)
        {'a': 0.4375, 'b': 1.0}

    References:
        Mocanu et al. (SET), 2018.
    """
    raw = {name: sum(shape[:2]) / math.prod(shape[:2]) for name, shape in shapes.items()}
    return _scaled_and_capped(shapes, raw, density)


def erk(shapes: Shapes, density: float) -> dict[str, float]:
    r"""Erdos-Renyi-kernel: like `er`, with the sizes of the kernel counted too.

    .. math:: d_l = \min\Bigl(1, \epsilon \frac{\sum_i s_{l,i}}{\prod_i s_{l,i}}\Bigr),
        \qquad \sum_l d_l N_l = d \sum_l N_l

    Layers that would exceed 1 become dense, and :math:`\epsilon` is found again for the others.

    Args:
        shapes: Shape of every layer's weight.
        density: Share of active weights over all layers, in (0, 1].

    Raises:
        ValueError: `density` is outside its range.

    Example:
        >>> densities = erk({"conv": (8, 4, 3, 3), "fc": (2, 8)}, 0.25)
        >>> {name: round(value, 4) for name, value in densities.items()}
        {'conv': 0.2083, 'fc': 1.0}

    References:
        Evci et al., "Rigging the lottery" (RigL), 2020, Section 3.
    """
    raw = {name: sum(shape) / math.prod(shape) for name, shape in shapes.items()}
    return _scaled_and_capped(shapes, raw, density)


def _scaled_and_capped(
    shapes: Shapes, raw: Mapping[str, float], density: float
) -> dict[str, float]:
    """Scales `raw` to the mean `density`, with 1 as the ceiling of each layer."""
    _check_density(density)
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    dense: set[str] = set()
    scale = 0.0
    while open_layers := [name for name in shapes if name not in dense]:
        budget = density * sum(sizes.values()) - sum(sizes[name] for name in dense)
        scale = budget / math.fsum(raw[name] * sizes[name] for name in open_layers)
        highest = max(raw[name] for name in open_layers)
        if scale * highest < 1.0:
            break
        # All layers with the highest value at once: which of them came first must not matter.
        dense.update(name for name in open_layers if raw[name] == highest)
    return {name: 1.0 if name in dense else scale * raw[name] for name in shapes}


def _check_density(density: float) -> None:
    """Refuses a density that leaves nothing or more than everything."""
    if not 0.0 < density <= 1.0:
        raise ValueError(f"density is the fraction of weights kept, in (0, 1]; got {density}.")


_DISTRIBUTIONS: dict[str, Distribution] = {"erk": erk, "er": er, "uniform": uniform}


def distribution_names() -> tuple[str, ...]:
    """Names of the distributions that `Topology` knows.

    Example:
        >>> distribution_names()
        ('erk', 'er', 'uniform')
    """
    return tuple(_DISTRIBUTIONS)


def distribution_named(name: str) -> Distribution:
    """Finds a distribution by its name.

    Args:
        name: One of `distribution_names`.

    Raises:
        ValueError: There is no such distribution; the message names the nearest one.

    Example:
        >>> distribution_named("er") is er
        True
    """
    if name in _DISTRIBUTIONS:
        return _DISTRIBUTIONS[name]
    nearest = difflib.get_close_matches(name.lower(), _DISTRIBUTIONS, n=1, cutoff=0.4)
    hint = f"did you mean {nearest[0]!r}" if nearest else "choose one of them or pass a function"
    known = ", ".join(map(repr, _DISTRIBUTIONS))
    raise ValueError(f"unknown distribution {name!r}, expected one of {known}; {hint}.")


def active_counts(
    shapes: Shapes, densities: Mapping[str, float], total: int | None = None
) -> dict[str, int]:
    r"""Turns densities into whole numbers of active weights with an exact sum.

    Largest remainders: every layer gets :math:`\lfloor d_l N_l \rfloor`, and what is missing goes
    to the layers with the largest remainders, the earlier layer first among equals. Every layer
    keeps at least one weight, at the expense of the largest layer that is not dense.

    Args:
        shapes: Shape of every layer's weight.
        densities: Density of every layer, in [0, 1].
        total: Sum of the counts; None for the rounded sum of :math:`d_l N_l`.

    Returns:
        Number of active weights by layer, each in [1, size of the layer].

    Raises:
        ValueError: The names differ, a density is outside [0, 1], or `total` cannot be reached
            with at least one weight in every layer.

    Example:
        >>> active_counts({"a": (5,), "b": (5,), "c": (5,)}, {"a": 0.5, "b": 0.5, "c": 0.5})
        {'a': 3, 'b': 3, 'c': 2}
    """
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    _check_densities(sizes, densities)
    exact = {name: densities[name] * size for name, size in sizes.items()}
    total = round(math.fsum(exact.values())) if total is None else total
    if not len(sizes) <= total <= sum(sizes.values()):
        raise ValueError(
            f"{total} active weights cannot be spread over {len(sizes)} layers of "
            f"{sum(sizes.values())} weights with at least one in each; change the sparsity."
        )
    counts = {name: max(1, math.floor(value)) for name, value in exact.items()}
    missing = total - sum(counts.values())
    while missing > 0:
        room = [name for name in counts if counts[name] < sizes[name]]
        room.sort(key=lambda name: counts[name] - exact[name])
        for name in room[:missing]:
            counts[name] += 1
        missing -= min(missing, len(room))
    for _ in range(-missing):
        spare = max(counts, key=lambda name: (1 < counts[name] < sizes[name], counts[name]))
        counts[spare] -= 1
    return counts


def _check_densities(sizes: Mapping[str, int], densities: Mapping[str, float]) -> None:
    """Refuses what a distribution must not return."""
    differing = sorted(sizes.keys() ^ densities.keys())
    if differing:
        raise ValueError(
            f"the distribution must give a density to every layer and to nothing else; "
            f"{', '.join(differing[:3])} is named on one side only."
        )
    for name, value in densities.items():
        if not 0.0 <= value <= 1.0 + 1e-9:
            raise ValueError(f"the distribution gave {name} a density of {value}, not in [0, 1].")
