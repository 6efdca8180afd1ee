"""Writes the page of the paper, a picture and a text for each table and figure, and the ledger."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from equipoise.experiments.values import Scale
from equipoise.paper.claims import CLAIMS, Claim
from equipoise.paper.evidence import Evidence, gather
from equipoise.paper.ledger import Entry, claims_markdown, counted, ledger
from equipoise.paper.page import page_html
from equipoise.paper.pictures import picture
from equipoise.paper.plots import panels_of
from equipoise.paper.tables import as_text, tables_of
from equipoise.records import write_atomically
from equipoise.reports.extras import require

PAGE = "paper.html"
TEXT = "tables.txt"
JUDGED: tuple[Scale, ...] = ("cpu", "paper")
"""Scales that say something about the method."""


def write_paper_report(
    evidence: Evidence, folder: Path, claims: Sequence[Claim] = CLAIMS
) -> tuple[list[Path], list[Entry]]:
    """Writes ``paper.html``, ``tables.txt`` and ``<name>.png`` for each table and figure.

    Args:
        evidence: What there is, from `gather`.
        folder: Where the files go; it is made.
        claims: Those of the ledger.

    Returns:
        The files, the page first, and the ledger.

    Raises:
        ImportError: The extra ``report`` is not installed.
    """
    require("jinja2", "bokeh", "matplotlib")
    entries = ledger(evidence, claims)
    page, text = folder / PAGE, folder / TEXT
    write_atomically(page, page_html(evidence, entries))
    write_atomically(text, tables_text(evidence))
    pictures = []
    for name, found in evidence.found.items():
        title = f"{name}, scale {evidence.scale}: {found.experiment.title}"
        path = folder / f"{name}.png"
        write_atomically(path, picture(panels_of(found), title))
        pictures.append(path)
    return [page, text, *pictures], entries


def tables_text(evidence: Evidence) -> str:
    """All tables in lines of at most 80 characters."""
    parts = []
    for name, found in evidence.found.items():
        parts.append(f"{name} at scale {evidence.scale}: {found.experiment.title}\n\n")
        parts += [as_text(table) + "\n" for table in tables_of(found)]
    return "".join(parts)


def write_claims(path: Path, seeds: Sequence[int], folders: Sequence[Path]) -> None:
    """Writes the ledger as Markdown, at every scale that there are records of.

    Args:
        path: File to write.
        seeds: Wanted of every cell.
        folders: That are looked into.
    """
    write_atomically(path, claims_text(seeds, folders))


def claims_text(seeds: Sequence[int], folders: Sequence[Path]) -> str:
    """The text of `write_claims`."""
    gathered = [gather(scale, seeds, folders) for scale in JUDGED]
    kept = [
        evidence
        for evidence in gathered
        if evidence.scale == JUDGED[0] or any(one.runs[0] for one in evidence.found.values())
    ]
    return claims_markdown([(evidence, ledger(evidence)) for evidence in kept])


def summary(entries: Sequence[Entry]) -> str:
    """The ledger in one line."""
    return (
        f"{sum(not entry.claim.ours for entry in entries)} claims of the paper: {counted(entries)}"
    )
