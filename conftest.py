"""Settings for all tests: one thread a process, so that several can run side by side."""

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")

NEED_KERNELS = {
    "equipoise.engine.convert.to_engine",
    "equipoise.engine.layers.SparseLayer",
    "equipoise.engine.lists.change_between",
    "equipoise.engine.network.to_dense",
}
"""Examples in docstrings that show the engine at work."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips them where there are no kernels, and says why."""
    wanting = [item for item in items if item.name in NEED_KERNELS]
    if not wanting:
        return
    from equipoise.engine.library import unavailable_because

    if (missing := unavailable_because()) is not None:
        for item in wanting:
            item.add_marker(pytest.mark.skip(reason=missing))
