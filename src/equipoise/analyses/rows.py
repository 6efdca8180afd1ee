"""What an analysis writes down: one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from equipoise.records import write_atomically

CORRELATION = "gradient_correlation.jsonl"
NORMS = "gradient_norms.jsonl"
PERTURBED = "perturbed_gradients.jsonl"


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replaces the file by these rows, whole or not at all."""
    write_atomically(path, "".join(json.dumps(dict(row)) + "\n" for row in rows))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Reads what `write_rows` wrote; a missing file has no rows.

    Raises:
        ValueError: A line is not a JSON object.
    """
    if not path.exists():
        return []
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            row = error
        if not isinstance(row, dict):
            raise ValueError(
                f"{path}, line {number}, is not a JSON object; "
                "delete the file and measure again, or put it back."
            )
        rows.append(row)
    return rows
