"""Sizes that the models take, and sizes that they refuse."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from equipoise.models import MLP, VGG16, VGGC, ResNet, SmallCNN, WideResNet, create, model_names
from equipoise.models.initialisation import initialise_
from equipoise.models.settings import scaled


def _images(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def _part(model: nn.Module, path: str) -> Any:
    return model.get_submodule(path)


@pytest.mark.parametrize("name", model_names())
@pytest.mark.parametrize(
    ("channels", "size", "width", "classes"),
    [(3, 32, 0.125, 10), (1, 28, 0.25, 7), (3, 40, 0.01, 2), (4, 17, 0.2, 3)],
)
def test_logits_have_a_row_per_image(
    name: str, channels: int, size: int, width: float, classes: int
) -> None:
    model = create(
        name, num_classes=classes, in_channels=channels, image_size=size, width=width
    ).eval()
    with torch.no_grad():
        logits = model(_images(2, channels, size, size))
    assert logits.shape == (2, classes)
    assert logits.isfinite().all()


@pytest.mark.parametrize("name", ["mlp", "small_cnn", "resnet18", "wrn_22_2"])
def test_images_of_eight_pixels_are_large_enough(name: str) -> None:
    model = create(name, num_classes=10, in_channels=1, image_size=8, width=0.25)
    assert model(_images(4, 1, 8, 8)).shape == (4, 10)


@pytest.mark.parametrize("name", model_names())
@pytest.mark.parametrize("width", [0.01, 0.3, 0.8, 1.5])
def test_widths_are_multiples_of_eight(name: str, width: float) -> None:
    with torch.device("meta"):
        model = create(name, num_classes=10, width=width)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert norms
    assert all(norm.num_features % 8 == 0 and norm.num_features >= 8 for norm in norms)


def test_scaled_rounds_halves_up_and_keeps_published_counts() -> None:
    assert [scaled(16, width) for width in (0.01, 0.5, 0.75, 1.25, 2.0)] == [8, 8, 16, 24, 32]
    assert scaled(100, 1.0) == 100


@pytest.mark.parametrize(("size", "stride"), [(8, 1), (15, 1), (16, 2), (32, 2)])
def test_small_cnn_keeps_small_images_whole(size: int, stride: int) -> None:
    model = SmallCNN(num_classes=3, in_channels=1, image_size=size)
    assert _part(model, "features.0").stride == (stride, stride)
    assert model(_images(2, 1, size, size)).shape == (2, 3)


@pytest.mark.parametrize(
    ("build", "smallest"),
    [
        (lambda size: VGG16(num_classes=3, image_size=size, width=0.01), 16),
        (lambda size: VGGC(num_classes=3, image_size=size, width=0.01), 4),
        (lambda size: SmallCNN(num_classes=3, image_size=size), 2),
        (lambda size: MLP(num_classes=3, image_size=size, hidden=(8,)), 1),
    ],
    ids=["VGG16", "VGGC", "SmallCNN", "MLP"],
)
def test_images_that_shrink_to_nothing_are_refused(
    build: Callable[[int], nn.Module], smallest: int
) -> None:
    assert build(smallest)(_images(2, 3, smallest, smallest)).shape == (2, 3)
    with pytest.raises(
        ValueError, match=f"image_size={smallest - 1}, but {smallest} is the smallest size"
    ):
        build(smallest - 1)


@pytest.mark.parametrize("size", [4, 5, 11, 16, 23, 33, 64])
def test_vgg_c_head_fits_any_size(size: int) -> None:
    model = VGGC(num_classes=3, image_size=size, width=0.01)
    assert model(_images(2, 3, size, size)).shape == (2, 3)


def test_mlp_takes_any_hidden_layers() -> None:
    model = MLP(num_classes=4, in_channels=1, image_size=8, hidden=(300, 100))
    assert [tuple(p.shape) for p in model.parameters() if p.ndim > 1] == [
        (300, 64),
        (100, 300),
        (4, 100),
    ]
    assert MLP(num_classes=4, hidden=())(_images(2, 3, 32, 32)).shape == (2, 4)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SmallCNN(num_classes=0), "num_classes must be at least 1, but it is 0"),
        (lambda: MLP(num_classes=2, in_channels=0), "in_channels must be at least 1"),
        (lambda: MLP(num_classes=2, hidden=(8, 0)), "hidden must be at least 1"),
        (lambda: VGGC(num_classes=2, width=0.0), "width must be a positive finite number"),
        (lambda: VGG16(num_classes=2, width=float("nan")), "width must be a positive finite"),
        (lambda: ResNet(depth=20, num_classes=2), "no depth 20; choose 18, 34 or 50"),  # type: ignore[arg-type]
        (lambda: ResNet(depth=18, num_classes=2, stem="tiny"), "no stem 'tiny'"),  # type: ignore[arg-type]
        (lambda: WideResNet(depth=20, widen_factor=2, num_classes=2), "no depth 20"),
        (lambda: WideResNet(depth=4, widen_factor=2, num_classes=2), "no depth 4"),
        (lambda: WideResNet(depth=10, widen_factor=0, num_classes=2), "widen_factor must be at"),
        (
            lambda: WideResNet(depth=10, widen_factor=1, num_classes=2, dropout=1.0),
            "dropout must lie in [0, 1), but it is 1.0",
        ),
        (lambda: initialise_([], "xavier"), "unknown init 'xavier'; choose one of 'default'"),  # type: ignore[arg-type]
    ],
)
def test_settings_out_of_range_are_refused(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        build()
