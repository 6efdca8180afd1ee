"""Measurements of gradients as tables and panels: under noise, along a training, their norms."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from equipoise.reports.numbers import MISSING
from equipoise.reports.panels import Line, Panel
from equipoise.reports.tables import Table

Rows = Sequence[Mapping[str, Any]]
_FIFTHS = ("1st", "2nd", "3rd", "4th", "5th")  # table 11 averages over these


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was measured on one run.

    Args:
        label: Of the run.
        seed: Of the run.
        sparsity: In [0, 1).
        rows: As they were read.
    """

    label: str
    seed: int
    sparsity: float
    rows: Rows


def perturbed_table(runs: Iterable[Measured]) -> Table:
    """Variance and correlation under noise, one row for a run and a protocol."""
    rows = []
    for run in runs:
        for (perturb, coordinates), found in _by_protocol(run.rows).items():
            rows.append(
                (
                    run.label,
                    str(run.seed),
                    f"{run.sparsity:.4g}",
                    perturb,
                    coordinates,
                    _cell(_numbers(found, "variance"), "{:.3g}"),
                    _cell(_numbers(found, "correlation"), "{:.4f}"),
                    str(len(found)),
                )
            )
    return Table(
        title="Gradients under noise on the weights",
        columns=(
            *("Run", "Seed", "Sparsity", "Noise on", "Coordinates"),
            *("Variance", "Correlation", "Draws"),
        ),
        rows=tuple(rows),
        notes=(
            "Noise on weights that are not there makes a sparse network a dense one; the rows with "
            "noise on active weights and active coordinates are about the network as it is.",
        ),
    )


def perturbed_panels(runs: Sequence[Measured]) -> list[Panel]:
    """Variance and correlation against sparsity, as in figure 1."""
    return [
        Panel(name.capitalize(), "Sparsity", name, _over_sparsity(runs, name), name == "variance")
        for name in ("variance", "correlation")
    ]


def correlation_table(runs: Iterable[Measured]) -> Table:
    """Correlation of successive full gradients at three places of a training."""
    rows = [
        (
            run.label,
            str(run.seed),
            f"{run.sparsity:.4g}",
            *(_cell(_numbers(part, "full"), "{:.4f}") for part in _parts(run.rows, 3)),
            _cell(_numbers(run.rows, "batch"), "{:.4f}"),
            f"{run.rows[-1]['extra_passes']:.1f}" if run.rows else MISSING,
        )
        for run in runs
    ]
    return Table(
        title="Correlation with the gradient of one epoch ago, active coordinates",
        columns=(
            *("Run", "Seed", "Sparsity", "1st third", "2nd third", "3rd third"),
            *("Batches", "Passes"),
        ),
        rows=tuple(rows),
        notes=(
            "Thirds of the training: full gradients, means over the epochs of each. Batches: mean "
            "over single batches and all epochs. Passes: what measuring cost beside the training.",
        ),
    )


def correlation_panels(runs: Sequence[Measured]) -> list[Panel]:
    """Both correlations against epochs, as in figure 26."""
    titles = {"full": "Full gradients", "batch": "Gradients of single batches"}
    return [
        Panel(title, "Epoch", "correlation with one epoch ago", _over_epochs(runs, name))
        for name, title in titles.items()
    ]


def norms_table(runs: Iterable[Measured]) -> Table:
    """Norms in five parts of a training, as in table 11."""
    rows = [
        (
            run.label,
            str(run.seed),
            f"{run.sparsity:.4g}",
            words,
            *(_cell(_numbers(part, name), "{:.3g}") for part in _parts(run.rows, len(_FIFTHS))),
        )
        for run in runs
        for name, words in (("new", "batch"), ("corrected", "corrected"))
    ]
    return Table(
        title="Norm of the gradients, active coordinates, before weight decay",
        columns=("Run", "Seed", "Sparsity", "Gradient", *_FIFTHS),
        rows=tuple(rows),
        notes=("1st to 5th: means over the epochs of each fifth of the training.",),
    )


def norms_panels(runs: Sequence[Measured]) -> list[Panel]:
    """Norms against epochs."""
    titles = {"new": "Gradient of the batch", "corrected": "Corrected gradient"}
    return [
        Panel(title, "Epoch", "norm", _over_epochs(runs, name)) for name, title in titles.items()
    ]


def _by_protocol(rows: Rows) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    """Rows of each place of the noise and set of coordinates."""
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault((row["perturb"], row["coordinates"]), []).append(row)
    return found


def _numbers(rows: Rows, name: str) -> list[float]:
    """What there is under a name."""
    return [float(row[name]) for row in rows if row.get(name) is not None]


def _cell(numbers: Sequence[float], form: str) -> str:
    """Their mean; a dash without any."""
    return form.format(statistics.fmean(numbers)) if numbers else MISSING


def _parts(rows: Rows, count: int) -> list[Rows]:
    """Rows in so many parts of a training, each of as many epochs or one more."""
    ends = [round(len(rows) * n / count) for n in range(count + 1)]
    return [rows[start:end] for start, end in pairwise(ends)]


def _over_sparsity(runs: Sequence[Measured], name: str) -> list[Line]:
    """A line for each protocol, means over the draws of all runs of a sparsity."""
    places = sorted({run.sparsity for run in runs})
    lines = []
    for protocol in dict.fromkeys(p for run in runs for p in _by_protocol(run.rows)):
        pooled = [
            [
                number
                for run in runs
                if run.sparsity == place
                for number in _numbers(_by_protocol(run.rows).get(protocol, []), name)
            ]
            for place in places
        ]
        words = f"noise on {protocol[0]}, over {protocol[1]}"
        lines.append(Line(words, places, [_mean(numbers) for numbers in pooled]))
    return lines


def _over_epochs(runs: Sequence[Measured], name: str) -> list[Line]:
    """A line for each label and sparsity, means over its seeds."""
    lines = []
    several = len({run.sparsity for run in runs}) > 1
    for label, sparsity in dict.fromkeys((run.label, run.sparsity) for run in runs):
        chosen = [run for run in runs if (run.label, run.sparsity) == (label, sparsity)]
        rows = [row for run in chosen for row in run.rows]
        epochs = sorted({int(row["epoch"]) for row in rows})
        means = [_mean(_numbers([r for r in rows if r["epoch"] == e], name)) for e in epochs]
        lines.append(Line(f"{label}, {sparsity:.4g}" if several else label, epochs, means))
    return lines


def _mean(numbers: Sequence[float]) -> float | None:
    """None without any."""
    return statistics.fmean(numbers) if numbers else None
