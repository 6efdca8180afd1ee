"""The manifest: what a run was made of, written before it starts."""

from __future__ import annotations

import datetime
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from equipoise import __version__
from equipoise.engine.explain import instructions_of
from equipoise.records import FORMAT
from equipoise.settings import as_plain
from equipoise.training.session import Session

_PACKAGES = ("torch", "numpy", "scipy", "scikit-learn")


def describe_run(session: Session, label: str) -> dict[str, Any]:
    """Everything that is needed to do the run again, as JSON values.

    Args:
        session: Before its first step.
        label: Name of the arm.

    Returns:
        Settings, versions, device, threads, seed, data with checksums, sizes of the network.
    """
    images = session.images
    return {
        "format": FORMAT,
        "label": label,
        "seed": session.run.loop.seed,
        "run": as_plain(session.run),
        "identity": session.run.identity,
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "source": _source(),
        "device": {
            "type": session.device.type,
            "name": _device_name(session.device),
            "threads": torch.get_num_threads(),
            "platform": f"{platform.system()} {platform.machine()}",
        },
        "data": {
            "name": images.train.name,
            "train_samples": len(images.train),
            "validation_samples": 0 if images.validation is None else len(images.validation),
            "test_samples": len(images.test),
            "checksums_sha256": dict(images.train.checksums) | dict(images.test.checksums),
        },
        "network": {
            "parameters": session.num_parameters,
            "maskable_weights": sum(mask.numel() for mask in session.topology.masks.values()),
            "active_weights": session.topology.num_active,
            "forward_flops_per_sample": session.flops.sparse,
            "dense_forward_flops_per_sample": session.flops.dense,
        },
        "engine": {
            "used": session.uses_engine,
            "instructions": instructions_of(session.model) if session.uses_engine else None,
            "reason": session.engine_reason,
        },
        "steps": session.total_steps,
    }


def versions() -> dict[str, str | None]:
    """Versions of this package, of Python and of what the numbers depend on."""
    return {
        "equipoise": __version__,
        "python": platform.python_version(),
        **{name: _version(name) for name in _PACKAGES},
    }


def _version(package: str) -> str | None:
    """Installed version of a package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _device_name(device: torch.device) -> str:
    """Name of the processor or the card."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    if sys.platform == "linux" and info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _source() -> dict[str, Any] | None:
    """Commit of the source tree and whether it was changed; None where it is not a checkout."""
    tree = Path(__file__).parents[3]
    if not (tree / ".git").exists():
        return None
    try:
        commit, status = (
            subprocess.run(
                ["git", "-C", str(tree), *command],
                capture_output=True,
                text=True,
                check=True,
                timeout=10,
            ).stdout.strip()
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain"])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "modified": bool(status)}
