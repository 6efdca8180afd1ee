"""Every network of the registry on the kernels is as near to the truth as torch is.

The truth is the same network in double precision: outputs, gradients of all parameters and of the
input, running statistics, in training and in evaluation mode.
"""

from __future__ import annotations

import copy
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from equipoise import Topology
from equipoise.engine.layers import SparseLayer
from equipoise.engine.network import to_dense
from equipoise.engine.program import PlainStep
from equipoise.models import create, model_names

kit: Any = import_module("tests.unit.engine.engine_kit")

pytestmark = kit.needs_kernels

WIDTHS = {"mlp": 0.25, "small_cnn": 0.5, "resnet18": 0.125, "resnet34": 0.125, "resnet50": 0.125}


def without_dropout(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def step(network: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The output, and gradients by name."""
    network.zero_grad()
    x = x.detach().clone().to(next(network.parameters()).dtype).requires_grad_()
    out = network(x)
    F.cross_entropy(out, y).backward()
    found = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    assert x.grad is not None
    return out.detach(), {**found, "the input": x.grad}


def errors(found: dict[str, Tensor], truth: dict[str, Tensor]) -> dict[str, float]:
    """Distance from the truth, relative to the largest gradient of a network's tensors."""
    scale = max(1e-6, *(float(t.norm()) for t in truth.values()))
    return {name: float((found[name].double() - truth[name]).norm()) / scale for name in truth}


@pytest.mark.parametrize("sparsity", [0.5, 0.95])
@pytest.mark.parametrize("name", model_names())
def test_as_near_to_the_truth_as_torch(name: str, sparsity: float) -> None:
    torch.manual_seed(0)
    model = without_dropout(create(name, num_classes=10, width=WIDTHS.get(name, 0.125)))
    topology = Topology(model, sparsity=sparsity)
    size = 32 if name in ("mlp", "vgg16") else 16
    plain, truth = copy.deepcopy(model), copy.deepcopy(model).double()
    conversion = kit.converted(model, topology, torch.zeros(20, 3, size, size))
    network = conversion.network
    assert conversion.untraced is None
    num_dropouts = sum(isinstance(m, nn.Dropout) for m in network.modules())
    for training in (True, False):
        kinds = [type(step) for step in kit.steps_of(network, training=training)]
        assert kinds.count(PlainStep) <= num_dropouts, "maps stay in the kernels' layout"
        # Rounding flips a rectifier in some batch, in the engine as in torch; a defect is in all.
        found = (compare(network, plain, truth, batch(seed, size), training) for seed in range(4))
        assert any(mine <= 3.0 * torchs + 5e-5 for mine, torchs in found)
    kit.assert_same_statistics(network, truth)
    assert list(to_dense(network).state_dict()) == list(plain.state_dict())


def batch(seed: int, size: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(20, 3, size, size, generator=generator), torch.arange(20) % 10


def compare(
    network: nn.Module,
    plain: nn.Module,
    truth: nn.Module,
    data: tuple[Tensor, Tensor],
    training: bool,
) -> tuple[float, float]:
    """The largest error of a gradient on one batch, and torch's; outputs are no worse."""
    for each in (network, plain, truth):
        each.train(training)
    (mine, engine), (theirs, masked), (right, exact) = (
        step(each, *data) for each in (network, plain, truth)
    )
    for path, layer in network.named_modules():
        if isinstance(layer, SparseLayer):
            engine[f"{path}.weight"] = engine.pop(f"{path}.values")
            for gradients in (masked, exact):
                gradients[f"{path}.weight"] = kit.active(gradients[f"{path}.weight"], layer)
    assert engine.keys() == exact.keys()
    assert kit.difference(mine, right) <= 3.0 * kit.difference(theirs, right) + 1e-6
    return max(errors(engine, exact).values()), max(errors(masked, exact).values())
