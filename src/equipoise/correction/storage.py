"""Tensors of masked weights with their active entries only.

A masked weight is zero where it is inactive, and whatever an optimizer adds there is cleared after
its step, so a snapshot and a full gradient lose nothing if they keep the active entries alone. A
packed tensor is 1-D, in the order of the flat weight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from equipoise.points import Named

Masks = Callable[[], Mapping[str, Tensor]]
"""The current masks by name of the parameter, True = active; replaced, never changed in place."""


def no_masks() -> Mapping[str, Tensor]:
    """There is nothing to leave out.

    Example:
        >>> dict(no_masks())
        {}
    """
    return {}


def pack(tensors: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> Named:
    """The active entries of those tensors that have a mask; the others themselves.

    Args:
        tensors: By name, each with the shape of its parameter.
        masks: By name, bool, for some of them.

    Returns:
        By name; a packed tensor is 1-D and new.

    Example:
        >>> mask = torch.tensor([[True, False], [False, True]])
        >>> pack({"w": torch.tensor([[1.0, 2.0], [3.0, 4.0]])}, {"w": mask})
        {'w': tensor([1., 4.])}
    """
    return {name: t[masks[name]] if name in masks else t for name, t in tensors.items()}


def unpack(
    tensors: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    like: Mapping[str, Tensor] | None = None,
) -> Named:
    """The inverse of `pack`, with zeros at inactive entries.

    Args:
        tensors: By name, from `pack`.
        masks: The same ones.
        like: Tensors with the memory format that is wanted, because a convolution adds up in
            another order in another format; default: that of the masks.

    Example:
        >>> mask = torch.tensor([[True, False], [False, True]])
        >>> unpack({"w": torch.tensor([1.0, 4.0])}, {"w": mask})["w"]
        tensor([[1., 0.],
                [0., 4.]])
    """
    layouts = masks if like is None else like
    return {
        name: _spread(t, masks[name], layouts[name]) if name in masks else t
        for name, t in tensors.items()
    }


def add_active_(
    target: Tensor, numbers: Tensor, then: Tensor, now: Tensor | None, *, factor: float
) -> None:
    """Adds ``factor * numbers`` to the entries of `target` that were active then and are now.

    The sums are those of ``target.add_(unpacked, alpha=factor)`` at these entries, bit for bit;
    nothing else of `target` changes.

    Args:
        target: Of the shape of the masks; changed in place.
        numbers: Packed by `then`.
        then: The mask that the numbers were packed by.
        now: The mask of today; None if there is none any more, which is every entry.
        factor: Multiplies the numbers.
    """
    if now is not None and now is not then:
        numbers, then = numbers[now[then]], then & now
    target[then] = target[then].add_(numbers.to(target.dtype), alpha=factor)


def _spread(numbers: Tensor, mask: Tensor, like: Tensor) -> Tensor:
    """A tensor of the shape of the mask with `numbers` where it is True."""
    dense = torch.zeros_like(like, dtype=numbers.dtype, requires_grad=False)
    dense[mask] = numbers
    return dense
