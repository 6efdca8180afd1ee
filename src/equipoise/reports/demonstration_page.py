"""The demonstration of correction as a page, as Markdown and as JSON; nothing is fetched."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from equipoise.records import RunRecords, write_atomically
from equipoise.reports.demonstration import Demonstration
from equipoise.reports.demonstration_words import demonstration_table, page_tables, verdicts
from equipoise.reports.figures import figure_png
from equipoise.reports.tables import Table

PAGE = "demonstration.html"
_TITLE = "Does correction pay here?"
# Names of arms are never broken, and the tables stand apart.
_CSS = (
    'th[scope="row"] { white-space: nowrap; vertical-align: middle; }'
    "caption { padding-top: 1.5rem; }"
)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Under what it was measured.

    Args:
        command: That was given.
        settings: Those that all arms share, in one line.
        machine: In one line.
        facts: The same as JSON values.
        notes: Sentences that must be known, such as a data set that was missing.
        arms: What each arm is, by name.
    """

    command: str
    settings: str
    machine: str
    facts: Mapping[str, Any]
    notes: Sequence[str]
    arms: Mapping[str, str]


def write_demonstration(
    found: Demonstration,
    setting: Setting,
    runs: Mapping[str, Sequence[RunRecords]],
    folder: Path,
    *,
    probe: Mapping[str, Any] | None,
    pictured: bool,
) -> list[Path]:
    """Writes ``demonstration.json``, ``.md`` and, with a picture, ``.html``.

    Args:
        found: The measurements.
        setting: Under what they were made.
        runs: By arm; their curves are drawn.
        folder: Where the files go.
        probe: A diagnosis, kept in the JSON file.
        pictured: Whether to write the page, which needs the extra ``report``.

    Returns:
        The files, the page first.
    """
    page = folder / PAGE
    content = {
        "format": 1,
        "command": setting.command,
        "settings": setting.settings,
        **setting.facts,
        "notes": list(setting.notes),
        "arms": dict(setting.arms),
        "verdict": verdicts(found),
        "measured": asdict(found),
        "probe": None if probe is None else dict(probe),
    }
    written = [page.with_suffix(".json"), page.with_suffix(".md")]
    write_atomically(written[0], json.dumps(content, indent=2) + "\n")
    write_atomically(written[1], markdown(found, setting))
    if not pictured:
        return written
    picture = figure_png(runs, found.readings[0].member.name)
    write_atomically(page, page_html(found, setting, picture))
    return [page, *written]


def markdown(found: Demonstration, setting: Setting) -> str:
    """The verdict, the table and what the arms are."""
    table = demonstration_table(found)
    rows = [table.columns, ("---",) * len(table.columns), *table.rows]
    return "\n".join(
        [
            f"# {_TITLE}",
            "",
            f"`{setting.command}`: {setting.settings}; n = {len(found.seeds)} paired seeds. "
            f"{setting.machine}.",
            "",
            *(f"Note: {note}\n" for note in setting.notes),
            *(f"- {sentence}" for sentence in verdicts(found)),
            "",
            *("| " + " | ".join(row) + " |" for row in rows),
            "",
            *(f"{note}\n" for note in table.notes),
            *(f"- {name}: {what}" for name, what in setting.arms.items()),
            "",
        ]
    )


def page_html(found: Demonstration, setting: Setting, picture: bytes) -> str:
    """The page, with the curves of all arms in it."""
    css = files("equipoise.reports").joinpath("page.css").read_text(encoding="utf-8")
    tables = "".join(map(_table_html, page_tables(found)))
    warnings = "".join(f'<p class="warning">{escape(note)}</p>' for note in setting.notes)
    encoded = base64.b64encode(picture).decode("ascii")
    arms = "".join(f"<li>{escape(n)}: {escape(what)}</li>" for n, what in setting.arms.items())
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'; img-src data:\">"
        f"<title>{_TITLE}</title><style>{css}{_CSS}</style></head><body>"
        f'<header><h1>{_TITLE}</h1><p class="quiet"><code>{escape(setting.command)}</code>: '
        f"{escape(setting.settings)}; n = {len(found.seeds)} paired seeds. "
        f"{escape(setting.machine)}.</p>{warnings}</header><main>"
        f"<section><h2>Verdict</h2><ul>{_items(verdicts(found))}</ul></section>"
        f"<section><h2>Measured</h2>{tables}<ul>{arms}</ul></section>"
        f'<section><h2>Curves</h2><img alt="Test accuracy and training loss of all arms" '
        f'style="width: 100%" src="data:image/png;base64,{encoded}"></section>'
        '<p><a href="report.html">All arms pair by pair, with interactive curves</a></p>'
        "</main></body></html>\n"
    )


def _table_html(table: Table) -> str:
    """A table, every interval below its mean, and the notes below."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in table.columns)
    rows = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>'
        + "".join(f"<td>{escape(cell).replace(' [', '<br>[')}</td>" for cell in row[1:])
        + "</tr>"
        for row in table.rows
    )
    return (
        f'<div class="scroll"><table><caption>{escape(table.title)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
        + "".join(f'<p class="quiet">{escape(note)}</p>' for note in table.notes)
    )


def _items(sentences: Sequence[str]) -> str:
    """A list."""
    return "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
