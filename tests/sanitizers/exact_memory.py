"""A plugin for pytest: feature maps get memory of their exact size, filled with NaN.

The pool hands out whole pages, in which a sanitizer sees nobody leave the maps.
"""

from importlib import import_module
from typing import Any

from equipoise.engine.memory import POOL


def pytest_configure() -> None:
    """Takes the place of the pool for the whole run."""
    kit: Any = import_module("tests.unit.engine.engine_kit")
    POOL.take = kit.poisoned  # type: ignore[method-assign]
