"""Between a network's inputs and images with pixels in [0, 1]."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pixels:
    r"""How a network's inputs are made from images: :math:`(p - \mu) / \sigma` per channel.

    Radii are given in pixels, so that they mean the same whatever a network's inputs are.

    Args:
        mean: Per channel, on the scale [0, 1]; empty if inputs are images as they are.
        std: Per channel, on the same scale; positive.

    Example:
        >>> pixels = Pixels((0.5,), (0.25,))
        >>> pixels.of(torch.zeros(1, 1, 1, 1)).item(), pixels.inputs(torch.ones(1, 1, 1, 1)).item()
        (0.5, 2.0)
    """

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def of(self, inputs: Tensor) -> Tensor:
        """The images behind inputs, clipped to [0, 1] against rounding; a new tensor."""
        if not self.mean:
            return inputs.clamp(0.0, 1.0)
        mean, std = self._shaped(inputs)
        return (inputs * std + mean).clamp_(0.0, 1.0)

    def inputs(self, images: Tensor) -> Tensor:
        """The inputs for images; differentiable."""
        if not self.mean:
            return images
        mean, std = self._shaped(images)
        return (images - mean) / std

    def _shaped(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Both statistics, ready for images of shape (n, channels, height, width)."""
        both = torch.tensor((self.mean, self.std), dtype=like.dtype, device=like.device)
        mean, std = both.view(2, -1, *(1,) * (like.ndim - 2))
        return mean, std
