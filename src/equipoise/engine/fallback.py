"""What is used, and said, where there are no kernels."""

from __future__ import annotations

from torch import nn

from equipoise.engine.library import unavailable_because


def no_kernels() -> str | None:
    """Why there are no kernels, without a full stop; None if there are."""
    missing = unavailable_because()
    return None if missing is None else missing.rstrip(".")


def csr_in_words() -> str:
    """That torch's CSR products are used, and why."""
    because = no_kernels() or "the run began so"
    return f"linear layers are run by torch CSR where that is faster, since {because}"


def in_place_of_kernels(reason: str | None) -> str | None:
    """Why there are no kernels, where CSR has not helped either; what is given where there are."""
    return reason and (no_kernels() or reason)


def not_by_csr(module: nn.Module, density: float) -> str | None:
    """Why CSR does not stand in for the kernels of a layer; None if it may.

    Args:
        module: A convolution or linear layer.
        density: Share of its weights that is active.

    Example:
        >>> not_by_csr(nn.Conv2d(3, 8, 3), density=0.1)
        'there are no kernels'
    """
    if not isinstance(module, nn.Linear):
        return "there are no kernels"
    return "it has no inactive weights" if density == 1.0 else None
