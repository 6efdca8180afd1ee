"""What a manifest says about its run: planned length, device, settings, and how arms differ."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from equipoise.records import RunRecords
from equipoise.reports.numbers import listed


def settings(run: RunRecords) -> Mapping[str, Any]:
    """The settings of a run: the entry ``run`` of its manifest, or all of it without one."""
    found = run.manifest.get("run")
    return found if isinstance(found, Mapping) else run.manifest


def planned_epochs(run: RunRecords) -> int | None:
    """Number of epochs that the run was to have; None if its manifest does not say."""
    loop = settings(run).get("loop")
    places = [settings(run), *([loop] if isinstance(loop, Mapping) else [])]
    for place in places:
        value = place.get("epochs")
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return None


def is_unfinished(run: RunRecords) -> bool:
    """Whether a run has fewer completed epochs than planned."""
    planned = planned_epochs(run)
    completed = run.epochs[-1].epoch if run.epochs else 0
    return planned is not None and completed < planned


def device(run: RunRecords) -> str | None:
    """The device of a run in words; None if its manifest does not say."""
    value = run.manifest.get("device")
    if not isinstance(value, Mapping):
        return None if value is None else _words(value)
    words = [str(value[key]) for key in ("name", "type") if value.get(key)]
    threads = [f"{value['threads']} threads"] if value.get("threads") else []
    return ", ".join([*words, *threads]) or None


def engine(run: RunRecords) -> str:
    """What ran the layers that have masks, in words; masks where a manifest does not say.

    Example:
        >>> from pathlib import Path
        >>> used = {"engine": {"used": True, "instructions": "avx512"}}
        >>> engine(RunRecords(Path("a"), used, [])), engine(RunRecords(Path("b"), {}, []))
        ('the avx512 engine', 'masks')
    """
    found = run.manifest.get("engine")
    if not isinstance(found, Mapping) or not found.get("used"):
        return "masks"
    return f"the {found.get('instructions') or 'sparse'} engine"


def mixed_engines(arms: Mapping[str, Sequence[RunRecords]]) -> str | None:
    """What a reader of seconds must know where not all runs were trained by the same engine.

    Args:
        arms: Runs by arm.

    Returns:
        One sentence, with the seeds of an arm that is mixed itself; None where all are alike.

    Example:
        >>> from pathlib import Path
        >>> used = {"seed": 1, "engine": {"used": True, "instructions": "avx512"}}
        >>> runs = [RunRecords(Path("a"), {"seed": 0}, []), RunRecords(Path("b"), used, [])]
        >>> print(mixed_engines({"set": runs[:1], "rigl": runs}))
        Seconds compare engines as well as methods: masks ran set and rigl (seed 0), \
the avx512 engine ran rigl (seed 1).
    """
    users: dict[str, list[str]] = {}
    for label, runs in arms.items():
        seeds: dict[str, list[str]] = {}
        for run in runs:
            seeds.setdefault(engine(run), []).append(str(run.seed))
        for name, found in seeds.items():
            which = f" (seed {', '.join(found)})" if len(seeds) > 1 else ""
            users.setdefault(name, []).append(f"{label}{which}")
    if len(users) < 2:
        return None
    parts = [f"{name} ran {listed(labels)}" for name, labels in users.items()]
    return f"Seconds compare engines as well as methods: {', '.join(parts)}."


def is_mixed(runs: Sequence[RunRecords]) -> bool:
    """Whether runs of one arm were trained by different engines."""
    return len(set(map(engine, runs))) > 1


def setting_differences(runs: Iterable[RunRecords]) -> dict[str, dict[str, str]]:
    """Settings that are not the same in all arms.

    Args:
        runs: Runs of any number of arms; seeds and labels are not counted as settings.

    Returns:
        For each dotted name of a setting the value per label, ``-`` where an arm has none and
        values joined by ``|`` where its seeds disagree; empty when nothing differs.

    Example:
        >>> from pathlib import Path
        >>> plain = RunRecords(Path("a"), {"label": "a", "seed": 0, "run": {"c": 0}}, [])
        >>> other = RunRecords(Path("b"), {"label": "b", "seed": 0, "run": {"c": 1}}, [])
        >>> setting_differences([plain, other])
        {'c': {'a': '0', 'b': '1'}}
    """
    values: dict[str, dict[str, list[str]]] = {}
    labels: list[str] = []
    for run in runs:
        if run.label not in labels:
            labels.append(run.label)
        for name, value in _flatten(settings(run)):
            found = values.setdefault(name, {}).setdefault(run.label, [])
            if value not in found:
                found.append(value)
    table = {
        name: {label: " | ".join(by_label.get(label, ["-"])) for label in labels}
        for name, by_label in sorted(values.items())
        if name.split(".")[-1] not in {"label", "seed"}
    }
    return {name: row for name, row in table.items() if len(set(row.values())) > 1}


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Leaves of nested settings with dotted names, in order."""
    leaves: list[tuple[str, str]] = []
    for name, value in tree.items():
        if isinstance(value, Mapping):
            leaves += _flatten(value, f"{prefix}{name}.")
        else:
            leaves.append((f"{prefix}{name}", _words(value)))
    return leaves


def _words(value: object) -> str:
    """A value as a reader would write it: strings bare, the rest as JSON."""
    return value if isinstance(value, str) else json.dumps(value, default=str)
