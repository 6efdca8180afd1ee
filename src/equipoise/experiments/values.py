"""What an experiment of the paper is: cells of a table, or lines of a figure, each one run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from equipoise.settings import Run

Scale = Literal["smoke", "cpu", "paper"]
SCALES: tuple[Scale, ...] = get_args(Scale)
Measure = Literal["gradient_correlation", "gradient_norms", "perturbed_gradients"]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One column of a table or one line of a figure: a run for every seed.

    Args:
        panel: Block of rows of the table, or panel of the figure, in the paper's words.
        arm: Column or line, in the paper's words; unique in its panel.
        run: With seed 0; every seed has a run of its own.
        kind: How it is trained: as any run, or by the three phases of HYDRA.
        measures: What is measured besides the records.
        attacked: Shares of training after which robust accuracy is measured, each in (0, 1].

    Example:
        >>> Cell(panel="VGG-C, SET-ITOP", arm="AGENT", run=Run()).kind
        'train'
    """

    panel: str
    arm: str
    run: Run
    kind: Literal["train", "hydra"] = "train"
    measures: tuple[Measure, ...] = ()
    attacked: tuple[float, ...] = ()

    @property
    def label(self) -> str:
        """Panel and arm in one line."""
        return f"{self.panel}: {self.arm}"


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One table or figure.

    Args:
        name: As the command line has it, for example ``table-1``.
        title: One line on what it shows.
        quantity: What is shown against what.
        cells: Its cells at a scale; empty for what is drawn from formulas alone.
        budgets: Shares of training at which a table reads its numbers, each in (0, 1].
        notes: For a scale, what is otherwise than in the paper, beside what the scale itself
            reduces; a sentence each.

    Example:
        >>> Experiment(name="figure-2", title="", quantity="", cells=lambda scale: ()).cells("cpu")
        ()
    """

    name: str
    title: str
    quantity: str
    cells: Callable[[Scale], tuple[Cell, ...]]
    budgets: tuple[float, ...] = ()
    notes: Mapping[Scale, tuple[str, ...]] = field(default_factory=dict)

    def notes_at(self, scale: Scale) -> tuple[str, ...]:
        """What is to be known at any scale, and what is otherwise at this one."""
        always = self.notes.get("paper", ())
        return always if scale == "paper" else (*always, *self.notes.get(scale, ()))
