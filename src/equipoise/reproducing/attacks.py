"""Robust accuracy of the networks of a run, after shares of its training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from equipoise.attacks.evaluation import Sample, evaluate_robustness
from equipoise.attacks.pixels import Pixels
from equipoise.attacks.settings import Attacking
from equipoise.experiments.values import Scale
from equipoise.records import epoch_after, read_rows, write_rows
from equipoise.reproducing.tasks import ROBUST, Task, epoch_file
from equipoise.training import build
from equipoise.training.attacking import plan_of
from equipoise.training.objective import pixels_of
from equipoise.training.stored import StoredNetwork, load_stored

ATTACKS: Mapping[Scale, Attacking] = {
    "smoke": Attacking(steps=2, restarts=1, samples=32),
    "cpu": Attacking(steps=20, restarts=2, samples=500),
    "paper": Attacking(steps=50, restarts=10),
}
"""The attack of the paper, and what is left of it at the other scales."""


@dataclass(frozen=True, kw_only=True)
class RobustRow:
    """One line of the file with robust accuracies.

    Args:
        share: Of training, in (0, 1].
        epoch: After which the network was attacked.
        clean_accuracy: Of the attacked images as they are, in [0, 1].
        robust_accuracy: After every restart, in [0, 1].
        steps: Of the attack.
        restarts: Of the attack.
        samples: Test images, the first ones.
        eps: Radius, in pixels of [0, 1].
        step_size: In the same units.
        seconds: Wall time.
    """

    share: float
    epoch: int
    clean_accuracy: float
    robust_accuracy: float
    steps: int
    restarts: int
    samples: int
    eps: float
    step_size: float
    seconds: float


def attack_run(
    task: Task,
    place: Path,
    shares: tuple[float, ...],
    attack: Attacking,
    *,
    data_dir: Path | None,
    device: str,
) -> None:
    """Attacks a finished run after shares of its training; each network is attacked once.

    Rows are written after every network. Weights that were kept for this are removed.

    Args:
        task: Of the run.
        place: Its folder.
        shares: That are missing.
        attack: Steps, restarts and images.
        data_dir: Where the data are; default: the usual places.
        device: cpu, cuda, cuda:N or auto.

    Raises:
        FileNotFoundError: The weights or the data are missing.
    """
    epochs = task.run.loop.epochs
    rows = read_rows(place / ROBUST)
    stored = load_stored(place, data_dir=data_dir, device=device)
    last = {name: value.clone() for name, value in stored.model.state_dict().items()}
    for epoch in sorted({epoch_after(share, epochs) for share in shares}):
        file = place / epoch_file(epoch)
        state = last
        if epoch < epochs:
            state = torch.load(file, map_location=stored.device, weights_only=True)
        stored.model.load_state_dict(state)
        found = robust_row(stored, attack, epoch=epoch, share=epoch / epochs)
        rows += [
            asdict(replace(found, share=share))
            for share in shares
            if epoch_after(share, epochs) == epoch
        ]
        rows.sort(key=lambda row: float(row["share"]))
        write_rows(place / ROBUST, rows)
        file.unlink(missing_ok=True)


def robust_row(stored: StoredNetwork, attack: Attacking, *, epoch: int, share: float) -> RobustRow:
    """Attacks a network on the first test images, with the statistics that its run evaluates with.

    Args:
        stored: The network, and images of its run.
        attack: Steps, restarts, radius and number of images.
        epoch: After which it was stored.
        share: Of training that this is.
    """
    test = stored.images.test
    if attack.samples is not None and attack.samples < len(test):
        test = test.subset(attack.samples)
    pixels = pixels_of(test)
    with build.autocast(stored.run.loop, stored.device), stored.evaluating():
        found = evaluate_robustness(
            stored.model, _samples(test, stored, pixels), plan_of(attack), pixels=pixels
        )
    return RobustRow(
        share=share,
        epoch=epoch,
        clean_accuracy=found.clean_accuracy,
        robust_accuracy=found.robust_accuracy,
        steps=attack.steps,
        restarts=attack.restarts,
        samples=len(found.clean),
        eps=attack.eps,
        step_size=attack.length_of_step,
        seconds=found.seconds,
    )


def _samples(test: build.Images, stored: StoredNetwork, pixels: Pixels) -> Iterator[Sample]:
    """Batches of images in [0, 1]."""
    for batch in build.test_loader(test, stored.run, stored.device).epoch(0):
        yield pixels.of(batch.x), batch.y, batch.index
