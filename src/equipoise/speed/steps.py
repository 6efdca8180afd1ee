"""Training steps of one network: with masks in both memory formats, and with the engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from equipoise.engine.convert import choose_network, to_engine
from equipoise.engine.layers import SparseLayer
from equipoise.models import create
from equipoise.points import preserved
from equipoise.topology import Topology

LINEAR = "linear"
"""A single layer of 1024 inputs and 4096 outputs; its step has no loss but a given gradient."""

_LINEAR_SIZE = (1024, 4096)
_CLASSES = 10
_IMAGE_SIZE = 32

ArmKind = Literal["masks", "masks, channels last", "engine"]
MASKED: tuple[ArmKind, ...] = ("masks", "masks, channels last")
KINDS: tuple[ArmKind, ...] = (*MASKED, "engine")


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is measured: one network at one sparsity.

    Args:
        model: One of `equipoise.models.model_names`, or `LINEAR`.
        sparsity: Fraction of the weights removed, in [0, 1).
        distribution: How the active weights are shared between the layers.
        width: Multiplies the channels of every layer.
        batch_size: Images of 3 x 32 x 32, or rows of features.
        engine: "sparse" converts in any case, "auto" only where it is expected to pay.
        seed: Of weights, masks and images.
    """

    model: str
    sparsity: float
    distribution: str = "erk"
    width: float = 1.0
    batch_size: int = 128
    engine: Literal["auto", "sparse"] = "sparse"
    seed: int = 0


class Training(NamedTuple):
    """A network that is being trained on one batch.

    Args:
        step: Forward, backward, optimizer and masks, once.
        network: What is trained.
        optimizer: SGD with momentum 0.9 and weight decay 5e-4.
        topology: Attached to the optimizer.
        reason: Why the engine does not run it although it was to; None otherwise.
    """

    step: Callable[[], object]
    network: nn.Module
    optimizer: Optimizer
    topology: Topology
    reason: str | None


def build_training(case: Case, kind: ArmKind) -> Training:
    """A network with its masks, optimizer and batch; the same numbers for every kind.

    Args:
        case: What is measured.
        kind: How it is run.

    Raises:
        ValueError: The engine cannot run it, with ``engine="sparse"``.
    """
    with preserved(torch.device("cpu")):
        torch.manual_seed(case.seed)
        model = _model(case)
        x, y = _batch(case)
    reason = None
    topology = Topology(
        model, sparsity=case.sparsity, distribution=case.distribution, seed=case.seed
    )
    if kind == "masks, channels last" and x.ndim == 4:
        # `Module.to` has the memory format in its code but in none of its typed overloads.
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        x = x.contiguous(memory_format=torch.channels_last)
    elif kind == "engine" and case.engine == "auto":
        model, reason = choose_network(model, topology, (x,))
    elif kind == "engine":
        model = to_engine(model, topology, x, engine="sparse")
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)
    topology.attach(optimizer)
    step = _layer_step if case.model == LINEAR else _network_step
    return Training(partial(step, model, optimizer, x, y), model, optimizer, topology, reason)


def weight_bytes(network: nn.Module) -> int:
    """Bytes of parameters and buffers; positions of active weights are among the buffers."""
    tensors = [*network.parameters(), *network.buffers()]
    return sum(t.numel() * t.element_size() for t in tensors)


def optimizer_bytes(optimizer: Optimizer) -> int:
    """Bytes of the tensors in an optimizer's state."""
    tensors = [t for state in optimizer.state.values() for t in state.values()]
    return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor))


def num_sparse_layers(network: nn.Module) -> int:
    """Layers that own their active weights only."""
    return sum(isinstance(module, SparseLayer) for module in network.modules())


def _model(case: Case) -> nn.Module:
    """The network with its initial weights."""
    if case.model != LINEAR:
        return create(case.model, num_classes=_CLASSES, width=case.width)
    return nn.Sequential(nn.Linear(*_linear_size(case), bias=False)).train()


def _batch(case: Case) -> tuple[Tensor, Tensor]:
    """Inputs, and labels or the gradient of the outputs."""
    if case.model == LINEAR:
        inputs, outputs = _linear_size(case)
        x = torch.randn(case.batch_size, inputs, requires_grad=True)
        return x, torch.randn(case.batch_size, outputs)
    x = torch.randn(case.batch_size, 3, _IMAGE_SIZE, _IMAGE_SIZE)
    return x, torch.randint(_CLASSES, (case.batch_size,))


def _linear_size(case: Case) -> tuple[int, int]:
    """Inputs and outputs of the single layer."""
    inputs, outputs = (max(1, round(case.width * size)) for size in _LINEAR_SIZE)
    return inputs, outputs


def _network_step(model: nn.Module, optimizer: Optimizer, x: Tensor, y: Tensor) -> Any:
    """Forward, backward, optimizer; the masks follow by its hook."""
    optimizer.zero_grad()
    cross_entropy(model(x), y).backward()
    optimizer.step()


def _layer_step(model: nn.Module, optimizer: Optimizer, x: Tensor, dy: Tensor) -> Any:
    """The same for a layer within a network: its input wants a gradient too."""
    optimizer.zero_grad()
    x.grad = None
    model(x).backward(dy)
    optimizer.step()
