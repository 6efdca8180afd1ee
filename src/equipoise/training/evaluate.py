"""Loss and accuracy of a model on images that it does not learn from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from equipoise.data import Batch


class Score(NamedTuple):
    """Mean cross-entropy, and the fraction of correct answers in [0, 1]."""

    loss: float
    accuracy: float


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards every submodule has the mode that it had.

    Example:
        >>> model = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2).eval())
        >>> with evaluating(model):
        ...     pass
        >>> [module.training for module in model]
        [True, False]
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def evaluate(model: nn.Module, batches: Iterable[Batch]) -> Score:
    """Mean loss and accuracy over all samples; the model's modes, buffers and gradients stay.

    Args:
        model: Takes images, returns logits.
        batches: Iterated once; sizes may differ.

    Raises:
        ValueError: There are no batches.
    """
    loss: Tensor | float = 0.0
    correct: Tensor | int = 0
    seen = 0
    with evaluating(model), torch.inference_mode():
        for batch in batches:
            logits = model(batch.x).float()
            loss = loss + functional.cross_entropy(logits, batch.y, reduction="sum").double()
            correct = correct + (logits.argmax(dim=1) == batch.y).sum()
            seen += len(batch.y)
    if seen == 0:
        raise ValueError("evaluate() got no batches, expected a data set with at least one image.")
    return Score(float(loss) / seen, float(correct) / seen)
