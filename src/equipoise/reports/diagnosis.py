"""A diagnosis as a page with a picture; nothing is fetched and no script runs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from equipoise.records import write_atomically

_WIDE, _HIGH, _LEFT, _TOP = 640, 320, 56, 16
_TITLE = "What could correction do here?"


def write_diagnosis(found: Mapping[str, Any], output: Path) -> list[Path]:
    """Writes a diagnosis as JSON and as a page.

    Args:
        found: Plain values of a diagnosis.
        output: The page, ending in ``.html``; the JSON file is named like it.

    Returns:
        The page and the JSON file.
    """
    written = output.with_suffix(".json")
    write_atomically(output, diagnosis_html(found))
    write_atomically(written, json.dumps(found, indent=2) + "\n")
    return [output, written]


def diagnosis_html(found: Mapping[str, Any]) -> str:
    """The page."""
    css = files("equipoise.reports").joinpath("page.css").read_text(encoding="utf-8")
    head = "".join(f'<th scope="col">{name}</th>' for name in COLUMNS)
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
        for row in diagnosis_rows(found)
    )
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in found["reasons"])
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'\">"
        f"<title>{_TITLE}</title><style>{css}</style></head><body>"
        f'<header><h1>{_TITLE}</h1><p class="quiet">{escape(subtitle(found))}</p></header><main>'
        f"<section><h2>{escape(recommendation(found))}</h2><ul>{reasons}</ul></section>"
        f"<section><h2>Variance that the best coefficient removes</h2>{_picture(found)}</section>"
        f"<section><h2>Measured</h2><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody>"
        "</table></section></main></body></html>\n"
    )


COLUMNS = (
    "Steps since",
    "Sum of rates",
    "Best coefficient",
    "Removable (%)",
    "Left by 0.1 of it (%)",
    "Variance",
    "Signal / variance",
)


def diagnosis_rows(found: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The measurements as strings, in the order of `COLUMNS`."""
    return [
        (
            str(at["age"]),
            f"{at['path']:.3g}",
            f"{at['best_coefficient']:.3f}",
            f"{100 * at['rho_squared']:.1f}",
            f"{100 * at['left_published']:.1f}",
            f"{at['variance']:.3g}",
            f"{at['signal'] / at['variance']:.3f}" if at["variance"] > 0.0 else "-",
        )
        for at in found["ages"]
    ]


def recommendation(found: Mapping[str, Any]) -> str:
    """One sentence."""
    if found["mode"] == "none":
        return "Recommended: no correction."
    return f"Recommended: {found['options']}"


def subtitle(found: Mapping[str, Any]) -> str:
    """On what it was measured."""
    return (
        f"{found['label']}, after {found['epoch']} epochs, learning rate "
        f"{found['learning_rate']:g}; {found['num_batches']} batches, "
        f"{found['steps_per_epoch']} steps an epoch."
    )


def _picture(found: Mapping[str, Any]) -> str:
    """Removable variance against age, with the lines above which each mode pays."""
    ages: Sequence[Mapping[str, Any]] = found["ages"]
    longest = max(1.0, math.log2(max(at["age"] for at in ages)))

    def x(age: float) -> float:
        return _LEFT + (_WIDE - _LEFT - 16) * math.log2(age) / longest

    def y(share: float) -> float:
        return _TOP + (_HIGH - 2 * _TOP - 24) * (1.0 - share)

    points = " ".join(f"{x(at['age']):.1f},{y(at['rho_squared']):.1f}" for at in ages)
    lines = ((1 - 1 / 1.05, "a table pays above"), (2 / 3, "a snapshot pays above"))
    parts = [
        f'<svg viewBox="0 0 {_WIDE} {_HIGH}" role="img" style="max-width: 46em; width: 100%" '
        'font-size="12" fill="currentColor"><title>Removable variance against age</title>',
        *(
            _rule(y(share), 'opacity="0.15"')
            + f'<text x="{_LEFT - 8}" y="{y(share) + 4:.1f}" text-anchor="end">{share:.0%}</text>'
            for share in (0.0, 0.25, 0.5, 0.75, 1.0)
        ),
        *(
            _rule(y(share), 'stroke-dasharray="5 4" opacity="0.6"')
            + f'<text x="{_WIDE - 20}" y="{y(share) - 4:.1f}" text-anchor="end">{name}</text>'
            for share, name in lines
        ),
        f'<polyline points="{points}" fill="none" stroke="#2a78d6" stroke-width="2"/>',
        *(
            f'<circle cx="{x(at["age"]):.1f}" cy="{y(at["rho_squared"]):.1f}" r="4" '
            f'fill="#2a78d6"><title>{at["age"]} steps: {at["rho_squared"]:.1%}</title></circle>'
            f'<text x="{x(at["age"]):.1f}" y="{_HIGH - 20}" text-anchor="middle">{at["age"]}</text>'
            for at in ages
        ),
        f'<text x="{_WIDE / 2}" y="{_HIGH - 4}" text-anchor="middle">steps since</text>',
    ]
    return "".join(parts) + "</svg>"


def _rule(height: float, style: str) -> str:
    """A horizontal line."""
    return (
        f'<line x1="{_LEFT}" x2="{_WIDE - 16}" y1="{height:.1f}" y2="{height:.1f}" '
        f'stroke="currentColor" {style}/>'
    )
