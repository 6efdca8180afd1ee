"""`equipoise report --paper`: what it writes and says."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from rich.console import Console

from equipoise.experiments.store import KEPT
from equipoise.experiments.values import Scale
from equipoise.paper.evidence import gather
from equipoise.paper.report import summary, write_claims, write_paper_report


class Chosen(Protocol):
    """The options that count here."""

    @property
    def runs(self) -> Path | None:
        """Of another report; not allowed."""

    @property
    def baseline(self) -> str | None:
        """Of another report; not allowed."""

    @property
    def scale(self) -> Scale:
        """Of the runs."""

    @property
    def store(self) -> Path:
        """Folder of the runs; what is not there is looked for among the kept records."""

    @property
    def num_seeds(self) -> int:
        """Seeds wanted of every cell, from 0 on."""

    @property
    def out(self) -> Path | None:
        """Folder to write to; runs/paper-report-SCALE by default."""

    @property
    def claims(self) -> Path | None:
        """Markdown file for the ledger at all scales; None for none."""


def report_paper(chosen: Chosen, console: Console) -> int:
    """Writes page, pictures, tables and ledger, and prints where.

    Args:
        chosen: The options.
        console: Where to print.

    Returns:
        The exit status, 0.

    Raises:
        ValueError: One sentence on the first option that is wrong.
    """
    folder = _checked(chosen)
    folders, seeds = (chosen.store, KEPT), range(chosen.num_seeds)
    written, entries = write_paper_report(gather(chosen.scale, seeds, folders), folder)
    _say(console, f"Scale {chosen.scale}, {summary(entries)}.")
    page, text, *pictures = written
    _say(console, f"Wrote {page}")
    _say(console, f"Wrote {text}")
    _say(console, f"Wrote {len(pictures)} pictures beside it")
    if chosen.claims is not None:
        write_claims(chosen.claims, seeds, folders)
        _say(console, f"Wrote {chosen.claims}")
    return 0


def _checked(chosen: Chosen) -> Path:
    """The folder to write to, after all options were looked at."""
    if chosen.runs is not None or chosen.baseline is not None:
        raise ValueError(
            "--paper reads the runs of `equipoise reproduce`, and takes no folder and no "
            "--baseline; pass --store FOLDER if they lie elsewhere."
        )
    if chosen.num_seeds < 1:
        raise ValueError(f"--num-seeds is at least 1; got {chosen.num_seeds}; 3 is usual.")
    folder = chosen.out or Path("runs") / f"paper-report-{chosen.scale}"
    if folder.suffix == ".html" or folder.is_file():
        raise ValueError(f"--paper writes many files; got --out {folder}; pass a folder.")
    return folder


def _say(console: Console, words: str) -> None:
    console.print(words, highlight=False, soft_wrap=True, markup=False)
