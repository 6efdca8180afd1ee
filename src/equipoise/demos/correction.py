"""The arms of `equipoise demo correction`: correctors, and what else would do as well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from equipoise.arguments import Arm, parse_arm
from equipoise.reports.demonstration import FIXED_PARTITION, Kind, Member
from equipoise.settings import Run, with_setting
from equipoise.training.arms import Job, plan
from equipoise.validation import validate

CIFAR: Mapping[str, Any] = {
    "dataset": "cifar10",
    "image_size": 16,
    "train_samples": 6400,
    "test_samples": 5000,
    "model": "small_cnn",
    "topology": "rigl",
    "batch_size": 64,
    "learning_rate": 0.1,
    "epochs": 8,
    "device": "cpu",
    # For every arm alike: in the first epochs test accuracy would else depend on how far the
    # running statistics lag behind, more than on the method.
    "batchnorm": "refreshed",
}
# As many steps in an epoch, about, from 1,442 images that come with a package.
DIGITS: Mapping[str, Any] = {
    **{name: value for name, value in CIFAR.items() if not name.endswith("samples")},
    "dataset": "digits",
    "image_size": None,
    "batch_size": 16,
}


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A member of the demonstration and how it is trained.

    Args:
        member: Its part in the argument.
        arm: Its settings.
        passes: Expected of a whole run, for the time left.
    """

    member: Member
    arm: Arm
    passes: float


def published_passes(epochs: int) -> float:
    """Passes of AGENT as published: 1 in the first epoch, 10/3 in every other.

    Example:
        >>> round(published_passes(4), 9)
        11.0
    """
    return 1 + (epochs - 1) * 10 / 3


def base_run(settings: Mapping[str, Any], sparsity: float, data_dir: Path | None) -> Run:
    """What all arms share.

    Args:
        settings: `CIFAR`, `DIGITS`, or others.
        sparsity: In [0, 1).
        data_dir: Folder with the data, or None for the usual places.
    """
    run = with_setting(with_setting(Run(), "sparsity", sparsity), "data_dir", data_dir)
    for name, value in settings.items():
        run = with_setting(run, name, value)
    return run


def planned_arms(base: Run) -> list[Planned]:
    """All arms, plain first, each checked.

    Args:
        base: What they share.

    Raises:
        ValueError: A setting is out of its range.
    """
    epochs, batch, rate = base.loop.epochs, base.loop.batch_size, base.optimization.learning_rate
    longer = max(1, round(published_passes(epochs)))
    rows: list[tuple[str, str, str, Kind, float]] = [
        ("plain", "none", "plain training", "plain", epochs),
        ("table", "table", "stored gradients of the same batches, no extra pass", "ours", epochs),
        (
            FIXED_PARTITION,
            "none,partition_epochs=0",
            "plain with the fixed partition into batches that a table needs",
            "control",
            epochs,
        ),
        (
            "double_long",
            f"none,batch_size={2 * batch},epochs={2 * epochs}",
            "plain with batches twice as large, as many steps, so twice the passes",
            "control",
            2 * epochs,
        ),
        (
            "double_batch",
            f"none,batch_size={2 * batch}",
            "plain with batches twice as large, as many passes, so half the steps",
            "control",
            epochs,
        ),
        (
            "lower_rate",
            f"none,learning_rate={0.3 * rate:.6g}",
            f"plain with a learning rate of {0.3 * rate:.6g}",
            "control",
            epochs,
        ),
        ("agent", "agent", "AGENT as published", "published", published_passes(epochs)),
        (
            "longer",
            f"none,epochs={longer}",
            f"plain for {longer} epochs, as many passes as agent",
            "equal compute",
            longer,
        ),
    ]
    found = []
    for name, text, what, kind, passes in rows:
        arm = parse_arm(f"{name}:{base.sparse.topology}+{text}", base)
        validate(arm.run)
        member = Member(name=name, what=what, kind=kind)
        found.append(Planned(member=member, arm=arm, passes=passes))
    return found


def jobs_of(planned: Sequence[Planned], num_seeds: int, folder: Path) -> list[Job]:
    """All runs, seed by seed, weighted by their passes."""
    weights = {one.arm.label: float(one.passes) for one in planned}
    jobs = plan([one.arm for one in planned], range(num_seeds), folder)
    return [replace(job, weight=weights[job.label]) for job in jobs]
