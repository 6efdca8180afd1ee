"""Wide residual networks with pre-activation blocks."""

from __future__ import annotations

from typing import final

import torch.nn.functional as F
from torch import Tensor, nn

from equipoise.models.initialisation import initialise_
from equipoise.models.settings import Init, check_at_least_one, scaled


@final
class WideResNet(nn.Module):
    """WRN-depth-k: a 3x3 stem and three groups of pre-activation blocks.

    The stem has 16 channels, the groups have 16k, 32k and 64k channels, strides 1, 2, 2 and
    (depth - 4) / 6 blocks each. A block is BatchNorm, ReLU, convolution, BatchNorm, ReLU, dropout,
    convolution. Where its shape changes, the shortcut is a 1x1 convolution without BatchNorm, and
    it sees what the first convolution sees: the input after BatchNorm and ReLU. A last BatchNorm
    and ReLU, the global average and a linear head follow. Images of any size work.

    Contract: the forward pass maps (N, C, H, W) to logits (N, num_classes).

    Args:
        depth: Number of layers; 6n + 4 with n at least 1.
        widen_factor: The factor k, at least 1.
        num_classes: Number of classes, at least 1.
        in_channels: Channels of the images.
        width: Further multiplier of all channel counts, the stem's too; 1.0 is the published
            network.
        dropout: Probability in [0, 1) of dropping a unit between the convolutions of a block.
        init: Distribution of the convolutions' initial weights; the head keeps PyTorch's default.

    Raises:
        ValueError: A size or `dropout` is out of its range, or `init` is unknown.

    Example:
        >>> import torch
        >>> model = WideResNet(depth=10, widen_factor=1, num_classes=10)
        >>> model(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])

    References:
        Zagoruyko and Komodakis, "Wide Residual Networks", BMVC 2016, table 1.
    """

    def __init__(
        self,
        *,
        depth: int,
        widen_factor: int,
        num_classes: int,
        in_channels: int = 3,
        width: float = 1.0,
        dropout: float = 0.0,
        init: Init = "kaiming_fan_out",
    ) -> None:
        super().__init__()
        check_at_least_one(
            num_classes=num_classes, in_channels=in_channels, widen_factor=widen_factor
        )
        if depth < 10 or (depth - 4) % 6 != 0:
            raise ValueError(f"WideResNet has no depth {depth}; choose one of 10, 16, 22, 28, ...")
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout must lie in [0, 1), but it is {dropout}; 0.3 is usual")
        num_blocks = (depth - 4) // 6
        stem = scaled(16, width)
        groups = [scaled(channels * widen_factor, width) for channels in (16, 32, 64)]
        self.conv1 = nn.Conv2d(in_channels, stem, 3, padding=1, bias=False)
        self.block1 = _group(stem, groups[0], num_blocks, 1, dropout)
        self.block2 = _group(groups[0], groups[1], num_blocks, 2, dropout)
        self.block3 = _group(groups[1], groups[2], num_blocks, 2, dropout)
        self.bn1 = nn.BatchNorm2d(groups[2])
        self.fc = nn.Linear(groups[2], num_classes)
        initialise_((m for m in self.modules() if isinstance(m, nn.Conv2d)), init)

    def forward(self, images: Tensor) -> Tensor:
        """Computes the logits."""
        out = self.block3(self.block2(self.block1(self.conv1(images))))
        logits: Tensor = self.fc(F.relu(self.bn1(out)).mean(dim=(2, 3)))
        return logits


@final
class _PreActivationBlock(nn.Module):
    """Two convolutions, each after BatchNorm and ReLU, beside a shortcut."""

    def __init__(self, inputs: int, channels: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.shortcut: nn.Conv2d | None = None
        if stride != 1 or inputs != channels:
            self.shortcut = nn.Conv2d(inputs, channels, 1, stride=stride, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """Adds the residual to the raw input, or to the projected pre-activated one."""
        activated = F.relu(self.bn1(images))
        kept = images if self.shortcut is None else self.shortcut(activated)
        out = F.relu(self.bn2(self.conv1(activated)))
        residual: Tensor = self.conv2(self.dropout(out))
        return kept + residual


def _group(
    inputs: int, channels: int, num_blocks: int, stride: int, dropout: float
) -> nn.Sequential:
    """Builds blocks of equal width, of which the first one takes the stride."""
    first = _PreActivationBlock(inputs, channels, stride, dropout)
    others = (_PreActivationBlock(channels, channels, 1, dropout) for _ in range(num_blocks - 1))
    return nn.Sequential(first, *others)
