"""Networks of the published experiments and two small ones, as plain modules.

Importing this package does not import torch: the classes are loaded on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from equipoise.models.registry import create, describe, model_names

if TYPE_CHECKING:
    from equipoise.models.resnet import ResNet
    from equipoise.models.small import MLP, SmallCNN
    from equipoise.models.vgg import VGG16, VGGC
    from equipoise.models.wide_resnet import WideResNet

__all__ = [
    "MLP",
    "VGG16",
    "VGGC",
    "ResNet",
    "SmallCNN",
    "WideResNet",
    "create",
    "describe",
    "model_names",
]

_HOMES = {
    "MLP": "small",
    "ResNet": "resnet",
    "SmallCNN": "small",
    "VGG16": "vgg",
    "VGGC": "vgg",
    "WideResNet": "wide_resnet",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
