"""Whole training steps of the engine against masks on ordinary tensors, measured in turns."""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch

from equipoise.records import write_atomically
from equipoise.speed.laps import (
    Arm,
    Clock,
    Kind,
    Lap,
    Ratio,
    fastest,
    interleaved,
    process_clock,
    ratio,
    seconds,
)
from equipoise.speed.machine import describe_machine, load_average
from equipoise.speed.memory import Footprint, measure_footprint
from equipoise.speed.results import FORMAT, markdown
from equipoise.speed.steps import (
    KINDS,
    LINEAR,
    MASKED,
    ArmKind,
    Case,
    Training,
    build_training,
    num_sparse_layers,
)

Laps: TypeAlias = Mapping[str, Sequence[Lap]]


class Summary(NamedTuple):
    """One comparison by one clock.

    Args:
        opponent: The memory format in which masks were faster.
        masked: Median seconds of a step with it.
        engine: Median seconds of a step with the engine.
        times: How many times as fast the engine is.
    """

    opponent: str
    masked: float
    engine: float
    times: Ratio


@dataclass(frozen=True, kw_only=True)
class StepRow:
    """Steps of one case with one number of threads.

    Args:
        case: What was measured.
        threads: Processor threads.
        laps: Seconds a step in every round, by arm; empty if the engine cannot run the case.
        active_weights: Of the masked weights.
        weights: Masked weights, active or not.
        sparse_layers: Layers that the engine ran with their active weights only.
        reason: Why the engine was not used; None if it was.
    """

    case: Case
    threads: int
    laps: Laps
    active_weights: int
    weights: int
    sparse_layers: int
    reason: str | None

    def summary(self, kind: Kind) -> Summary | None:
        """The comparison by one clock; None without laps."""
        return summarize(self.laps, kind) if self.laps else None


@dataclass(frozen=True, kw_only=True)
class ScalingRow:
    """How much faster the engine is with more threads, on the wall."""

    case: Case
    threads: tuple[int, int]
    times: Ratio


@dataclass(frozen=True, kw_only=True)
class MemoryRow:
    """Memory of one arm of one case."""

    case: Case
    kind: ArmKind
    threads: int
    footprint: Footprint


Row: TypeAlias = StepRow | ScalingRow | MemoryRow


def run_bench(
    cases: Sequence[Case],
    *,
    threads: Sequence[int],
    rounds: int,
    out: Path,
    memory: bool = True,
    least_seconds: float = 0.2,
    on_row: Callable[[Row], object] = lambda _: None,
) -> dict[str, Any]:
    """Measures all cases and writes a JSON file, with a Markdown file beside it, as it goes.

    Args:
        cases: In this order.
        threads: Numbers of threads, measured in turns with everything else of a case.
        rounds: In which every arm has one lap.
        out: The JSON file; replaced after every case.
        memory: Whether to measure memory too, of every case with the last number of threads.
        least_seconds: Shorter steps are repeated until they fill a lap of this length.
        on_row: Told of every result.

    Returns:
        What the file holds.
    """
    results: dict[str, Any] = {
        "format": FORMAT,
        "machine": describe_machine(),
        "load": {"before": load_average(), "after": None},
        "settings": {"rounds": rounds, "threads": list(threads), "least_seconds": least_seconds},
        "steps": [],
        "scaling": [],
        "memory": [],
    }
    for case in cases:
        rows = measure_case(case, threads, rounds=rounds, least_seconds=least_seconds)
        scaled = scaling(rows)
        measured = list(_memory(case, threads[-1])) if memory and rows[-1].laps else []
        every: list[Row] = [*rows, *scaled, *measured]
        for row in every:
            on_row(row)
        results["steps"] += [_plain_step(row) for row in rows]
        results["scaling"] += [_plain(row) for row in scaled]
        results["memory"] += [_plain(row) for row in measured]
        results["load"]["after"] = load_average()
        write_atomically(out, json.dumps(results, indent=1) + "\n")
        write_atomically(out.with_suffix(".md"), markdown(results))
    return results


