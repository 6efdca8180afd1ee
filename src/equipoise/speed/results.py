"""Measured results as Markdown, from the JSON that they are kept in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from equipoise.speed.machine import in_words

FORMAT: Final = 1
_CLOCKS = {"wall": "Wall time", "cpu": "CPU time of all threads"}


def markdown(results: Mapping[str, Any]) -> str:
    """Tables of everything that was measured.

    Args:
        results: What `run_bench` wrote.

    Raises:
        ValueError: It is of another format.
    """
    if results.get("format") != FORMAT:
        raise ValueError(
            f"the results are of format {results.get('format')!r}, expected {FORMAT}; measure them "
            "again with `equipoise bench`."
        )
    load = results["load"]
    parts = [
        f"{in_words(results['machine'])}; load average {_load(load['before'])} before and "
        f"{_load(load['after'])} after.",
        "How many times as fast a whole training step is with the engine as with masks on torch's "
        "dense tensors, in the better of torch's two memory formats: median of "
        f"{results['settings']['rounds']} rounds in turns [least, largest].",
    ]
    steps = results["steps"]
    for clock, title in _CLOCKS.items():
        parts.append(f"{title}:\n\n{_ratios(steps, clock)}")
    parts.append(f"Milliseconds a step, masks / engine, wall time:\n\n{_milliseconds(steps)}")
    notes = _notes(steps)
    if notes:
        parts.append(notes)
    if results["scaling"]:
        parts.append(f"More threads, engine, wall time:\n\n{_scaling(results['scaling'])}")
    if results["memory"]:
        parts.append(
            "Memory in MB; the peak is that of the process in a few steps, less what it held "
            f"before there was a network:\n\n{_memory(results['memory'])}"
        )
    return "\n\n".join(parts) + "\n"


def times_in_words(times: Sequence[float]) -> str:
    """A ratio with its range.

    Example:
        >>> times_in_words([3.26, 3.1, 12.4])
        '3.26 [3.10, 12.4]'
    """
    median, low, high = (f"{x:.2f}" if x < 10.0 else f"{x:.1f}" for x in times)
    return f"{median} [{low}, {high}]"


def sparsity_in_words(sparsity: float) -> str:
    """A sparsity in percent.

    Example:
        >>> sparsity_in_words(0.999)
        '99.9 %'
    """
    return f"{100 * sparsity:.4g} %"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table.

    Example:
        >>> print(table(["a", "b"], [["1", "2"]]))
        | a | b |
        |---|---|
        | 1 | 2 |
    """
    lines = [head, *rows]
    drawn = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([drawn[0], "|" + "---|" * len(head), *drawn[1:]])


def _ratios(steps: Sequence[Mapping[str, Any]], clock: str) -> str:
    """Networks and threads against sparsities."""
    return _grid(steps, lambda step: times_in_words(step[clock]["times"]) if step[clock] else "-")


def _milliseconds(steps: Sequence[Mapping[str, Any]]) -> str:
    """Absolute times, for whoever wants to check."""

    def cell(step: Mapping[str, Any]) -> str:
        found = step["wall"]
        return f"{1e3 * found['masked']:.1f} / {1e3 * found['engine']:.1f}" if found else "-"

    return _grid(steps, cell)


def _grid(steps: Sequence[Mapping[str, Any]], cell: Any) -> str:
    """One row a network and number of threads, one column a sparsity."""
    sparsities = sorted({step["case"]["sparsity"] for step in steps})
    rows: dict[tuple[str, int], dict[float, str]] = {}
    for step in steps:
        key = (network_in_words(step["case"]), step["threads"])
        rows.setdefault(key, {})[step["case"]["sparsity"]] = cell(step)
    return table(
        ["Network", "Threads", *map(sparsity_in_words, sparsities)],
        [
            [name, str(threads), *(cells.get(s, "") for s in sparsities)]
            for (name, threads), cells in sorted(rows.items(), key=lambda item: item[0][1])
        ],
    )


def network_in_words(case: Mapping[str, Any]) -> str:
    """A network with what is unusual about it.

    Example:
        >>> network_in_words({"model": "vgg16", "distribution": "erk", "width": 0.5,
        ...     "batch_size": 128, "engine": "auto"})
        'vgg16, width 0.5, batch 128, engine auto'
    """
    words = [case["model"]]
    if case["distribution"] != "erk":
        words.append(case["distribution"])
    if case["width"] != 1.0:
        words.append(f"width {case['width']:g}")
    words.append(f"batch {case['batch_size']}")
    if case["engine"] != "sparse":
        words.append(f"engine {case['engine']}")
    return ", ".join(words)


def _notes(steps: Sequence[Mapping[str, Any]]) -> str:
    """Where the engine was not used, and why."""
    return "\n".join(
        f"- {network_in_words(step['case'])}, {sparsity_in_words(step['case']['sparsity'])}, "
        f"{step['threads']} thread(s), engine not used: {step['reason']}{_chance(step)}"
        for step in steps
        if step["reason"] is not None
    )


def _chance(step: Mapping[str, Any]) -> str:
    """How far two measurements of the same network lie apart."""
    if not step["laps"]:
        return ""
    return f"; against the same network, {times_in_words(step['same_format'])}"


def _scaling(rows: Sequence[Mapping[str, Any]]) -> str:
    """One row a case."""
    return table(
        ["Network", "Sparsity", "Threads", "Times as fast"],
        [
            [
                network_in_words(row["case"]),
                sparsity_in_words(row["case"]["sparsity"]),
                f"{row['threads'][1]} against {row['threads'][0]}",
                times_in_words(row["times"]),
            ]
            for row in rows
        ],
    )


def _memory(rows: Sequence[Mapping[str, Any]]) -> str:
    """One row an arm."""
    names = ("weights", "optimizer", "masks")
    return table(
        ["Network", "Sparsity", "Arm", "Weights", "Optimizer", "Masks", "Peak of a step"],
        [
            [
                network_in_words(row["case"]),
                sparsity_in_words(row["case"]["sparsity"]),
                row["kind"],
                *(_megabytes(row["footprint"][name]) for name in names),
                _megabytes(row["footprint"]["peak"] - row["footprint"]["idle"]),
            ]
            for row in rows
        ],
    )


def _megabytes(number: int) -> str:
    """Bytes in millions."""
    return f"{number / 1e6:.1f}"


def _load(load: Sequence[float] | None) -> str:
    """The load of the last minute."""
    return "unknown" if not load else f"{load[0]:g}"
