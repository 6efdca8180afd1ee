"""Importance scores that are learned: which weights a trained network can do without (HYDRA)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from equipoise.topology.masks import top_k_mask
from equipoise.topology.selection import sparse_parameters


def first_scores(weight: Tensor) -> Tensor:
    r"""Scores in proportion to the weights: :math:`S = \sqrt{6 / n_\text{in}}\; W / \max |W|`.

    Args:
        weight: Of one layer, first its outputs; not changed.

    Returns:
        Same shape, detached; zeros for a weight of zeros.

    Example:
        >>> first_scores(torch.tensor([[1.0, -2.0, 0.0, 4.0, 0.0, 0.0]]))
        tensor([[ 0.2500, -0.5000,  0.0000,  1.0000,  0.0000,  0.0000]])

    References:
        Sehwag et al., "HYDRA: Pruning adversarially robust neural networks", 2020, Section 3.
    """
    weight = weight.detach()
    largest = weight.abs().max().clamp_min(torch.finfo(weight.dtype).tiny)
    return weight * (math.sqrt(6.0 / weight[0].numel()) / largest)


def kept_by_score(scores: Tensor, density: float) -> Tensor:
    r"""The mask without the :math:`\lfloor (1 - k) N \rfloor` entries of smallest size.

    Args:
        scores: Of one layer.
        density: Share k of the entries that is kept, in (0, 1].

    Returns:
        Bool, same shape, True = kept. Ties go to the lower position.

    Example:
        >>> kept_by_score(torch.tensor([3.0, -4.0, 1.0, 2.0]), 0.5)
        tensor([ True,  True, False, False])
    """
    return top_k_mask(scores.detach().abs(), num_kept(scores.numel(), density))


def num_kept(size: int, density: float) -> int:
    r"""How many of a layer's entries are kept: :math:`N - \lfloor (1 - k) N \rfloor`.

    Args:
        size: Number N of entries.
        density: Share k of the entries that is kept, in (0, 1].

    Example:
        >>> num_kept(91, 0.1)
        10
    """
    return size - int(round(1.0 - density, 12) * size)


class _Kept(torch.autograd.Function):
    """The mask of sizes, whose gradient goes straight through."""

    @staticmethod
    def forward(ctx: Any, sizes: Tensor, density: float) -> Tensor:
        del ctx
        return kept_by_score(sizes, density).to(sizes.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        del ctx
        return gradients[0], None


class ScoredWeight(nn.Module):
    r"""A parametrisation: the weight where its score is among the largest, 0 elsewhere.

    .. math:: W \odot \mathrm{top}_k(|S|), \qquad
              \frac{\partial \ell}{\partial S} := \mathrm{sign}(S) \odot W \odot
              \frac{\partial \ell}{\partial (W \odot M)}

    Args:
        weight: The trained weight, for the first scores.
        density: Share of the entries that is kept.
    """

    def __init__(self, weight: Tensor, density: float) -> None:
        super().__init__()
        self.scores = nn.Parameter(first_scores(weight))
        self.density = density

    def forward(self, weight: Tensor) -> Tensor:
        """The kept weights."""
        kept: Tensor = _Kept.apply(self.scores.abs(), self.density)
        return weight * kept

    def mask(self) -> Tensor:
        """What is kept now, bool."""
        return kept_by_score(self.scores, self.density)


@contextmanager
def scored(model: nn.Module, density: float) -> Iterator[dict[str, ScoredWeight]]:
    """Inside, the model computes with the best-scored weights only, and only scores can learn.

    Weights and biases of the scored layers are frozen; other parameters (BatchNorm) stay
    trainable. Afterwards the model has its weights, its keys (within a layer perhaps in another
    order) and its ``requires_grad`` back; what was trained inside beside the scores stays.

    Args:
        model: Trained; every linear and convolution weight is scored, first and last too.
        density: Share that every layer keeps, in (0, 1].

    Returns:
        The scores by the name of the weight.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        >>> with scored(model, 0.25) as found:
        ...     int((model[0].weight != 0).sum()), found["0.weight"].scores.requires_grad
        (4, True)
        >>> int((model[0].weight != 0).sum()), sorted(model.state_dict())[:2]
        (16, ['0.bias', '0.weight'])
    """
    names = list(sparse_parameters(model))
    layers = {name: model.get_submodule(name.rpartition(".")[0]) for name in names}
    frozen = [p for layer in layers.values() for p in layer.parameters() if p.requires_grad]
    found: dict[str, ScoredWeight] = {}
    try:
        for parameter in frozen:
            parameter.requires_grad = False
        for name, layer in layers.items():
            which = name.rpartition(".")[2]
            found[name] = ScoredWeight(getattr(layer, which), density)
            parametrize.register_parametrization(layer, which, found[name])
        yield found
    finally:
        for name, layer in layers.items():
            if name in found:
                parametrize.remove_parametrizations(
                    layer, name.rpartition(".")[2], leave_parametrized=False
                )
        for parameter in frozen:
            parameter.requires_grad = True
