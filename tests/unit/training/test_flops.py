"""Counted operations agree with torch's own counter, with hand formulas and with RigL's."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from equipoise.models import create
from equipoise.topology import Topology
from equipoise.training.flops import Flops, count_flops, forward_flops

toy = import_module("tests.unit.training.toy")

MODELS: dict[str, dict[str, Any]] = {
    "mlp": {"image_size": 8, "in_channels": 1, "width": 0.5},
    "small_cnn": {"image_size": 8, "in_channels": 1},
    "vgg_c": {"width": 0.125},
    "resnet18": {"width": 0.125},
    "resnet50": {"width": 0.125, "stem": "imagenet"},
    "wrn_22_2": {"width": 0.5, "dropout": 0.3, "image_size": 16},
}


def build(name: str, **changes: Any) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    settings: dict[str, Any] = {"in_channels": 3, "image_size": 32} | MODELS.get(name, {}) | changes
    model = create(name, num_classes=10, **settings)
    size = settings["image_size"]
    return model, torch.randn(2, settings["in_channels"], size, size)


def torch_total(model: nn.Module, example: Tensor) -> float:
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model(example)
    return float(counter.get_total_flops())


@pytest.mark.parametrize("name", MODELS)
def test_agrees_with_the_total_of_torch(name: str) -> None:
    model, example = build(name)
    ours = sum(forward_flops(model, example).values()) * len(example)
    assert ours == pytest.approx(torch_total(model.eval(), example), rel=1e-9)


def convolution(inputs: int, outputs: int, kernel: int, size: int) -> float:
    """Operations of a convolution with an output of `size` x `size` pixels."""
    return 2.0 * inputs * outputs * kernel**2 * size**2


def vgg16_by_hand() -> float:
    """Simonyan and Zisserman's configuration D on 32 x 32 pixels, four pools, head 256-256-10."""
    plan = [(3, 64, 32), (64, 64, 32), (64, 128, 16), (128, 128, 16)]
    plan += [(128, 256, 8), (256, 256, 8), (256, 256, 8)]
    plan += [(256, 512, 4), (512, 512, 4), (512, 512, 4)]
    plan += [(512, 512, 2), (512, 512, 2), (512, 512, 2)]
    return sum(convolution(i, o, 3, s) for i, o, s in plan)


def resnet18_by_hand() -> float:
    total = convolution(3, 64, 3, 32)
    for inputs, outputs, size in ((64, 64, 32), (64, 128, 16), (128, 256, 8), (256, 512, 4)):
        total += convolution(inputs, outputs, 3, size) + 3 * convolution(outputs, outputs, 3, size)
        if inputs != outputs:
            total += convolution(inputs, outputs, 1, size)
    return total + 2.0 * 512 * 10


def test_vgg16_by_hand() -> None:
    model, example = build("vgg16")
    by_module = forward_flops(model, example)
    heads = [m for m in model.modules() if isinstance(m, nn.Linear)]
    head = sum(2.0 * m.in_features * m.out_features for m in heads)
    assert sum(by_module.values()) == vgg16_by_hand() + head
    assert [m.out_features for m in heads] == [256, 256, 10]
    # 313 million multiplications and additions, as commonly quoted for these convolutions.
    assert vgg16_by_hand() / 2e6 == pytest.approx(313.2, abs=0.1)


def test_resnet18_by_hand() -> None:
    model, example = build("resnet18", width=1.0)
    assert sum(forward_flops(model, example).values()) == resnet18_by_hand()
    assert resnet18_by_hand() / 2e6 == pytest.approx(555.4, abs=0.1)


def test_one_layer_at_a_time() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 5, stride=2, padding=1, groups=1),
        nn.Conv2d(8, 12, 3, groups=4, bias=True),
        nn.Flatten(),
        nn.Linear(12 * 25, 7),
    )
    example = torch.zeros(3, 3, 15, 15)
    assert forward_flops(model, example) == {
        "0": 2.0 * 7 * 7 * 8 * 3 * 25,
        "1": 2.0 * 5 * 5 * 12 * (8 // 4) * 9,
        "3": 2.0 * 300 * 7,
    }


@pytest.mark.parametrize("num", [1, 2, 5])
def test_operations_are_per_sample(num: int) -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2))
    assert forward_flops(model, torch.zeros(num, 6)) == {"0": 48.0, "1": 16.0}


