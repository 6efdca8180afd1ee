"""The libraries of the extra ``report``, asked for only when a report is written."""

from __future__ import annotations

from importlib.util import find_spec


def require(*modules: str) -> None:
    """Raises one sentence when a library of the extra is missing.

    Args:
        modules: Top-level names of the libraries that are about to be imported.

    Raises:
        ImportError: One of them is not installed.

    Example:
        >>> require("json")
    """
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise ImportError(
            f"writing a report needs {' and '.join(missing)}, which is not installed; "
            'run: pip install "equipoise[report]"'
        )
