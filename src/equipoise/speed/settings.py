"""What `equipoise bench` measures, as options of the command line; torch is not imported here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from equipoise.settings import ModelName


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """What is measured."""

    models: tuple[Literal[ModelName, "linear"], ...] = ("vgg16", "resnet18", "linear")
    """Networks for images of 3 x 32 x 32, or linear: one layer of 1024 inputs and 4096 outputs."""
    sparsities: tuple[float, ...] = (0.8, 0.9, 0.95, 0.98, 0.99)
    """Fractions of the weights removed, each in [0, 1)."""
    distribution: Literal["erk", "er", "uniform"] = "erk"
    """How the active weights are shared between layers."""
    width: float = 1.0
    """Multiplies the channels of every layer, above 0."""
    batch_size: int = 128
    """Samples in a batch, at least 1."""
    threads: tuple[int, ...] = (1, 2)
    """Numbers of processor threads, each measured in turns with everything else."""
    repeats: int = 5
    """Rounds in which everything is timed once; medians of their ratios are shown."""
    engine: Literal["auto", "sparse"] = "sparse"
    """sparse uses the kernels in any case, auto only where they are expected to be faster."""
    memory: bool = True
    """Measure memory too, in a process for each network."""
    out: Path = Path("runs/bench.json")
    """File with all timings; tables are written beside it, with the ending .md."""


def check_benchmark(benchmark: Benchmark) -> None:
    """Checks what the types cannot.

    Args:
        benchmark: The options.

    Raises:
        ValueError: One sentence on the first that is out of its range.
    """
    if not (benchmark.models and benchmark.sparsities):
        raise ValueError(
            "--models and --sparsities take at least one each; leave them out for all."
        )
    for sparsity in benchmark.sparsities:
        if not 0.0 <= sparsity < 1.0:
            raise ValueError(f"--sparsities are fractions in [0, 1); got {sparsity:g}; try 0.9.")
    if not 0.0 < benchmark.width < float("inf"):
        raise ValueError(
            f"--width must be above 0 and finite; got {benchmark.width:g}; 1 is usual."
        )
    for flag, least in (
        ("--batch-size", benchmark.batch_size),
        ("--repeats", benchmark.repeats),
        ("--threads", min(benchmark.threads, default=0)),
    ):
        if least < 1:
            raise ValueError(
                f"{flag} must be at least 1; got {least}; see `equipoise bench --help`."
            )
