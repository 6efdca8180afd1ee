"""Stand-ins for an engine: layers that own their active weights only, in plain torch.

They scatter their values into a dense weight and compute with that, so their numbers are those of
a masked layer bit for bit.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from equipoise.topology import Topology
from equipoise.topology.compact_weight import CompactWeight
from equipoise.topology.masked_weight import MaskedWeight
from equipoise.topology.store import Store


class Compact(nn.Module):
    """A linear or convolution layer, by the number of dimensions of its weight."""

    compact: ClassVar[Mapping[str, str]] = {"values": "index"}
    index: Tensor

    def __init__(self, weight: Tensor, mask: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.weight_shape = tuple(weight.shape)
        self.register_buffer("index", mask.flatten().nonzero().squeeze(1))
        self.values = nn.Parameter(weight.detach().flatten()[self.index].clone())
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        self.gather_dense: Callable[[Callable[[], Tensor]], None] | None = None
        self.num_offers = 0
        self.num_dense_gradients = 0
        self.indices_seen: list[int] = []

    def set_index_(self, index: Tensor) -> None:
        self.index = index

    def forward(self, x: Tensor) -> Tensor:
        self.indices_seen.append(id(self.index))
        flat = self.values.new_zeros(math.prod(self.weight_shape))
        weight = flat.scatter(0, self.index, self.values).view(self.weight_shape)
        # At another point the values are no parameter.
        if isinstance(self.values, nn.Parameter) and weight.requires_grad:
            weight.register_hook(self._offer)
        if len(self.weight_shape) == 2:
            return F.linear(x, weight, self.bias)
        return F.conv2d(x, weight, self.bias, padding=1)

    def _offer(self, gradient: Tensor) -> None:
        def dense() -> Tensor:
            self.num_dense_gradients += 1
            return gradient

        if self.gather_dense is not None:
            self.num_offers += 1
            self.gather_dense(dense)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        index = state_dict[prefix + "index"].clone()
        if not torch.equal(index, self.index):
            if index.numel() != self.index.numel():
                self.values.data = self.values.new_zeros(index.numel())
            self.set_index_(index)
        super()._load_from_state_dict(state_dict, prefix, *rest)


def layers_of(model: nn.Module) -> dict[str, Compact]:
    """The compact layers by the names of the weights that they replaced."""
    return {f"{n}.weight": m for n, m in model.named_modules() if isinstance(m, Compact)}


def compact_copy(model: nn.Module, topology: Topology) -> nn.Module:
    """A copy of a masked model with compact layers."""
    model = copy.deepcopy(model)
    for name, mask in topology.masks.items():
        owner = name.rpartition(".")[0]
        layer: Any = model.get_submodule(owner)
        model.set_submodule(owner, Compact(layer.weight, mask, layer.bias))
    return model


def compact_stores(model: nn.Module) -> dict[str, Store]:
    return {name: CompactWeight(layer) for name, layer in layers_of(model).items()}


def masked_stores(model: nn.Module, topology: Topology) -> dict[str, Store]:
    parameters = dict(model.named_parameters())
    return {name: MaskedWeight(parameters[name], mask) for name, mask in topology.masks.items()}


def dense_weights(topology: Topology) -> dict[str, Tensor]:
    """The logical weights of a topology of either kind."""
    return {name: store.dense().clone() for name, store in topology._weights.items()}


def dense_state(topology: Topology, optimizer: Any) -> dict[str, Tensor]:
    """The optimizer's state for the masked weights, in their logical shapes."""
    return {
        f"{name} {key}": store.spread(value) if value.shape == store.weight.shape else value
        for name, store in topology._weights.items()
        for key, value in optimizer.state.get(store.weight, {}).items()
        if isinstance(value, Tensor)
    }


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
