"""Options of `equipoise demo`; torch is not imported here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from equipoise.arguments import nearest

DEMONSTRATIONS = ("correction",)


@dataclass(frozen=True, kw_only=True)
class Demonstrating:
    """What is demonstrated."""

    name: str
    """Which demonstration; there is one: correction."""
    sparsity: float = 0.9
    """Fraction of the weights removed, in [0, 1)."""
    num_seeds: int = 3
    """Paired seeds, from 0 on; more can be added later."""
    data_dir: Path | None = None
    """Folder with CIFAR-10; default: $EQUIPOISE_DATA, then the usual places; digits without it."""
    workers: int | None = None
    """Processes side by side; default: one a core."""
    overwrite: bool = False
    """Start every run again."""
    out: Path | None = None
    """Folder for runs and results; default: runs/demo-correction."""


def check_demonstrating(chosen: Demonstrating) -> None:
    """Checks what the types cannot.

    Args:
        chosen: The options.

    Raises:
        ValueError: One sentence on the first thing that is wrong.

    Example:
        >>> check_demonstrating(Demonstrating(name="correction"))
    """
    if chosen.name not in DEMONSTRATIONS:
        raise ValueError(
            f"{chosen.name!r} is not a demonstration; equipoise has {', '.join(DEMONSTRATIONS)}"
            + nearest(chosen.name, DEMONSTRATIONS)
        )
    if chosen.num_seeds < 1:
        raise ValueError(f"--num-seeds is at least 1; got {chosen.num_seeds}; 3 is usual.")
    if chosen.workers is not None and chosen.workers < 1:
        raise ValueError(f"--workers is at least 1; got {chosen.workers}.")
