"""The command `diagnose`, in a terminal."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from equipoise.reports.diagnosis import (
    COLUMNS,
    diagnosis_rows,
    recommendation,
    subtitle,
    write_diagnosis,
)
from equipoise.settings import Run
from equipoise.training.diagnosis import begun_session, diagnose, session_of_folder

PAGE = "diagnosis.html"


def show_diagnosis(
    run: Run, console: Console, *, folder: Path | None, warm_up: int, batches: int, out: Path | None
) -> None:
    """Measures, prints what follows, and writes a page and a JSON file.

    Args:
        run: The settings, valid; of a folder only where its data are and the device.
        console: Where to print.
        folder: Of a run, or None to train with the settings first.
        warm_up: Epochs of that training.
        batches: To measure on.
        out: The page; default: in the folder, or here.

    Raises:
        ValueError: There is no run in the folder, or there are too few batches.
        FileNotFoundError: The data are not on this machine.
    """
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("comparing gradients", total=None)

        def moved() -> None:
            progress.advance(task)

        if folder is None:
            session = begun_session(run, warm_up, moved)
        else:
            session = session_of_folder(folder, data_dir=run.data.data_dir, device=run.loop.device)
        found = diagnose(session, num_batches=batches, on_step=moved).as_plain()
    table = Table(title=subtitle(found), title_justify="left", box=None, padding=(0, 2, 0, 0))
    for column in COLUMNS:
        table.add_column(column)
    for row in diagnosis_rows(found):
        table.add_row(*row)
    console.print(table)
    console.print()
    for reason in found["reasons"]:
        console.print(f"- {reason}", highlight=False, markup=False)
    console.print(recommendation(found), highlight=False, soft_wrap=True, markup=False)
    page = out or (Path(PAGE) if folder is None else folder / PAGE)
    for path in write_diagnosis(found, page if page.suffix == ".html" else page / PAGE):
        console.print(f"Wrote {path}", highlight=False, soft_wrap=True)
