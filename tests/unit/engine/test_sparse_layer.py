"""A layer of active weights by itself: types, shapes, copies, saved states, misuse."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from equipoise.engine import convolution, lists
from equipoise.engine.convolution import Geometry, Tiling, Way
from equipoise.engine.layers import (
    Plans,
    SparseLayer,
    compact_layer,
    default_way,
    dense_layer,
    unsupported_because,
)
from equipoise.engine.maps import Form

kit: Any = import_module("tests.unit.engine.engine_kit")

pytestmark = kit.needs_kernels

CONVOLUTION = [Way(), Way(wide=True), Way(Tiling(3, 2, 4, 2), Tiling(2, 1, 8), Tiling(0, 4, 4))]


def masked(module: nn.Conv2d | nn.Linear, density: float = 0.4) -> Tensor:
    """Zeroes part of the weights; the positions of the others."""
    with torch.no_grad():
        mask = torch.rand(module.weight.shape) < density
        mask.view(-1)[-1] = True
        module.weight.mul_(mask)
    return mask.flatten().nonzero().squeeze(1)


def pair(module: nn.Conv2d | nn.Linear, way: Way | None = None) -> tuple[nn.Module, SparseLayer]:
    """A plain layer in double precision and the compact one; they share nothing."""
    index = masked(module)
    return copy.deepcopy(module).double(), compact_layer(copy.deepcopy(module), index, way)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("shape", [(7,), (1, 7), (5, 7), (2, 3, 7), (2, 3, 4, 7), (2, 1, 3, 1, 7)])
def test_linear_takes_any_number_of_dimensions(shape: tuple[int, ...]) -> None:
    plain, layer = pair(nn.Linear(7, 5))
    x = torch.randn(shape, requires_grad=True)
    y = layer(x)
    y.square().sum().backward()
    wide = x.detach().double().requires_grad_()
    expected = plain(wide)
    expected.square().sum().backward()
    assert kit.difference(y, expected) < 1e-6
    assert kit.difference(x.grad, wide.grad) < 1e-6


@pytest.mark.parametrize("way", CONVOLUTION)
def test_convolution_takes_single_images(way: Way) -> None:
    plain, layer = pair(nn.Conv2d(3, 4, 3, padding=1), way)
    x = torch.randn(3, 5, 6)
    assert kit.difference(layer(x), plain(x.double())) < 1e-6


@pytest.mark.parametrize("type_", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_types_of_the_input_come_back(type_: torch.dtype, kind: str) -> None:
    linear = kind == "linear"
    plain, layer = pair(nn.Linear(6, 5) if linear else nn.Conv2d(6, 5, 3))
    x = torch.randn((4, 6) if linear else (4, 6, 5, 5)).to(type_).requires_grad_()
    y = layer(x)
    assert y.dtype == type_
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == type_
    assert layer.values.grad is not None
    assert layer.values.grad.dtype == torch.float32
    assert kit.difference(y, plain(x.double())) < 1e-2


@pytest.mark.parametrize("way", CONVOLUTION)
@pytest.mark.parametrize("num_threads", [1, 2])
def test_an_empty_batch_comes_back_empty(way: Way, num_threads: int) -> None:
    layer = compact_layer(nn.Conv2d(3, 9, 3, padding=1), torch.arange(0, 243, 5), way)
    x = torch.randn(0, 3, 4, 4, requires_grad=True)
    with kit.threads(num_threads):
        y = layer(x)
        y.sum().backward()
    assert y.shape == (0, 9, 4, 4)
    assert x.grad is not None
    assert x.grad.shape == x.shape
    assert layer.values.grad is not None
    assert not layer.values.grad.any()


@pytest.mark.parametrize("way", CONVOLUTION)
@pytest.mark.parametrize("num_threads", [1, 2])
def test_a_layer_without_active_weights_gives_its_bias(way: Way, num_threads: int) -> None:
    layer = compact_layer(nn.Conv2d(3, 9, 3, padding=1), torch.arange(0), way)
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    with kit.threads(num_threads):
        y = layer(x)
        y.sum().backward()
    assert layer.bias is not None
    assert torch.equal(y, layer.bias[None, :, None, None].expand_as(y))
    assert x.grad is not None
    assert not x.grad.any()
    assert layer.values.grad is not None
    assert layer.values.grad.shape == (0,)


def test_second_derivatives_are_refused() -> None:
    for layer, x in (
        (compact_layer(nn.Linear(4, 3), torch.arange(12)), torch.randn(2, 4)),
        (compact_layer(nn.Conv2d(4, 3, 1), torch.arange(12)), torch.randn(2, 4, 3, 3)),
    ):
        x.requires_grad_()
        (gradient,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            gradient.sum().backward()


def test_values_changed_before_the_backward_pass_are_noticed() -> None:
    layer = compact_layer(nn.Linear(4, 3), torch.arange(12))
    y = layer(torch.randn(2, 4, requires_grad=True))
    with torch.no_grad():
        layer.values.mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_gradients_add_up_over_calls() -> None:
    plain, layer = pair(nn.Conv2d(3, 4, 3, padding=1))
    for rows, columns in ((4, 4), (5, 3), (4, 4)):
        x = torch.randn(2, 3, rows, columns)
        (layer(x) + layer(x[:, :, ::1])).square().sum().backward()
        (2 * plain(x.double())).square().sum().backward()
    assert layer.values.grad is not None
    expected = kit.active(plain.weight.grad, layer)
    assert kit.difference(layer.values.grad, expected) < 1e-5


def _wrong_channels() -> None:
    compact_layer(nn.Conv2d(3, 4, 3), torch.arange(9))(torch.zeros(2, 2, 5, 5))


def _wrong_features() -> None:
    compact_layer(nn.Linear(3, 4), torch.arange(9))(torch.zeros(2, 5))


def _too_small() -> None:
    compact_layer(nn.Conv2d(3, 4, 3), torch.arange(9))(torch.zeros(2, 3, 2, 5))


def _too_small_both_ways() -> None:
    compact_layer(nn.Conv2d(3, 4, 4), torch.arange(9))(torch.zeros(2, 3, 2, 2))


def _matrix_for_maps() -> None:
    compact_layer(nn.Conv2d(3, 4, 1), torch.arange(9))(torch.zeros(2, 3))


def _double_weights() -> None:
    compact_layer(nn.Linear(3, 4), torch.arange(9)).double()(torch.zeros(2, 3))


def _half_weights() -> None:
    compact_layer(nn.Linear(3, 4, bias=False), torch.arange(9)).half()(torch.zeros(2, 3))


def _elsewhere() -> None:
    compact_layer(nn.Linear(3, 4), torch.arange(9))(torch.zeros(2, 3, device="meta"))


@pytest.mark.parametrize(
    ("misuse", "words"),
    [
        (_wrong_channels, "2 channels or features, expected 3"),
        (_wrong_features, "5 channels or features, expected 3"),
        (_too_small, "2 x 5 are smaller than the kernel"),
        (_too_small_both_ways, "smaller than the kernel"),
        (_matrix_for_maps, "has 2 dimensions, expected 3 or 4"),
        (_double_weights, "float64"),
        (_half_weights, "float16"),
        (_elsewhere, "on meta, expected the cpu"),
    ],
)
def test_misuse_is_told_and_never_computed(misuse: Callable[[], None], words: str) -> None:
    with pytest.raises(ValueError, match=words) as raised:
        misuse()
    assert str(raised.value).count(". ") == 0, "one sentence"


@pytest.mark.parametrize(
    ("geometry", "form"),
    [
        (Geometry(4, 128, (3, 3), (1, 1), (1, 1)), Form(1, 128, 1023, 1023, 1)),
        (Geometry(512, 4, (3, 3), (1, 1), (1, 1)), Form(1, 4, 511, 512, 1)),
        (Geometry(4, 2**20), Form(2048, 2**20, 1, 1, wide=True)),
    ],
)
def test_maps_beyond_the_reach_of_an_index_are_refused(geometry: Geometry, form: Form) -> None:
    # The offsets of a list have 32 bits; they would wrap, and the kernels read anywhere.
    maps: Any = SimpleNamespace(form=form)
    index = torch.arange(2)
    with pytest.raises(ValueError, match="too large for the kernels"):
        Plans().find(geometry, index, Way(wide=form.wide), maps)
    smaller: Any = SimpleNamespace(form=replace(form, rows=form.rows // 2, samples=1))
    if form.rows > 1:
        assert Plans().find(geometry, index, Way(wide=form.wide), smaller).rows == form.rows // 2


def test_dense_and_back() -> None:
    for module in (
        nn.Conv2d(4, 6, (3, 2), (2, 1), (1, 0), (1, 2), groups=2),
        nn.Conv2d(4, 6, 3, bias=False),
        nn.Linear(4, 6),
        nn.Linear(4, 6, bias=False),
    ):
        index = masked(module)
        module.eval()
        layer = compact_layer(module, index).eval()
        again = dense_layer(layer)
        assert type(again) is type(module)
        assert str(again) == str(module)
        assert torch.equal(again.weight, module.weight)
        assert again.bias is module.bias
        assert not again.training


def test_channels_last_weights_keep_their_meaning() -> None:
    module = nn.Conv2d(4, 6, 3)
    index = masked(module)
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    layer = compact_layer(module, index)
    assert torch.equal(layer.dense_weight(), module.weight)


def test_copies_and_saved_files_compute_the_same() -> None:
    layer = compact_layer(nn.Conv2d(4, 6, 3), torch.arange(0, 216, 7))
    layer.gather_dense = lambda make: None
    x = torch.randn(3, 4, 5, 5)
    y = layer(x)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    for twin in (
        copy.deepcopy(layer),
        pickle.loads(pickle.dumps(layer)),
        torch.load(file, weights_only=False),
    ):
        assert torch.equal(twin(x), y)
        assert twin.gather_dense is None
        with torch.no_grad():
            twin.values.zero_()
        assert torch.equal(layer(x), y)


def test_another_index_of_another_length_is_loaded() -> None:
    module = nn.Conv2d(4, 6, 3, padding=1)
    few, many = torch.arange(0, 216, 9), torch.arange(0, 216, 2)
    layer, other = compact_layer(copy.deepcopy(module), few), compact_layer(module, many)
    x = torch.randn(2, 4, 5, 5)
    layer(x)  # makes lists for the old index
    values = layer.values
    layer.load_state_dict(other.state_dict())
    assert layer.values is values
    assert torch.equal(layer(x), other(x))
    other.index.zero_()
    assert torch.equal(layer.index, torch.arange(0, 216, 2)), (
        "the state's tensors must not be shared"
    )
    wrong = compact_layer(nn.Conv2d(4, 5, 3), few[:3])
    with pytest.raises(RuntimeError, match=r"shape is \(5, 4, 3, 3\), expected \(6, 4, 3, 3\)"):
        layer.load_state_dict(wrong.state_dict())


def test_a_new_index_takes_effect_at_once() -> None:
    plain = nn.Conv2d(4, 6, 3)
    layer = compact_layer(plain, torch.arange(0, 216, 7))
    x = torch.randn(2, 4, 5, 5)
    layer(x)
    index = torch.arange(3, 216, 7)
    layer.set_index_(index)
    with torch.no_grad():
        layer.values.data = torch.randn(len(index))
        weight = torch.zeros(216).index_copy(0, index, layer.values).view(6, 4, 3, 3)
    expected = nn.functional.conv2d(x.double(), weight.double(), plain.bias.double())  # type: ignore[union-attr]
    assert kit.difference(layer(x), expected) < 1e-6


def test_inference_mode_then_training() -> None:
    plain, layer = pair(nn.Conv2d(4, 6, 3, 2, 1))
    x = torch.randn(2, 4, 6, 6)
    with torch.inference_mode():
        first = layer(x)
    x.requires_grad_()
    second = layer(x)
    second.sum().backward()
    plain(x.detach().double()).sum().backward()
    assert torch.equal(first, second)
    expected = kit.active(plain.weight.grad, layer)
    assert kit.difference(layer.values.grad, expected) < 1e-5


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (nn.Conv1d(2, 2, 1), "Conv1d has no kernel"),
        (nn.ConvTranspose2d(2, 2, 1), "ConvTranspose2d has no kernel"),
        (nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"), "padding_mode is 'reflect'"),
        (nn.Conv2d(2, 2, 2, padding="same"), "differs from side to side"),
        (nn.Linear(2, 2).double(), "float64"),
        (nn.Linear(2, 2, device="meta"), "meta"),
    ],
)
def test_layers_that_have_no_kernel_say_why(module: nn.Module, words: str) -> None:
    reason = unsupported_because(module)
    assert reason is not None
    assert words in reason


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_named_padding(padding: str) -> None:
    module = nn.Conv2d(3, 4, (3, 5), padding=padding, dilation=(1, 2))
    assert unsupported_because(module) is None
    plain, layer = pair(module)
    x = torch.randn(2, 3, 9, 10)
    assert kit.difference(layer(x), plain(x.double())) < 1e-6


@pytest.mark.parametrize("density", [0.01, 0.1, 0.3, 1.0])
@pytest.mark.parametrize("rows", [0, 1, 2, 4, 32])
def test_the_way_without_timing_always_runs(density: float, rows: int) -> None:
    for geometry in (Geometry(8, 8), Geometry(8, 8, (3, 3), (2, 2), (1, 1))):
        way = default_way(geometry, density, rows)
        layer = SparseLayer(
            geometry, geometry.weight_shape, torch.arange(4), torch.ones(4), None, way
        )
        size = max(1, rows)
        assert layer(torch.ones(2, 8, size, size)).isfinite().all()


def test_a_rewiring_follows_the_lists_and_keeps_those_of_whoever_has_the_old_index(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = nn.Conv2d(4, 6, 3, stride=2, padding=1)
    layer = compact_layer(plain, torch.arange(0, 216, 2))
    x = torch.randn(2, 4, 6, 6, requires_grad=True)
    old, numbers = layer.index, torch.randn(108)
    with torch.no_grad():
        layer.values.copy_(numbers)
    before = layer(x)
    before.sum().backward()
    made: list[int] = []

    def watched(*arguments: Any, **named: Any) -> lists.SparseList:
        made.append(1)
        return lists.make_list(*arguments, **named)

    monkeypatch.setattr(convolution, "make_list", watched)
    rewired = old.clone()
    rewired[50] += 1
    layer.set_index_(rewired)
    layer(x).sum().backward()
    assert not made, "lists are made from those before"
    snapshot = torch.func.functional_call(layer, {"values": numbers, "index": old}, (x,))
    assert torch.equal(snapshot, before)
    assert not made, "the old lists are there as long as their index is"
    layer.set_index_(torch.arange(1, 216, 2))
    layer(x).sum().backward()
    assert made, "a change that large is not worth following"


def test_two_rewirings_at_once_and_lists_that_nobody_took() -> None:
    plain = nn.Conv2d(4, 6, 3, padding=1)
    layer = compact_layer(plain, torch.arange(0, 216, 2))
    x = torch.randn(2, 4, 6, 6, requires_grad=True)
    layer(x).sum().backward()
    for moved in (3, 40, 77):
        index = layer.index.clone()
        index[moved] += 1
        layer.set_index_(index)
        if moved == 40:
            with torch.no_grad():
                layer(x)  # takes the list of the forward pass, and none other
    twin = compact_layer(plain, layer.index.clone())
    with torch.no_grad():
        twin.values.copy_(layer.values)
    layer.zero_grad()
    results: list[tuple[Tensor, ...]] = []
    for each in (layer, twin):
        x.grad = None
        y = each(x)
        y.sum().backward()
        assert x.grad is not None
        assert each.values.grad is not None
        results.append((y, x.grad, each.values.grad))
    assert all(map(torch.equal, *results))
