"""ResNet-18, ResNet-34 and ResNet-50, for small images and for large ones."""

from __future__ import annotations

from typing import Literal, final, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from equipoise.models.initialisation import initialise_
from equipoise.models.settings import Init, Stem, check_at_least_one, scaled

_BLOCKS_PER_STAGE = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
_BOTTLENECK_EXPANSION = 4


@final
class ResNet(nn.Module):
    """ResNet-18 and ResNet-34 of basic blocks, ResNet-50 of bottleneck blocks.

    A stem of 64 channels, four stages of 64, 128, 256 and 512 channels (times four at the end of
    a bottleneck) with strides 1, 2, 2, 2, the global average, and a linear head. A block whose
    output differs in shape from its input has a shortcut of a 1x1 convolution and BatchNorm. The
    stride of a bottleneck sits on its 3x3 convolution. Images of any size work.

    Contract: the forward pass maps (N, C, H, W) to logits (N, num_classes).

    Args:
        depth: 18, 34 or 50.
        num_classes: Number of classes, at least 1.
        in_channels: Channels of the images.
        width: Multiplier of all channel counts; 1.0 is the published network.
        stem: ``"cifar"``, a 3x3 convolution; or ``"imagenet"``, a 7x7 convolution with stride 2
            and a pool with stride 2.
        head_bias: Whether the head has a bias.
        zero_init_residual: Whether the last BatchNorm scale of each block starts at 0, so that
            each block starts as its shortcut alone.
        init: Distribution of the convolutions' initial weights; the head keeps PyTorch's default.

    Raises:
        ValueError: A size is out of its range, or `depth`, `stem` or `init` is unknown.

    Example:
        >>> import torch
        >>> model = ResNet(depth=18, num_classes=10, width=0.125)
        >>> model(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])

    References:
        He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, table 1; zero scales
        as in Goyal et al., "Accurate, Large Minibatch SGD", 2017, section 5.1.
    """

    def __init__(
        self,
        *,
        depth: Literal[18, 34, 50],
        num_classes: int,
        in_channels: int = 3,
        width: float = 1.0,
        stem: Stem = "cifar",
        head_bias: bool = True,
        zero_init_residual: bool = False,
        init: Init = "default",
    ) -> None:
        super().__init__()
        check_at_least_one(num_classes=num_classes, in_channels=in_channels)
        if depth not in _BLOCKS_PER_STAGE:
            raise ValueError(f"ResNet has no depth {depth}; choose 18, 34 or 50")
        if stem not in get_args(Stem):
            raise ValueError(f"ResNet has no stem {stem!r}; choose 'cifar' or 'imagenet'")
        stages = [scaled(channels, width) for channels in (64, 128, 256, 512)]
        blocks, bottleneck = _BLOCKS_PER_STAGE[depth], depth == 50
        self.conv1 = _stem_convolution(in_channels, stages[0], stem)
        self.bn1 = nn.BatchNorm2d(stages[0])
        self.pool = nn.MaxPool2d(3, stride=2, padding=1) if stem == "imagenet" else nn.Identity()
        ends = [c * _BOTTLENECK_EXPANSION if bottleneck else c for c in stages]
        self.layer1 = _stage(stages[0], stages[0], blocks[0], 1, bottleneck=bottleneck)
        self.layer2 = _stage(ends[0], stages[1], blocks[1], 2, bottleneck=bottleneck)
        self.layer3 = _stage(ends[1], stages[2], blocks[2], 2, bottleneck=bottleneck)
        self.layer4 = _stage(ends[2], stages[3], blocks[3], 2, bottleneck=bottleneck)
        self.fc = nn.Linear(ends[3], num_classes, bias=head_bias)
        initialise_((m for m in self.modules() if isinstance(m, nn.Conv2d)), init)
        if zero_init_residual:
            self._zero_residual_scales()

    def forward(self, images: Tensor) -> Tensor:
        """Computes the logits."""
        out = self.pool(F.relu(self.bn1(self.conv1(images))))
        out = self.layer4(self.layer3(self.layer2(self.layer1(out))))
        logits: Tensor = self.fc(out.mean(dim=(2, 3)))
        return logits

    def _zero_residual_scales(self) -> None:
        """Makes each block start as its shortcut."""
        for module in self.modules():
            if isinstance(module, _BasicBlock):
                nn.init.zeros_(module.bn2.weight)
            elif isinstance(module, _Bottleneck):
                nn.init.zeros_(module.bn3.weight)


@final
class _BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = _shortcut(inputs, channels, stride)

    def forward(self, images: Tensor) -> Tensor:
        """Adds the residual to the shortcut."""
        out = F.relu(self.bn1(self.conv1(images)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(images))


@final
class _Bottleneck(nn.Module):
    """A 3x3 convolution between two 1x1 convolutions, beside a shortcut."""

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        outputs = channels * _BOTTLENECK_EXPANSION
        self.conv1 = nn.Conv2d(inputs, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.shortcut = _shortcut(inputs, outputs, stride)

    def forward(self, images: Tensor) -> Tensor:
        """Adds the residual to the shortcut."""
        out = F.relu(self.bn1(self.conv1(images)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return F.relu(out + self.shortcut(images))


def _stem_convolution(in_channels: int, channels: int, stem: Stem) -> nn.Conv2d:
    """Builds the first convolution."""
    if stem == "cifar":
        return nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
    return nn.Conv2d(in_channels, channels, 7, stride=2, padding=3, bias=False)


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """Builds a projection where the shape changes; an empty one passes its input on."""
    if stride == 1 and inputs == outputs:
        return nn.Sequential()
    projection = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
    return nn.Sequential(projection, nn.BatchNorm2d(outputs))


def _stage(
    inputs: int, channels: int, num_blocks: int, stride: int, *, bottleneck: bool
) -> nn.Sequential:
    """Builds blocks of equal width, of which the first one takes the stride."""
    block = _Bottleneck if bottleneck else _BasicBlock
    outputs = channels * _BOTTLENECK_EXPANSION if bottleneck else channels
    first = block(inputs, channels, stride)
    return nn.Sequential(first, *(block(outputs, channels, 1) for _ in range(num_blocks - 1)))
