"""HYDRA as a comparator: train a dense network, learn what it can do without, train the rest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from equipoise.data import Dataset
from equipoise.data.folder import FolderDataset
from equipoise.settings import Run
from equipoise.topology import Topology
from equipoise.topology.importance import kept_by_score, num_kept, scored
from equipoise.training import build
from equipoise.training.loop import MODEL, Outcome, never, train
from equipoise.training.observers import Everyone, Observer
from equipoise.training.optimizers import build_optimizer
from equipoise.training.phases import Phase, Placing, Whole
from equipoise.training.session import Session
from equipoise.validation import validate

PRETRAINED, PRUNED, FINETUNED = "pre-train", "prune", "fine-tune"
LABEL = "hydra"
_WEIGHT, _SCORES = ".parametrizations.weight.original", ".parametrizations.weight.0.scores"


@dataclass(frozen=True, kw_only=True)
class HydraPlan:
    """How long the three phases are, and how fast they learn.

    Args:
        pretrain_epochs: Of the dense network.
        score_epochs: Of the scores, with all weights frozen.
        finetune_epochs: Of the weights that are kept.
        learning_rate: Of the first two phases, at their start.
        finetune_rate: Of the third.

    References:
        Sehwag et al., "HYDRA: Pruning adversarially robust neural networks", 2020.
    """

    pretrain_epochs: int = 100
    score_epochs: int = 20
    finetune_epochs: int = 100
    learning_rate: float = 0.1
    finetune_rate: float = 0.01

    @property
    def epochs(self) -> int:
        """Of all phases together."""
        return self.pretrain_epochs + self.score_epochs + self.finetune_epochs


def train_hydra(
    run: Run,
    folder: Path,
    plan: HydraPlan | None = None,
    *,
    label: str = LABEL,
    dataset: Dataset | FolderDataset | None = None,
    observers: tuple[Observer, ...] = (),
    on_phase: Callable[[Phase], None] = lambda _phase: None,
    should_stop: Callable[[], bool] = never,
    checkpoint_seconds: float = 60.0,
    overwrite: bool = False,
) -> Outcome:
    """Trains by HYDRA in `folder`, or goes on where it was stopped.

    All phases minimise the objective of `run`. Pruning keeps the same share of every layer. Each
    phase is a run in a folder of its own within `folder`, with checkpoints; `folder` itself holds
    manifest, records and model of the whole, as any run does: epochs and costs go on counting from
    phase to phase, and ``phases`` in the manifest says which epochs are whose. The settings in that
    manifest are those of fine-tuning, but for the number of epochs.

    Args:
        run: Data, network, objective, sparsity, seed and batch size; the rest is HYDRA's.
        folder: Its own; made if needed.
        plan: Lengths and rates; default: as published.
        label: Name of the arm in reports.
        dataset: The images, where they are in memory already; default: read as the settings say.
        observers: Are told what happens; records are those of the whole.
        on_phase: Told of a phase before it begins, or goes on.
        should_stop: Asked after every step; if true a checkpoint is saved and training stops.
        checkpoint_seconds: Time between checkpoints within an epoch.
        overwrite: Start again whatever is in the folder.

    Returns:
        The records of all phases, and whether those are all that were planned.

    Raises:
        ValueError: The sparsity is 0, another setting is wrong, or the folder holds another run.
        FileNotFoundError: The data are not on this machine.

    References:
        Sehwag et al., "HYDRA: Pruning adversarially robust neural networks", 2020.
    """
    plan = HydraPlan() if plan is None else plan
    phases = phases_of(run, plan)
    for phase in phases:
        validate(phase.run)  # of the last one too, before the first takes its hours
    whole = Whole(
        whole_run(run, plan), folder, label=label, kind="hydra", method=asdict(plan), phases=phases
    )
    if overwrite:
        whole.clear()
    finished = whole.finished()
    if finished is not None:
        return Outcome(records=finished, finished=True, resumed=True)
    dataset = build.load_images(run.data) if dataset is None else dataset
    resumed, steps = whole.is_begun, 0
    for phase in phases:
        placed = replace(phase, steps_before=steps)
        outcome = train(
            phase.run,
            folder / phase.name,
            label=f"{label} {phase.name}",
            dataset=dataset,
            observers=(Placing(placed, whole, _computed_with, on_phase, Everyone(*observers)),),
            should_stop=should_stop,
            checkpoint_seconds=checkpoint_seconds,
            begin=_starting_from(folder / PRUNED / MODEL) if phase.name == FINETUNED else None,
            arrange=_learning_scores(folder / PRETRAINED / MODEL) if phase.name == PRUNED else None,
        )
        if not outcome.finished:
            return Outcome(records=whole.write_records(), finished=False, resumed=resumed)
        steps += outcome.records[-1].step
    return Outcome(records=whole.finish(), finished=True, resumed=resumed)


def phases_of(run: Run, plan: HydraPlan) -> list[Phase]:
    """The three phases and their settings.

    Args:
        run: As for `train_hydra`.
        plan: Lengths and rates.

    Raises:
        ValueError: There is nothing to prune, or a phase has no epoch.
    """
    if run.sparse.sparsity == 0.0:
        raise ValueError(
            "HYDRA prunes to a --sparsity above 0; got 0; train with --topology dense."
        )
    for name in ("pretrain_epochs", "score_epochs", "finetune_epochs"):
        if getattr(plan, name) < 1:
            raise ValueError(
                f"--{name.replace('_', '-')} is at least 1; got {getattr(plan, name)}."
            )
    lengths = (plan.pretrain_epochs, plan.score_epochs, plan.finetune_epochs)
    first, second, last = (
        hydra_run(run, epochs=epochs, rate=rate, dense=dense)
        for epochs, rate, dense in zip(
            lengths,
            (plan.learning_rate, plan.learning_rate, plan.finetune_rate),
            (True, True, False),
            strict=True,
        )
    )
    return [
        Phase(name=PRETRAINED, run=first),
        Phase(name=PRUNED, run=second, epochs_before=lengths[0]),
        Phase(name=FINETUNED, run=last, epochs_before=lengths[0] + lengths[1]),
    ]


def whole_run(run: Run, plan: HydraPlan) -> Run:
    """What the manifest of the whole says: the settings of fine-tuning, the epochs of all phases.

    Args:
        run: As for `train_hydra`.
        plan: Lengths and rates.
    """
    return hydra_run(run, epochs=plan.epochs, rate=plan.finetune_rate, dense=False)


def hydra_folder(run: Run, plan: HydraPlan) -> Path:
    """A readable folder under ``runs`` that the same settings find again.

    Args:
        run: As for `train_hydra`.
        plan: Lengths and rates.

    Example:
        >>> str(hydra_folder(Run(), HydraPlan())).rpartition("-")[0]
        'runs/digits-small_cnn-hydra-s0.9-seed0'
    """
    whole = whole_run(run, plan)
    identity = f"{whole.identity} {json.dumps(asdict(plan), sort_keys=True)}"
    digest = hashlib.sha256(identity.encode()).hexdigest()[:8]
    readable = whole.folder_name.rpartition("-")[0].replace(f"-{whole.label}-", f"-{LABEL}-")
    return Path("runs") / f"{readable}-{digest}"


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


def _computed_with(session: Session) -> dict[str, int]:
    """Weights that the network computes with while its scores learn; all of them are there."""
    density = 1.0 - session.run.sparse.sparsity
    return {PRUNED: sum(num_kept(m.numel(), density) for m in session.topology.masks.values())}


def _learning_scores(trained: Path) -> Callable[[Session], AbstractContextManager[None]]:
    """The second phase: scores of a trained network's weights, which stay as they are."""

    @contextmanager
    def arranged(session: Session) -> Iterator[None]:
        session.model.load_state_dict(torch.load(trained, map_location="cpu", weights_only=True))
        with scored(session.model, 1.0 - session.run.sparse.sparsity):
            session.model.to(session.device)
            learning = [p for p in session.model.parameters() if p.requires_grad]
            session.optimizer = build_optimizer(learning, session.optimization)
            yield

    return arranged


def _starting_from(pruned: Path) -> Callable[[Session], None]:
    """The start of the third phase: what the second has left, by its file of weights and scores."""

    def begin(session: Session) -> None:
        state = torch.load(pruned, map_location="cpu", weights_only=True)
        density = 1.0 - session.run.sparse.sparsity
        masks = {
            name.removesuffix(_SCORES) + ".weight": kept_by_score(scores, density)
            for name, scores in state.items()
            if name.endswith(_SCORES)
        }
        weights = {
            (name.removesuffix(_WEIGHT) + ".weight" if name.endswith(_WEIGHT) else name): value
            for name, value in state.items()
            if not name.endswith(_SCORES)
        }
        start_pruned_(session, weights, masks)

    return begin


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
