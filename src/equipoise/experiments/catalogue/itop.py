"""Tables and figures of the ITOP family: CIFAR-10, 99 % sparse, VGG-C and ResNet-34."""

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
from equipoise.experiments.families import changed, itop
from equipoise.experiments.values import Cell, Experiment, Scale
from equipoise.settings import Run

MODELS: Mapping[str, str] = {"vgg_c": "VGG-C", "resnet34": "ResNet-34"}
TOPOLOGIES: Mapping[str, str] = {"rigl_itop": "RigL-ITOP", "set_itop": "SET-ITOP"}
CLIP = 2.0
"""Norm that gradients are clipped to in a control: about twice that of a usual one."""
ADAM: Mapping[str, Any] = {"optimizer": "adam", "learning_rate": 1e-3}
_PANELS = tuple((model, topology) for topology in TOPOLOGIES for model in MODELS)
_VALIDATED = "the paper shows accuracy on its validation split, kept from the training images"
_FEW = "a budget is the same share of training as in the paper, so only 2 and 5 epochs"
_BUDGETS = (50, 100)
_FIXED = (0.001, 0.01, 0.1, 0.5, 0.8)
_WATCHED = (0.5, 0.8, 0.9, 0.95)


def _panel(model: str, topology: str) -> str:
    """Name of a panel: network and topology."""
    return f"{MODELS[model]}, {TOPOLOGIES[topology]}"


def _pair(scale: Scale, model: str, topology: str) -> Arms:
    """Plain training and AGENT."""
    name = TOPOLOGIES[topology]
    return {
        name: itop(scale, model, topology),
        f"A-{name}": itop(scale, model, topology, "agent"),
    }


def figure_3(scale: Scale) -> tuple[Cell, ...]:
    """Plain and AGENT; in one panel AGENT as its published code does it, in one both clipped."""
    cells: tuple[Cell, ...] = ()
    for model, topology in _PANELS:
        arms = dict(_pair(scale, model, topology))
        if (model, topology) == ("vgg_c", "set_itop"):
            arms["A-SET-ITOP (as its ITOP code)"] = itop(scale, model, topology, "ref_itop")
        if (model, topology) == ("vgg_c", "rigl_itop"):
            arms |= {f"{name}, clipped": changed(run, clip_norm=CLIP) for name, run in arms.items()}
        cells += cells_of(_panel(model, topology), arms)
    return cells


def figure_5(scale: Scale) -> tuple[Cell, ...]:
    """Plain, AGENT and SVRG."""
    return tuple(
        cell
        for model, topology in _PANELS
        for cell in cells_of(
            _panel(model, topology),
            {**_pair(scale, model, topology), "SVRG": itop(scale, model, topology, "svrg")},
        )
    )


def figure_23(scale: Scale) -> tuple[Cell, ...]:
    """Several scalings of AGENT."""
    base = itop(scale, "vgg_c", "set_itop", "agent")
    arms = {f"gamma {value:g}": changed(base, scaling=value) for value in (0.1, 0.01, 0.5, 0.9)}
    return cells_of(_panel("vgg_c", "set_itop"), arms)


def figure_26(scale: Scale) -> tuple[Cell, ...]:
    """A dense network beside each sparsity."""
    dense = itop(scale, "vgg_c", "dense", sparsity=0.0)
    return tuple(
        cell
        for sparsity in _WATCHED
        for cell in cells_of(
            f"dense and {per_cent(sparsity)}",
            {
                "dense": dense,
                per_cent(sparsity): itop(scale, "vgg_c", "set_itop", sparsity=sparsity),
            },
            measures=("gradient_correlation",),
        )
    )


def figure_27(scale: Scale) -> tuple[Cell, ...]:
    """Growth by the gradient as it is, and after correction."""
    return tuple(
        cell
        for model, name in MODELS.items()
        for cell in cells_of(
            name,
            {
                "A-RigL-ITOP": itop(scale, model, "rigl_itop", "agent"),
                "A-RigL-ITOP-G": itop(
                    scale, model, "rigl_itop", "agent", growth_signal="corrected"
                ),
            },
        )
    )


