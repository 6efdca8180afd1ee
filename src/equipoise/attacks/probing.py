"""A network that is attacked: looked at, and left as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from equipoise.points import position_names


@contextmanager
def probed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and frozen parameters inside; afterwards everything is as it was.

    Modes of all submodules, buffers with their values, ``requires_grad`` and gradients of all
    parameters are restored, after an exception too. While parameters are frozen, a backward pass
    computes gradients of images only, which is half of its work.

    Args:
        model: Any module.

    Example:
        >>> model = nn.Sequential(nn.Dropout(), nn.Linear(2, 2))
        >>> with probed(model):
        ...     print(model.training, model[1].weight.requires_grad)
        False False
        >>> model.training, model[1].weight.requires_grad
        (True, True)
    """
    modes = [(module, module.training) for module in model.modules()]
    live = [parameter for parameter in model.parameters() if parameter.requires_grad]
    buffers = list(_saved_buffers(model))
    try:
        model.eval()
        for parameter in live:
            parameter.requires_grad = False
        yield
    finally:
        for parameter in live:
            parameter.requires_grad = True
        for module, name, buffer, version, value in buffers:
            if buffer._version != version:
                buffer.copy_(value)
            module._buffers[name] = buffer
        for module, mode in modes:
            module.training = mode


def _saved_buffers(model: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor, int, Tensor]]:
    """Every buffer, where it belongs, and a copy of its values."""
    structure = set(position_names(model).values())  # never written, and large
    for path, module in model.named_modules():
        for name, buffer in module._buffers.items():
            if buffer is None or (f"{path}.{name}" if path else name) in structure:
                continue
            yield module, name, buffer, buffer._version, buffer.clone()
