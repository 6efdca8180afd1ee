"""From the settings of the correction to a corrector."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from equipoise.correction import (
    AgeAdaptive,
    AgentRecursion,
    Coefficient,
    Constant,
    Corrector,
    FixedRecursion,
    GradientCache,
    GradientCorrector,
    GradientTable,
    LinearDecay,
    LossCovariance,
    Masks,
    MomentumCorrector,
    NoCorrection,
    Recursion,
    RefreshOptions,
    StormRecursion,
)
from equipoise.data import Batch
from equipoise.measure import Measure
from equipoise.objectives import Objective
from equipoise.published import in_effect
from equipoise.settings import CorrectionSettings, OptimizerSettings, Run
from equipoise.topology import ConnectivitySampling, MaskOwner
from equipoise.training.build import Images, autocast, build_model

CACHE = "gradients.bin"
TABLE = "table"
_REDUCED_RATE = 0.1


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What a corrector is built into.

    Args:
        model: That is trained.
        topology: Of this model.
        images: Of the training.
        device: Where the model is.
        measure: Told about every pass.
        num_refreshes: In the whole training.
        folder: For stored gradients on disk; None keeps them in memory.
    """

    model: nn.Module
    topology: MaskOwner
    images: Images
    device: torch.device
    measure: Measure
    num_refreshes: int
    folder: Path | None


def build_corrector(objective: Objective, run: Run, surroundings: Surroundings) -> Corrector[Batch]:
    """The corrector of a run; its loss function carries the precision."""
    settings, model = in_effect(run.correction), surroundings.model

    def loss_fn(batch: Batch) -> Tensor:
        with autocast(run.loop, surroundings.device):
            return objective.loss(model, batch)

    if settings.corrector == "none":
        return NoCorrection(model, loss_fn, measure=surroundings.measure)
    if settings.corrector == "table":
        on_disk = settings.table_on_disk and surroundings.folder is not None
        return GradientTable(
            model,
            loss_fn,
            masks=surroundings.topology,
            precision=settings.table_precision,
            folder=surroundings.folder / TABLE if on_disk and surroundings.folder else None,
            measure=surroundings.measure,
        )
    coefficient = build_coefficient(settings, surroundings.num_refreshes)
    snapshots = (
        None
        if coefficient is None
        else GradientCorrector(
            model, loss_fn, coefficient, **_snapshot_options(run, settings, surroundings)
        )
    )
    recursion = _recursion(settings, run.optimization)
    if recursion is None:
        assert snapshots is not None
        return snapshots
    return MomentumCorrector(
        model,
        loss_fn,
        recursion,
        snapshots=snapshots,
        measure=surroundings.measure,
        masks=lambda: surroundings.topology.masks,
    )


def build_coefficient(settings: CorrectionSettings, num_refreshes: int) -> Coefficient | None:
    """The coefficient behind the name of a corrector; None for one without snapshots."""
    clip = (0.0, 1.0) if settings.clip_coefficient else None
    initial = settings.initial_coefficient
    match settings.corrector:
        case "agent" | "agent_mvr_oracle" | "ref_itop" | "ref_rigl" | "ref_bsr":
            return LossCovariance(settings.scaling, settings.smoothing, clip, initial)
        case "no_gamma" | "reduce_lr":
            return LossCovariance(1.0, settings.smoothing, clip, initial)
        case "age":
            return AgeAdaptive(gate=settings.gate)
        case "svrg":
            return Constant(1.0)
        case "fixed":
            return Constant(0.1 if settings.coefficient is None else settings.coefficient)
        case "alpha_svrg":
            start = 0.75 if settings.coefficient is None else settings.coefficient
            return LinearDecay(start, num_refreshes)
        case _:
            return None


def corrected_optimization(run: Run) -> OptimizerSettings:
    """The settings of the optimizer that a corrector goes with.

    A recursive corrector is the momentum, so the optimizer has none; `reduce_lr` has a tenth of
    the learning rate.
    """
    name, settings = run.correction.corrector, run.optimization
    if "mvr" in name:
        return replace(settings, momentum=0.0)
    if name == "reduce_lr":
        return replace(settings, learning_rate=_REDUCED_RATE * settings.learning_rate)
    return settings


def _recursion(settings: CorrectionSettings, optimization: OptimizerSettings) -> Recursion | None:
    """The rule behind the name of a recursive corrector; None for any other."""
    match settings.corrector:
        case "mvr":
            return StormRecursion(
                optimization.learning_rate, settings.mvr_strength, settings.mvr_offset
            )
        case "mvr_fixed" | "agent_mvr_oracle":
            return FixedRecursion(settings.mvr_share)
        case "agent_mvr":
            clip = (0.0, 1.0) if settings.clip_coefficient else None
            initial = settings.initial_coefficient
            return AgentRecursion(
                LossCovariance(settings.scaling, settings.smoothing, clip, initial)
            )
        case _:
            return None


def _snapshot_options(
    run: Run, settings: CorrectionSettings, surroundings: Surroundings
) -> dict[str, Any]:
    """How snapshots are taken and kept."""
    options: dict[str, Any] = {
        "measure": surroundings.measure,
        "options": RefreshOptions(
            weighting=settings.refresh_weighting,
            compares_with=settings.compare_with,
            updates_buffers=settings.refresh_statistics == "move",
            adds_leftover=settings.refresh_leftover,
        ),
        "first_snapshot": _first_snapshot(run, settings, surroundings),
    }
    if settings.corrector == "age":
        options["topology"] = surroundings.topology
        return options
    masks = _kept_masks(settings, surroundings.topology)
    if masks is not None:
        options["masks"] = masks
    if settings.correction_mode == "cached":
        options["cache"] = GradientCache(_cache_file(settings, surroundings.folder))
    return options


def _kept_masks(settings: CorrectionSettings, topology: MaskOwner) -> Masks | None:
    """The masks by which tensors are packed; None to keep every entry."""
    moves = topology.rewiring is not None and topology.num_active < topology.num_weights
    moves = moves or isinstance(topology, ConnectivitySampling)
    if settings.keep == "all" or (settings.keep == "auto" and moves):
        return None
    return lambda: topology.masks


def _cache_file(settings: CorrectionSettings, folder: Path | None) -> Path | None:
    """Where stored gradients go; None for memory."""
    return None if settings.cache == "memory" or folder is None else folder / CACHE


def _first_snapshot(
    run: Run, settings: CorrectionSettings, surroundings: Surroundings
) -> dict[str, Tensor] | None:
    """What the first estimate is made against; None for no first estimate."""
    streams = {"dense": "weights", "other": "other weights"}
    if settings.first_estimate == "none":
        return None
    stream = streams[settings.first_estimate]
    model = build_model(run, surroundings.images, surroundings.device, stream=stream)
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
