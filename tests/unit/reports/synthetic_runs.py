"""Makes run records that look like real ones, from closed formulas and a seeded generator."""

import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

from equipoise.records import MANIFEST, RECORDS, EpochRecord, RunRecords, write_records

WEIGHTS = 99_000


def record(epoch: int = 1, **changes: Any) -> EpochRecord:
    """A plain record of one epoch with costs proportional to the epoch."""
    plain = EpochRecord(
        epoch=epoch,
        step=100 * epoch,
        learning_rate=0.1,
        train_loss=2.0 / epoch,
        validation_loss=None,
        validation_accuracy=None,
        test_loss=2.0 / epoch,
        test_accuracy=0.5,
        sparsity=0.9,
        active_weights=WEIGHTS // 10,
        exploration_rate=0.1,
        rewirings=0,
        coefficient=0.0,
        coefficient_estimate=None,
        loss_correlation=None,
        data_passes=float(epoch),
        forward_samples=6400 * epoch,
        backward_samples=6400 * epoch,
        training_flops=1e9 * epoch,
        training_seconds=10.0 * epoch,
        new_gradient_seconds=6.0 * epoch,
        old_gradient_seconds=0.0,
        refresh_seconds=0.0,
        optimizer_seconds=1.0 * epoch,
        topology_seconds=1.0 * epoch,
        data_seconds=1.0 * epoch,
        other_seconds=1.0 * epoch,
        evaluation_seconds=1.0 * epoch,
        peak_memory_bytes=400 * 2**20,
        peak_device_memory_bytes=None,
    )
    return replace(plain, **changes)


def run(label: str, seed: int, records: list[EpochRecord], /, **manifest: Any) -> RunRecords:
    """A run that exists in memory only."""
    return RunRecords(
        Path(f"{label}-{seed}"), {"label": label, "seed": seed, **manifest}, list(records)
    )


def training_run(
    label: str = "rigl",
    seed: int = 0,
    *,
    epochs: int = 20,
    planned: int | None = None,
    passes: float = 1.0,
    speed: float = 1.0,
    gain: float = 0.0,
    corrected: bool = False,
    validation: bool = False,
    rewired: bool = True,
    **manifest: Any,
) -> RunRecords:
    """A training of a small network: two drops of the learning rate, noise shared by the seed."""
    planned = epochs if planned is None else planned
    shared, own = random.Random(seed), random.Random(f"{label} {seed}")
    level = shared.gauss(0.0, 0.004)
    rows: list[EpochRecord] = []
    seconds = 0.0
    for epoch in range(1, epochs + 1):
        rate = 0.1 * 0.1 ** ((epoch > planned / 2) + (epoch > 0.75 * planned))
        noise = 0.02 if rate > 0.05 else 0.004
        loss = 0.9 + 1.3 * math.exp(-speed * epoch / 5) + 0.35 * (rate - 0.001)
        loss -= 0.22 * (rate < 0.05) + 0.05 * (rate < 0.005)
        loss += shared.gauss(0.0, 0.01) + own.gauss(0.0, 0.006)
        accuracy = 0.53 + gain + level - 0.25 * math.exp(-speed * epoch / 4)
        accuracy += 0.035 * (rate < 0.05) + shared.gauss(0, noise / 2) + own.gauss(0, noise)
        new, old = 2.1 + own.gauss(0, 0.05), 2.0 * corrected
        refresh = 2.6 * corrected
        seconds += new + old + refresh + 0.95
        coefficient = 0.09 * (1 - math.exp(-epoch / 3)) * corrected
        rows.append(
            record(
                epoch,
                learning_rate=rate,
                train_loss=loss,
                validation_loss=loss + 0.21 if validation else None,
                validation_accuracy=accuracy - 0.01 if validation else None,
                test_loss=loss + 0.2 + own.gauss(0, noise),
                test_accuracy=accuracy,
                exploration_rate=0.1
                + (0.25 - 0.02 * corrected) * (1 - math.exp(-epoch / 6)) * rewired,
                rewirings=2 * epoch * rewired,
                coefficient=coefficient,
                coefficient_estimate=coefficient * 10 if corrected else None,
                loss_correlation=0.8 if corrected else None,
                data_passes=passes * epoch,
                training_flops=3.1e11 * passes * epoch,
                training_seconds=seconds,
                new_gradient_seconds=2.1 * epoch,
                old_gradient_seconds=old * epoch,
                refresh_seconds=refresh * epoch,
                optimizer_seconds=0.3 * epoch,
                topology_seconds=0.15 * epoch,
                data_seconds=0.4 * epoch,
                other_seconds=0.1 * epoch,
                peak_memory_bytes=(410 + 60 * corrected + seed) * 2**20,
            )
        )
    details = {
        "run": {
            "data": {"dataset": "cifar10"},
            "network": {"model": "small_cnn"},
            "sparse": {"topology": "rigl", "sparsity": 0.9},
            "correction": {"corrector": "agent" if corrected else "none", "scaling": 0.1},
            "loop": {"epochs": planned, "seed": seed},
        },
        "device": {"type": "cpu", "name": "Some processor", "threads": 2},
        "versions": {"python": "3.11.2", "torch": "2.13.0"},
        **manifest,
    }
    return run(label, seed, rows, **details)


def two_arms(num_seeds: int = 3, epochs: int = 20) -> list[RunRecords]:
    """A plain arm, and a corrected one that needs 3.33 passes per epoch."""
    return [
        made
        for seed in range(num_seeds)
        for made in (
            training_run("rigl", seed, epochs=epochs),
            training_run(
                "rigl+agent",
                seed,
                epochs=epochs,
                passes=10 / 3,
                speed=1.25,
                gain=0.003,
                corrected=True,
            ),
        )
    ]


def write_run(folder: Path, made: RunRecords) -> Path:
    """Puts a run on disk as a training would."""
    place = folder / f"{made.label.replace('/', '_')}-{made.seed}"
    place.mkdir(parents=True)
    (place / MANIFEST).write_text(json.dumps(made.manifest), encoding="utf-8")
    write_records(place / RECORDS, made.epochs)
    return place