def figure_28(scale: Scale) -> tuple[Cell, ...]:
    """AGENT and Adam."""
    return tuple(
        cell
        for model, topology in _PANELS
        for cell in cells_of(
            _panel(model, topology),
            {
                f"A-{TOPOLOGIES[topology]}": itop(scale, model, topology, "agent"),
                "Adam": itop(scale, model, topology, **ADAM),
            },
        )
    )


def figure_33(scale: Scale) -> tuple[Cell, ...]:
    """AGENT, Adam and SVRG; plain training as well, for comparison."""
    return tuple(
        cell
        for model, topology in _PANELS
        for cell in cells_of(
            _panel(model, topology),
            {
                **_pair(scale, model, topology),
                "Adam": itop(scale, model, topology, **ADAM),
                "SVRG": itop(scale, model, topology, "svrg"),
            },
        )
    )


def shortened(run: Run, scale: Scale, epochs: int) -> Run:
    """A run of this family with a shorter training, rewired as often in a number of steps.

    Args:
        run: At its usual length.
        scale: Of the run.
        epochs: Of 250, as in the paper.

    Example:
        >>> shortened(itop("paper", "vgg_c", "set_itop"), "paper", 50).loop.epochs
        50
    """
    if scale == "paper":
        return changed(run, epochs=epochs)
    # Intervals are shares of training here, so they grow as it shrinks.
    share = run.sparse.interval
    interval = None if share is None else round(share * 250 / epochs, 4)
    fewer = max(1, round(run.loop.epochs * epochs / 250))
    return changed(run, epochs=fewer, interval=interval)


def short_budgets(scale: Scale) -> tuple[Cell, ...]:
    """Trainings of 50 and of 100 epochs."""
    return tuple(
        cell
        for epochs in _BUDGETS
        for cell in cells_of(
            f"{epochs} epochs",
            {
                arm: shortened(run, scale, epochs)
                for arm, run in _pair(scale, "vgg_c", "set_itop").items()
            },
        )
    )


def figure_30(scale: Scale) -> tuple[Cell, ...]:
    """Several smoothings of AGENT's estimate."""
    base = itop(scale, "vgg_c", "set_itop", "agent")
    arms = {f"alpha {value:g}": changed(base, smoothing=value) for value in (0.3, 0.05, 0.5, 0.9)}
    return cells_of(_panel("vgg_c", "set_itop"), arms)


def figure_31(scale: Scale) -> tuple[Cell, ...]:
    """AGENT and coefficients that stay as they are; 1 is SVRG."""
    arms = {"A-SET-ITOP": itop(scale, "vgg_c", "set_itop", "agent")}
    arms |= {
        f"fixed c = {value:g}": itop(scale, "vgg_c", "set_itop", "fixed", coefficient=value)
        for value in _FIXED
    }
    arms["fixed c = 1"] = itop(scale, "vgg_c", "set_itop", "svrg")
    return cells_of(_panel("vgg_c", "set_itop"), arms)


def table_5(scale: Scale) -> tuple[Cell, ...]:
    """MVR alone and with AGENT, in the readings that the paper leaves open."""
    arms = {
        "MVR": itop(scale, "vgg_c", "set_itop", "mvr_fixed"),
        "AGENT+MVR": itop(scale, "vgg_c", "set_itop", "agent_mvr"),
        "AGENT+MVR (AGENT inside MVR)": itop(scale, "vgg_c", "set_itop", "agent_mvr_oracle"),
    }
    return cells_of(_panel("vgg_c", "set_itop"), arms)


def table_10(scale: Scale) -> tuple[Cell, ...]:
    """No scaling at a tenth of the rate, and AGENT."""
    return tuple(
        cell
        for model, name in MODELS.items()
        for cell in cells_of(
            name,
            {
                "Reduce LR": itop(scale, model, "set_itop", "reduce_lr"),
                "AGENT": itop(scale, model, "set_itop", "agent"),
            },
        )
    )


def table_11(scale: Scale) -> tuple[Cell, ...]:
    """Plain and AGENT, with the norms of gradients."""
    return tuple(
        cell
        for topology in TOPOLOGIES
        for cell in cells_of("VGG-C", _pair(scale, "vgg_c", topology), measures=("gradient_norms",))
    )


