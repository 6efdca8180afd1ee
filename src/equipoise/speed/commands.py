"""The commands `plan` and `bench`, in a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.progress import Progress

from equipoise.engine.library import unavailable_because
from equipoise.settings import Run
from equipoise.speed.bench import run_bench
from equipoise.speed.machine import load_average
from equipoise.speed.plan import plan_run
from equipoise.speed.settings import Benchmark
from equipoise.speed.showing import print_head, print_plan, print_row
from equipoise.speed.steps import Case


def show_plan(run: Run, console: Console) -> None:
    """Plans a run and prints the plan; a bar moves while layers are timed.

    Args:
        run: The settings, valid.
        console: Where to print.
    """
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("timing layers", total=None)
        plan = plan_run(run, lambda done, of: progress.update(task, completed=done, total=of))
    print_plan(plan, console)


def show_bench(benchmark: Benchmark, console: Console) -> None:
    """Measures, prints every result at once and writes them all.

    Args:
        benchmark: What is measured, within its ranges.
        console: Where to print.

    Raises:
        ValueError: There are no kernels.
    """
    missing = unavailable_because()
    if missing is not None:
        raise ValueError(f"there is nothing to measure: {missing}")
    print_head(console, load=load_average())
    run_bench(
        cases_of(benchmark),
        threads=benchmark.threads,
        rounds=benchmark.repeats,
        memory=benchmark.memory,
        out=benchmark.out,
        on_row=lambda row: print_row(row, console),
    )
    console.print(
        f"Wrote {benchmark.out} and {benchmark.out.with_suffix('.md')}.",
        highlight=False,
        soft_wrap=True,
    )


def cases_of(benchmark: Benchmark) -> list[Case]:
    """Every network at every sparsity.

    Args:
        benchmark: Which ones.

    Example:
        >>> [case.sparsity for case in cases_of(Benchmark(models=("vgg16",)))]
        [0.8, 0.9, 0.95, 0.98, 0.99]
    """
    return [
        Case(
            model=model,
            sparsity=sparsity,
            distribution=benchmark.distribution,
            width=benchmark.width,
            batch_size=benchmark.batch_size,
            engine=benchmark.engine,
        )
        for model in benchmark.models
        for sparsity in benchmark.sparsities
    ]
