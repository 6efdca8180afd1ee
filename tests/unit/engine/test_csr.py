"""Linear layers by torch CSR: what is computed when, kept how long, and refused how."""

from __future__ import annotations

import copy
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from equipoise.engine import choice, layers
from equipoise.engine.choice import Memory, choose_csr, way_from
from equipoise.engine.convolution import Geometry, Way
from equipoise.engine.csr import Pattern
from equipoise.engine.layers import SparseLayer, compact_layer


@pytest.fixture
def layer() -> SparseLayer:
    torch.manual_seed(0)
    return compact_layer(nn.Linear(6, 4), torch.arange(0, 24, 3), Way(csr=True))


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many positions each pattern has that is made."""
    sizes: list[int] = []

    def make(index: Tensor, rows: int, columns: int) -> Pattern:
        sizes.append(index.numel())
        return Pattern(index, rows, columns)

    monkeypatch.setattr(layers, "Pattern", make)
    return sizes


def test_a_pattern_is_made_once_for_an_index(layer: SparseLayer, made: list[int]) -> None:
    x = torch.randn(5, 6)
    for _ in range(3):
        layer(x).sum().backward()
        layer.values.data.mul_(2.0)
    assert made == [8]
    layer.set_index_(torch.arange(1, 24, 3))
    assert layer.bias is not None
    torch.testing.assert_close(layer(x), x @ layer.dense_weight().t() + layer.bias)
    assert made == [8, 8]


def test_changed_values_count_at_once(layer: SparseLayer) -> None:
    x = torch.randn(5, 6)
    before = layer(x)
    layer.values.data.mul_(-1.0)
    after = layer(x)
    assert layer.bias is not None
    torch.testing.assert_close(after - layer.bias, layer.bias - before)


def test_only_what_is_asked_for(layer: SparseLayer) -> None:
    x = torch.randn(5, 6)
    layer(x).sum().backward()
    assert x.grad is None
    layer.values.requires_grad_(False)
    told: list[Any] = []
    layer.gather_dense = told.append
    layer.values.grad = None
    layer(x.requires_grad_()).sum().backward()
    assert layer.values.grad is None
    assert x.grad is not None
    assert told == []


def test_a_layer_that_is_used_twice_adds_up(layer: SparseLayer) -> None:
    square = compact_layer(nn.Linear(6, 6), torch.arange(0, 36, 5), Way(csr=True))
    x = torch.randn(3, 6, dtype=torch.float64)
    weight = square.dense_weight().double().requires_grad_()
    assert square.bias is not None
    bias = square.bias.detach().double()
    ((x @ weight.t() + bias).relu() @ weight.t() + bias).square().sum().backward()
    square(square(x.float()).relu()).square().sum().backward()
    assert weight.grad is not None
    assert square.values.grad is not None
    expected = weight.grad.flatten()[square.index].float()
    torch.testing.assert_close(square.values.grad, expected, rtol=1e-4, atol=1e-4)


def test_half_precision_comes_back_as_it_came(layer: SparseLayer) -> None:
    assert layer(torch.randn(2, 6, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_a_copy_is_run_in_the_same_way(layer: SparseLayer) -> None:
    twin = copy.deepcopy(layer)
    assert twin.way == Way(csr=True)
    x = torch.randn(2, 6)
    assert torch.equal(twin(x), layer(x))


def test_other_features_are_refused(layer: SparseLayer) -> None:
    with pytest.raises(ValueError, match="the input has 5 channels or features, expected 6; give"):
        layer(torch.ones(2, 5))


def test_ways_that_were_stored_before_there_was_csr() -> None:
    tiling = {"block": 0, "rows": 1, "columns": 8, "group": 1, "ahead": 1}
    stored = {"forward": tiling, "input": tiling, "weight": tiling, "wide": True}
    assert way_from(stored) == Way(wide=True)
    assert way_from(stored | {"csr": True}) == Way(wide=True, csr=True)


def test_it_is_faster_where_little_is_active_and_not_elsewhere() -> None:
    """By factors of about 8 and 1/3, so that a busy machine changes nothing."""
    geometry, memory = Geometry(512, 512), Memory(None)
    few = choose_csr(geometry, torch.arange(0, 512 * 512, 100), 64, memory)
    most = choose_csr(geometry, torch.arange(512 * 512), 64, memory)
    assert few is not None
    assert most is not None
    assert few.seconds < few.torch_seconds
    assert most.seconds > most.torch_seconds


def test_it_is_timed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def seconds(geometry: Geometry, positions: Tensor, batch: int) -> tuple[float, float]:
        calls.append(batch)
        return 1.0, 2.0

    monkeypatch.setattr(choice, "csr_seconds", seconds)
    memory = Memory(None)
    found = [choose_csr(Geometry(8, 8), torch.arange(9), 0, memory) for _ in range(2)]
    assert found[0] == found[1] == choice.Timed(Way(csr=True), 1.0, 2.0)
    assert calls == [1]


def test_a_torch_without_such_products(monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds(*passed: Any) -> Any:
        raise RuntimeError("Calling addmm on a sparse CPU tensor requires compiling with MKL")

    monkeypatch.setattr(choice, "csr_seconds", seconds)
    assert choose_csr(Geometry(8, 8), torch.arange(9), 4, Memory(None)) is None


def test_torch_says_nothing_about_its_beta() -> None:
    """It does so once a process, so this needs one of its own."""
    code = (
        "import torch; from torch import nn; "
        "from equipoise.engine.convolution import Way; "
        "from equipoise.engine.layers import compact_layer; "
        "layer = compact_layer(nn.Linear(6, 4), torch.arange(5), Way(csr=True)); "
        "layer(torch.ones(2, 6, requires_grad=True)).sum().backward()"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
