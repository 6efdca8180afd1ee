"""What figures were measured on and with."""

from __future__ import annotations

import datetime
import hashlib
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from equipoise import __version__
from equipoise.engine.library import kernels, library_path, unavailable_because

_PACKAGES = ("torch", "numpy")


def describe_machine(*packages: str) -> dict[str, Any]:
    """Date, processor, instruction set, cores, memory and versions, as JSON values.

    Args:
        *packages: Whose versions are told besides those of equipoise, Python, torch and numpy.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    path = library_path()
    has_kernels = unavailable_because() is None and path is not None
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "processor": _processor(),
        "instructions": kernels().instructions if has_kernels else None,
        "kernels_sha256": _digest(path) if has_kernels and path is not None else None,
        "cores": cores,
        "memory_bytes": _memory(),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "versions": {
            "equipoise": __version__,
            "python": platform.python_version(),
            **{name: version_of(name) for name in (*_PACKAGES, *packages)},
        },
    }


def load_average() -> list[float] | None:
    """Of the last 1, 5 and 15 minutes; None where the system does not tell."""
    try:
        return [round(x, 2) for x in os.getloadavg()]
    except (OSError, AttributeError):
        return None


def version_of(package: str) -> str | None:
    """Installed version of a package, if there is one."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def in_words(machine: dict[str, Any]) -> str:
    """One line on where and when.

    Example:
        >>> in_words({"date": "2026-11-22T10:00:00+00:00", "processor": "X", "cores": 2,
        ...     "instructions": "avx2", "versions": {"torch": "2.13.0", "python": "3.11.7"}})
        '2026-11-22, X, 2 cores, avx2 kernels, torch 2.13.0, Python 3.11.7'
    """
    versions = machine["versions"]
    return (
        f"{machine['date'][:10]}, {machine['processor']}, {machine['cores']} cores, "
        f"{machine['instructions']} kernels, torch {versions['torch']}, Python "
        f"{versions['python']}"
    )


def _processor() -> str:
    """Model of the processor."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return " ".join(line.partition(":")[2].split())
    return platform.processor() or platform.machine()


def _memory() -> int | None:
    """Bytes of memory, where the system tells."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def _digest(path: Path) -> str:
    """Which build of the kernels it was."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
