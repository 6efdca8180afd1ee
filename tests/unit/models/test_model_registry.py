"""Models by name, refusals of settings that a model lacks, and imports without torch."""

import subprocess
import sys

import pytest
import torch
from torch import nn

import equipoise.models
from equipoise.models import VGG16, ResNet, WideResNet, create, describe, model_names


def test_names_are_sorted_and_complete() -> None:
    assert model_names() == (
        "mlp",
        "resnet18",
        "resnet34",
        "resnet50",
        "small_cnn",
        "vgg16",
        "vgg_c",
        "wrn_22_2",
        "wrn_28_4",
    )


@pytest.mark.parametrize("name", model_names())
def test_every_name_is_described_and_built_without_buffers_of_ours(name: str) -> None:
    assert "\n" not in describe(name)
    assert describe(name).endswith(".")
    with torch.device("meta"):
        model = create(name, num_classes=10)
    assert model.training
    norm_buffers = {"running_mean", "running_var", "num_batches_tracked"}
    assert {key.rsplit(".", 1)[1] for key, _ in model.named_buffers()} <= norm_buffers


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("vgg17", "; did you mean 'vgg16'?"),
        ("VGG16", "; did you mean 'vgg16'?"),
        ("resnet-50", "; did you mean 'resnet50'?"),
        ("transformer", ", wrn_28_4"),
    ],
)
def test_unknown_names_are_refused_with_the_closest_one(name: str, hint: str) -> None:
    expected = f"unknown model {name!r}; known models are {', '.join(model_names())}"
    for call in (lambda: create(name, num_classes=10), lambda: describe(name)):
        with pytest.raises(ValueError) as caught:  # noqa: PT011 the whole message is compared
            call()
        assert str(caught.value).startswith(expected)
        assert str(caught.value).endswith(hint)


@pytest.mark.parametrize("name", model_names())
def test_settings_that_a_model_lacks_are_refused(name: str) -> None:
    if not name.startswith("wrn"):
        with pytest.raises(ValueError, match=f"^{name} has no dropout, but dropout=0.3 was asked"):
            create(name, num_classes=10, dropout=0.3)
    if not name.startswith("resnet"):
        with pytest.raises(ValueError, match=f"^{name} has no choice of stem, .*'imagenet'"):
            create(name, num_classes=10, stem="imagenet")
    with pytest.raises(ValueError, match=r"image_size"):
        create(name, num_classes=10, image_size=0)


def test_settings_reach_the_model() -> None:
    with torch.device("meta"):
        wide = create("wrn_22_2", num_classes=7, in_channels=1, width=0.5, dropout=0.3)
        large = create("resnet18", num_classes=7, in_channels=1, width=0.5, stem="imagenet")
        vgg = create("vgg16", num_classes=7, in_channels=1, width=0.5, image_size=64)
    assert isinstance(wide, WideResNet)
    assert {m.p for m in wide.modules() if isinstance(m, nn.Dropout)} == {0.3}
    assert wide.conv1.weight.shape == (8, 1, 3, 3)
    assert wide.fc.weight.shape == (7, 64)
    assert isinstance(large, ResNet)
    assert large.conv1.weight.shape == (32, 1, 7, 7)
    assert isinstance(vgg, VGG16)
    assert vgg.classifier[0].weight.shape == (128, 256 * 4 * 4)


def test_resnets_take_the_choices_of_the_published_experiments() -> None:
    resnet34 = create("resnet34", num_classes=10, width=0.125)
    assert isinstance(resnet34, ResNet)
    assert resnet34.fc.bias is None
    resnet50 = create("resnet50", num_classes=10, width=0.125)
    assert isinstance(resnet50, ResNet)
    assert not resnet50.layer1[0].bn3.weight.any()
    large = create("resnet34", num_classes=10, width=0.125, stem="imagenet")
    assert isinstance(large, ResNet)
    assert large.fc.bias is not None


_FANS = [  # layers with many weights; 3x3 kernels, but 1x1 in resnet50
    ("resnet18", "layer3.0.conv1", "cifar", 2 / (9 * 128)),
    ("resnet34", "layer3.0.conv1", "cifar", 1 / (3 * 9 * 128)),
    ("resnet34", "layer3.0.conv1", "imagenet", 2 / (9 * 128)),
    ("resnet50", "layer3.0.conv1", "cifar", 2 / 256),
    ("resnet50", "layer3.0.conv1", "imagenet", 2 / 512),
    ("vgg16", "features.14", "cifar", 2 / (9 * 128)),
    ("vgg_c", "features.14", "cifar", 1 / (3 * 9 * 128)),
    ("wrn_28_4", "block3.0.conv1", "cifar", 2 / (9 * 128)),
    ("wrn_22_2", "block3.0.conv1", "cifar", 2 / (9 * 128)),
]


@pytest.mark.parametrize(("name", "layer", "stem", "variance"), _FANS)
def test_initial_variances_are_those_of_the_published_experiments(
    name: str, layer: str, stem: str, variance: float
) -> None:
    torch.manual_seed(0)
    model = create(name, num_classes=10, stem=stem)  # type: ignore[arg-type]
    weight = model.get_submodule(layer).weight
    assert isinstance(weight, torch.Tensor)
    assert weight.var().item() == pytest.approx(variance, rel=0.03)


@pytest.mark.parametrize("module", ["equipoise.models.registry", "equipoise.models"])
def test_names_and_descriptions_need_no_torch(module: str) -> None:
    program = (
        f"import sys; import {module} as m; m.describe(m.model_names()[0]); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_package_names_are_found_lazily() -> None:
    assert set(equipoise.models.__all__) <= set(dir(equipoise.models))
    for name in equipoise.models.__all__:
        assert getattr(equipoise.models, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'VGG19'"):
        _ = equipoise.models.VGG19
