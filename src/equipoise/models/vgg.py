"""Two VGG networks: VGG-16 with a narrow head, and VGG-C with 1x1 convolutions."""

from __future__ import annotations

from itertools import count
from typing import final

import torch
from torch import Tensor, nn

from equipoise.models.initialisation import initialise_
from equipoise.models.settings import Init, check_at_least_one, check_image_size, scaled

# One entry per stage: its number of channels and the kernel sizes of its convolutions.
_Stages = tuple[tuple[int, tuple[int, ...]], ...]

_VGG16: _Stages = (
    (64, (3, 3)),
    (128, (3, 3)),
    (256, (3, 3, 3)),
    (512, (3, 3, 3)),
    (512, (3, 3, 3)),
)
_VGGC: _Stages = (
    (64, (3, 3)),
    (128, (3, 3)),
    (256, (3, 3, 1)),
    (512, (3, 3, 1)),
    (512, (3, 3, 1)),
)


@final
class VGG16(nn.Module):
    """VGG-16 with BatchNorm, four pools and a 256-256 head.

    Thirteen 3x3 convolutions without bias, each followed by BatchNorm and ReLU; a pool after each
    of the first four stages and none after the fifth; then three linear layers with biases and
    ReLU between them. At 32 x 32 the head sees 512 * 2 * 2 = 2048 features.

    Contract: the forward pass maps (N, C, image_size, image_size) to logits (N, num_classes).

    Args:
        num_classes: Number of classes, at least 1.
        in_channels: Channels of the images.
        image_size: Height and width of the images in pixels, at least 16.
        width: Multiplier of all channel and hidden-unit counts; 1.0 is the published network.
        init: Distribution of the initial weights, of the linear layers too.

    Raises:
        ValueError: A size is out of its range, or `init` is unknown.

    Example:
        >>> model = VGG16(num_classes=10, width=0.125)
        >>> model(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])

    References:
        Simonyan and Zisserman, ICLR 2015, table 1 D; this head as in Sehwag et al., "HYDRA",
        NeurIPS 2020, and Oezdenizci and Legenstein, "Training Adversarially Robust Sparse
        Networks via Bayesian Connectivity Sampling", ICML 2021.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int = 3,
        image_size: int = 32,
        width: float = 1.0,
        init: Init = "kaiming_fan_in",
    ) -> None:
        super().__init__()
        check_at_least_one(num_classes=num_classes, in_channels=in_channels)
        side = _final_side("VGG16", _VGG16, image_size, pool_last=False)
        hidden = scaled(256, width)
        self.features = _features(_VGG16, in_channels, width, bias=False, pool_last=False)
        self.classifier = nn.Sequential(
            nn.Linear(scaled(512, width) * side**2, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, num_classes),
        )
        initialise_(self.modules(), init)

    def forward(self, images: Tensor) -> Tensor:
        """Computes the logits."""
        logits: Tensor = self.classifier(torch.flatten(self.features(images), 1))
        return logits


@final
class VGGC(nn.Module):
    """VGG-C: VGG-16 with 1x1 convolutions at the ends of its last three stages.

    Every convolution has a bias and padding 1, the 1x1 ones included, so that these enlarge the
    image by two pixels: at 32 x 32 the sides of the convolutions' outputs are 32, 32 | 16, 16 |
    8, 8, 10 | 5, 5, 7 | 3, 3, 5, and the fifth pool leaves 2 x 2. The head is Linear, ReLU,
    BatchNorm twice, then Linear. Initial weights are PyTorch's defaults.

    The forward pass returns logits. The published network ends in a log-softmax; its negative
    log-likelihood is the cross-entropy of these logits, so both train alike.

    Contract: the forward pass maps (N, C, image_size, image_size) to logits (N, num_classes).

    Args:
        num_classes: Number of classes, at least 1.
        in_channels: Channels of the images.
        image_size: Height and width of the images in pixels, at least 4.
        width: Multiplier of all channel and hidden-unit counts; 1.0 is the published network.

    Raises:
        ValueError: A size is out of its range.

    Example:
        >>> model = VGGC(num_classes=10, width=0.125)
        >>> model(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])

    References:
        Simonyan and Zisserman, ICLR 2015, table 1 C; this variant as in Liu et al., "Do We
        Actually Need Dense Over-Parameterization?", ICML 2021.
    """

    def __init__(
        self, *, num_classes: int, in_channels: int = 3, image_size: int = 32, width: float = 1.0
    ) -> None:
        super().__init__()
        check_at_least_one(num_classes=num_classes, in_channels=in_channels)
        side = _final_side("VGGC", _VGGC, image_size, pool_last=True)
        hidden = scaled(512, width)
        self.features = _features(_VGGC, in_channels, width, bias=True, pool_last=True)
        self.classifier = nn.Sequential(
            nn.Linear(scaled(512, width) * side**2, hidden),
            nn.ReLU(),
            nn.BatchNorm1d(hidden),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.BatchNorm1d(hidden),
            nn.Linear(hidden, num_classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Computes the logits."""
        logits: Tensor = self.classifier(torch.flatten(self.features(images), 1))
        return logits


def _features(
    stages: _Stages, in_channels: int, width: float, *, bias: bool, pool_last: bool
) -> nn.Sequential:
    """Builds convolution, BatchNorm and ReLU for each kernel, and the pools between stages."""
    layers: list[nn.Module] = []
    channels = in_channels
    for index, (published, kernels) in enumerate(stages):
        for kernel in kernels:
            wanted = scaled(published, width)
            layers.append(nn.Conv2d(channels, wanted, kernel, padding=1, bias=bias))
            layers.extend((nn.BatchNorm2d(wanted), nn.ReLU()))
            channels = wanted
        if pool_last or index < len(stages) - 1:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


def _final_side(model: str, stages: _Stages, image_size: int, *, pool_last: bool) -> int:
    """Returns the side of the last feature map, after refusing images that are too small."""
    smallest = next(size for size in count(1) if _side_after(stages, size, pool_last=pool_last) > 0)
    check_image_size(model, image_size, smallest)
    return _side_after(stages, image_size, pool_last=pool_last)


def _side_after(stages: _Stages, side: int, *, pool_last: bool) -> int:
    """Follows the side of the image through the stages; 0 once a pool has nothing left."""
    for index, (_, kernels) in enumerate(stages):
        side += sum(3 - kernel for kernel in kernels)  # padding 1 keeps 3x3 and enlarges 1x1
        if pool_last or index < len(stages) - 1:
            side //= 2
        if side == 0:
            return 0
    return side
