"""Models by name; imports torch only when a model is created."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, Literal, NamedTuple, TypedDict

if TYPE_CHECKING:
    from torch import nn

    from equipoise.models.settings import Init, Stem

_DESCRIPTIONS = {
    "mlp": "Perceptron with hidden layers of 512 and 256 units and BatchNorm.",
    "resnet18": "ResNet-18 of basic blocks; 11.2 M weights at 10 classes.",
    "resnet34": "ResNet-34 of basic blocks, small-image head without bias; 21.3 M weights at 10 "
    "classes.",
    "resnet50": "ResNet-50 of bottleneck blocks; 23.5 M weights at 10 classes.",
    "small_cnn": "Four convolutions with BatchNorm, for 8 x 8 images and up; 0.1 M weights.",
    "vgg16": "VGG-16 with four pools and a 256-256 head; 15.3 M weights at 10 classes.",
    "vgg_c": "VGG-C with padded 1x1 convolutions and a 512-512 head; 11.3 M weights at 10 classes.",
    "wrn_22_2": "Wide ResNet 22-2, pre-activation; 1.1 M weights at 10 classes.",
    "wrn_28_4": "Wide ResNet 28-4, pre-activation; 5.8 M weights at 10 classes.",
}
_WITH_DROPOUT = ("wrn_22_2", "wrn_28_4")
_WITH_STEM = ("resnet18", "resnet34", "resnet50")


class _Variant(NamedTuple):
    """What the published experiments choose for a ResNet."""

    head_bias: bool
    zero_init_residual: bool
    init: Init


_CIFAR_VARIANTS = {
    18: _Variant(head_bias=True, zero_init_residual=False, init="kaiming_fan_in"),
    34: _Variant(head_bias=False, zero_init_residual=False, init="default"),
    50: _Variant(head_bias=True, zero_init_residual=True, init="kaiming_fan_out"),
}
_IMAGENET_VARIANT = _Variant(head_bias=True, zero_init_residual=False, init="kaiming_fan_in")


class _Sizes(TypedDict):
    """What every model takes."""

    num_classes: int
    in_channels: int
    width: float


def model_names() -> tuple[str, ...]:
    """Lists the models that `create` knows.

    Returns:
        The names, sorted.

    Example:
        >>> "vgg16" in model_names()
        True
    """
    return tuple(sorted(_DESCRIPTIONS))


def describe(name: str) -> str:
    """Describes a model in one line.

    Args:
        name: One of `model_names()`.

    Returns:
        One sentence.

    Raises:
        ValueError: `name` is unknown.

    Example:
        >>> describe("wrn_28_4")
        'Wide ResNet 28-4, pre-activation; 5.8 M weights at 10 classes.'
    """
    _check_name(name)
    return _DESCRIPTIONS[name]


def create(
    name: str,
    *,
    num_classes: int,
    in_channels: int = 3,
    image_size: int = 32,
    width: float = 1.0,
    dropout: float = 0.0,
    stem: Stem = "cifar",
) -> nn.Module:
    """Builds a model as the published experiments use it.

    Beyond the sizes, a name fixes what those experiments chose: resnet34 has a head without bias
    and PyTorch's default weights; resnet50 has Kaiming (fan out) weights and blocks that start as
    their shortcuts; vgg16, wrn_28_4 and resnet18 have Kaiming (fan in) weights, wrn_22_2 Kaiming
    (fan out) ones; with ``stem="imagenet"`` every ResNet has Kaiming (fan in) weights and a head
    with bias. The classes themselves take these choices as arguments.

    Contract: draws initial weights from torch's global generator and changes nothing else.

    Args:
        name: One of `model_names()`.
        num_classes: Number of classes, at least 1.
        in_channels: Channels of the images.
        image_size: Height and width of the images in pixels.
        width: Multiplier of channel counts, rounded to multiples of 8; 1.0 is the published one.
        dropout: Probability in [0, 1) of dropping a unit; only the Wide ResNets have dropout.
        stem: First layers of a ResNet, for small (``"cifar"``) or large (``"imagenet"``) images.

    Returns:
        The model, in training mode.

    Raises:
        ValueError: `name` is unknown, the model has no such setting, or a size is out of range.

    Example:
        >>> import torch
        >>> model = create("small_cnn", num_classes=10, in_channels=1, image_size=8)
        >>> model(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """
    _check_name(name)
    if dropout != 0.0 and name not in _WITH_DROPOUT:
        raise ValueError(_lacks(name, f"dropout, but dropout={dropout} was asked", _WITH_DROPOUT))
    if stem != "cifar" and name not in _WITH_STEM:
        raise ValueError(_lacks(name, f"choice of stem, but stem={stem!r} was asked", _WITH_STEM))

    from equipoise.models.settings import check_at_least_one
    from equipoise.models.small import MLP, SmallCNN
    from equipoise.models.vgg import VGG16, VGGC

    check_at_least_one(image_size=image_size)
    sizes: _Sizes = {"num_classes": num_classes, "in_channels": in_channels, "width": width}
    match name:
        case "mlp":
            return MLP(image_size=image_size, **sizes)
        case "small_cnn":
            return SmallCNN(image_size=image_size, **sizes)
        case "vgg16":
            return VGG16(image_size=image_size, **sizes)
        case "vgg_c":
            return VGGC(image_size=image_size, **sizes)
        case "resnet18":
            return _resnet(18, stem, sizes)
        case "resnet34":
            return _resnet(34, stem, sizes)
        case "resnet50":
            return _resnet(50, stem, sizes)
        case "wrn_22_2":
            return _wide_resnet(22, 2, dropout, "kaiming_fan_out", sizes)
        case "wrn_28_4":
            return _wide_resnet(28, 4, dropout, "kaiming_fan_in", sizes)
    raise AssertionError(f"{name} is described but cannot be built")


def _resnet(depth: Literal[18, 34, 50], stem: Stem, sizes: _Sizes) -> nn.Module:
    """Builds a ResNet with its published choices."""
    from equipoise.models.resnet import ResNet

    variant = _IMAGENET_VARIANT if stem == "imagenet" else _CIFAR_VARIANTS[depth]
    return ResNet(
        depth=depth,
        stem=stem,
        head_bias=variant.head_bias,
        zero_init_residual=variant.zero_init_residual,
        init=variant.init,
        **sizes,
    )


def _wide_resnet(
    depth: int, widen_factor: int, dropout: float, init: Init, sizes: _Sizes
) -> nn.Module:
    """Builds a Wide ResNet with its published choices."""
    from equipoise.models.wide_resnet import WideResNet

    return WideResNet(depth=depth, widen_factor=widen_factor, dropout=dropout, init=init, **sizes)


def _check_name(name: str) -> None:
    """Refuses an unknown name and suggests the closest one."""
    if name in _DESCRIPTIONS:
        return
    close = get_close_matches(name.lower(), model_names(), n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"unknown model {name!r}; known models are {', '.join(model_names())}{hint}")


def _lacks(name: str, what: str, models_with_it: tuple[str, ...]) -> str:
    """Says that a model has no such setting, and which models have it."""
    return f"{name} has no {what}; leave it out, or use one of {', '.join(models_with_it)}"
