"""Warnings as a person at a terminal wants them."""

from __future__ import annotations

import warnings

from rich.console import Console


def show_warnings_as_notes() -> None:
    """From now on this process prints a warning as one line, without the place in the code."""
    warnings.showwarning = _show


def _show(message: Warning | str, *where: object, **more: object) -> None:
    """Only a developer wants the rest."""
    del where, more
    Console(stderr=True).print(
        f"note: {message}", style="yellow", highlight=False, soft_wrap=True, markup=False
    )
