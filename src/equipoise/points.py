"""Losses and gradients of a model at a point other than its own parameters.

Pure in the model: no parameter, buffer, mode, gradient or random state is changed by anything
here. The model's own objects are used, with their tensors replaced for the time of one call, so
a loss function that closes over the model needs no second copy of it.

A module that keeps only the active entries of a weight says so by a class attribute `compact`:
``compact: ClassVar[Mapping[str, str]] = {"values": "index"}`` names a parameter and the buffer
with the positions of its entries. Such a buffer is part of the structure and no running statistic:
it is replaced when positions change and never written, and modules know it by its identity.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

Loss = Callable[[], Tensor]
Named = dict[str, Tensor]
Result = TypeVar("Result")


class _Closure(nn.Module):
    """Gives any function the shape that `functional_call` takes: a module with a child."""

    def __init__(self, model: nn.Module, work: Callable[[], Any]) -> None:
        super().__init__()
        self.model = model
        self._work = work

    def forward(self) -> Any:
        return self._work()


@dataclass(frozen=True)
class RandomState:
    """State of the global random generators that a forward pass may draw from."""

    cpu: Tensor
    device: torch.device
    accelerator: Tensor | None


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters with `requires_grad`, by name; a tied parameter stands under its first name.

    Example:
        >>> sorted(trainable(nn.Linear(2, 3)))
        ['bias', 'weight']
    """
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def position_names(model: nn.Module) -> dict[str, str]:
    """Which buffer holds the positions of each compact parameter: name by name.

    Example:
        >>> position_names(nn.Linear(2, 3))
        {}
    """
    return {path + name: path + buffer for path, name, _, buffer in _compact(model)}


def position_owners(model: nn.Module) -> list[tuple[nn.Module, str]]:
    """The modules with compact parameters, each with its name for the positions of one.

    What `positions_of` gives can be read from them without a walk through the model.

    Example:
        >>> position_owners(nn.Linear(2, 3))
        []
    """
    return [(module, buffer) for _, _, module, buffer in _compact(model)]


def positions_of(model: nn.Module) -> Named:
    """The positions of each compact parameter's entries, by the name of the parameter.

    Returns:
        The modules' own tensors: int64, 1-D, ascending, flat in the logical weight.

    Example:
        >>> positions_of(nn.Linear(2, 3))
        {}
    """
    return {path + name: getattr(module, buffer) for path, name, module, buffer in _compact(model)}


def _compact(model: nn.Module) -> Iterator[tuple[str, str, nn.Module, str]]:
    """For every compact parameter its module's prefix, its name there, the module, its buffer."""
    for path, module in model.named_modules():
        names = getattr(type(module), "compact", None)
        # Anything else of that name belongs to a module that knows nothing of this.
        if names is None or not isinstance(names, Mapping):
            continue
        prefix = f"{path}." if path else ""
        for parameter, buffer in names.items():
            yield prefix, parameter, module, buffer


