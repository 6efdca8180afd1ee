"""Figures of the BSR-Net family: curves, and epochs or hours until an accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from equipoise.experiments.catalogue.bsr_tables import MODELS, SPARSITIES, SVHN, pair
from equipoise.experiments.catalogue.parts import (
    LONG,
    Arms,
    Cells,
    by_name,
    cells_of,
    per_cent,
    shorter,
)
from equipoise.experiments.families import bsr, bsr_original, changed
from equipoise.experiments.values import Cell, Experiment, Scale

CIFAR_100: Mapping[str, Any] = {"dataset": "cifar100", "weight_decay": 5e-4}
_NAMES = {"standard": "standard", "at": "AT", "trades": "TRADES"}


def _three(scale: Scale, model: str, **settings: Any) -> Arms:
    """BSR-Net by the shared recipe, by its own, and with AGENT."""
    plain, corrected = pair(scale, model, **settings).items()
    own = bsr_original(scale, model, **settings)
    return dict([plain, ("BSR-Net (ori)", own), corrected])


def _sparsities(model: str, **settings: Any) -> Cells:
    """A panel for 90 % and one for 99 %."""

    def cells(scale: Scale) -> tuple[Cell, ...]:
        return tuple(
            cell
            for sparsity in SPARSITIES
            for cell in cells_of(
                per_cent(sparsity), _three(scale, model, sparsity=sparsity, **settings)
            )
        )

    return cells


def figure_4(scale: Scale) -> tuple[Cell, ...]:
    """Two networks, two objectives, 99 %."""
    return tuple(
        cell
        for objective in ("standard", "at")
        for model, name in MODELS.items()
        for cell in cells_of(
            f"{name}, {_NAMES[objective]}", pair(scale, model, objective=objective)
        )
    )


def figure_12(scale: Scale) -> tuple[Cell, ...]:
    """Two networks, two data sets, 99 %."""
    return tuple(
        cell
        for model, name in MODELS.items()
        for data, settings in (("CIFAR-100", CIFAR_100), ("SVHN", SVHN))
        for cell in cells_of(f"{data}, {name}", _three(scale, model, **settings))
    )


def figure_14(scale: Scale) -> tuple[Cell, ...]:
    """A dense network by the same recipe."""
    dense: dict[str, Any] = {"topology": "dense", "sparsity": 0.0}
    return tuple(
        cell
        for objective in ("standard", "at")
        for cell in cells_of(
            _NAMES[objective],
            {
                "Dense": bsr(scale, "vgg16", objective=objective, **dense),
                "Dense with AGENT": bsr(scale, "vgg16", "agent", objective=objective, **dense),
            },
        )
    )


def figure_15(scale: Scale) -> tuple[Cell, ...]:
    """Two networks on CIFAR-100, 99 %."""
    return tuple(
        cell
        for model, name in (("wrn_28_4", "WRN-28-4"), ("resnet18", "ResNet-18"))
        for cell in cells_of(f"CIFAR-100, {name}", pair(scale, model, **CIFAR_100))
    )


def figure_22(scale: Scale) -> tuple[Cell, ...]:
    """Scalings of AGENT in adversarial training."""
    base = bsr(scale, "vgg16", "agent", objective="at")
    arms = {"BSR-Net": bsr(scale, "vgg16", objective="at")}
    arms |= {
        f"A-BSR-Net, gamma {value:g}": changed(base, scaling=value) for value in (0.1, 0.5, 0.01)
    }
    return cells_of("AT, 99 %", arms)


def figure_24(scale: Scale) -> tuple[Cell, ...]:
    """SVRG in adversarial training."""
    arms = {
        **pair(scale, "vgg16", objective="at"),
        "BSR-Net+SVRG": bsr(scale, "vgg16", "svrg", objective="at"),
    }
    return cells_of("AT, 99 %", arms)


_CURVES = "test accuracy by epoch"
_HOURS = "hours and epochs until an accuracy"
_SETTINGS: tuple[tuple[int, str, Cells, tuple[str, ...]], ...] = (
    (6, "VGG-16 on CIFAR-10, standard", _sparsities("vgg16"), ()),
    (7, "VGG-16 on CIFAR-10, AT", _sparsities("vgg16", objective="at"), ("90 %",)),
    (8, "WRN-28-4 on CIFAR-10, standard", _sparsities("wrn_28_4"), ("90 %",)),
    (9, "WRN-28-4 on CIFAR-10, AT", _sparsities("wrn_28_4", objective="at"), ("90 %", "(ori)")),
    (10, "VGG-16 on SVHN, standard", _sparsities("vgg16", **SVHN), ()),
    (
        11,
        "VGG-16 on SVHN, TRADES",
        _sparsities("vgg16", objective="trades", **SVHN),
        ("90 %", "(ori)"),
    ),
)
"""Number, setting, cells, and what is left out at `cpu`."""
_LONG_ONES = (9,)


def _curves_and_hours() -> tuple[Experiment, ...]:
    """Figures 6 to 11, and 16 to 21 on the same runs."""
    experiments: list[Experiment] = []
    for number, what, cells, left_out in _SETTINGS:
        notes: dict[Scale, tuple[str, ...]] = {"cpu": (LONG,)} if number in _LONG_ONES else {}
        both = (
            Experiment(
                name=f"figure-{number}",
                title=f"BSR-Net with and without AGENT: {what}",
                quantity=_CURVES,
                cells=cells,
                notes=notes,
            ),
            Experiment(
                name=f"figure-{number + 10}",
                title=f"Hours until an accuracy: {what}",
                quantity=_HOURS,
                cells=cells,
                notes={
                    **notes,
                    "paper": ("captions say hours and the text epochs; both are written",),
                },
            ),
        )
        experiments += (shorter(one, *left_out) if left_out else one for one in both)
    return tuple(experiments)


BSR_FIGURES = by_name(
    shorter(
        Experiment(
            name="figure-4",
            title="Epochs until an accuracy, BSR-Net at 99 % on CIFAR-10",
            quantity="epochs until an accuracy",
            cells=figure_4,
        ),
        "WRN",
    ),
    *_curves_and_hours(),
    shorter(
        Experiment(
            name="figure-12",
            title="BSR-Net at 99 % on CIFAR-100 and SVHN, standard",
            quantity=_CURVES,
            cells=figure_12,
        ),
        "WRN",
    ),
    shorter(
        Experiment(
            name="figure-14",
            title="AGENT in a dense VGG-16 on CIFAR-10",
            quantity=_CURVES,
            cells=figure_14,
        ),
        "AT",
    ),
    Experiment(
        name="figure-15",
        title="Hours until an accuracy at 99 % on CIFAR-100",
        quantity=_HOURS,
        cells=figure_15,
    ),
    Experiment(
        name="figure-22",
        title="The scaling gamma in adversarial training at 99 %",
        quantity=_CURVES,
        cells=figure_22,
        notes={"cpu": (LONG,)},
    ),
    Experiment(
        name="figure-24",
        title="SVRG in adversarial training at 99 %",
        quantity=_CURVES,
        cells=figure_24,
    ),
)
