"""What the networks compute: gradients, spatial traces, shortcuts and initial weights."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equipoise.models import MLP, VGG16, VGGC, ResNet, SmallCNN, WideResNet, create, model_names

# Every architecture, without the scales at zero that would hide a layer from the gradient.
_BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "vgg16": lambda: VGG16(num_classes=5, width=0.125),
    "vgg_c": lambda: VGGC(num_classes=5, width=0.125),
    "resnet18": lambda: ResNet(depth=18, num_classes=5, width=0.125),
    "resnet34": lambda: ResNet(depth=34, num_classes=5, width=0.125, head_bias=False),
    "resnet50": lambda: ResNet(depth=50, num_classes=5, width=0.125),
    "resnet50_imagenet": lambda: ResNet(depth=50, num_classes=5, width=0.125, stem="imagenet"),
    "wrn_28_4": lambda: WideResNet(depth=28, widen_factor=4, num_classes=5, width=0.125),
    "wrn_dropout": lambda: WideResNet(depth=10, widen_factor=1, num_classes=5, dropout=0.3),
    "mlp": lambda: MLP(num_classes=5, width=0.125),
    "small_cnn": lambda: SmallCNN(num_classes=5, width=0.5),
}


def _images(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def _part(model: nn.Module, path: str) -> Any:
    return model.get_submodule(path)


def _recorded(model: nn.Module, kind: type[nn.Module], images: Tensor) -> list[tuple[int, ...]]:
    """Runs the model once; returns the output shapes of all its modules of one kind, in order."""
    shapes: list[tuple[int, ...]] = []
    for module in model.modules():
        if isinstance(module, kind):
            module.register_forward_hook(lambda _m, _i, out: shapes.append(tuple(out.shape)))
    with torch.no_grad():
        model.eval()(images)
    return shapes


@pytest.mark.parametrize("build", _BUILDERS.values(), ids=_BUILDERS)
def test_every_parameter_gets_a_finite_gradient(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = build()
    labels = torch.tensor([0, 1, 2, 3, 4, 0])
    loss = F.cross_entropy(model(_images(6, 3, 32, 32)), labels)
    torch.autograd.backward(loss)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        if parameter.ndim > 1:
            assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("build", _BUILDERS.values(), ids=_BUILDERS)
def test_channels_last_images_give_the_same_logits(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = build().eval()
    images = _images(2, 3, 32, 32)
    with torch.no_grad():
        expected = model(images)
        last = model.to(memory_format=torch.channels_last)(  # type: ignore[call-overload]
            images.contiguous(memory_format=torch.channels_last)
        )
    torch.testing.assert_close(last, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", model_names())
def test_the_seed_alone_decides_the_initial_weights(name: str) -> None:
    def drawn(seed: int) -> Tensor:
        torch.manual_seed(seed)
        model = create(name, num_classes=10, width=0.125)
        return nn.utils.parameters_to_vector(model.parameters())

    assert torch.equal(drawn(3), drawn(3))
    assert not torch.equal(drawn(3), drawn(4))


def test_vgg_c_enlarges_images_at_its_1x1_convolutions() -> None:
    model = VGGC(num_classes=10, width=0.125)
    images = _images(1, 3, 32, 32)
    sides = [shape[2] for shape in _recorded(model, nn.Conv2d, images)]
    assert sides == [32, 32, 16, 16, 8, 8, 10, 5, 5, 7, 3, 3, 5]
    assert _recorded(model, nn.MaxPool2d, images)[-1] == (1, 64, 2, 2)


def test_vgg16_has_four_pools_and_a_head_of_2048_features() -> None:
    model = VGG16(num_classes=10)
    pools = _recorded(model, nn.MaxPool2d, _images(1, 3, 32, 32))
    assert [shape[2] for shape in pools] == [16, 8, 4, 2]
    kinds = [type(layer).__name__ for layer in model.classifier]
    assert kinds == ["Linear", "ReLU", "Linear", "ReLU", "Linear"]
    assert _part(model, "classifier.0").in_features == 2048


@pytest.mark.parametrize(
    ("depth", "stem", "size", "sides"),
    [
        (18, "cifar", 32, [32, 16, 8, 4]),
        (50, "cifar", 32, [32, 16, 8, 4]),
        (34, "imagenet", 64, [16, 8, 4, 2]),
    ],
)
def test_resnet_stages_halve_the_side(depth: int, stem: str, size: int, sides: list[int]) -> None:
    model = ResNet(depth=depth, num_classes=3, width=0.125, stem=stem)  # type: ignore[arg-type]
    stages = [model.layer1, model.layer2, model.layer3, model.layer4]
    seen: list[int] = []
    for stage in stages:
        stage.register_forward_hook(lambda _m, _i, out: seen.append(out.shape[2]))
    model.eval()(_images(1, 3, size, size))
    assert seen == sides


def test_bottlenecks_take_their_stride_at_the_3x3_convolution() -> None:
    block = _part(ResNet(depth=50, num_classes=3, width=0.125), "layer2.0")
    strides = (block.conv1.stride, block.conv2.stride, block.conv3.stride, block.shortcut[0].stride)
    assert strides == ((1, 1), (2, 2), (1, 1), (2, 2))


@pytest.mark.parametrize(("depth", "last"), [(18, "bn2"), (50, "bn3")])
def test_zero_init_residual_leaves_only_the_shortcut(depth: int, last: str) -> None:
    model = ResNet(depth=depth, num_classes=3, width=0.125, zero_init_residual=True)  # type: ignore[arg-type]
    scales = {n: p for n, p in model.named_parameters() if n.endswith(f".{last}.weight")}
    assert len(scales) == {18: 8, 50: 16}[depth]
    assert all(not scale.any() for scale in scales.values())
    others = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert sum(bool((m.weight == 1).all()) for m in others) == len(others) - len(scales)
    block = _part(model, "layer1.1").eval()
    images = _images(2, block.conv1.in_channels, 4, 4)
    assert torch.equal(block(images), F.relu(images))


def test_resnet_projects_the_raw_input() -> None:
    model = ResNet(depth=18, num_classes=3, width=0.125, zero_init_residual=True)
    block = _part(model, "layer2.0").eval()
    images = _images(2, 8, 4, 4)
    torch.testing.assert_close(block(images), F.relu(block.shortcut(images)))


def test_wide_resnet_projects_the_pre_activated_input_and_keeps_the_raw_one() -> None:
    torch.manual_seed(0)
    group = _part(WideResNet(depth=16, widen_factor=2, num_classes=3), "block2").eval()
    for block in group:
        nn.init.zeros_(block.conv2.weight)
        nn.init.uniform_(block.bn1.bias, -1, 1)
    images = _images(2, 32, 8, 8)
    activated = F.relu(group[0].bn1(images))
    assert torch.equal(group[0](images), F.conv2d(activated, group[0].shortcut.weight, stride=2))
    raw = _images(2, 64, 4, 4)
    assert group[1].shortcut is None
    assert torch.equal(group[1](raw), raw)


def _randomised(block: Any) -> Any:
    """Gives BatchNorm random scales and shifts, so that no layer can be left out unseen."""
    torch.manual_seed(1)
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -1, 1)
    return block.eval()


def test_blocks_compute_the_published_formulas() -> None:
    torch.manual_seed(0)
    basic = _randomised(_part(ResNet(depth=18, num_classes=3, width=0.125), "layer2.0"))
    narrow = _randomised(_part(ResNet(depth=50, num_classes=3, width=0.125), "layer1.0"))
    wide = _randomised(_part(WideResNet(depth=10, widen_factor=1, num_classes=3), "block2.0"))
    x = _images(2, 8, 4, 4)
    inner = F.relu(basic.bn1(basic.conv1(x)))
    expected = F.relu(basic.bn2(basic.conv2(inner)) + basic.shortcut(x))
    torch.testing.assert_close(basic(x), expected)
    inner = F.relu(narrow.bn2(narrow.conv2(F.relu(narrow.bn1(narrow.conv1(x))))))
    expected = F.relu(narrow.bn3(narrow.conv3(inner)) + narrow.shortcut(x))
    torch.testing.assert_close(narrow(x), expected)
    x = _images(2, 16, 4, 4)
    first = F.relu(wide.bn1(x))
    second = F.relu(wide.bn2(wide.conv1(first)))
    torch.testing.assert_close(wide(x), wide.conv2(second) + wide.shortcut(first))


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "wrn_22_2", "small_cnn"])
def test_heads_see_averages_of_rectified_features(name: str) -> None:
    torch.manual_seed(0)
    model = create(name, num_classes=3, width=0.25)
    head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    features: list[Tensor] = []
    head.register_forward_pre_hook(lambda _m, inputs: features.append(inputs[0]))
    model(_images(4, 3, 32, 32))
    assert features[0].shape == (4, head.in_features)
    assert features[0].min() >= 0
    assert features[0].max() > 0


def test_wide_resnet_drops_units_in_training_only() -> None:
    torch.manual_seed(0)
    model = WideResNet(depth=10, widen_factor=1, num_classes=3, dropout=0.2)
    probabilities = [m.p for m in model.modules() if isinstance(m, nn.Dropout)]
    assert probabilities == [0.2, 0.2, 0.2]
    images = _images(4, 3, 8, 8)
    assert not torch.equal(model(images), model(images))
    model.eval()
    assert torch.equal(model(images), model(images))
    plain = WideResNet(depth=10, widen_factor=1, num_classes=3)
    assert {m.p for m in plain.modules() if isinstance(m, nn.Dropout)} == {0.0}


@pytest.mark.parametrize(("init", "fan"), [("kaiming_fan_out", 256), ("kaiming_fan_in", 128)])
def test_kaiming_weights_have_variance_two_over_fan(init: str, fan: int) -> None:
    torch.manual_seed(0)
    model = ResNet(depth=18, num_classes=3, init=init)  # type: ignore[arg-type]
    weight = _part(model, "layer3.0.conv1").weight
    assert weight.std().item() == pytest.approx((2 / (9 * fan)) ** 0.5, rel=0.01)
    bound = 512**-0.5  # the head keeps the uniform default
    assert bound * 0.95 < model.fc.weight.abs().max().item() <= bound


def test_default_weights_are_those_of_pytorch() -> None:
    torch.manual_seed(0)
    model = ResNet(depth=18, num_classes=3, width=0.25)
    bound = (1 / (9 * 16)) ** 0.5
    assert bound * 0.95 < _part(model, "layer1.0.conv1").weight.abs().max().item() <= bound


def test_vgg16_draws_its_linear_layers_too() -> None:
    torch.manual_seed(0)
    head = _part(VGG16(num_classes=10, width=0.5), "classifier")
    assert head[0].weight.std().item() == pytest.approx((2 / 1024) ** 0.5, rel=0.01)
    assert not head[0].bias.any()
