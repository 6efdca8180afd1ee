"""What a training would gain from the engine, told without its data and before it starts."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from equipoise.data import describe
from equipoise.engine.convert import LayerChoice
from equipoise.engine.explain import Explanation, explain
from equipoise.models import create
from equipoise.points import preserved
from equipoise.settings import Run
from equipoise.shipping import SparseFileSummary, save_sparse
from equipoise.topology import ConnectivitySampling, Topology
from equipoise.topology.store import LayerSummary
from equipoise.training.build import FOLDER_IMAGE_SIZE, resolve_device, stream_seed
from equipoise.validation import engine_refusals

_FOLDER_CLASSES = 1000
_STATES = {
    "sgd": 1,
    "sgdw": 1,
    "adam": 2,
    "adamw": 2,
}  # numbers that an optimizer keeps for each weight


@dataclass(frozen=True)
class Images:
    """The images of a data set, without any of them.

    Args:
        channels: Colour channels.
        side: Pixels a side.
        classes: Number of classes.
        guessed: Whether the number of classes is a guess, since only the files tell.
    """

    channels: int
    side: int
    classes: int
    guessed: bool


@dataclass(frozen=True)
class Plan:
    """What is to be expected of a training on this machine.

    Args:
        run: Its settings.
        images: What it learns from.
        weights: Density of each masked weight at the start.
        budget: Active weights that connectivity sampling refills to after every step; None for a
            topology whose layers keep their densities.
        explanation: What becomes of each layer; None where the settings rule the engine out.
        verdict: One sentence on the whole step.
        masked_bytes: Weights and optimizer state with masks.
        engine_bytes: The same as it would be trained.
        file: What the network takes on disk.
    """

    run: Run
    images: Images
    weights: tuple[LayerSummary, ...]
    budget: int | None
    explanation: Explanation | None
    verdict: str
    masked_bytes: int
    engine_bytes: int
    file: SparseFileSummary


def plan_run(run: Run, on_progress: Callable[[int, int], object] = lambda _done, _of: None) -> Plan:
    """Builds the network of a run with its masks and decides as the training would.

    No data are read. Layers that this machine has not timed before are timed, and remembered.

    Args:
        run: The settings, valid.
        on_progress: Told how many layers of how many are decided.

    Raises:
        ValueError: The network cannot be built for these images.
    """
    images = expected_images(run)
    model = build_network(run, images)
    topology = _first_masks(model, run)
    states = _STATES[run.optimization.optimizer] if _keeps_state(run) else 0
    masked_bytes = state_bytes(model, states)
    file = _file_of(model, topology)
    weights = tuple(topology.summary())
    explanation = None
    verdict = _ruled_out(run)
    if verdict is None:
        total = sum(isinstance(m, nn.Conv2d | nn.Linear) for m in model.modules())
        done: list[LayerChoice] = []

        def see(choice: LayerChoice) -> None:
            done.append(choice)
            on_progress(len(done), total)

        on_progress(0, total)
        batch = torch.zeros(run.loop.batch_size, images.channels, images.side, images.side)
        engine: Literal["auto", "sparse"] = "sparse" if run.loop.engine == "sparse" else "auto"
        explanation = explain(model, topology, (batch,), engine=engine, on_layer=see)
        model, verdict = explanation.network, explanation.verdict
        if engine == "sparse" and explanation.reason is not None:
            verdict = f"Training would refuse --engine sparse: {explanation.reason}."
    return Plan(
        run=run,
        images=images,
        weights=weights,
        budget=topology.budget if isinstance(topology, ConnectivitySampling) else None,
        explanation=explanation,
        verdict=verdict,
        masked_bytes=masked_bytes,
        engine_bytes=state_bytes(model, states),
        file=file,
    )


def _first_masks(model: nn.Module, run: Run) -> Topology | ConnectivitySampling:
    """The masks that the training would start with; how they change has no part in a plan."""
    seed = stream_seed(run.loop.seed, "masks")
    if run.sparse.topology == "bsr":
        return ConnectivitySampling(
            model, sparsity=run.sparse.sparsity, total_steps=1, steps_per_epoch=1, seed=seed
        )
    return Topology(
        model,
        sparsity=0.0 if run.sparse.topology == "dense" else run.sparse.sparsity,
        distribution=run.sparse.distribution,
        sampling=run.sparse.mask_sampling,
        seed=seed,
    )


def expected_images(run: Run) -> Images:
    """What the catalogue knows of a run's images.

    Args:
        run: Only its data settings count.

    Example:
        >>> expected_images(Run())
        Images(channels=1, side=8, classes=10, guessed=False)
    """
    info = describe(run.data.dataset)
    side = run.data.image_size or info.image_size or FOLDER_IMAGE_SIZE
    classes = len(info.classes)
    return Images(info.channels, side, classes or _FOLDER_CLASSES, guessed=classes == 0)


def build_network(run: Run, images: Images) -> nn.Module:
    """The network that a run would start from, weights included.

    Args:
        run: The settings.
        images: What it is built for.
    """
    with preserved(torch.device("cpu")):
        torch.manual_seed(stream_seed(run.loop.seed, "weights"))
        return create(
            run.network.model,
            num_classes=images.classes,
            in_channels=images.channels,
            image_size=images.side,
            width=run.network.width,
            dropout=run.network.dropout,
            stem=run.network.stem,
        )


def state_bytes(network: nn.Module, states: int) -> int:
    """Bytes of a network in training: parameters, buffers, and the optimizer's numbers.

    Positions of active weights are among the buffers.

    Args:
        network: With masks or converted.
        states: Numbers that the optimizer keeps for each parameter.

    Example:
        >>> state_bytes(nn.Linear(3, 1), 1)
        32
    """
    parameters = sum(p.numel() * p.element_size() for p in network.parameters())
    return parameters * (1 + states) + sum(b.numel() * b.element_size() for b in network.buffers())


def _keeps_state(run: Run) -> bool:
    """Whether the optimizer keeps anything; SGD without momentum does not."""
    return run.optimization.optimizer != "sgd" or run.optimization.momentum > 0.0


def _file_of(model: nn.Module, topology: Topology | ConnectivitySampling) -> SparseFileSummary:
    """What the network takes on disk: written once, since only the encoder knows."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.safetensors"
        return save_sparse(path, model.state_dict(), masks=topology.masks)


def _ruled_out(run: Run) -> str | None:
    """Why the settings rule the engine out, in a sentence; None if they do not."""
    if run.loop.engine == "dense":
        return "Nothing to gain: --engine dense asks for masks on ordinary tensors."
    refusals = engine_refusals(run)
    if refusals:
        return f"Nothing to gain: the engine does not go with {' and '.join(refusals)}."
    device = resolve_device(run.loop.device)
    if device.type != "cpu":
        return f"Nothing to gain: training runs on {device} here, the engine on processors only."
    return None
