"""BatchNorm statistics taken anew: a change of evaluation that needs no change of training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from equipoise.data import Batch
from equipoise.points import device_of, preserved


@contextmanager
def refreshed_statistics(model: nn.Module, batches: Iterable[Batch]) -> Iterator[None]:
    r"""Inside, running statistics are means over `batches`; afterwards they are what they were.

    .. math:: \mu \leftarrow \frac1m \sum_b \mu_b, \qquad
              \sigma^2 \leftarrow \frac1m \sum_b \sigma^2_b

    with all weights fixed. In training they lag behind moving weights, and under adversarial
    training they are those of attacked images. Weights, modes, gradients and random numbers are
    not changed.

    Args:
        model: Any module; without BatchNorm nothing is done, and `batches` not iterated.
        batches: Usually the training images without augmentation.

    Raises:
        ValueError: There are no batches.

    Example:
        >>> model = nn.BatchNorm1d(1)
        >>> batch = Batch(torch.tensor([[1.0], [3.0]]), torch.zeros(2), torch.arange(2))
        >>> with refreshed_statistics(model, [batch]):
        ...     print(model.running_mean.item(), model.running_var.item())
        2.0 2.0
        >>> model.running_mean.item()
        0.0

    References:
        The TensorFlow code of AGENT evaluates after a pass that does the like to one arm only.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    kept = [{name: b.clone() for name, b in norm.named_buffers()} for norm in norms]
    try:
        if norms:
            means = _means(model, norms, batches)
            with torch.no_grad():
                for norm, (mean, variance) in zip(norms, means, strict=True):
                    assert norm.running_mean is not None
                    assert norm.running_var is not None
                    norm.running_mean.copy_(mean)
                    norm.running_var.copy_(variance)
        yield
    finally:
        with torch.no_grad():
            for norm, buffers in zip(norms, kept, strict=True):
                for name, value in buffers.items():
                    norm.get_buffer(name).copy_(value)


def _means(
    model: nn.Module, norms: list[_BatchNorm], batches: Iterable[Batch]
) -> list[tuple[Tensor, Tensor]]:
    """Mean of the batch means and of the batch variances, for every layer."""
    modes = [(module, module.training) for module in model.modules()]
    momenta = [norm.momentum for norm in norms]
    sums: list[tuple[Tensor, Tensor]] = []
    count = 0
    try:
        model.train()
        for norm in norms:
            norm.momentum = 1.0  # what is left in the buffers is then the last batch alone
        with preserved(device_of(model)), torch.no_grad():
            for batch in batches:
                model(batch.x)
                found = [_statistics(norm) for norm in norms]
                pairs = zip(sums, found, strict=True)
                sums = [(a + c, b + d) for (a, b), (c, d) in pairs] if count else found
                count += 1
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, mode in modes:
            module.training = mode
    if count == 0:
        raise ValueError("BatchNorm statistics need at least one batch of images; got none.")
    return [(mean / count, variance / count) for mean, variance in sums]


def _statistics(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Copies of the running statistics, in double precision for sums."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return norm.running_mean.double(), norm.running_var.double()
