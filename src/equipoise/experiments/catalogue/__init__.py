"""All tables and figures of the paper, each a list of runs."""

from __future__ import annotations

from collections.abc import Mapping

from equipoise.experiments.catalogue.bsr_figures import BSR_FIGURES
from equipoise.experiments.catalogue.bsr_tables import BSR_TABLES
from equipoise.experiments.catalogue.itop import ITOP
from equipoise.experiments.catalogue.parts import by_name
from equipoise.experiments.catalogue.rigl import RIGL
from equipoise.experiments.values import Cell, Experiment, Scale


def _nothing(scale: Scale) -> tuple[Cell, ...]:
    """What is drawn from a formula needs no run."""
    del scale
    return ()


_DRAWN = by_name(
    Experiment(
        name="figure-2",
        title="Variance of a corrected gradient by its coefficient",
        quantity="variance against the coefficient, from the formula; no training",
        cells=_nothing,
    )
)
_ALL = ITOP | BSR_TABLES | BSR_FIGURES | RIGL | _DRAWN
NAMES: tuple[str, ...] = (
    *(f"table-{number}" for number in range(1, 12)),
    *(f"figure-{number}" for number in range(1, 34)),
)
EXPERIMENTS: Mapping[str, Experiment] = {name: _ALL[name] for name in NAMES}
"""By name, tables first, as the paper counts them."""
