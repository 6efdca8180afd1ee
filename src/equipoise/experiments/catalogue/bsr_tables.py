"""Tables of the BSR-Net family: clean and robust accuracy after budgets of epochs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from equipoise.experiments.catalogue.parts import (
    LONG,
    Arms,
    by_name,
    cells_of,
    per_cent,
    shares,
    shorter,
)
from equipoise.experiments.families import bsr, changed
from equipoise.experiments.values import Cell, Experiment, Scale
from equipoise.settings import Run

OBJECTIVES: Mapping[str, str] = {"at": "AT", "trades": "TRADES", "standard": "Standard"}
MODELS: Mapping[str, str] = {"vgg16": "VGG-16", "wrn_28_4": "WRN-28-4"}
SPARSITIES = (0.9, 0.99)
SVHN: Mapping[str, Any] = {"dataset": "svhn", "weight_decay": 5e-4}
"""Other data sets than CIFAR-10 have half the decay."""
_ALL = shares((20, 40, 70, 90, 140, 200), of=200)
_LATE = shares((70, 90, 140, 200), of=200)


def pair(scale: Scale, model: str, **settings: Any) -> Arms:
    """BSR-Net and A-BSR-Net, which differ in the corrector alone.

    Example:
        >>> list(pair("paper", "vgg16"))
        ['BSR-Net', 'A-BSR-Net']
    """
    return {
        "BSR-Net": bsr(scale, model, **settings),
        "A-BSR-Net": bsr(scale, model, "agent", **settings),
    }


def published_code(scale: Scale, model: str, **settings: Any) -> Arms:
    """What the published code of A-BSR-Net does besides, and what of that is not correction."""
    return {
        "A-BSR-Net (as its BSR code)": bsr(
            scale, model, "ref_bsr", correction_mask="all", batchnorm="refreshed", **settings
        ),
        "BSR-Net, BatchNorm refreshed": bsr(scale, model, batchnorm="refreshed", **settings),
    }


def _panel(objective: str, sparsity: float) -> str:
    return f"{OBJECTIVES[objective]}, {per_cent(sparsity)}"


def table_1(scale: Scale) -> tuple[Cell, ...]:
    """Three objectives, two sparsities; the arms of the published code in one of the six."""
    cells: tuple[Cell, ...] = ()
    for objective in OBJECTIVES:
        for sparsity in SPARSITIES:
            settings = {"objective": objective, "sparsity": sparsity}
            arms = dict(pair(scale, "vgg16", **settings))
            if (objective, sparsity) == ("standard", 0.99):
                arms |= published_code(scale, "vgg16", **settings)
            cells += cells_of(_panel(objective, sparsity), arms)
    return cells


def table_2(scale: Scale) -> tuple[Cell, ...]:
    """The attacked networks of table 1."""
    return tuple(
        cell
        for objective in ("at", "trades")
        for sparsity in SPARSITIES
        for cell in cells_of(
            _panel(objective, sparsity),
            pair(scale, "vgg16", objective=objective, sparsity=sparsity),
            attacked=_LATE,
        )
    )


def svhn_networks(scale: Scale) -> tuple[Cell, ...]:
    """TRADES on SVHN with two networks and two sparsities."""
    return tuple(
        cell
        for sparsity in SPARSITIES
        for model, name in MODELS.items()
        for cell in cells_of(
            f"{name}, {per_cent(sparsity)}",
            pair(scale, model, objective="trades", sparsity=sparsity, **SVHN),
        )
    )


def table_6(scale: Scale) -> tuple[Cell, ...]:
    """A fixed coefficient, no scaling, and AGENT."""
    cells: tuple[Cell, ...] = ()
    for objective in ("at", "standard"):
        for sparsity in SPARSITIES:
            settings = {"objective": objective, "sparsity": sparsity}
            arms = {
                "Fixed c": bsr(scale, "vgg16", "fixed", coefficient=0.1, **settings),
                "No gamma": bsr(scale, "vgg16", "no_gamma", **settings),
                "Ours": bsr(scale, "vgg16", "agent", **settings),
            }
            often = objective == "at" and scale != "cpu"
            cells += cells_of(_panel(objective, sparsity), arms, attacked=_ALL if often else (1.0,))
    return cells


def hydra_run(scale: Scale, model: str, sparsity: float) -> Run:
    """HYDRA by its own recipe on SVHN: epochs are those of its three phases together.

    Example:
        >>> hydra_run("paper", "vgg16", 0.9).loop.epochs
        220
    """
    run = bsr(scale, model, objective="trades", sparsity=sparsity, eps=0.031, **SVHN)
    run = changed(
        run,
        topology="static",
        distribution="uniform",
        noise="agent",
        step_size=0.0078,
        optimizer="sgd",
        nesterov=False,
        learning_rate=0.1,
        weight_decay=1e-4,
        schedule="cosine",
        drop_factors=(),
        milestones=(0.5, 0.75),
    )
    epochs = {"paper": 220, "smoke": 3}.get(scale, run.loop.epochs)
    return changed(run, epochs=epochs)


def table_8(scale: Scale) -> tuple[Cell, ...]:
    """Clean and robust accuracy beside HYDRA."""
    cells: tuple[Cell, ...] = ()
    for sparsity in SPARSITIES:
        for model, name in MODELS.items():
            panel = f"{name}, {per_cent(sparsity)}"
            arms = pair(scale, model, objective="trades", sparsity=sparsity, **SVHN)
            cells += cells_of(panel, arms, attacked=(1.0,))
            pruned = {"HYDRA": hydra_run(scale, model, sparsity)}
            cells += cells_of(panel, pruned, kind="hydra", attacked=(1.0,))
    return cells


BSR_TABLES = by_name(
    shorter(
        Experiment(
            name="table-1",
            title="Clean accuracy of BSR-Net with and without AGENT, VGG-16 on CIFAR-10",
            quantity="test accuracy after budgets",
            cells=table_1,
            budgets=_ALL,
            notes={"cpu": (LONG,)},
        ),
        "TRADES",
        "90 %",
        "as its BSR code",
    ),
    shorter(
        Experiment(
            name="table-2",
            title="Robust accuracy of BSR-Net with and without AGENT, VGG-16 on CIFAR-10",
            quantity="accuracy under PGD-50 with 10 restarts after budgets",
            cells=table_2,
            budgets=_LATE,
        ),
        "TRADES",
        "90 %",
    ),
    shorter(
        Experiment(
            name="table-4",
            title="Final accuracy under TRADES on SVHN",
            quantity="test accuracy at the end",
            cells=svhn_networks,
            budgets=(1.0,),
        ),
        "WRN",
        "90 %",
    ),
    shorter(
        Experiment(
            name="table-6",
            title="Ablation: a fixed coefficient, no scaling, and AGENT",
            quantity="clean and robust accuracy after budgets",
            cells=table_6,
            budgets=_ALL,
            notes={
                "paper": (
                    "networks of standard training are attacked at the end only; the paper has 0",
                )
            },
        ),
        "90 %",
    ),
    shorter(
        Experiment(
            name="table-8",
            title="BSR-Net, HYDRA and AGENT under TRADES on SVHN",
            quantity="clean and robust accuracy at the end",
            cells=table_8,
            budgets=(1.0,),
        ),
        "WRN",
        "90 %",
    ),
)
