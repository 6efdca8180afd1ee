"""Theoretical cost of a network: floating-point operations of its active weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from equipoise.training.evaluate import evaluating


@dataclass(frozen=True, kw_only=True)
class Flops:
    """Operations for one sample, a multiplication and an addition counted as two.

    Args:
        dense: Forward pass with every weight.
        sparse: Forward pass with the active weights only.
    """

    dense: float
    sparse: float

    def training(
        self, *, forward_samples: float, backward_samples: float, growth_samples: float
    ) -> float:
        """Operations of a training: a backward pass costs two forward passes.

        Growing by gradient needs the gradient of every weight, active or not, for the samples of
        the steps that rewire; that part of the backward pass is then dense.

        Args:
            forward_samples: Samples sent forward.
            backward_samples: Samples sent backward.
            growth_samples: Samples whose dense weight gradient was needed.

        Example:
            >>> flops = Flops(dense=10.0, sparse=1.0)
            >>> flops.training(forward_samples=4, backward_samples=4, growth_samples=1)
            21.0

        References:
            Evci et al., Rigging the Lottery (RigL), 2020, Appendix H.
        """
        active = self.sparse * (forward_samples + 2.0 * backward_samples)
        return active + (self.dense - self.sparse) * growth_samples


def forward_flops(model: nn.Module, example: Tensor) -> dict[str, float]:
    """Dense operations of one forward pass per sample, by module.

    Counted by torch on a real pass in evaluation mode; nothing of the model changes.

    Args:
        model: Any module that takes `example`.
        example: A batch of inputs, shape ``(n, ...)``.

    Returns:
        Operations of the modules that do any themselves, under their names in the model; those
        done by the model's own ``forward`` stand under ``""``.

    Example:
        >>> forward_flops(nn.Sequential(nn.Linear(3, 5)), torch.zeros(2, 3))
        {'0': 30.0}
    """
    counter = FlopCounterMode(display=False)
    # Fused attention is one call that the counter does not know, as a layer and as a product.
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with evaluating(model), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
            model(example)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    root = type(model).__name__
    totals = {
        name.removeprefix(root).removeprefix("."): float(sum(counts.values()))
        for name, counts in counter.get_flop_counts().items()
        if name != "Global"
    }
    own = {name: total - _children(name, totals) for name, total in totals.items()}
    return {name: flops / len(example) for name, flops in own.items() if flops > 0.0}


def count_flops(model: nn.Module, example: Tensor, densities: Mapping[str, float]) -> Flops:
    """Operations of one forward pass per sample, dense and with the active weights only.

    Args:
        model: Any module that takes `example`.
        example: A batch of inputs, shape ``(n, ...)``.
        densities: Fraction of active weights by parameter name; others count as dense.

    Returns:
        Both totals. A module is scaled by the density of its ``weight``.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 5))
        >>> count_flops(model, torch.zeros(2, 3), {"0.weight": 0.5})
        Flops(dense=30.0, sparse=15.0)
    """
    by_module = forward_flops(model, example)
    sparse = sum(
        flops * densities.get(f"{name}.weight" if name else "weight", 1.0)
        for name, flops in by_module.items()
    )
    return Flops(dense=sum(by_module.values()), sparse=sparse)


def _children(name: str, totals: Mapping[str, float]) -> float:
    """Sum over the direct children of a module."""
    prefix = f"{name}." if name else ""
    return sum(
        total
        for other, total in totals.items()
        if other != name and other.startswith(prefix) and _is_direct(other, prefix, totals)
    )


def _is_direct(other: str, prefix: str, totals: Mapping[str, float]) -> bool:
    """Whether no counted module stands between the prefix and `other`."""
    parts = other.removeprefix(prefix).split(".")
    between = (prefix + ".".join(parts[:n]) for n in range(1, len(parts)))
    return not any(name in totals for name in between)
