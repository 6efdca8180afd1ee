"""What a manifest says about its run: planned length, device, settings, and how arms differ."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from equipoise.records import RunRecords


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
