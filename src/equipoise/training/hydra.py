"""HYDRA as a comparator: train a dense network, learn what it can do without, train the rest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from equipoise.data import Dataset
from equipoise.data.folder import FolderDataset
from equipoise.records import EpochRecord, write_atomically
from equipoise.settings import Run, as_plain
from equipoise.topology import Topology
from equipoise.topology.importance import scored
from equipoise.training.checkpoint import load_checkpoint, save_checkpoint
from equipoise.training.loop import MODEL, train
from equipoise.training.optimizers import build_optimizer
from equipoise.training.session import Session

PRETRAINED, PRUNED, FINETUNED = "pre-train", "prune", "fine-tune"
SUMMARY = "hydra.json"
_SCORES = "scores.pt"


@dataclass(frozen=True, kw_only=True)
class HydraPlan:
    """How long the three phases are, and how fast they learn.

    Args:
        pretrain_epochs: Of the dense network.
        prune_epochs: Of the scores, with all weights frozen.
        finetune_epochs: Of the weights that are kept.
        learning_rate: Of the first two phases.
        finetune_rate: Of the third.

    References:
        Sehwag et al., "HYDRA: Pruning adversarially robust neural networks", 2020.
    """

    pretrain_epochs: int = 100
    prune_epochs: int = 20
    finetune_epochs: int = 100
    learning_rate: float = 0.1
    finetune_rate: float = 0.01


@dataclass(frozen=True, kw_only=True)
class HydraOutcome:
    """What came of it.

    Args:
        folder: Of the fine-tuned run, which `equipoise evaluate` and `attack` read.
        last: Its last record; costs are those of the third phase alone.
        data_passes: Of all three phases together.
        training_flops: Of all three phases together.
        training_seconds: Of all three phases together.
    """

    folder: Path
    last: EpochRecord
    data_passes: float
    training_flops: float
    training_seconds: float


def hydra_run(run: Run, *, epochs: int, rate: float, dense: bool) -> Run:
    """The settings of one phase: those of `run` with HYDRA's optimizer.

    Args:
        run: Data, network, objective, sparsity, seed and batch size are kept.
        epochs: Of the phase.
        rate: At its start; it falls to 0 by a cosine.
        dense: Whether every weight takes part; else the masks are static and uniform.
    """
    optimization = replace(
        run.optimization,
        optimizer="sgd",
        learning_rate=rate,
        momentum=0.9,
        nesterov=False,
        weight_decay=1e-4,
        schedule="cosine",
        warmup=0.0,
    )
    sparse = replace(
        run.sparse,
        topology="dense" if dense else "static",
        distribution="uniform",
        mask_sampling="bernoulli",  # so that the numbers of active weights are those of the scores
        interval=None,
        stop=None,
        prune_fraction=None,
        growth_signal="raw",
    )
    return replace(
        run,
        optimization=optimization,
        sparse=sparse,
        correction=replace(run.correction, corrector="none"),
        loop=replace(run.loop, epochs=epochs, engine="dense" if dense else run.loop.engine),
    )


def train_hydra(
    run: Run,
    folder: Path,
    plan: HydraPlan | None = None,
    *,
    dataset: Dataset | FolderDataset | None = None,
) -> HydraOutcome:
    """Runs the three phases in three folders within `folder`; called again, it goes on.

    All phases minimise the objective of `run`. Pruning keeps the same share of every layer.

    Args:
        run: Data, network, objective, sparsity, seed and batch size; the rest is HYDRA's.
        folder: Its own; made if needed.
        plan: Lengths and rates; default: as published.
        dataset: The images, where they are in memory already.

    Raises:
        ValueError: The sparsity is 0, or a folder holds another run.
    """
    if run.sparse.sparsity == 0.0:
        raise ValueError(
            "HYDRA prunes to a --sparsity above 0; got 0; train with --topology dense."
        )
    plan = HydraPlan() if plan is None else plan
    first = hydra_run(run, epochs=plan.pretrain_epochs, rate=plan.learning_rate, dense=True)
    last = hydra_run(run, epochs=plan.finetune_epochs, rate=plan.finetune_rate, dense=False)
    dense = train(first, folder / PRETRAINED, label="hydra pre-train", dataset=dataset).records[-1]
    state = torch.load(folder / PRETRAINED / MODEL, map_location="cpu", weights_only=True)
    second = hydra_run(run, epochs=plan.prune_epochs, rate=plan.learning_rate, dense=True)
    pruned = learn_scores(second, folder / PRUNED, state, dataset=dataset)

    def begin(session: Session) -> None:
        start_pruned_(session, pruned["model"], pruned["masks"])

    tuned = train(last, folder / FINETUNED, label="hydra", dataset=dataset, begin=begin).records[-1]
    phases = [_cost(dense), pruned["cost"], _cost(tuned)]
    passes, flops, seconds = (
        sum(float(phase[name]) for phase in phases)
        for name in ("data_passes", "training_flops", "training_seconds")
    )
    outcome = HydraOutcome(
        folder=folder / FINETUNED,
        last=tuned,
        data_passes=passes,
        training_flops=flops,
        training_seconds=seconds,
    )
    summary = {
        "run": as_plain(run),
        "phases": dict(zip((PRETRAINED, PRUNED, FINETUNED), phases, strict=True)),
        "test_accuracy": tuned.test_accuracy,
    }
    write_atomically(folder / SUMMARY, json.dumps(summary, indent=2) + "\n")
    return outcome


def learn_scores(
    run: Run,
    folder: Path,
    state: Mapping[str, Tensor],
    *,
    dataset: Dataset | FolderDataset | None = None,
) -> dict[str, Any]:
    """The second phase: scores of a trained network's weights, which stay as they are.

    Args:
        run: Of this phase; its sparsity is what the masks leave out.
        folder: For a checkpoint after every epoch, and the result.
        state: Of the trained network.
        dataset: The images, where they are in memory already.

    Returns:
        ``model``, the state with what BatchNorm has learned since; ``masks`` by name; ``cost``.
    """
    finished = folder / _SCORES
    if finished.exists():
        return load_checkpoint(finished)
    session = Session(run, dataset)
    session.model.load_state_dict(dict(state))
    going_on = folder / "checkpoint.pt"
    with scored(session.model, 1.0 - run.sparse.sparsity) as scores:
        session.model.to(session.device)
        learning = [p for p in session.model.parameters() if p.requires_grad]
        session.optimizer = build_optimizer(learning, run.optimization)
        if going_on.exists():
            session.load_state_dict(load_checkpoint(going_on))
        while session.epoch < run.loop.epochs:
            for group in session.batches():
                session.train_step(group)
            record = session.finish_epoch()
            save_checkpoint(going_on, session.state_dict() | {"cost": _cost(record)})
        masks = {name: score.mask().cpu() for name, score in scores.items()}
    found = {
        "model": {name: value.cpu() for name, value in session.model.state_dict().items()},
        "masks": masks,
        "cost": load_checkpoint(going_on)["cost"],
    }
    save_checkpoint(finished, found)
    return found


@torch.no_grad()
def start_pruned_(
    session: Session, state: Mapping[str, Tensor], masks: Mapping[str, Tensor]
) -> None:
    """Gives a new session the weights and masks that pruning has left, in the engine too.

    Args:
        session: Static, before its first step.
        state: Of the plain network.
        masks: By the name of the weight.
    """
    topology = session.topology
    assert isinstance(topology, Topology)
    topology.load_state_dict(
        topology.state_dict() | {"masks": dict(masks), "ever_active": dict(masks)}
    )
    weights = topology.parameters
    for name, parameter in weights.items():
        dense, mask = state[name], masks[name]
        kept = dense * mask if parameter.shape == mask.shape else dense[mask]
        parameter.copy_(kept)
    others = dict(session.model.named_parameters()) | dict(session.model.named_buffers())
    for name, tensor in others.items():
        if name in state and name not in weights:
            tensor.copy_(state[name])


def _cost(record: EpochRecord) -> dict[str, float]:
    """What a phase has cost."""
    return {
        "data_passes": record.data_passes,
        "training_flops": record.training_flops,
        "training_seconds": record.training_seconds,
    }
