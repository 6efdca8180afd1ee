"""The numbers of the paper's tables, by the cells of the experiments."""

from __future__ import annotations

from collections.abc import Mapping

from equipoise.paper.published.bsr import BSR
from equipoise.paper.published.itop import ITOP
from equipoise.paper.published.numbers import Key, Number, Quantity, Table
from equipoise.paper.published.rigl import RIGL

PUBLISHED: Mapping[str, Table] = BSR | ITOP | RIGL
"""By the name of the table; figures have no published numbers."""

__all__ = ["PUBLISHED", "Key", "Number", "Quantity", "Table"]
