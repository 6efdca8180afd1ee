"""Options of the command `hydra`.

The docstring under a field is its help on the command line.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from equipoise.settings import (
    DataSettings,
    LoopSettings,
    ModelSettings,
    ObjectiveSettings,
    Run,
    TopologySettings,
)
from equipoise.validation import validate


@dataclass(frozen=True, kw_only=True)
class Pruning:
    """How it is pruned, and where results go."""

    sparsity: float = 0.9
    """Fraction of every layer's weights that is pruned, in (0, 1); 0.9 keeps one in ten."""
    pretrain_epochs: int = 100
    """Of the dense network, at least 1."""
    score_epochs: int = 20
    """In which scores learn which weights to keep, while the weights stay as they are."""
    finetune_epochs: int = 100
    """Of the weights that are kept, at least 1."""
    learning_rate: float = 0.1
    """At the start of pre-training, and of the scores, above 0; falls to 0 by a cosine."""
    finetune_rate: float = 0.01
    """At the start of fine-tuning, above 0; falls to 0 by a cosine."""
    batch_size: int = 128
    """Samples in a batch, at least 1."""
    accumulate: int = 1
    """Batches whose gradients are averaged into one step, at least 1."""
    seed: int = 0
    """Of initial weights, data order and dropout."""
    device: str = "auto"
    """cpu, cuda, cuda:1, or auto: the accelerator if there is one."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of matrix products; weights stay in single precision."""
    channels_last: bool = False
    """Keep images and convolutions in the channels-last memory format."""
    engine: Literal["auto", "sparse", "dense"] = "auto"
    """Kernels for the active weights only, in fine-tuning; the first two phases are dense."""
    batchnorm: Literal["running", "refreshed"] = "running"
    """Statistics at evaluation: those of training, or taken anew over the training images."""
    deterministic: bool = True
    """Prefer operations whose results are the same in every run."""
    out: Path | None = None
    """Folder of the run; default: runs/ and a name made from the settings."""
    overwrite: bool = False
    """Start again, whatever is in the folder."""
    checkpoint_seconds: float = 60.0
    """Time between checkpoints within an epoch."""
    tensorboard: bool = False
    """Write TensorBoard event files too."""
    threads: int | None = None
    """Processor threads; default: torch's choice."""


def pruning_run(
    data: DataSettings, network: ModelSettings, robust: ObjectiveSettings, chosen: Pruning
) -> Run:
    """The settings that all phases share.

    Args:
        data: What is learned from.
        network: What learns.
        robust: What is minimised.
        chosen: The options; their lengths and rates are checked.

    Raises:
        ValueError: One sentence on the first thing that is wrong.
    """
    for name in ("pretrain_epochs", "score_epochs", "finetune_epochs"):
        if getattr(chosen, name) < 1:
            raise ValueError(
                f"--{name.replace('_', '-')} must be at least 1; got {getattr(chosen, name)}; "
                "see `equipoise hydra --help`."
            )
    for name in ("learning_rate", "finetune_rate"):
        if not 0.0 < getattr(chosen, name) < float("inf"):
            raise ValueError(
                f"--{name.replace('_', '-')} must be above 0 and finite; got "
                f"{getattr(chosen, name):g}; see `equipoise hydra --help`."
            )
    if chosen.sparsity == 0.0:
        raise ValueError(
            "HYDRA prunes to a --sparsity above 0; got 0; for a dense network use "
            "`equipoise train --topology dense`."
        )
    if robust.snapshot != "clean":
        raise ValueError(
            f"--snapshot {robust.snapshot} has no effect here, since HYDRA corrects no gradients; "
            "leave it out."
        )
    run = Run(
        data=data,
        network=network,
        robust=robust,
        sparse=TopologySettings(topology="static", sparsity=chosen.sparsity),
        loop=LoopSettings(
            epochs=chosen.pretrain_epochs + chosen.score_epochs + chosen.finetune_epochs,
            batch_size=chosen.batch_size,
            accumulate=chosen.accumulate,
            seed=chosen.seed,
            device=chosen.device,
            precision=chosen.precision,
            channels_last=chosen.channels_last,
            engine=chosen.engine,
            batchnorm=chosen.batchnorm,
            deterministic=chosen.deterministic,
        ),
    )
    validate(run)
    return run
