"""What one training step sees."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """Some samples, ready for a model.

    A named tuple always has length 3; the number of samples is `size`.

    Args:
        x: Normalised images, float32, shape (size, channels, height, width).
        y: Labels, int64, shape (size,).
        index: Row numbers in the `ImageSet` or `FolderSet` of the loader, int64, shape (size,).

    Example:
        >>> import torch
        >>> Batch(torch.zeros(5, 3, 8, 8), torch.zeros(5).long(), torch.arange(5)).size
        5
    """

    x: Tensor
    y: Tensor
    index: Tensor  # type: ignore[assignment] # hides tuple.index, which nobody asks of a batch

    @property
    def size(self) -> int:
        """Number of samples."""
        return int(self.y.shape[0])
