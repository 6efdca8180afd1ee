"""Sparse training from scratch, with corrected gradients and an honest account of cost.

The public names are loaded when they are first used, so that ``import equipoise`` and
``equipoise --help`` do not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from equipoise.correction import AgeAdaptive as AgeAdaptive
    from equipoise.correction import Coefficient as Coefficient
    from equipoise.correction import Constant as Constant
    from equipoise.correction import FixedRecursion as FixedRecursion
    from equipoise.correction import GradientCache as GradientCache
    from equipoise.correction import GradientCorrector as GradientCorrector
    from equipoise.correction import GradientTable as GradientTable
    from equipoise.correction import LinearDecay as LinearDecay
    from equipoise.correction import LossCovariance as LossCovariance
    from equipoise.correction import MomentumCorrector as MomentumCorrector
    from equipoise.correction import NoCorrection as NoCorrection
    from equipoise.correction import StormRecursion as StormRecursion
    from equipoise.engine import to_dense as to_dense
    from equipoise.engine import to_engine as to_engine
    from equipoise.shipping import SparseTensor as SparseTensor
    from equipoise.shipping import load_sparse as load_sparse
    from equipoise.shipping import save_sparse as save_sparse
    from equipoise.topology import Rewiring as Rewiring
    from equipoise.topology import Topology as Topology
    from equipoise.topology import rigl as rigl
    from equipoise.topology import rigl_itop as rigl_itop
    from equipoise.topology import set_itop as set_itop
    from equipoise.topology import set_rewiring as set_rewiring

__version__ = "0.1.0.dev0"

_ROOMS = {
    "AgeAdaptive": "correction",
    "Coefficient": "correction",
    "Constant": "correction",
    "FixedRecursion": "correction",
    "GradientCache": "correction",
    "GradientCorrector": "correction",
    "GradientTable": "correction",
    "LinearDecay": "correction",
    "LossCovariance": "correction",
    "MomentumCorrector": "correction",
    "NoCorrection": "correction",
    "Rewiring": "topology",
    "SparseTensor": "shipping",
    "StormRecursion": "correction",
    "Topology": "topology",
    "load_sparse": "shipping",
    "rigl": "topology",
    "rigl_itop": "topology",
    "save_sparse": "shipping",
    "set_itop": "topology",
    "set_rewiring": "topology",
    "to_dense": "engine",
    "to_engine": "engine",
}

__all__ = [*_ROOMS, "__version__"]  # noqa: PLE0604  (the keys are strings)


def __getattr__(name: str) -> Any:
    """Loads a public name from its room."""
    if name not in _ROOMS:
        raise AttributeError(f"module 'equipoise' has no attribute {name!r}")
    return getattr(importlib.import_module(f"equipoise.{_ROOMS[name]}"), name)


def __dir__() -> list[str]:
    """Public names, for completion."""
    return sorted(__all__)
