"""Small learnable images that need no files, for tests and examples."""

from __future__ import annotations

import torch
from torch import Tensor

from equipoise.data.images import Dataset, ImageSet


def synthetic(
    num_train: int = 256,
    num_test: int = 64,
    *,
    image_size: int = 8,
    channels: int = 1,
    classes: int = 4,
    seed: int = 0,
) -> Dataset:
    """Noisy copies of one random pattern per class.

    Contract: a pure function of its arguments; no global generator is read.

    Args:
        num_train: Training images.
        num_test: Test images.
        image_size: Height and width in pixels.
        channels: Colour channels.
        classes: Number of classes, equally frequent up to one.
        seed: Of patterns and noise.

    Returns:
        Both splits; `mean` is 0.5 and `std` 0.25 in every channel.

    Raises:
        ValueError: A number is below 1.

    Example:
        >>> synthetic(num_train=6, num_test=2, classes=3).train.labels.tolist()
        [0, 1, 2, 0, 1, 2]
    """
    numbers = (num_train, num_test, image_size, channels, classes)
    if min(numbers) < 1:
        raise ValueError(f"Numbers of images, pixels and classes are 1 or more; got {numbers}.")
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.rand(classes, channels, image_size, image_size, generator=generator)

    def split(count: int) -> ImageSet:
        labels = torch.arange(count) % classes
        return ImageSet(
            "synthetic",
            _noisy(patterns[labels], generator),
            labels,
            tuple(f"class {label}" for label in range(classes)),
            mean=(0.5,) * channels,
            std=(0.25,) * channels,
        )

    train = split(num_train)
    return Dataset(train, split(num_test))


def _noisy(patterns: Tensor, generator: torch.Generator) -> Tensor:
    """Patterns in [0, 1] with half as much noise as contrast, as bytes."""
    noise = torch.randn(patterns.shape, generator=generator)
    pixels = 0.25 + 0.5 * patterns + 0.2 * noise
    return pixels.clamp_(0, 1).mul_(255).round_().to(torch.uint8)
