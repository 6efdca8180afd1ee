"""Scores: by which number weights are kept or grown. Larger comes first."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

Score: TypeAlias = Callable[[Tensor, Tensor, Tensor, torch.Generator], Tensor]
"""``(weight, gradient, mask, generator) -> scores`` of the same shape; changes no tensor."""


def weight_magnitude(
    weight: Tensor, gradient: Tensor, mask: Tensor, generator: torch.Generator
) -> Tensor:
    r"""Scores by the size of the weight, :math:`|\theta|`.

    No argument is changed.

    Args:
        weight: Of one layer.
        gradient: Same shape; not used.
        mask: Same shape; not used.
        generator: Not used.

    Returns:
        Same shape as `weight`.

    Example:
        >>> w = torch.tensor([-2.0, 1.0])
        >>> weight_magnitude(w, w, w != 0, torch.Generator())
        tensor([2., 1.])
    """
    del gradient, mask, generator
    return weight.detach().abs()


def gradient_magnitude(
    weight: Tensor, gradient: Tensor, mask: Tensor, generator: torch.Generator
) -> Tensor:
    r"""Scores by the size of the dense gradient, :math:`|g|`.

    No argument is changed.

    Args:
        weight: Of one layer; not used.
        gradient: Same shape, with values at inactive weights too.
        mask: Same shape; not used.
        generator: Not used.

    Returns:
        Same shape as `gradient`.

    Example:
        >>> g = torch.tensor([0.5, -3.0])
        >>> gradient_magnitude(g, g, g != 0, torch.Generator())
        tensor([0.5000, 3.0000])

    References:
        Evci et al., "Rigging the lottery" (RigL), 2020.
    """
    del weight, mask, generator
    return gradient.detach().abs()


def uniform_noise(
    weight: Tensor, gradient: Tensor, mask: Tensor, generator: torch.Generator
) -> Tensor:
    """Scores at random, uniform in [0, 1).

    The numbers are drawn on the CPU in single precision and then moved, so that a seed means the
    same masks on every device and for every dtype. No tensor is changed.

    Args:
        weight: Of one layer; only its shape and device are used.
        gradient: Same shape; not used.
        mask: Same shape; not used.
        generator: A generator on the CPU; it advances by one number per weight.

    Returns:
        Same shape and device as `weight`.

    Example:
        >>> w = torch.zeros(2, 3)
        >>> uniform_noise(w, w, w == 0, torch.Generator().manual_seed(0)).shape
        torch.Size([2, 3])

    References:
        Mocanu et al., "Scalable training of artificial neural networks with adaptive sparse
        connectivity inspired by network science" (SET), 2018.
    """
    del gradient, mask
    return torch.rand(weight.shape, generator=generator, dtype=torch.float32).to(weight.device)