def measure_case(
    case: Case,
    threads: Sequence[int],
    *,
    rounds: int,
    warmup: int = 2,
    least_seconds: float = 0.0,
    clock: Clock = process_clock,
) -> list[StepRow]:
    """Steps with masks in both memory formats and with the engine, for all numbers of threads.

    Everything takes turns in this process. The engine has a network for every number of threads,
    because its fastest ways differ.

    Args:
        case: What is measured.
        threads: Numbers of processor threads.
        rounds: In which every arm has one lap.
        warmup: Steps of every arm before them.
        least_seconds: Shorter steps are repeated until they fill a lap of this length.
        clock: Tells the time.
    """
    before = torch.get_num_threads()
    engines: dict[int, Training] = {}
    laps: dict[tuple[str, int], list[Lap]] = {}
    refused = None
    try:
        masked = {kind: build_training(case, kind) for kind in _formats(case)}
        try:
            for count in threads:
                torch.set_num_threads(count)
                engines[count] = build_training(case, KINDS[-1])
        except ValueError as error:
            refused = str(error)
        else:
            arms: dict[tuple[str, int], Arm] = {
                (kind, count): Arm(made.step, partial(torch.set_num_threads, count))
                for count in threads
                for kind, made in (*masked.items(), (KINDS[-1], engines[count]))
            }
            laps = interleaved(
                arms, rounds=rounds, warmup=warmup, least_seconds=least_seconds, clock=clock
            )
    finally:
        torch.set_num_threads(before)
    topology = masked["masks"].topology
    return [
        StepRow(
            case=case,
            threads=count,
            laps={kind: found for (kind, n), found in laps.items() if n == count},
            active_weights=topology.num_active,
            weights=topology.num_weights,
            sparse_layers=0 if refused else num_sparse_layers(engines[count].network),
            reason=refused or engines[count].reason,
        )
        for count in threads
    ]


def summarize(laps: Laps, kind: Kind) -> Summary:
    """The engine against the better of the masked arms, round by round.

    Args:
        laps: Of one case and one number of threads.
        kind: Which time counts.

    Example:
        >>> laps = {"masks": [Lap(2.0, 2.0)], "engine": [Lap(0.5, 1.0)]}
        >>> summarize(laps, "wall").times.median
        4.0
    """
    opponent = fastest(laps, [name for name in MASKED if name in laps], kind)
    masked, engine = seconds(laps[opponent], kind), seconds(laps["engine"], kind)
    return Summary(
        opponent, statistics.median(masked), statistics.median(engine), ratio(masked, engine)
    )


def scaling(rows: Sequence[StepRow]) -> list[ScalingRow]:
    """Every two neighbouring numbers of threads against each other, for the engine.

    Args:
        rows: Of one case, as `measure_case` returns them.
    """
    return [
        ScalingRow(
            case=few.case,
            threads=(few.threads, many.threads),
            times=ratio(seconds(few.laps["engine"], "wall"), seconds(many.laps["engine"], "wall")),
        )
        for few, many in itertools.pairwise(rows)
        if few.laps and many.laps
    ]


def _memory(case: Case, threads: int) -> list[MemoryRow]:
    """Memory of the masked arms and of the engine."""
    return [
        MemoryRow(
            case=case,
            kind=kind,
            threads=threads,
            footprint=measure_footprint(case, kind, threads=threads),
        )
        for kind in (*_formats(case), KINDS[-1])
    ]


def _formats(case: Case) -> tuple[ArmKind, ...]:
    """The memory formats that a network can have; rows of features have one."""
    return MASKED[:1] if case.model == LINEAR else MASKED


def _plain(row: ScalingRow | MemoryRow) -> dict[str, Any]:
    """JSON values of a row."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(row)))
    return plain


def _plain_step(row: StepRow) -> dict[str, Any]:
    """The same, with what follows from the laps."""
    found: dict[str, Any] = asdict(replace(row, laps={}))
    found["laps"] = {name: [list(lap) for lap in laps] for name, laps in row.laps.items()}
    for kind in ("wall", "cpu"):
        summary = row.summary(kind)
        found[kind] = (
            None if summary is None else {**summary._asdict(), "times": list(summary.times)}
        )
    if row.laps:
        # Where the engine is not used this is the network itself, so it says how large chance is.
        both = (seconds(row.laps[name], "wall") for name in ("masks", "engine"))
        found["same_format"] = list(ratio(*both))
    return found