def device_of(model: nn.Module) -> torch.device:
    """Device of the first parameter; CPU for a model without parameters."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def checked(value: object) -> Tensor:
    """Returns `value`, with shape ``()``, if it can be a training loss.

    Raises:
        ValueError: It is not a tensor with one element.
    """
    if not isinstance(value, Tensor) or value.numel() != 1:
        got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            f"loss_fn returned {got}, expected one scalar tensor for the batch; "
            "average over the samples, for example with loss.mean()."
        )
    return value if value.ndim == 0 else value.reshape(())


def _at(
    model: nn.Module, point: Mapping[str, Tensor], structure: set[str], work: Callable[[], Result]
) -> Result:
    """`work()` while parameters are those of `point`; buffers not in `structure` are copies."""
    swapped = {f"model.{name}": tensor for name, tensor in point.items()}
    swapped |= {
        f"model.{name}": buffer.clone()
        for name, buffer in model.named_buffers()
        if name not in structure
    }
    result: Result = functional_call(_Closure(model, work), swapped, ())
    return result


def value_at(model: nn.Module, point: Mapping[str, Tensor], loss: Loss) -> Tensor:
    """`loss()` as if the parameters of `model` were those in `point`.

    Buffers are scratch copies, so BatchNorm uses batch statistics in training mode as usual and
    the model's running statistics stay as they are. Parameters that `point` does not name keep
    their own values, and positions of compact parameters their own tensors.

    Args:
        model: The model that `loss` evaluates.
        point: Parameters by name, each of the shape of the model's own. With the positions of a
            compact parameter, by the name of their buffer, it may have another length.
        loss: Takes nothing and returns a scalar; closes over `model` and a batch.

    Returns:
        The loss, shape ``()``, connected to the tensors of `point`.

    Raises:
        ValueError: `loss` did not return a scalar.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> point = {"weight": torch.tensor([[3.0]])}
        >>> value_at(model, point, lambda: model(torch.ones(1, 1)).sum())
        tensor(3.)
    """
    return checked(_at(model, point, set(position_names(model).values()), loss))


def value_and_gradient_at(
    model: nn.Module,
    point: Mapping[str, Tensor],
    loss: Loss,
    *,
    scale: float = 1.0,
    live_buffers: bool = False,
) -> tuple[Tensor, Named]:
    r"""Loss and gradient at `point`: :math:`(\ell(\theta'), s\,\nabla \ell(\theta'))`.

    Args:
        model: The model that `loss` evaluates.
        point: Parameters, and positions if they are others, as in `value_at`.
        loss: As in `value_at`.
        scale: Multiplies the gradient (a loss scale), not the value.
        live_buffers: Use the model's own buffers, so that BatchNorm in training mode moves its
            running statistics.

    Returns:
        The detached loss, shape ``()``, and the gradient by name, each tensor of the shape of its
        parameter; a parameter that the loss does not use has no entry.

    Raises:
        ValueError: `loss` did not return a scalar, it depends on no tensor of `point`, or a
            gradient is sparse.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> point = {"weight": torch.tensor([[3.0]])}
        >>> value_and_gradient_at(model, point, lambda: model(torch.ones(1, 1)).square().sum())
        (tensor(9.), {'weight': tensor([[6.]])})
    """
    structure = set(position_names(model).values())
    positions = {name: tensor for name, tensor in point.items() if name in structure}
    leaves = {
        name: tensor.detach().requires_grad_()
        for name, tensor in point.items()
        if name not in structure
    }

    def both() -> tuple[Tensor, tuple[Tensor | None, ...]]:
        # Backward runs here too, at the point: activation checkpoints evaluate the model again.
        value = checked(loss())
        if not (value.requires_grad and leaves):
            return value, (None,) * len(leaves)
        scaled = value if scale == 1.0 else value * scale
        return value, torch.autograd.grad(scaled, list(leaves.values()), allow_unused=True)

    kept = {name for name, _ in model.named_buffers()} if live_buffers else structure
    with torch.enable_grad():
        value, gradients = _at(model, leaves | positions, kept, both)
    # An autocast around this call would keep its casts of these leaves, never to be used again.
    torch.clear_autocast_cache()
    named = zip(leaves, gradients, strict=True)
    found = {name: gradient for name, gradient in named if gradient is not None}
    # A loss of another model has a gradient too, but not with respect to this one.
    if not found:
        raise ValueError(
            "loss_fn returned a loss that does not depend on the model's trainable parameters; "
            "compute it from the model that the corrector was given."
        )
    sparse = [name for name, gradient in found.items() if gradient.is_sparse]
    if sparse:
        raise ValueError(
            f"the gradient of {sparse[0]} is a sparse tensor, expected a dense one; "
            "build the embedding with sparse=False."
        )
    return value.detach(), found


def random_state(device: torch.device) -> RandomState:
    """The global random state of the CPU and, if it is another, of `device`."""
    accelerator = None
    if device.type != "cpu":
        accelerator = torch.get_device_module(device).get_rng_state(device)
    return RandomState(torch.get_rng_state(), device, accelerator)


@contextmanager
def preserved(device: torch.device) -> Iterator[None]:
    """Restores the global random state of the CPU and of `device` on leaving the body.

    Example:
        >>> before = torch.get_rng_state()
        >>> with preserved(torch.device("cpu")):
        ...     _ = torch.rand(1)
        >>> torch.equal(before, torch.get_rng_state())
        True
    """
    # Only this device is named: forking all of them is slow and wakes idle cards.
    devices = [] if device.type == "cpu" else [device]
    kind = "cuda" if device.type == "cpu" else device.type
    with torch.random.fork_rng(devices=devices, device_type=kind):
        yield


@contextmanager
def replayed(state: RandomState) -> Iterator[None]:
    """Runs the body from the random numbers of `state`; the stream outside is left as it was.

    Dropout and other noise inside a forward pass then repeat exactly (common random numbers).
    """
    with preserved(state.device):
        torch.set_rng_state(state.cpu)
        if state.accelerator is not None:
            torch.get_device_module(state.device).set_rng_state(state.accelerator, state.device)
        yield
