"""Rooms that this one uses where they are there."""

from __future__ import annotations

import importlib
from typing import Any


def room(name: str) -> Any:
    """A module of the house by its name; None where there is none.

    Example:
        >>> room("records").FORMAT, room("cellar")
        (1, None)
    """
    try:
        return importlib.import_module(f"equipoise.{name}")
    except ModuleNotFoundError:
        return None
