"""Tables and figures of the RigL family and of ImageNet: ResNet-50."""

from __future__ import annotations

from typing import Any

from equipoise.experiments.catalogue.parts import LONG, by_name, cells_of, per_cent, shorter
from equipoise.experiments.families import changed, imagenet, rigl
from equipoise.experiments.values import Cell, Experiment, Scale
from equipoise.settings import Run

DATA = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
WATCHED = (0.0, 0.5, 0.8, 0.9, 0.95)
_SUB_SAMPLE = 50_000
_PERTURBED = ("both on the active weights alone and on all of them, since the paper does not say",)
_AS_CIFAR = "CIFAR-10 stands in for ImageNet, and the full gradient is over all of its images"
_NARROW = "an eighth of the channels of ResNet-50, not a quarter"


def narrowed(run: Run, scale: Scale) -> Run:
    """A run with fewer channels at `cpu`, where there are many of them.

    Example:
        >>> narrowed(imagenet("cpu", 0.8), "cpu").network.width
        0.125
    """
    return changed(run, width=0.125) if scale == "cpu" else run


def resnet50(
    scale: Scale, dataset: str, sparsity: float, corrector: str = "none", **settings: Any
) -> Run:
    """A run at any sparsity; at 0 it is dense and nothing is rewired.

    Example:
        >>> resnet50("paper", "cifar10", 0.0).sparse.topology
        'dense'
    """
    if sparsity == 0.0:
        settings = settings | {
            "topology": "dense",
            "interval": None,
            "stop": None,
            "prune_fraction": None,
        }
    return rigl(scale, dataset, corrector, sparsity=sparsity, **settings)


def table_7(scale: Scale) -> tuple[Cell, ...]:
    """Two data sets, dense, 90 and 99 %; in one panel the published code of AGENT too."""
    cells: tuple[Cell, ...] = ()
    for dataset, name in DATA.items():
        for sparsity in (0.0, 0.9, 0.99):
            panel = f"{name}, {'dense' if sparsity == 0.0 else per_cent(sparsity)}"
            arms = {
                "RigL": resnet50(scale, dataset, sparsity),
                "A-RigL": resnet50(scale, dataset, sparsity, "agent"),
            }
            if (dataset, sparsity) == ("cifar10", 0.9):
                arms["A-RigL (as its RigL code)"] = resnet50(scale, dataset, sparsity, "ref_rigl")
            cells += cells_of(panel, arms)
    return cells


def trained_networks(scale: Scale) -> tuple[Cell, ...]:
    """RigL and SET at five sparsities, with gradients at perturbed weights."""
    return tuple(
        cell
        for topology, name in (("rigl", "RigL"), ("set", "SET"))
        for cell in cells_of(
            name,
            {
                per_cent(sparsity): narrowed(
                    resnet50(scale, "cifar100", sparsity, topology=topology), scale
                )
                for sparsity in WATCHED
            },
            measures=("perturbed_gradients",),
        )
    )


def figure_25(scale: Scale) -> tuple[Cell, ...]:
    """AGENT, plain RigL and SVRG at 90 %."""
    arms = {
        "A-RigL": resnet50(scale, "cifar100", 0.9, "agent"),
        "RigL": resnet50(scale, "cifar100", 0.9),
        "RigL+SVRG": resnet50(scale, "cifar100", 0.9, "svrg"),
    }
    return cells_of("CIFAR-100, 90 %", arms)


def imagenet_cells(scale: Scale) -> tuple[Cell, ...]:
    """RigL-ITOP at 80 and 90 %; the full gradient over a sub-sample of ImageNet."""
    samples = _SUB_SAMPLE if scale == "paper" else None
    return tuple(
        cell
        for sparsity in (0.8, 0.9)
        for cell in cells_of(
            per_cent(sparsity),
            {
                arm: narrowed(run, scale)
                for arm, run in (
                    ("RigL-ITOP", imagenet(scale, sparsity)),
                    ("A-RigL-ITOP", imagenet(scale, sparsity, "agent", refresh_samples=samples)),
                )
            },
        )
    )


RIGL = by_name(
    Experiment(
        name="table-3",
        title="Accuracy on ImageNet, ResNet-50 by RigL-ITOP",
        quantity="test accuracy at the end",
        cells=imagenet_cells,
        budgets=(1.0,),
        notes={"cpu": (_AS_CIFAR, _NARROW, LONG)},
    ),
    shorter(
        Experiment(
            name="table-7",
            title="Final accuracy of RigL with and without AGENT, ResNet-50",
            quantity="test accuracy at the end",
            cells=table_7,
            budgets=(1.0,),
            notes={
                "cpu": (_NARROW,),
                "paper": ("the paper does not name the network; its code has ResNet-50",),
            },
        ),
        "CIFAR-100",
        "dense",
        "99 %",
        "RigL code",
    ),
    shorter(
        Experiment(
            name="table-9",
            title="Correlation of gradients at perturbed weights by sparsity",
            quantity="correlation of full gradients, by sparsity",
            cells=trained_networks,
            budgets=(1.0,),
            notes={"cpu": (_NARROW,), "paper": _PERTURBED},
        ),
        "50 %",
        "90 %",
    ),
    shorter(
        Experiment(
            name="figure-1",
            title="Variance and correlation of gradients by sparsity",
            quantity="variance and correlation of gradients, by sparsity",
            cells=trained_networks,
            notes={"cpu": (_NARROW,), "paper": _PERTURBED},
        ),
        "50 %",
        "90 %",
    ),
    Experiment(
        name="figure-13",
        title="Accuracy on ImageNet by epoch",
        quantity="test accuracy by epoch",
        cells=imagenet_cells,
        notes={"cpu": (_AS_CIFAR, _NARROW, LONG)},
    ),
    Experiment(
        name="figure-25",
        title="SVRG in RigL at 90 % on CIFAR-100",
        quantity="test accuracy by epoch",
        cells=figure_25,
        notes={"cpu": (LONG,)},
    ),
)