_ACCURACY = "test accuracy by epoch"
ITOP = by_name(
    Experiment(
        name="figure-3",
        title="AGENT in SET-ITOP and RigL-ITOP at 99 % on CIFAR-10",
        quantity=_ACCURACY,
        cells=figure_3,
        notes={"cpu": (LONG,)},
    ),
    Experiment(
        name="figure-5",
        title="AGENT, SVRG and plain training at 99 % on CIFAR-10",
        quantity=_ACCURACY,
        cells=figure_5,
        notes={"cpu": (LONG,)},
    ),
    Experiment(
        name="figure-23",
        title="The scaling gamma in SET-ITOP at 99 %",
        quantity=_ACCURACY,
        cells=figure_23,
        notes={"paper": (_VALIDATED,)},
    ),
    Experiment(
        name="figure-26",
        title="Correlation of gradients along training, dense and sparse",
        quantity="correlation of gradients by epoch",
        cells=figure_26,
        notes={
            "paper": ("the caption's setting is taken, VGG-C on CIFAR-10; the text has another",)
        },
    ),
    shorter(
        Experiment(
            name="figure-27",
            title="Growth by corrected gradients in RigL-ITOP at 99 %",
            quantity=_ACCURACY,
            cells=figure_27,
        ),
        "ResNet-34",
    ),
    shorter(
        Experiment(
            name="figure-28",
            title="AGENT and Adam at 99 % on CIFAR-10",
            quantity=_ACCURACY,
            cells=figure_28,
            notes={"paper": ("the rate of Adam is not published; 0.001 is taken",)},
        ),
        "ResNet-34",
    ),
    Experiment(
        name="figure-29",
        title="Accuracy under budgets of 50 and 100 epochs",
        quantity=_ACCURACY,
        cells=short_budgets,
        notes={"cpu": (_FEW,), "paper": (_VALIDATED,)},
    ),
    Experiment(
        name="figure-30",
        title="The smoothing alpha in SET-ITOP at 99 %",
        quantity=_ACCURACY,
        cells=figure_30,
        notes={"paper": (_VALIDATED,)},
    ),
    Experiment(
        name="figure-31",
        title="Fixed coefficients and AGENT in SET-ITOP at 99 %",
        quantity=_ACCURACY,
        cells=figure_31,
        notes={"paper": (_VALIDATED,)},
    ),
    Experiment(
        name="figure-32",
        title="Validation loss under budgets of 50 and 100 epochs",
        quantity="validation loss by epoch",
        cells=short_budgets,
        notes={"cpu": (_FEW,)},
    ),
    shorter(
        Experiment(
            name="figure-33",
            title="AGENT, Adam and SVRG at 99 % on CIFAR-10",
            quantity=_ACCURACY,
            cells=figure_33,
            notes={"paper": ("the rate of Adam is not published; 0.001 is taken",)},
        ),
        "ResNet-34",
    ),
    Experiment(
        name="table-5",
        title="MVR with and without AGENT in SET-ITOP at 99 %",
        quantity="test accuracy after budgets",
        cells=table_5,
        budgets=shares((20, 40, 70, 90, 140, 200), of=250),
        notes={
            "paper": (
                "settings of MVR are not published: the share of the newest gradient stays 0.1, "
                "and AGENT+MVR weights the old gradient of MVR by AGENT's coefficient; the other "
                "reading has an arm of its own",
            )
        },
    ),
    Experiment(
        name="table-10",
        title="A reduced rate instead of the scaling, and AGENT",
        quantity="test accuracy after budgets",
        cells=table_10,
        budgets=shares((20, 80, 130, 180, 240), of=250),
    ),
    Experiment(
        name="table-11",
        title="Norms of gradients in five phases of training",
        quantity="mean norm of the gradient in each fifth of training",
        cells=table_11,
        budgets=shares((50, 100, 150, 200, 250), of=250),
        notes={"paper": ("the paper does not say which gradient; that of the batch is shown",)},
    ),
)