class Repeated(nn.Module):
    """A layer that is used twice, and a product of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 4))
        self.weight = nn.Parameter(torch.ones(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        product: Tensor = self.inner(self.inner(x)) @ self.weight
        return product


def test_a_layer_used_twice_counts_twice_and_own_products_have_their_module() -> None:
    model = Repeated()
    assert forward_flops(model, torch.zeros(1, 4)) == {"inner.0": 64.0, "": 24.0}
    outer = nn.Sequential(model, nn.Linear(3, 5))
    assert forward_flops(outer, torch.zeros(1, 4)) == {"0.inner.0": 64.0, "0": 24.0, "1": 30.0}
    halves = count_flops(outer, torch.zeros(1, 4), {"0.inner.0.weight": 0.25, "0.weight": 0.5})
    assert halves == Flops(dense=118.0, sparse=16.0 + 12.0 + 30.0)


@given(st.lists(st.floats(0.0, 1.0), min_size=3, max_size=3))
def test_active_operations_are_scaled_by_the_density_of_their_layer(shares: list[float]) -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2), nn.Linear(2, 9))
    densities = {f"{i}.weight": share for i, share in enumerate(shares)}
    flops = count_flops(model, torch.zeros(1, 6), densities)
    assert flops.dense == 48.0 + 16.0 + 36.0
    assert flops.sparse == pytest.approx(48 * shares[0] + 16 * shares[1] + 36 * shares[2])


def test_layers_without_a_mask_count_as_dense() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2))
    assert count_flops(model, torch.zeros(1, 6), {"1.weight": 0.5}) == Flops(dense=64, sparse=56)
    assert count_flops(nn.Linear(6, 4), torch.zeros(1, 6), {"weight": 0.25}).sparse == 12.0


def test_the_masks_of_a_session_are_counted_layer_by_layer() -> None:
    current = toy.session(sparsity=0.75, width=0.1, topology="rigl", interval=3)
    assert isinstance(current.topology, Topology)
    expected = 2.0 * sum(int(mask.sum()) for mask in current.topology.masks.values())
    assert current.flops.sparse == pytest.approx(expected, rel=1e-12)
    assert current.flops.dense == 2.0 * current.topology.num_weights
    dense = toy.session(topology="dense")
    assert dense.flops.sparse == dense.flops.dense


class Attention(nn.Module):
    """Self-attention over rows."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        attended, _ = self.attention(x, x, x, need_weights=False)
        logits: Tensor = self.head(attended.mean(dim=1))
        return logits


@pytest.mark.parametrize("training", [True, False])
def test_attention_is_counted_although_torch_has_a_fused_path(training: bool) -> None:
    model, fused = Attention().train(training), torch.backends.mha.get_fastpath_enabled()
    flops = forward_flops(model, torch.zeros(2, 5, 8))
    # Three projections and the output of 8 x 8, the products of queries, keys and values.
    assert sum(flops.values()) == 4 * 2 * 5 * 64 + 2 * 2 * 25 * 8 + 2 * 24
    assert flops["head"] == 48.0
    assert torch.backends.mha.get_fastpath_enabled() == fused


def test_counting_leaves_no_trace() -> None:
    model, example = build("wrn_22_2")
    model.get_submodule("stem" if hasattr(model, "stem") else next(iter(model._modules))).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    random = torch.get_rng_state()
    count_flops(model, example, {})
    assert toy.differences(before, dict(model.state_dict())) == []
    assert [module.training for module in model.modules()] == modes
    assert True in modes
    assert False in modes
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_counting_restores_modes_when_the_model_fails() -> None:
    model, fused = nn.Sequential(nn.Dropout(), nn.Linear(3, 4)), torch.backends.mha
    enabled = fused.get_fastpath_enabled()
    with pytest.raises(RuntimeError, match="shapes"):
        forward_flops(model, torch.zeros(2, 5))
    assert model[0].training
    assert fused.get_fastpath_enabled() == enabled


def test_training_is_three_forward_passes_and_growing_needs_dense_gradients() -> None:
    flops = Flops(dense=100.0, sparse=10.0)
    plain = flops.training(forward_samples=7, backward_samples=7, growth_samples=0)
    assert plain == 7 * 3 * 10.0
    grown = flops.training(forward_samples=7, backward_samples=7, growth_samples=2)
    assert grown == plain + 2 * 90.0
    # RigL's own formula: per sample (3 f_S dT + 2 f_S + f_D) / (dT + 1) with dT plain steps
    # between two that grow.
    interval = 100
    ours = flops.training(
        forward_samples=interval + 1, backward_samples=interval + 1, growth_samples=1
    )
    published = (3 * 10.0 * interval + 2 * 10.0 + 100.0) / (interval + 1)
    assert ours / (interval + 1) == pytest.approx(published)
    assert flops.training(forward_samples=3, backward_samples=0, growth_samples=0) == 30.0
