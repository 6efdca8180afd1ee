"""One self-contained page about a set of runs: verdicts first, then curves, tables and settings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from equipoise.records import RunRecords
from equipoise.reports.arms import baseline_first, group_by_label, summarize_arm
from equipoise.reports.comparison import ArmComparison, Comparison, compare_runs
from equipoise.reports.corrections import correction_tables
from equipoise.reports.curves import part_seconds, x_axes, y_axes
from equipoise.reports.extras import require
from equipoise.reports.glossary import GLOSSARY
from equipoise.reports.interactive import plot_item, script
from equipoise.reports.manifests import is_unfinished, planned_epochs, setting_differences
from equipoise.reports.numbers import effect
from equipoise.reports.palette import PARTS, arm_dash, color_arms
from equipoise.reports.tables import Table, arms_table, comparison_table
from equipoise.reports.wording import EQUAL, caveats, verdict_sentence

_DASH_ARRAYS = {"solid": "none", "dashed": "8 5", "dotdash": "9 4 2 4", "dotted": "2 4"}


def page_html(runs: Sequence[RunRecords], baseline: str | None, confidence: float = 0.95) -> str:
    """Renders the page.

    The page fetches nothing and forbids itself to: its styles, scripts and data are inside it.
    Everything that comes from records is escaped.

    Args:
        runs: One or more runs, of one or more arms; not changed.
        baseline: Label of the baseline; with a single arm it has no effect and may be None.
        confidence: Coverage of the intervals, in (0, 1).

    Returns:
        The text of an HTML file.

    Raises:
        ImportError: The extra ``report`` is not installed.
        ValueError: There is no run or no such baseline, or two runs share label and seed.
    """
    require("jinja2", "bokeh")
    import jinja2

    folder = files("equipoise.reports")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    # BokehJS reads references in the order in which they were written.
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}
    template = environment.from_string(folder.joinpath("page.html").read_text(encoding="utf-8"))
    arms = baseline_first(group_by_label(runs), baseline)
    comparison = None
    if len(arms) > 1 and baseline is not None:
        comparison = compare_runs(runs, baseline, confidence=confidence)
    text = template.render(
        css=folder.joinpath("page.css").read_text(encoding="utf-8"),
        script=folder.joinpath("page.js").read_text(encoding="utf-8"),
        **_header(arms, comparison),
        **_comparison_parts(comparison),
        **_curve_parts(arms, comparison),
        arms_table=arms_table(summarize_arm(arm) for arm in arms.values()),
        corrections=correction_tables(arms),
        costs=_costs(arms),
        settings=_settings(arms),
        runs=[_run(run) for arm in arms.values() for run in arm],
        glossary=GLOSSARY,
    )
    return text + "\n"


def _header(
    arms: Mapping[str, Sequence[RunRecords]], comparison: Comparison | None
) -> dict[str, Any]:
    """Title, what was read, and what is unfinished."""
    labels = list(arms)
    num_runs = sum(len(arm) for arm in arms.values())
    counts = [_count(len(labels), "arm"), _count(num_runs, "run")]
    title = labels[0] if len(labels) == 1 else counts[0]
    if comparison is not None:
        others = labels[1] if len(labels) == 2 else _count(len(labels) - 1, "arm")
        title = f"{others} against {comparison.baseline}"
        counts += [f"baseline {comparison.baseline}", f"{100 * comparison.confidence:g}% intervals"]
    else:
        counts.append("no baseline to compare with")
    runs = [run for arm in arms.values() for run in arm]
    num_empty = sum(not run.epochs for run in runs)
    num_unfinished = sum(bool(run.epochs) and is_unfinished(run) for run in runs)
    warnings = []
    if num_unfinished:
        warnings.append(
            f"Unfinished: {num_unfinished} of {_count(num_runs, 'run')}. "
            "The numbers are those of the last completed epoch."
        )
    if num_empty:
        warnings.append(
            f"Without a completed epoch: {num_empty} of {_count(num_runs, 'run')}, left out."
        )
    if comparison is not None and comparison.engines is not None:
        warnings.append(comparison.engines)
    return {
        "title": title,
        "subtitle": f"Equipoise report: {', '.join(counts)}.",
        "warnings": warnings,
    }


def _comparison_parts(comparison: Comparison | None) -> dict[str, Any]:
    """Verdict cards and the table of differences."""
    if comparison is None:
        return {"cards": [], "differences": None, "ranges": []}
    table = comparison_table(comparison)
    return {
        "cards": [_card(arm) for arm in comparison.against],
        "differences": table,
        "ranges": list(zip(table.rows, _ranges(comparison), strict=True)),
    }


def _card(arm: ArmComparison) -> dict[str, Any]:
    """One arm: sentence, three answers, caveats."""
    answers = []
    for matched in arm.matchings if arm.seeds else ():
        accuracy = matched.differences[0]
        shown = effect(accuracy.interval, scale=100.0, decimals=1, unit=" points")
        missing = accuracy.interval.mean is None
        answers.append(
            {
                "at": EQUAL[matched.cost],
                "verdict": "missing" if missing else accuracy.verdict.value.capitalize(),
                "kind": accuracy.verdict.value.replace(" ", "-"),
                "effect": "no pair within the budget" if missing else shown,
            }
        )
    return {
        "sentence": verdict_sentence(arm),
        "answers": answers,
        "caveats": caveats(arm),
    }


def _ranges(comparison: Comparison) -> list[dict[str, Any] | None]:
    """Intervals of test accuracy as percentages of a width with zero in the middle."""
    found = [matched.differences[0] for arm in comparison.against for matched in arm.matchings]
    ends = [
        abs(end)
        for difference in found
        for end in (difference.interval.low, difference.interval.high, difference.interval.mean)
        if end is not None
    ]
    extent = max(ends, default=0.0) or 1.0

    def place(value: float) -> float:
        return round(50.0 + 48.0 * value / extent, 2)

    ranges: list[dict[str, Any] | None] = []
    for difference in found:
        interval = difference.interval
        if interval.mean is None:
            ranges.append(None)
            continue
        low = place(interval.mean if interval.low is None else interval.low)
        high = place(interval.mean if interval.high is None else interval.high)
        kind = difference.verdict.value.replace(" ", "-")
        ranges.append(
            {"left": low, "width": high - low, "mean": place(interval.mean), "kind": kind}
        )
    return ranges


def _curve_parts(
    arms: Mapping[str, Sequence[RunRecords]], comparison: Comparison | None
) -> dict[str, Any]:
    """The plot, its choices and its data; nothing when no run has a record."""
    runs = [run for arm in arms.values() for run in arm]
    if not any(run.epochs for run in runs):
        return {"item": None}
    colors = color_arms(list(arms), None if comparison is None else comparison.baseline)
    item = plot_item(arms, {label: light for label, (light, _) in colors.items()})
    return {
        "item": True,
        "x_axes": x_axes(runs),
        "y_axes": y_axes(runs),
        "arms": [
            {"label": label, "light": light, "dark": dark, "dash": _DASH_ARRAYS[arm_dash(place)]}
            for place, (label, (light, dark)) in enumerate(colors.items())
        ],
        "data": {
            "item": item,
            "x": {axis.name: axis.title for axis in x_axes(runs)},
            "y": {axis.name: axis.title for axis in y_axes(runs)},
            "colors": {
                "light": [light for light, _ in colors.values()],
                "dark": [dark for _, dark in colors.values()],
            },
        },
        "many_seeds": any(len(arm) > 1 for arm in arms.values()),
        "bokeh": script(),
    }


def _costs(arms: Mapping[str, Sequence[RunRecords]]) -> list[dict[str, Any]]:
    """Seconds per epoch by part; bars are drawn to one scale."""
    found = {label: parts for label, arm in arms.items() if (parts := part_seconds(arm))}
    longest = max((sum(parts.values()) for parts in found.values()), default=0.0)
    rows = []
    for label, parts in found.items():
        total = sum(parts.values())
        rows.append(
            {
                "label": label,
                "total": _seconds(total),
                "width": round(100 * total / longest, 2) if longest else 0.0,
                "parts": [
                    {
                        "name": name,
                        "color": color,
                        "seconds": _seconds(parts[field]),
                        "share": round(100 * parts[field] / total, 2) if total else 0.0,
                    }
                    for field, name, color in PARTS
                    if parts[field] or field != "attack_seconds"  # most runs know no attacks
                ],
            }
        )
    return rows


def _seconds(value: float) -> str:
    """Seconds in three digits, without powers of ten."""
    if 0.0 < value < 0.001:
        return "<0.001"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _settings(arms: Mapping[str, Sequence[RunRecords]]) -> Table | None:
    """Settings that are not the same in all arms."""
    found = setting_differences([run for arm in arms.values() for run in arm])
    if not found:
        return None
    return Table(
        title="Settings that are not the same in all arms",
        columns=("Setting", *arms),
        rows=tuple((name, *row.values()) for name, row in found.items()),
    )


def _run(run: RunRecords) -> dict[str, str]:
    """One run with its manifest."""
    completed, planned = (run.epochs[-1].epoch if run.epochs else 0), planned_epochs(run)
    progress = _count(completed, "epoch")
    if is_unfinished(run):
        progress = f"unfinished: {completed} of {planned} epochs"
    return {
        "title": f"{run.label}, seed {run.seed} ({progress})",
        "folder": str(run.folder),
        "manifest": json.dumps(run.manifest, indent=2, ensure_ascii=False, default=str),
    }


def _count(number: int, word: str) -> str:
    """A number with its word, in the plural where it needs it."""
    return f"{number} {word}" + ("" if number == 1 else "s")
