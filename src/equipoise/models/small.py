"""Two small networks that train in minutes on a processor."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

import torch
from torch import Tensor, nn

from equipoise.models.settings import check_at_least_one, check_image_size, scaled

if TYPE_CHECKING:
    from collections.abc import Sequence


@final
class MLP(nn.Module):
    """Fully connected layers, each but the last followed by BatchNorm and ReLU.

    The hidden layers have no bias, since BatchNorm has one. Initial weights are PyTorch's
    defaults.

    Contract: the forward pass flattens (N, C, image_size, image_size) and returns logits
    (N, num_classes).

    Args:
        num_classes: Number of classes, at least 1.
        in_channels: Channels of the images.
        image_size: Height and width of the images in pixels, at least 1.
        hidden: Units of each hidden layer; an empty sequence gives a linear model.
        width: Multiplier of the hidden layers' units.

    Raises:
        ValueError: A size is out of its range.

    Example:
        >>> model = MLP(num_classes=10, in_channels=1, image_size=8, hidden=(32,))
        >>> model(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int = 3,
        image_size: int = 32,
        hidden: Sequence[int] = (512, 256),
        width: float = 1.0,
    ) -> None:
        super().__init__()
        check_at_least_one(num_classes=num_classes, in_channels=in_channels)
        check_image_size("MLP", image_size, 1)
        layers: list[nn.Module] = []
        inputs = in_channels * image_size**2
        for published in hidden:
            check_at_least_one(hidden=published)
            units = scaled(published, width)
            layers.extend((nn.Linear(inputs, units, bias=False), nn.BatchNorm1d(units), nn.ReLU()))
            inputs = units
        self.layers = nn.Sequential(*layers, nn.Linear(inputs, num_classes))

    def forward(self, images: Tensor) -> Tensor:
        """Computes the logits."""
        logits: Tensor = self.layers(torch.flatten(images, 1))
        return logits


@final
class SmallCNN(nn.Module):
    """Four 3x3 convolutions with BatchNorm and ReLU, one pool and a linear head.

    Channels 16, 32, pool, 64, 128, then the global average. The first convolution has stride 2
    for images of at least 16 pixels and stride 1 below, so that an 8 x 8 and a 16 x 16 image cost
    nearly the same; the parameters do not depend on the image size. The convolutions have no bias.
    Initial weights are PyTorch's defaults.

    Contract: the forward pass maps (N, C, image_size, image_size) to logits (N, num_classes).

    Args:
        num_classes: Number of classes, at least 1.
        in_channels: Channels of the images.
        image_size: Height and width of the images in pixels, at least 2.
        width: Multiplier of all channel counts.

    Raises:
        ValueError: A size is out of its range.

    Example:
        >>> model = SmallCNN(num_classes=10, in_channels=1, image_size=8)
        >>> model(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self, *, num_classes: int, in_channels: int = 3, image_size: int = 32, width: float = 1.0
    ) -> None:
        super().__init__()
        check_at_least_one(num_classes=num_classes, in_channels=in_channels)
        check_image_size("SmallCNN", image_size, 2)
        first, second, third, fourth = (scaled(channels, width) for channels in (16, 32, 64, 128))
        self.features = nn.Sequential(
            *_convolution(in_channels, first, stride=2 if image_size >= 16 else 1),
            *_convolution(first, second),
            nn.MaxPool2d(2),
            *_convolution(second, third),
            *_convolution(third, fourth),
        )
        self.head = nn.Linear(fourth, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Computes the logits."""
        logits: Tensor = self.head(self.features(images).mean(dim=(2, 3)))
        return logits


def _convolution(inputs: int, channels: int, stride: int = 1) -> tuple[nn.Module, ...]:
    """Builds a 3x3 convolution with its BatchNorm and ReLU."""
    convolution = nn.Conv2d(inputs, channels, 3, stride=stride, padding=1, bias=False)
    return convolution, nn.BatchNorm2d(channels), nn.ReLU()
