"""The command `analyse`, in a terminal."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from equipoise.analyses.rows import CORRELATION, NORMS, PERTURBED
from equipoise.analyses.theory import (
    SLIPS,
    Parabola,
    Theorem1,
    agent_bound,
    svrg_bound,
    theorem1_constants,
    variance_parabola,
)
from equipoise.options import Analysing
from equipoise.records import RunRecords, find_runs, read_rows, write_atomically
from equipoise.reports import Table, default_baseline
from equipoise.reports.manifests import settings
from equipoise.reports.measured import (
    Measured,
    correlation_panels,
    correlation_table,
    norms_panels,
    norms_table,
    perturbed_panels,
    perturbed_table,
)
from equipoise.reports.panels import Line, Panel, panels_png
from equipoise.reports.reached import reach_panels, reach_table
from equipoise.showing import print_table

_ALONG: dict[
    str,
    tuple[str, Callable[[Sequence[Measured]], Table], Callable[[Sequence[Measured]], list[Panel]]],
] = {
    "correlation": (CORRELATION, correlation_table, correlation_panels),
    "norms": (NORMS, norms_table, norms_panels),
}


def show_analysis(analysing: Analysing, console: Console) -> None:
    """Measures or reads, prints a table, and writes a picture.

    Args:
        analysing: The options, valid.
        console: Where to print.

    Raises:
        ValueError: There is nothing to analyse in the folder.
        FileNotFoundError: The data are not on this machine, or no network is stored.
    """
    if analysing.what == "theorem-1":
        print_table(theorem_table(analysing), console)
        return
    if analysing.what == "parabola":
        _write(parabola_panels(Parabola()), analysing.out or Path("parabola.png"), console)
        return
    assert analysing.folder is not None
    runs = find_runs(analysing.folder)
    if not runs:
        raise ValueError(f"{analysing.folder} holds no run; pass a folder that a training wrote.")
    if analysing.what == "reach":
        baseline = analysing.baseline or default_baseline(analysing.folder, runs)
        table = reach_table(runs, baseline, step=analysing.target_step)
        panels = reach_panels(runs, baseline, step=analysing.target_step)
    elif analysing.what == "gradients":
        _perturb(runs, analysing, console)
        measured = [_measured(run, PERTURBED) for run in runs]
        table, panels = perturbed_table(measured), perturbed_panels(measured)
    else:
        name, as_table, as_panels = _ALONG[analysing.what]
        measured = [m for run in runs if (m := _measured(run, name)).rows]
        if not measured:
            raise ValueError(
                f"{analysing.folder} holds no {name}; train with --measure {Path(name).stem} to "
                "have it."
            )
        table, panels = as_table(measured), as_panels(measured)
    print_table(table, console)
    _write(panels, analysing.out or analysing.folder / f"{analysing.what}.png", console)


def _perturb(runs: Sequence[RunRecords], analysing: Analysing, console: Console) -> None:
    """Measures every run, with a bar."""
    from equipoise.analyses.stored import perturb_stored

    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        for run in runs:
            task = progress.add_task(f"gradients of {run.folder.name}", total=None)

            def show(done: int, total: int, task: int = task) -> None:
                progress.update(task, completed=done, total=total)  # type: ignore[arg-type]

            perturb_stored(
                run.folder,
                data_dir=analysing.data_dir,
                device=analysing.device,
                batch_size=analysing.batch_size,
                batches=analysing.batches,
                deviation=analysing.deviation,
                replicates=analysing.replicates,
                batchnorm=analysing.batchnorm,
                on_progress=show,
            )


def _measured(run: RunRecords, name: str) -> Measured:
    """A run with the rows of one measurement."""
    sparse = settings(run).get("sparse", {})
    sparsity = 0.0 if sparse.get("topology") == "dense" else float(sparse.get("sparsity", 0.0))
    rows = read_rows(run.folder / name)
    return Measured(label=run.label, seed=run.seed, sparsity=sparsity, rows=rows)


def _write(panels: Sequence[Panel], path: Path, console: Console) -> None:
    """The picture."""
    write_atomically(path, panels_png(panels))
    console.print(f"Wrote {path}", highlight=False, soft_wrap=True)


def theorem_table(analysing: Analysing) -> Table:
    """Constants and bounds for AGENT and for SVRG, and the slips of the printed proof."""
    mu = 0.1 if analysing.mu is None and analysing.step_size is None else analysing.mu

    def constants(coefficient: float) -> Theorem1:
        return theorem1_constants(
            samples=analysing.samples,
            batch=analysing.batch_size,
            coefficient=coefficient,
            alpha=analysing.alpha,
            mu=mu,
            step_size=analysing.step_size,
            smoothness=analysing.smoothness,
            epoch_length=analysing.epoch_length,
        )

    ours, svrg = constants(analysing.coefficient), constants(1.0)
    gap, steps = analysing.gap, analysing.steps
    first, noise = agent_bound(ours, gap=gap, steps=steps, sigma=analysing.sigma)
    bounds = {"AGENT": (first, noise), "SVRG": (svrg_bound(svrg, gap=gap, steps=steps), 0.0)}
    rows = [
        (
            name,
            f"{found.coefficient:g}",
            f"{found.mu:.3g}",
            f"{found.step_size:.3g}",
            f"{found.epoch_length}",
            f"{found.nu:.4f}",
            f"{found.kappa:.0f}",
            *(_bound(term) for term in bounds[name]),
            _bound(sum(bounds[name])),
        )
        for name, found in (("AGENT", ours), ("SVRG", svrg))
    ]
    return Table(
        title="Theorem 1: bounds on the squared norm of the gradient",
        columns=("", "c", "mu", "eta", "m", "nu", "kappa", "First term", "Noise", "Bound"),
        rows=tuple(rows),
        notes=(
            "A larger nu is better; where it is not above 0 there is no bound. The first term "
            "of AGENT is divided by the batch size and that of SVRG is not, as in the paper.",
            *(f"Slip. {s.place}: printed {s.printed}; {s.right}." for s in SLIPS),
        ),
    )


def parabola_panels(picture: Parabola, count: int = 101) -> list[Panel]:
    """Figure 2: the variance against the coefficient, and where estimates lie on it."""
    end = 1.1 * picture.estimate
    places = [end * n / (count - 1) for n in range(count)]
    curve = [variance_parabola(picture.a3, picture.v, picture.k, c) for c in places]
    names = {
        "none": "no correction",
        "best": "best coefficient",
        "estimate": "an estimate above twice the best",
        "scaled": f"{picture.gamma:g} times that estimate",
    }
    points = [Line(names[name], [c], [value]) for name, (c, value) in picture.points().items()]
    level = Line("variance of the new gradient", [0.0, end], [picture.a3, picture.a3])
    lines = [Line("variance when corrected", places, curve), level, *points]
    return [Panel("Variance of a corrected gradient", "Coefficient", "variance", lines)]


def _bound(value: float) -> str:
    """A term of a bound."""
    return f"{value:.3g}" if math.isfinite(value) else "none"
