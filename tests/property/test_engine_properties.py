"""Convolutions over active weights: any shape, tiling and processor, against double precision."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from equipoise.engine.convolution import Geometry, Tiling, Way
from equipoise.engine.layers import SparseLayer, compact_layer

kit: Any = import_module("tests.unit.engine.engine_kit")

pytestmark = kit.needs_kernels

side = st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(0, 3), st.integers(1, 3))
tilings = st.builds(
    Tiling,
    st.sampled_from([0, 1, 3, 16]),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([1, 2, 3, 4, 6, 8, 16]),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([0, 1]),
)


@dataclass(frozen=True)
class Case:
    """One convolution on one batch."""

    geometry: Geometry
    samples: int
    rows: int
    columns: int
    active: int
    way: Way
    layout: str
    seed: int
    instructions: str
    bias: bool

    def tensor(self, *shape: int, salt: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed + salt)
        return torch.randn(*shape, generator=generator)

    def input(self) -> Tensor:
        """The batch, in some order in memory."""
        shape = (self.samples, self.geometry.in_channels, self.rows, self.columns)
        if self.layout == "channels_last":
            return self.tensor(*shape).contiguous(memory_format=torch.channels_last)
        if self.layout == "turned":
            return self.tensor(*reversed(shape)).permute(3, 2, 1, 0)
        if self.layout == "sliced":
            return self.tensor(shape[0], 2 * shape[1], shape[2] + 1, 2 * shape[3])[:, ::2, 1:, 1::2]
        if self.layout == "repeated":
            return self.tensor(1, *shape[1:]).expand(*shape)
        return self.tensor(*shape)

    def index(self) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed + 1)
        order = torch.randperm(self.geometry.num_weights, generator=generator)
        return order[: self.active].sort().values


@st.composite
def cases(draw: Any) -> Case:
    sides = [draw(side), draw(side)]
    kernel, stride, padding, dilation = ((a, b) for a, b in zip(*sides, strict=True))
    sizes = []
    for k, _, p, d in sides:
        least = max(1, d * (k - 1) + 1 - 2 * p)
        sizes.append(draw(st.integers(least, max(least, 9))))
    groups = draw(st.sampled_from([1, 1, 2, 3, 8]))
    within, out = (1, 1) if groups == 8 else (draw(st.integers(1, 6)), draw(st.integers(1, 6)))
    geometry = Geometry(
        *(out * groups, within * groups, kernel, stride, padding, dilation), groups=groups
    )
    whole = geometry.num_weights
    return Case(
        geometry,
        samples=draw(st.integers(1, 40)),
        rows=sizes[0],
        columns=sizes[1],
        active=draw(st.sampled_from([1, max(1, whole // 10), max(1, whole // 2), whole])),
        way=Way(draw(tilings), draw(tilings), draw(tilings), wide=draw(st.booleans())),
        layout=draw(
            st.sampled_from(["contiguous", "channels_last", "turned", "sliced", "repeated"])
        ),
        seed=draw(st.integers(0, 2**20)),
        instructions=draw(st.sampled_from(kit.AVAILABLE)),
        bias=draw(st.booleans()),
    )


def layer_of(case: Case) -> tuple[nn.Conv2d, SparseLayer]:
    """A plain layer with masked weights in double precision, and the compact one."""
    g = case.geometry
    with torch.device("meta"):
        plain = nn.Conv2d(
            *(g.in_channels, g.out_channels, g.kernel, g.stride, g.padding, g.dilation),
            *(g.groups, case.bias),
        )
    index = case.index()
    weight = torch.zeros(g.num_weights)
    weight[index] = case.tensor(len(index), salt=2)
    plain.weight = nn.Parameter(weight.view(g.weight_shape))
    if case.bias:
        plain.bias = nn.Parameter(case.tensor(g.out_channels, salt=3))
    layer = compact_layer(plain, index, case.way)
    if case.bias:
        layer.bias = nn.Parameter(case.tensor(g.out_channels, salt=3))
    return plain.double(), layer


def magnitudes(plain: nn.Conv2d, x: Tensor, dy: Tensor) -> list[Tensor]:
    """Sums of the absolute values of all terms: of the output, and of the three gradients."""
    twin = nn.Conv2d.__new__(nn.Conv2d)
    twin.__dict__ = dict(plain.__dict__)
    twin._parameters = {
        name: None if p is None else nn.Parameter(p.detach().abs())
        for name, p in plain._parameters.items()
    }
    x = x.detach().double().abs().requires_grad_()
    y = twin(x)
    y.backward(dy.double().abs())
    found = [y.detach(), x.grad, twin.weight.grad]
    return [t for t in [*found, None if twin.bias is None else twin.bias.grad] if t is not None]


def assert_close(got: Tensor, expected: Tensor, scale: Tensor, terms: float) -> None:
    """Within what rounding of so many terms, whose absolute values add up to `scale`, allows."""
    allowed = kit.EPSILON * (4.0 + 4.0 * terms**0.5) * scale + 1e-30
    excess = ((got.double() - expected).abs() / allowed).max()
    assert got.shape == expected.shape
    assert excess <= 1.0, f"off by {float(excess):.3g} times what rounding allows"


@settings(max_examples=250, deadline=None)
@given(cases())
def test_agrees_with_double_precision(case: Case) -> None:
    plain, layer = layer_of(case)
    x = case.input().requires_grad_()
    with kit.chosen(case.instructions), kit.watched_memory(case.samples):
        y = layer(x)
        dy = case.tensor(*y.shape, salt=4)
        y.backward(dy)
    wide = x.detach().double().requires_grad_()
    expected = plain(wide)
    expected.backward(dy.double())
    scales = magnitudes(plain, x, dy)
    g = case.geometry
    window = g.in_channels // g.groups * g.kernel[0] * g.kernel[1]
    back = g.out_channels // g.groups * g.kernel[0] * g.kernel[1]
    positions = dy.numel() / g.out_channels
    assert x.grad is not None
    assert wide.grad is not None
    assert plain.weight.grad is not None
    assert layer.values.grad is not None
    assert_close(y.detach(), expected.detach(), scales[0], window)
    assert_close(x.grad, wide.grad, scales[1], back)
    index = layer.index
    assert_close(
        *(layer.values.grad, plain.weight.grad.flatten()[index], scales[2].flatten()[index]),
        positions,
    )
    if layer.bias is not None:
        assert layer.bias.grad is not None
        assert plain.bias is not None
        assert plain.bias.grad is not None
        assert_close(layer.bias.grad, plain.bias.grad, scales[3], positions)


@settings(max_examples=50, deadline=None)
@given(cases())
def test_any_number_of_threads_gives_the_same_bits(case: Case) -> None:
    def run(num_threads: int) -> list[Tensor]:
        _, layer = layer_of(case)
        x = case.input().requires_grad_()
        with kit.threads(num_threads), kit.chosen(case.instructions), kit.watched_memory():
            y = layer(x)
            y.backward(case.tensor(*y.shape, salt=4))
        found = [y.detach(), x.grad, layer.values.grad]
        return found + ([layer.bias.grad] if layer.bias is not None else [])

    assert all(map(torch.equal, run(1), run(2)))


@settings(max_examples=60, deadline=None)
@given(cases(), st.booleans(), st.booleans(), st.booleans())
def test_only_what_is_wanted_is_computed(case: Case, data: bool, values: bool, bias: bool) -> None:
    _, whole = layer_of(case)
    _, part = layer_of(case)
    part.values.requires_grad_(values)
    if part.bias is not None:
        part.bias.requires_grad_(bias)
    with kit.chosen(case.instructions):
        a, b = case.input().requires_grad_(), case.input().requires_grad_(data)
        whole(a).sum().backward()  # an expanded gradient
        y = part(b)
        assert y.requires_grad == (data or values or (bias and part.bias is not None))
        if y.requires_grad:
            y.sum().backward()
    assert (b.grad is not None) == data
    assert b.grad is None or torch.equal(a.grad, b.grad)  # type: ignore[arg-type]
    assert (part.values.grad is not None) == values
    assert not values or torch.equal(part.values.grad, whole.values.grad)  # type: ignore[arg-type]
    if part.bias is not None and bias:
        assert whole.bias is not None
        assert torch.equal(part.bias.grad, whole.bias.grad)  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(cases())
def test_linear_in_its_weights(case: Case) -> None:
    # Twice the values give twice the output, bit for bit: nothing else gets in.
    case = replace(case, bias=False)
    _, layer = layer_of(case)
    with kit.chosen(case.instructions), torch.no_grad():
        once = layer(case.input())
        layer.values.mul_(2.0)
        assert torch.equal(layer(case.input()), 2.0 * once)
        layer.values.zero_()
        assert not layer(case.input()).any()


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 70),
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(0, 2**20),
    tilings,
    st.booleans(),
    st.sampled_from(kit.AVAILABLE),
)
def test_linear_layers(
    samples: int, features: int, out: int, seed: int, tiling: Tiling, bias: bool, instructions: str
) -> None:
    generator = torch.Generator().manual_seed(seed)
    plain = nn.Linear(features, out, bias=bias)
    index = torch.randperm(features * out, generator=generator)[: 1 + seed % (features * out)]
    index = index.sort().values
    with torch.no_grad():
        weight = torch.zeros(features * out)
        weight[index] = torch.randn(len(index), generator=generator)
        plain.weight.copy_(weight.view(out, features))
    layer = compact_layer(plain, index, Way(tiling, tiling, tiling, wide=True))
    x = torch.randn(samples, features, generator=generator, requires_grad=True)
    with kit.chosen(instructions), kit.watched_memory(samples):
        y = layer(x)
        dy = torch.randn(samples, out, generator=generator)
        y.backward(dy)
    weight = plain.weight.detach()
    shift = 0.0 if plain.bias is None else plain.bias.detach().double()
    expected = x.detach().double() @ weight.double().T + shift
    scale = x.detach().double().abs() @ weight.double().abs().T + abs(shift)
    assert_close(y.detach(), expected, scale, features)
    assert x.grad is not None
    assert layer.values.grad is not None
    assert_close(
        *(x.grad, dy.double() @ weight.double(), dy.double().abs() @ weight.double().abs(), out)
    )
    exact = (dy.double().T @ x.detach().double()).flatten()[index]
    size = (dy.double().abs().T @ x.detach().double().abs()).flatten()[index]
    assert_close(layer.values.grad, exact, size, samples)


@settings(max_examples=40, deadline=None)
@given(cases())
def test_dense_gradient_for_rewirings(case: Case) -> None:
    plain, layer = layer_of(case)
    offered = []
    layer.gather_dense = lambda make: offered.append(make())
    with kit.chosen(case.instructions):
        x = case.input()
        y = layer(x)
        dy = case.tensor(*y.shape, salt=4)
        y.backward(dy)
    plain(x.double()).backward(dy.double())
    scales = magnitudes(plain, x, dy)
    assert plain.weight.grad is not None
    (gradient,) = offered
    # Summed by torch in single precision, which keeps to no bound on the number of its terms.
    assert gradient.shape == plain.weight.shape
    off = (gradient.double() - plain.weight.grad).abs()
    assert (off <= 1e-5 * scales[2] + 1e-30).all()
