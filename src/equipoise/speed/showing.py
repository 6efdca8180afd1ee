"""Plans and measurements in a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from equipoise.engine.convert import LayerChoice
from equipoise.engine.explain import Explanation
from equipoise.speed.bench import MemoryRow, Row, ScalingRow, StepRow
from equipoise.speed.plan import Plan
from equipoise.speed.results import sparsity_in_words, times_in_words

_IDLE = 0.5
_HEAD = (
    f"{'network':12} {'sparsity':>8} {'threads':>7} {'masks':>10} {'engine':>10}  "
    f"{'times as fast':20} {'by CPU time':20}"
)


def print_plan(plan: Plan, console: Console) -> None:
    """Prints the layers, the totals and the verdict.

    Args:
        plan: Made by `plan_run`.
        console: Where to print.
    """
    run, images = plan.run, plan.images
    guessed = " (a guess)" if images.guessed else ""
    _line(
        console,
        f"{run.network.model} for {run.data.dataset} ({images.channels} x {images.side} x "
        f"{images.side}, {images.classes} classes{guessed}), sparsity {run.sparse.sparsity:g} "
        f"({run.sparse.distribution if plan.budget is None else 'as bsr starts'}), batches of "
        f"{run.loop.batch_size}",
    )
    explained = plan.explanation
    if explained is not None and explained.layers:
        console.print(_layer_table(explained, run.loop.batch_size))
    else:
        console.print(_weight_table(plan))
    if plan.budget is not None:
        active, size = (sum(counts) for counts in zip(*_counts(plan), strict=True))
        _line(
            console,
            f"These densities are those of the start, {active:,} of {size:,} weights in all; every "
            f"step moves them, in every layer, and refills them to {plan.budget:,} in all; what is "
            "said here of speed and size moves with them.",
        )
    if explained is not None and explained.untraced is not None:
        _line(console, f"Layers are converted one by one: {explained.untraced}.")
    _line(
        console,
        f"Weights and optimizer state: {_size(plan.masked_bytes)} with masks, "
        f"{_size(plan.engine_bytes)} as it would be trained.",
    )
    _line(
        console,
        f"File that `equipoise export` writes: {_size(plan.file.bytes)}, "
        f"{100 * plan.file.share:.1f} % of the {_size(plan.file.dense_bytes)} of the dense file.",
    )
    _line(console, plan.verdict)


def print_head(console: Console, *, load: Sequence[float] | None) -> None:
    """Prints the names of the columns of `print_row`, and whether the machine is busy.

    Args:
        console: Where to print.
        load: Load averages, the last minute's first; None if they are not known.
    """
    if load and load[0] > _IDLE:
        _line(
            console,
            f"note: the load average is {load[0]:g}; on a busy machine ratios are not reliable, "
            "least of all with several threads.",
        )
    _line(console, _HEAD)


def print_row(row: Row, console: Console) -> None:
    """Prints one result of `run_bench`.

    Args:
        row: The result.
        console: Where to print.
    """
    name = f"{row.case.model:12} {sparsity_in_words(row.case.sparsity):>8}"
    if isinstance(row, StepRow):
        _line(console, f"{name} {row.threads:7d} {_step_in_words(row)}")
    elif isinstance(row, ScalingRow):
        few, many = row.threads
        _line(console, f"{name}   {many} threads against {few}: {times_in_words(row.times)}")
    else:
        _line(console, f"{name} {_memory_in_words(row)}")


def _step_in_words(row: StepRow) -> str:
    """Times and ratios, or why there are none."""
    wall, cpu = row.summary("wall"), row.summary("cpu")
    if wall is None or cpu is None:
        return f"not measured: {row.reason}"
    note = "" if row.reason is None else f"  engine not used: {row.reason}"
    return (
        f"{1e3 * wall.masked:7.1f} ms {1e3 * wall.engine:7.1f} ms  "
        f"{times_in_words(wall.times):20} {times_in_words(cpu.times):20}{note}"
    )


def _memory_in_words(row: MemoryRow) -> str:
    """The memory of one arm."""
    print_ = row.footprint
    return (
        f"  {row.kind}: weights {_size(print_.weights)}, optimizer {_size(print_.optimizer)}, "
        f"peak of a step {_size(print_.peak - print_.idle)}"
    )


def _counts(plan: Plan) -> list[tuple[int, int]]:
    """Active and all weights of every masked layer."""
    return [(layer.num_active, math.prod(layer.shape)) for layer in plan.weights]


def _layer_table(explained: Explanation, batch_size: int) -> Table:
    """One row a layer."""
    runner = "kernels" if explained.has_kernels else "CSR"
    table = _table(("layer", "weight", "density", "way", runner, "torch", "faster"), fold="way")
    for choice in explained.layers:
        kernels, torch = _times(choice, batch_size)
        table.add_row(
            choice.path,
            _shape(choice.shape),
            f"{100 * choice.density:.1f} %",
            explained.way(choice),
            kernels,
            torch,
            f"{explained.layer_gain(choice):.1f}",
        )
    engine, masks = _totals(explained)
    if engine > 0.0:
        times = (f"{1e3 * batch_size * each:.2f} ms" for each in (engine, masks))
        table.add_row("together", "", "", "", *times, f"{masks / engine:.1f}", style="bold")
    return table


def _totals(explained: Explanation) -> tuple[float, float]:
    """Seconds of all timed layers for a sample: as they are run, and all by torch."""
    timed = [(choice, choice.timed) for choice in explained.layers if choice.timed is not None]
    masks = sum(each.torch_seconds for _, each in timed)
    return sum(e.torch_seconds / explained.layer_gain(choice) for choice, e in timed), masks


def _weight_table(plan: Plan) -> Table:
    """One row a masked weight, where no layer was timed."""
    table = _table(("weight", "shape", "density"))
    for weight in plan.weights:
        table.add_row(weight.name, _shape(weight.shape), f"{100 * weight.density:.1f} %")
    return table


def _times(choice: LayerChoice, batch_size: int) -> tuple[str, str]:
    """Milliseconds of a batch, forward and backward."""
    if choice.timed is None:
        return "-", "-"
    both = (choice.timed.seconds, choice.timed.torch_seconds)
    kernels, torch = (f"{1e3 * batch_size * each:.2f} ms" for each in both)
    return kernels, torch


def _table(columns: Sequence[str], *, fold: str | None = None) -> Table:
    """A plain table, in which at most one column is folded."""
    table = Table(box=None, padding=(0, 1, 0, 0))
    for column in columns:
        number = column in ("density", "kernels", "CSR", "torch", "faster")
        table.add_column(column, no_wrap=column != fold, justify="right" if number else "left")
    return table


def _shape(shape: Sequence[int]) -> str:
    """For example 64x3x3x3."""
    return "x".join(map(str, shape))


def _size(number: int) -> str:
    """Bytes, in units of 1000."""
    return f"{number / 1e6:.1f} MB" if number >= 1e6 else f"{number / 1e3:.1f} kB"


def _line(console: Console, text: str) -> None:
    """One line, as it is."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)
