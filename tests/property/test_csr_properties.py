"""Linear layers by torch CSR against autograd with the dense weight, in double precision."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from equipoise.engine.convolution import Way
from equipoise.engine.layers import compact_layer

TOLERANCE = 1e-5


def close(found: Tensor | None, expected: Tensor | None) -> None:
    assert found is not None
    assert expected is not None
    assert found.shape == expected.shape
    found, expected = found.detach(), expected.detach()
    largest = float(expected.abs().max()) if expected.numel() else 0.0
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=TOLERANCE * max(1, largest))


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    lead=st.sampled_from([(0,), (1,), (2,), (17,), (128,), (2, 3), (1, 1, 4), (2, 0)]),
    density=st.sampled_from([0.0, 0.01, 0.1, 0.5, 1.0]),
    bias=st.booleans(),
    transposed=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_results_and_gradients(
    sizes: tuple[int, int],
    lead: tuple[int, ...],
    density: float,
    bias: bool,
    transposed: bool,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    module = nn.Linear(*sizes, bias=bias)
    mask = torch.rand(module.weight.shape, generator=generator) < density
    index = mask.flatten().nonzero().squeeze(1)
    layer = compact_layer(module, index, Way(csr=True))
    reference = nn.Linear(*sizes, bias=bias).double()
    reference.load_state_dict(module.state_dict())
    reference.weight.data.mul_(mask)
    told: list[Tensor] = []
    layer.gather_dense = lambda dense: told.append(dense())
    x = torch.randn(*lead, sizes[0], generator=generator)
    dy = torch.randn(*lead, sizes[1], generator=generator)
    if transposed and len(lead) == 1:  # as the layer before leaves it
        x, dy = x.t().contiguous().t(), dy.t().contiguous().t()
    inputs = x.requires_grad_(), x.detach().double().requires_grad_()
    found, expected = layer(inputs[0]), reference(inputs[1])
    close(found, expected)
    found.backward(dy)
    expected.backward(dy.double())
    close(inputs[0].grad, inputs[1].grad)
    assert reference.weight.grad is not None
    close(layer.values.grad, reference.weight.grad.flatten()[index])
    close(told[0], reference.weight.grad)
    if layer.bias is not None:
        close(layer.bias.grad, reference.bias.grad)
