"""What tells a good conversion of a network from one that computes something else."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from equipoise.points import preserved

_TOLERANCE = 1e-3  # rounding makes 1e-6 of a layer's result; another computation makes 1


def same_numbers(model: nn.Module, network: nn.Module, inputs: tuple[Any, ...]) -> str | None:
    """Why a converted network cannot stand in for its model; None if it can.

    Both are run in evaluation mode on two samples; neither is changed.

    Args:
        model: With masks.
        network: Its conversion.
        inputs: Of the forward pass.
    """
    expected = _run(model, inputs)
    try:
        found = _run(network, inputs)
    except Exception as error:  # code of any kind, which may look into its layers
        said = (str(error).splitlines() or [""])[0].rstrip(".")
        if said == "'SparseLayer' object has no attribute 'weight'":
            return "its code reads the weights of its layers itself, as torch's transformers do"
        return f"converted it does not run ({type(error).__name__}: {said})"
    pairs = list(zip(found, expected, strict=False))
    alike = len(found) == len(expected) and all(_close(a, b) for a, b in pairs)
    return None if alike else "converted it gives other results"


def unreached(
    model: nn.Module, network: nn.Module, paths: Collection[str], inputs: tuple[Any, ...]
) -> set[str]:
    """Converted layers that are not run, or whose old layer still is.

    Code that keeps a second reference to a layer (in a list, in a bound method) goes on with the
    old one, which nobody trains.

    Args:
        model: With masks.
        network: Its conversion, which shares with it whatever was not converted.
        paths: Of the converted layers.
        inputs: Of the forward pass.
    """
    old: set[str] = set()
    new: set[str] = set()
    handles = []
    for path in paths:
        for root, seen in ((model, old), (network, new)):
            module = root.get_submodule(path)
            handles.append(module.register_forward_pre_hook(_noting(path, seen)))
    try:
        _run(network, inputs)
    except Exception:  # `same_numbers` says what
        return set()
    finally:
        for handle in handles:
            handle.remove()
    return {path for path in paths if path in old or path not in new}


def few_samples(inputs: tuple[Any, ...], count: int) -> tuple[Any, ...]:
    """The first samples of a batch; what is not as long as the batch stays as it is."""
    batch = batch_of(inputs)
    return tuple(
        x[:count] if isinstance(x, Tensor) and x.ndim > 0 and len(x) == batch else x for x in inputs
    )


def batch_of(inputs: tuple[Any, ...]) -> int:
    """Samples of a batch."""
    return next((len(x) for x in inputs if isinstance(x, Tensor) and x.ndim > 0), 1)


def tensors_in(output: Any) -> Iterator[Tensor]:
    """The tensors that a network returns, in containers, or as attributes of an object."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for part in output.values():
            yield from tensors_in(part)
    elif isinstance(output, list | tuple):
        for part in output:
            yield from tensors_in(part)
    elif hasattr(output, "__dict__"):
        yield from (part for part in vars(output).values() if isinstance(part, Tensor))


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Afterwards every submodule has the mode that it had."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _run(network: nn.Module, inputs: tuple[Any, ...]) -> list[Tensor]:
    """What it returns for two samples in evaluation mode."""
    with modes_kept(network), preserved(torch.device("cpu")), torch.no_grad():
        network.eval()
        return list(tensors_in(network(*few_samples(inputs, 2))))


def _close(found: Tensor, expected: Tensor) -> bool:
    """Whether two results differ by rounding only."""
    if found.shape != expected.shape:
        return False
    if not expected.is_floating_point():
        return True  # labels and counts are as good as the numbers that they come from
    a, b = found.double(), expected.double()
    allowed = _TOLERANCE * float(b.nan_to_num(0.0, 0.0, 0.0).abs().max()) if b.numel() else 0.0
    return torch.allclose(a, b, rtol=0.0, atol=allowed + 1e-6, equal_nan=True)


def _noting(path: str, seen: set[str]) -> Any:
    """A hook that notes that a layer is called."""

    def note(module: nn.Module, given: tuple[Any, ...]) -> None:
        del module, given
        seen.add(path)

    return note
