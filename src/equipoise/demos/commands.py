"""The command `demo`, in a terminal."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from equipoise.demos.correction import CIFAR, DIGITS, Planned, base_run, jobs_of, planned_arms
from equipoise.demos.settings import Demonstrating
from equipoise.records import RunRecords, read_run, write_atomically
from equipoise.reports.demonstration import Demonstration, read_demonstration
from equipoise.reports.demonstration_page import Setting, write_demonstration
from equipoise.reports.demonstration_words import narrow_tables, verdicts
from equipoise.reports.extras import require
from equipoise.reports.manifests import is_mixed, mixed_engines
from equipoise.reports.reaching import end_of_first_rate
from equipoise.reports.report import write_report
from equipoise.settings import Run, changed_settings, with_setting
from equipoise.showing import print_table
from equipoise.speed.machine import describe_machine, in_words, load_average
from equipoise.training.arms import default_workers, run_jobs, write_plan
from equipoise.training.diagnosis import begun_session, diagnose
from equipoise.validation import validate

FOLDER = Path("runs/demo-correction")
PROBE = "probe.json"
_BATCHES = 24

Load = Callable[[Run, Console], Any]


def show_correction(chosen: Demonstrating, console: Console, load: Load) -> tuple[Path, bool]:
    """Trains all arms on paired seeds, prints what they say, and writes it.

    Args:
        chosen: The options, valid.
        console: Where to print.
        load: Reads the data of a run, with progress; raises FileNotFoundError without them.

    Returns:
        The folder, and whether it is finished; if not, everything is saved.

    Raises:
        ValueError: A setting is out of its range, or the folder holds other runs.
        RuntimeError: A training process died.
    """
    base, notes = _data(chosen, console, load)
    planned = planned_arms(base)
    folder = chosen.out or folder_of(base)
    jobs = jobs_of(planned, chosen.num_seeds, folder)
    write_plan(jobs, folder, baseline=planned[0].member.name)
    workers = chosen.workers or default_workers(jobs)
    console.print(
        f"Training {len(planned)} arms on {chosen.num_seeds} seeds in {folder}, {workers} at a "
        "time.",
        highlight=False,
        soft_wrap=True,
    )
    before = load_average()
    if not run_jobs(jobs, console, workers=workers, overwrite=chosen.overwrite):
        return folder, False
    runs: dict[str, list[RunRecords]] = {}
    for job in jobs:
        runs.setdefault(job.label, []).append(read_run(job.folder))
    plain = runs[planned[0].member.name]
    probe = probed(base, end_of_first_rate(plain[0].epochs).epoch, folder, console)
    found = read_demonstration([one.member for one in planned], runs, probe)
    engines = _on_engines(runs)
    machine = describe_machine()
    setting = Setting(
        command=command(chosen),
        settings=", ".join(f"{name} {value}" for name, value in changed_settings(base).items()),
        machine=f"{in_words(machine)}; {workers} runs at a time",
        facts={"machine": machine, "load": {"before": before, "after": load_average()}},
        notes=[*notes, *engines],
        arms={one.member.name: one.member.what for one in planned},
    )
    _say(found, planned, engines, console)
    _write(found, setting, runs, folder, probe, console)
    return folder, True


def folder_of(base: Run) -> Path:
    """Where the runs go; what is not the usual demonstration has a folder beside it."""
    usual = base_run(CIFAR, Demonstrating.sparsity, base.data.data_dir)
    if base == usual:
        return FOLDER
    return FOLDER.with_name(f"{FOLDER.name}-{base.data.dataset}-s{base.sparse.sparsity:g}")


def command(chosen: Demonstrating) -> str:
    """The command, without folders of the machine."""
    words = ["equipoise", "demo", chosen.name]
    for name in ("sparsity", "num_seeds", "workers"):
        if getattr(chosen, name) != getattr(Demonstrating, name):
            words += [f"--{name.replace('_', '-')}", f"{getattr(chosen, name):g}"]
    return shlex.join(words)


def probed(base: Run, phase: int, folder: Path, console: Console) -> dict[str, Any] | None:
    """Gradients of plain training compared in the last epoch of its first learning rate.

    Args:
        base: Plain training.
        phase: Epochs of that rate.
        folder: What was measured is kept there, and read if it is of the same settings.
        console: For a bar.

    Returns:
        Plain values of a diagnosis; None where an epoch has too few batches for one.
    """
    run = with_setting(base, "seed", 0)
    path, identity = folder / PROBE, f"{run.identity}-{phase}"
    if path.exists():
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept.get("identity") == identity:
            return dict(kept["found"])
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("comparing gradients", total=None)

        def moved() -> None:
            progress.advance(task)

        try:
            session = begun_session(run, phase - 1, moved)
            found = diagnose(session, num_batches=_BATCHES, on_step=moved).as_plain()
        except ValueError:
            return None  # fewer than four batches in an epoch
    write_atomically(path, json.dumps({"identity": identity, "found": found}, indent=2) + "\n")
    return found


def _data(chosen: Demonstrating, console: Console, load: Load) -> tuple[Run, list[str]]:
    """What all arms share, on CIFAR-10 or, without it, on what comes with a package."""
    base = base_run(CIFAR, chosen.sparsity, chosen.data_dir)
    validate(base)
    try:
        load(base, console)
    except FileNotFoundError:
        if chosen.data_dir is not None:
            raise  # whoever names a folder means it
        note = (
            "CIFAR-10 was not found, so this is shown on the digits of scikit-learn, which say "
            "little about images; `equipoise train --dataset cifar10 --download` fetches it."
        )
        console.print(note, highlight=False, soft_wrap=True)
        return base_run(DIGITS, chosen.sparsity, None), [note]
    return base, []


def _on_engines(runs: Mapping[str, Sequence[RunRecords]]) -> list[str]:
    """What to know of seconds, if a run that was gone on with here began without the engine."""
    mixed = mixed_engines(runs)
    if mixed is None:
        return []
    if any(map(is_mixed, runs.values())):
        mixed = f"{mixed.removesuffix('.')}; --overwrite trains all of them again."
    return [mixed]


def _say(
    found: Demonstration, planned: Sequence[Planned], notes: Sequence[str], console: Console
) -> None:
    """Tables, what must be known of them, and verdict."""
    for table in narrow_tables(found):
        print_table(table, console)
    for one in planned:
        text = f"{one.member.name}: {one.member.what}"
        console.print(text, style="dim", highlight=False, markup=False)
    console.print()
    for note in notes:
        console.print(f"Note: {note}", highlight=False, markup=False)
    for sentence in verdicts(found):
        console.print(f"- {sentence}", highlight=False, markup=False)
    console.print()


def _write(
    found: Demonstration,
    setting: Setting,
    runs: Mapping[str, Sequence[RunRecords]],
    folder: Path,
    probe: Mapping[str, Any] | None,
    console: Console,
) -> None:
    """The files; without the libraries that draw, those that need none."""
    missing = None
    try:
        require("jinja2", "bokeh", "matplotlib")
    except ImportError as error:
        missing = str(error)
    written = write_demonstration(
        found, setting, runs, folder, probe=probe, pictured=missing is None
    )
    if missing is None:
        written += write_report(folder, folder)
    for path in written:
        console.print(f"Wrote {path}", highlight=False, soft_wrap=True)
    if missing is not None:
        console.print(f"No page was written: {missing}.", highlight=False, soft_wrap=True)
