"""Copies of records for version control."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from equipoise.experiments.values import Scale
from equipoise.records import write_atomically
from equipoise.reproducing.tasks import Task, is_finished

_KEPT = (".json", ".jsonl")


def keep_records(tasks: Iterable[Task], scale: Scale, store: Path, target: Path) -> int:
    """Copies the records of finished runs, without weights and checkpoints.

    Args:
        tasks: Whose runs.
        scale: Their scale.
        store: Folder that they were trained in.
        target: Folder that gets them, by scale and run as in the store.

    Returns:
        Number of runs that were copied.
    """
    copied = 0
    for task in tasks:
        source = store / scale / task.name
        if not is_finished(source, task.run):
            continue
        copied += 1
        for path in sorted(source.iterdir()):
            if path.suffix in _KEPT:
                write_atomically(target / scale / task.name / path.name, path.read_bytes())
    return copied
