"""Writes runs that look like trained ones into the folders where those of experiments lie."""

import json
import random
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

from equipoise.experiments.store import folder_of
from equipoise.experiments.values import Cell, Experiment, Scale
from equipoise.records import MANIFEST, RECORDS, write_records

synthetic = import_module("tests.unit.reports.synthetic_runs")


def write_cell(
    store: Path,
    scale: Scale,
    cell: Cell,
    seeds: Iterable[int] = range(3),
    *,
    gain: float = 0.0,
    speed: float = 1.0,
    passes: float = 1.0,
    factor: float = 1.0,
) -> None:
    """Writes a run for each seed.

    Args:
        store: As `equipoise reproduce` has it.
        scale: Of the cell.
        cell: Which.
        seeds: Of the runs.
        gain: Added to test accuracy, a fraction.
        speed: How fast it learns.
        passes: Of an epoch.
        factor: On all that is measured besides.
    """
    for seed in seeds:
        place = store / scale / folder_of(cell, seed)
        place.mkdir(parents=True, exist_ok=True)
        made = synthetic.training_run(
            cell.run.label,
            seed,
            epochs=cell.run.loop.epochs,
            passes=passes,
            speed=speed,
            gain=gain,
        )
        (place / MANIFEST).write_text(json.dumps(made.manifest), encoding="utf-8")
        write_records(place / RECORDS, made.epochs)
        _measure(place, cell, seed, len(made.epochs), gain, factor)


def write_experiment(
    store: Path,
    scale: Scale,
    experiment: Experiment,
    make: Callable[[Cell], dict[str, Any]] = lambda cell: {},
    seeds: Iterable[int] = range(3),
) -> None:
    """Writes all cells of an experiment; `make` says how each differs."""
    for cell in experiment.cells(scale):
        write_cell(store, scale, cell, list(seeds), **make(cell))


def _measure(place: Path, cell: Cell, seed: int, epochs: int, gain: float, factor: float) -> None:
    """What is measured besides the records."""
    noise = random.Random(seed)
    sparsity = cell.run.sparse.sparsity
    rows: dict[str, list[dict[str, Any]]] = {}
    if cell.attacked:
        rows["robust"] = [
            {"share": share, "robust_accuracy": 0.3 + gain + noise.gauss(0.0, 0.001)}
            for share in cell.attacked
        ]
    if "gradient_norms" in cell.measures:
        rows["gradient_norms"] = [
            {"epoch": epoch, "new": factor * (3 + noise.gauss(0.0, 0.01)), "new_all": None}
            for epoch in range(1, epochs + 1)
        ]
    if "gradient_correlation" in cell.measures:
        rows["gradient_correlation"] = [
            {"epoch": epoch, "full": factor * (0.5 - 0.2 * sparsity + noise.gauss(0.0, 0.005))}
            for epoch in range(2, epochs + 1)
        ]
    if "perturbed_gradients" in cell.measures:
        rows["perturbed_gradients"] = [
            {
                "perturb": protocol,
                "coordinates": protocol,
                "replicate": replicate,
                "correlation": 0.6 - fall * sparsity + noise.gauss(0.0, 0.01),
                "variance": 1e-4 * (1 + sparsity) * (1 + 0.01 * noise.random()),
            }
            for protocol, fall in (("active", 0.0), ("all", 0.5))
            for replicate in range(3)
        ]
    for name, content in rows.items():
        lines = "".join(json.dumps(row) + "\n" for row in content)
        (place / f"{name}.jsonl").write_text(lines, encoding="utf-8")
