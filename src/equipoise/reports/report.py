"""Writes the report of a folder of runs: a page and a picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from equipoise.records import COMPARISON, RunRecords, find_runs, write_atomically
from equipoise.reports.arms import baseline_first, group_by_label, summarize_arm
from equipoise.reports.extras import require
from equipoise.reports.figures import figure_png
from equipoise.reports.page import page_html

PAGE = "report.html"


def write_report(
    folder_or_runs: Path | str | Sequence[RunRecords],
    output: Path | str,
    *,
    baseline: str | None = None,
    confidence: float = 0.95,
) -> list[Path]:
    """Writes one HTML page and one PNG picture about a set of runs.

    The page holds its styles, scripts and data and fetches nothing. Both files are replaced in one
    step each; the runs are not changed.

    Args:
        folder_or_runs: A folder with runs at or below it, or runs that were read.
        output: A folder, for ``report.html`` and ``report.png`` in it, or the name of the page,
            ending in ``.html``; the picture is then named like it.
        baseline: Label of the arm that the others are compared with; None takes
            `default_baseline`.
        confidence: Coverage of the intervals, in (0, 1).

    Returns:
        The page and the picture.

    Raises:
        ValueError: There is no run, no such baseline, or two runs share label and seed.
        ImportError: The extra ``report`` is not installed.
    """
    require("jinja2", "bokeh", "matplotlib")
    folder = Path(folder_or_runs) if isinstance(folder_or_runs, (str, Path)) else None
    runs = list(find_runs(folder)) if folder is not None else _read_already(folder_or_runs)
    if not runs:
        place = "the list of runs is empty" if folder is None else f"{folder} holds no run"
        raise ValueError(f"{place}; pass a folder that a training wrote its runs to.")
    arms = group_by_label(runs)
    if baseline is None and len(arms) > 1:
        baseline = default_baseline(folder, runs)
    page = Path(output)
    if page.suffix != ".html":
        page = page / PAGE
    picture = page.with_suffix(".png")
    text = page_html(runs, baseline, confidence)
    image = figure_png(baseline_first(arms, baseline), baseline if len(arms) > 1 else None)
    write_atomically(page, text)
    write_atomically(picture, image)
    return [page, picture]


def default_baseline(folder: Path | None, runs: Sequence[RunRecords]) -> str:
    """The arm that the others are compared with where none is named.

    Args:
        folder: Where the runs were found; None if they were not found in a folder.
        runs: One or more runs.

    Returns:
        The label that ``comparison.json`` of the folder names, or else that of the arm with the
        fewest data passes per epoch, the first by name among equals.

    Raises:
        ValueError: ``comparison.json`` is there and names no baseline.
    """
    return _recorded_baseline(folder) or _cheapest(runs)


def _read_already(runs: Path | str | Sequence[RunRecords]) -> list[RunRecords]:
    """Runs as they were passed."""
    assert not isinstance(runs, (str, Path))
    return list(runs)


def _recorded_baseline(folder: Path | None) -> str | None:
    """Baseline named by the comparison that made the folder."""
    if folder is None or not (folder / COMPARISON).exists():
        return None
    try:
        found = json.loads((folder / COMPARISON).read_text(encoding="utf-8"))["baseline"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder / COMPARISON} names no baseline ({error!r}); "
            "pass baseline= or delete the file."
        ) from error
    return str(found)


def _cheapest(runs: Sequence[RunRecords]) -> str:
    """The arm with the fewest data passes per epoch, the first by name among equals."""
    summaries = [summarize_arm(arm) for arm in group_by_label(runs).values()]
    passes = {arm.label: arm.passes_per_epoch.mean for arm in summaries}
    started = {label: round(mean, 9) for label, mean in passes.items() if mean is not None}
    return min(started or dict.fromkeys(passes, 0.0), key=lambda label: (started.get(label), label))
