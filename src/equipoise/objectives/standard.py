"""The standard objective: cross-entropy on the images as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn
from torch.nn import functional

from equipoise.data import Batch


class Objective(Protocol):
    """What is minimised, in two halves.

    `prepare` may depend on the parameters (an attack) and runs once a step; `loss` is a pure
    function of the parameters given the prepared batch, because a corrector evaluates it at two
    points.
    """

    def prepare(self, model: nn.Module, batch: Batch) -> Batch:
        """The batch that both gradients will see; leaves the model as it was."""
        ...  # pragma: no cover

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean loss of a prepared batch, shape ``()``."""
        ...  # pragma: no cover


@dataclass(frozen=True, kw_only=True)
class Standard:
    r"""Mean cross-entropy, optionally with smoothed labels.

    .. math:: \ell = -\frac{1}{n} \sum_i \sum_k
              \Bigl[(1 - \epsilon)\,1_{k = y_i} + \tfrac{\epsilon}{K}\Bigr] \log p_k(x_i)

    Args:
        label_smoothing: The weight of the uniform distribution, in [0, 1).

    Example:
        >>> import torch
        >>> batch = Batch(torch.zeros(2, 4), torch.tensor([0, 1]), torch.arange(2))
        >>> round(Standard().loss(nn.Linear(4, 10, bias=False), batch).item(), 4)
        2.3026
    """

    label_smoothing: float = 0.0

    def prepare(self, model: nn.Module, batch: Batch) -> Batch:
        """The batch itself."""
        del model
        return batch

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy of the model's logits, shape ``()``, in single precision."""
        return functional.cross_entropy(
            model(batch.x).float(), batch.y, label_smoothing=self.label_smoothing
        )
