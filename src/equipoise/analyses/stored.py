"""Analyses of runs that have ended, from what they left in their folders."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from equipoise.analyses.gradients import STREAM
from equipoise.analyses.perturbation import DEVIATION, REPLICATES, WHICH, perturbed_rows
from equipoise.analyses.rows import PERTURBED
from equipoise.data import Batch
from equipoise.measure import unmeasured
from equipoise.records import write_rows
from equipoise.training import build
from equipoise.training.objective import build_objective
from equipoise.training.stored import load_stored, stored_masks

BATCH_SIZE = 128


def nobody(done: int, total: int) -> None:
    """Nobody watches."""
    del done, total


def perturb_stored(
    folder: Path,
    *,
    data_dir: Path | None = None,
    device: str = "auto",
    batch_size: int = BATCH_SIZE,
    batches: int | None = None,
    deviation: float = DEVIATION,
    replicates: int = REPLICATES,
    batchnorm: Literal["eval", "train"] = "eval",
    on_progress: Callable[[int, int], None] = nobody,
) -> list[dict[str, Any]]:
    """Measures `perturbed_rows` on the network of a run, and writes them into its folder.

    On the training images as they are, with the run's own loss but without attacks. Batches are
    whole; what is left over is left out.

    Args:
        folder: Of the run, finished or not.
        data_dir: Where the data are; default: the usual places.
        device: cpu, cuda, cuda:N or auto.
        batch_size: Samples in a batch.
        batches: How many, at least 2; None for all.
        deviation: As in `perturbed_rows`.
        replicates: As in `perturbed_rows`.
        batchnorm: As in `perturbed_rows`.
        on_progress: Called with (done, total) gradients.

    Returns:
        The rows, as they were written.

    Raises:
        ValueError: There is no run in the folder, its files are damaged, or there are too few
            batches.
        FileNotFoundError: The run has not stored a network yet, or the data are missing.
    """
    if batch_size < 1:
        raise ValueError(f"--batch-size is at least 1; got {batch_size}; 128 is usual.")
    if batches is not None and batches < 2:
        raise ValueError(f"--batches is at least 2, or left out for all; got {batches}.")
    stored = load_stored(folder, data_dir=data_dir, device=device)
    run = replace(stored.run, loop=replace(stored.run.loop, batch_size=batch_size))
    images, model = stored.images.train, stored.model
    loader = build.train_loader(images, run, stored.device, augmented=False)
    objective = build_objective(stored.run, images, unmeasured)
    count = loader.num_samples // loader.batch_size
    count = count if batches is None else min(count, batches)

    def drawn() -> Iterator[Batch]:
        return islice(loader.epoch(0, stream=STREAM), count)

    def loss_fn(batch: Batch) -> Tensor:
        with build.autocast(run.loop, stored.device):
            return objective.loss(model, batch)

    masks = stored_masks(folder, model)
    dense = all(bool(mask.all()) for mask in masks.values())
    total = count * (1 + replicates * (1 if dense else len(WHICH)))
    done = iter(range(1, total + 1))
    rows = perturbed_rows(
        model,
        loss_fn,
        drawn,
        masks,
        deviation=deviation,
        replicates=replicates,
        seed=run.loop.seed,
        batchnorm=batchnorm,
        on_batch=lambda: on_progress(next(done), total),
    )
    for row in rows:
        row |= {"samples": count * loader.batch_size, "batchnorm": batchnorm}
    write_rows(folder / PERTURBED, rows)
    return rows
