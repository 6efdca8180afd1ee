"""The settings that the models share, and their ranges; imports no torch."""

from __future__ import annotations

import math
from typing import Literal

Stem = Literal["cifar", "imagenet"]
Init = Literal["default", "kaiming_fan_out", "kaiming_fan_in"]

_CHANNEL_STEP = 8


def scaled(count: int, width: float) -> int:
    """Scales a number of channels or hidden units.

    Mathematics: ``max(8, 8 * round(count * width / 8))`` with halves rounded up, and `count`
    itself for ``width == 1``.

    Args:
        count: Published number of channels or units, at least 1.
        width: Multiplier, greater than 0.

    Returns:
        The scaled number; a multiple of 8 unless `width` is 1.

    Raises:
        ValueError: `width` is not a positive finite number.

    Example:
        >>> scaled(64, 1.0), scaled(64, 0.3), scaled(64, 0.01)
        (64, 16, 8)
    """
    if not (math.isfinite(width) and width > 0):
        raise ValueError(f"width must be a positive finite number, but it is {width}; 1.0 is usual")
    if width == 1.0:
        return count
    return max(_CHANNEL_STEP, _CHANNEL_STEP * math.floor(count * width / _CHANNEL_STEP + 0.5))


def check_at_least_one(**counts: int) -> None:
    """Refuses a number of classes, channels or pixels below 1.

    Args:
        **counts: Names and values to check.

    Raises:
        ValueError: One of the values is below 1.

    Example:
        >>> check_at_least_one(num_classes=10, in_channels=3)
    """
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1, but it is {count}; pass a larger number")


def check_image_size(model: str, image_size: int, smallest: int) -> None:
    """Refuses images that shrink to nothing inside a model.

    Args:
        model: Name of the model, for the message.
        image_size: Height and width of the images, in pixels.
        smallest: The smallest size that works, in pixels.

    Raises:
        ValueError: `image_size` is below `smallest`.

    Example:
        >>> check_image_size("VGG16", 32, 16)
    """
    if image_size < smallest:
        raise ValueError(
            f"{model} got image_size={image_size}, but {smallest} is the smallest size that works; "
            "use larger images or another model"
        )
