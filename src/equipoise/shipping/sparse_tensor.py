"""A tensor that owns its active entries only."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

# Entries are moved as whole numbers of their width, so that no bit of a NaN or a zero is lost and
# types without arithmetic can be kept too.
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@final
@dataclass(frozen=True, eq=False)
class SparseTensor:
    r"""A tensor as its shape, and the positions and values of its active entries.

    The entry :math:`p_i` of the flattened tensor (the last dimension runs fastest) is
    :math:`v_i`; all others are zero. An active entry may be zero as well. The tensors given are
    kept as they are, neither copied nor changed.

    Args:
        shape: Of the dense tensor.
        positions: Of the active entries in the flattened tensor, ascending, int64, one dimension.
        values: Of the active entries, in the same order, one dimension, any type.

    Raises:
        ValueError: The three do not fit together.

    Example:
        >>> tensor = SparseTensor((2, 3), torch.tensor([1, 5]), torch.tensor([0.5, -2.0]))
        >>> tensor.dense()
        tensor([[ 0.0000,  0.5000,  0.0000],
                [ 0.0000,  0.0000, -2.0000]])
        >>> tensor.num_active
        2
    """

    shape: tuple[int, ...]
    positions: Tensor
    values: Tensor

    def __post_init__(self) -> None:
        positions, values = self.positions, self.values
        if positions.dtype != torch.int64 or positions.ndim != 1 or values.ndim != 1:
            raise ValueError(
                f"positions are {positions.dtype} of shape {tuple(positions.shape)} and values of "
                f"shape {tuple(values.shape)}, expected torch.int64 and one dimension each; "
                "flatten them, and convert the positions with .long()."
            )
        if len(positions) != len(values):
            raise ValueError(
                f"there are {len(positions)} positions for {len(values)} values; "
                "pass as many of one as of the other."
            )
        if len(positions) == 0:
            return
        ascending = bool((positions.diff() > 0).all())
        if not ascending or int(positions[0]) < 0 or int(positions[-1]) >= self.num_entries:
            raise ValueError(
                f"positions do not ascend within [0, {self.num_entries}), the entries of shape "
                f"{self.shape}; sort them, each once, and check the shape."
            )

    @property
    def num_entries(self) -> int:
        """Number of entries, active or not."""
        return math.prod(self.shape)

    @property
    def num_active(self) -> int:
        """Number of active entries."""
        return self.positions.numel()

    @property
    def dtype(self) -> torch.dtype:
        """Type of the entries."""
        return self.values.dtype

    @classmethod
    def from_dense(cls, tensor: Tensor, mask: Tensor | None = None) -> SparseTensor:
        """Takes the active entries out of a dense tensor, which is not changed.

        Args:
            tensor: Dense, of any shape and any type of at most 8 bytes.
            mask: Bool, True = active, same shape; None for the entries whose bits are not all
                zero, so that -0.0 is active and 0.0 is not. Under a mask zeros stay active, and
                a -0.0 outside becomes 0.0.

        Returns:
            On the device of `tensor`, in memory of its own.

        Raises:
            ValueError: The mask is not a mask of this tensor, or the tensor is not zero outside.

        Example:
            >>> mask = torch.tensor([True, True, False])
            >>> SparseTensor.from_dense(torch.tensor([3.0, 0.0, 0.0]), mask).positions
            tensor([0, 1])
        """
        flat = tensor.detach().reshape(-1)
        bits = as_bits(flat)
        if mask is None:
            active = bits != 0
        elif mask.dtype != torch.bool or mask.shape != tensor.shape:
            raise ValueError(
                f"the mask is {mask.dtype} of shape {tuple(mask.shape)}, expected torch.bool of "
                f"shape {tuple(tensor.shape)}; pass the mask of this very tensor."
            )
        else:
            active = mask.to(tensor.device).reshape(-1)
            # Only numbers of two bytes and more can be relied on to have a comparison.
            wide = flat.element_size() > 1 and (flat.is_floating_point() or flat.is_complex())
            outside = int(((flat != 0 if wide else bits != 0) & ~active).sum())
            if outside:
                raise ValueError(
                    f"{outside} values outside the mask are not zero; "
                    "pass the mask that the tensor was trained with, or clear them."
                )
        positions = active.nonzero().squeeze(1)
        return cls(tuple(tensor.shape), positions, bits[positions].view(tensor.dtype))

    def dense(self) -> Tensor:
        """The dense tensor, bit for bit, zero where nothing is active; in memory of its own.

        Returns:
            Shape `shape`, on the device of the values.

        Example:
            >>> SparseTensor((3,), torch.tensor([2]), torch.tensor([-0.0])).dense()
            tensor([0., 0., -0.])
        """
        bits = as_bits(self.values.detach())
        flat = bits.new_zeros(self.num_entries)
        flat[self.positions.to(flat.device)] = bits
        return flat.view(self.dtype).reshape(self.shape)

    def mask(self) -> Tensor:
        """The mask: Bool, shape `shape`, True where an entry is active, zero or not.

        Example:
            >>> SparseTensor((3,), torch.tensor([2]), torch.tensor([0.0])).mask()
            tensor([False, False,  True])
        """
        flat = torch.zeros(self.num_entries, dtype=torch.bool, device=self.positions.device)
        flat[self.positions] = True
        return flat.reshape(self.shape)


def as_bits(flat: Tensor) -> Tensor:
    """The same memory as whole numbers of the same width.

    Args:
        flat: One dimension.

    Raises:
        ValueError: The type is wider than 8 bytes.

    Example:
        >>> as_bits(torch.tensor([0.0, -0.0]))
        tensor([          0, -2147483648], dtype=torch.int32)
    """
    if flat.element_size() not in _BITS:
        raise ValueError(
            f"entries of {flat.dtype} cannot be kept; convert them to a type of at most 8 bytes."
        )
    return flat.resolve_conj().resolve_neg().contiguous().view(_BITS[flat.element_size()])
