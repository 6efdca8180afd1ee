"""The command line: train, compare, evaluate, attack, diagnose and more.

Torch is imported inside the commands only, so that help and mistakes are answered at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import tyro
from rich.console import Console

from equipoise.arguments import check_words, nearest
from equipoise.attacks.settings import Attacking, check_attacking
from equipoise.comparing import arms_of, comparison_folder
from equipoise.demos.settings import Demonstrating, check_demonstrating
from equipoise.notes import show_warnings_as_notes
from equipoise.options import (
    Analysing,
    Comparison,
    Diagnosing,
    Evaluation,
    Exporting,
    Output,
    Planning,
    Reporting,
    check_analysing,
)
from equipoise.pruning.settings import Pruning, pruning_run
from equipoise.recipes import expanded
from equipoise.reproducing.settings import Reproducing, check_reproducing
from equipoise.settings import DataSettings, ModelSettings, ObjectiveSettings, Run, setting_types
from equipoise.speed.settings import Benchmark, check_benchmark
from equipoise.validation import validate

if TYPE_CHECKING:
    from equipoise.training.observers import Observer

_USAGE = 2
_STOPPED = 130


def train(run: tyro.conf.OmitArgPrefixes[Run], output: tyro.conf.OmitArgPrefixes[Output]) -> int:
    """Train one network; run again to go on after a stop."""
    validate(run)
    from equipoise.analyses.along import measuring
    from equipoise.training.build import default_output
    from equipoise.training.loop import train as train_run
    from equipoise.training.observers import Bar
    from equipoise.training.signals import StopFlag

    console = Console()
    _set_threads(output.threads)
    folder = output.out or default_output(run)
    observers = (Bar(console, run.label), *_watching(folder, wanted=output.tensorboard))
    flag = StopFlag()
    flag.install()
    outcome = train_run(
        run,
        folder,
        dataset=_load_images(run, console),
        observers=(*observers, *measuring(output.measure, folder)),
        should_stop=flag,
        checkpoint_seconds=output.checkpoint_seconds,
        overwrite=output.overwrite,
    )
    if not outcome.finished:
        _say_stopped(console, folder, overwrite=output.overwrite)
        return _STOPPED
    last = outcome.records[-1]
    console.print(
        f"{run.label}: test accuracy {100 * last.test_accuracy:.2f} % after {last.epoch} epochs "
        f"({last.data_passes:.1f} passes over the data, {last.training_flops:.3g} FLOPs, "
        f"{last.training_seconds:.1f} s) at sparsity {last.sparsity:.4f}.",
        highlight=False,
        soft_wrap=True,
    )
    console.print(
        f"Saved in {folder}; `equipoise report {folder}` draws it.",
        highlight=False,
        soft_wrap=True,
    )
    return 0


def compare(
    run: tyro.conf.OmitArgPrefixes[Run], comparison: tyro.conf.OmitArgPrefixes[Comparison]
) -> int:
    """Train two or more arms on paired seeds and say which is better, at what cost."""
    arms = arms_of(comparison, run)
    seeds = range(run.loop.seed, run.loop.seed + comparison.num_seeds)
    from equipoise.training.arms import default_workers, plan, run_jobs, write_plan
    from equipoise.training.build import resolve_device

    console = Console()
    _set_threads(comparison.threads)
    resolve_device(run.loop.device)
    folder = comparison.out or comparison_folder(run, arms)
    _load_images(run, console)  # decoded once, here, where progress can be seen
    jobs = plan(arms, seeds, folder)
    write_plan(jobs, folder, baseline=arms[0].label)
    workers = comparison.workers or default_workers(jobs)
    console.print(
        f"Training {len(arms)} arms on {len(seeds)} seeds in {folder}, {workers} at a time.",
        highlight=False,
        soft_wrap=True,
    )
    finished = run_jobs(
        jobs,
        console,
        workers=workers,
        overwrite=comparison.overwrite,
        tensorboard=comparison.tensorboard,
    )
    if not finished:
        _say_stopped(console, folder, overwrite=comparison.overwrite)
        return _STOPPED
    return report(Reporting(runs=folder))


def hydra(
    data: tyro.conf.OmitArgPrefixes[DataSettings],
    network: tyro.conf.OmitArgPrefixes[ModelSettings],
    robust: tyro.conf.OmitArgPrefixes[ObjectiveSettings],
    pruning: tyro.conf.OmitArgPrefixes[Pruning],
) -> int:
    """Prune a trained network (HYDRA), to compare with: train, score the weights, train the rest.

    The same command goes on after a stop.
    """
    run = pruning_run(data, network, robust, pruning)
    from equipoise.pruning.commands import show_hydra

    console = Console()
    _set_threads(pruning.threads)

    folder, finished = show_hydra(run, pruning, console, _load_images, _watching)
    if finished:
        return 0
    _say_stopped(console, folder, overwrite=pruning.overwrite)
    return _STOPPED


def evaluate(evaluation: tyro.conf.OmitArgPrefixes[Evaluation]) -> int:
    """Evaluate the network of a run on its test images: equipoise evaluate FOLDER (or FILE)."""
    from equipoise.training.stored import evaluate_stored

    console = Console()
    result = evaluate_stored(
        evaluation.run,
        data_dir=evaluation.data_dir,
        device=evaluation.device,
        refresh_batchnorm=evaluation.refresh_batchnorm,
    )
    console.print(
        f"{evaluation.run}: test accuracy {100 * result.score.accuracy:.2f} %, "
        f"test loss {result.score.loss:.4f} on {result.samples} images; "
        f"{result.active_weights:,} of {result.maskable_weights:,} weights are non-zero "
        f"(sparsity {1 - result.active_weights / result.maskable_weights:.4f}).",
        highlight=False,
        soft_wrap=True,
    )
    return 0


def attack(attacking: tyro.conf.OmitArgPrefixes[Attacking]) -> int:
    """Attack a stored network, or any torch module, and write a card: equipoise attack FOLDER."""
    check_attacking(attacking)
    from rich.progress import Progress

    from equipoise.training.attacking import as_text, attack_network

    console = Console()
    _set_threads(attacking.threads)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("attacking", total=None)

        def show(done: int, robust: float) -> None:
            words = f"{done} images, {100 * robust:.1f} % robust"
            progress.update(task, description=words, completed=done)

        command = f"equipoise {' '.join(sys.argv[1:])}"
        path, card = attack_network(attacking, command=command, on_progress=show)
    console.print(as_text(card), end="", highlight=False, soft_wrap=True, markup=False)
    console.print(f"Wrote {path}", highlight=False, soft_wrap=True)
    return 0


def export(exporting: tyro.conf.OmitArgPrefixes[Exporting]) -> int:
    """Write the network of a run as one small file: equipoise export FOLDER."""
    from equipoise.training.stored import export_stored

    done = export_stored(exporting.run, out=exporting.out, overwrite=exporting.overwrite)
    Console().print(
        f"Wrote {done.path}: {_in_words(done.summary.bytes)}, {100 * done.summary.share:.1f} % "
        f"of the {_in_words(done.summary.dense_bytes)} of the dense file.",
        highlight=False,
        soft_wrap=True,
    )
    return 0


def report(reporting: tyro.conf.OmitArgPrefixes[Reporting]) -> int:
    """Write an HTML page and a PNG about runs: equipoise report FOLDER; or about the paper."""
    if reporting.paper:
        from equipoise.paper.commands import report_paper

        return report_paper(reporting, Console())
    from equipoise.reports import write_report
    from equipoise.showing import print_comparison

    console, folder = Console(), reporting.folder
    print_comparison(folder, console, baseline=reporting.baseline)
    output = reporting.out or folder / "report.html"
    for path in write_report(folder, output, baseline=reporting.baseline):
        console.print(f"Wrote {path}", highlight=False, soft_wrap=True)
    return 0


def plan_training(
    run: tyro.conf.OmitArgPrefixes[Run], planning: tyro.conf.OmitArgPrefixes[Planning]
) -> int:
    """Tell what training would gain from the engine on this machine: the options are train's.

    No data are read. Layers are timed once, up to 2 seconds each, and remembered. Where there is
    nothing to gain, or there are no kernels, it says so and ends with status 0 all the same.
    """
    validate(run)
    from equipoise.speed.commands import show_plan

    _set_threads(planning.threads)
    show_plan(run, Console())
    return 0


def diagnose(
    run: tyro.conf.OmitArgPrefixes[Run], diagnosing: tyro.conf.OmitArgPrefixes[Diagnosing]
) -> int:
    """Measure what gradient correction could do for a training: equipoise diagnose [FOLDER].

    Gradients of the same batches are compared while the network trains for up to an epoch. The
    folder of a run is only read.
    """
    validate(run)
    if diagnosing.warm_up < 0:
        raise ValueError(f"--warm-up is a number of epochs, at least 0; got {diagnosing.warm_up}.")
    from equipoise.diagnosing import show_diagnosis

    _set_threads(diagnosing.threads)
    show_diagnosis(
        run,
        Console(),
        folder=diagnosing.folder,
        warm_up=diagnosing.warm_up,
        batches=diagnosing.batches,
        out=diagnosing.out,
    )
    return 0


def analyse(analysing: tyro.conf.OmitArgPrefixes[Analysing]) -> int:
    """Measure gradients, times to an accuracy, or the theory: equipoise analyse WHAT [FOLDER]."""
    check_analysing(analysing)
    from equipoise.analysing import show_analysis

    _set_threads(analysing.threads)
    show_analysis(analysing, Console())
    return 0


def demo(demonstrating: tyro.conf.OmitArgPrefixes[Demonstrating]) -> int:
    """Show what correction is worth, with every control: equipoise demo correction.

    Trains small networks on paired seeds for some minutes, and says what follows from the numbers,
    whatever it is. The same command goes on after a stop.
    """
    check_demonstrating(demonstrating)
    from equipoise.demos.commands import show_correction

    console = Console()
    folder, finished = show_correction(demonstrating, console, _load_images)
    if finished:
        return 0
    _say_stopped(console, folder, overwrite=demonstrating.overwrite)
    return _STOPPED


def reproduce(reproducing: tyro.conf.OmitArgPrefixes[Reproducing]) -> int:
    """Train what tables and figures of the paper need, and tell what comes of it.

    Runs are shared between experiments. The same command goes on after a stop.
    """
    check_reproducing(reproducing)
    console = Console()
    if reproducing.list:
        from equipoise.reproducing.tables import print_status

        print_status(reproducing, console)
        return 0
    from equipoise.reproducing.commands import reproduce as reproduce_named

    if reproduce_named(reproducing, console, _load_images):
        return 0
    _say_stopped(console, reproducing.out, overwrite=reproducing.overwrite)
    return _STOPPED


def bench(benchmark: tyro.conf.OmitArgPrefixes[Benchmark]) -> int:
    """Time whole training steps with the engine against masks, in turns in one process."""
    check_benchmark(benchmark)
    from equipoise.speed.commands import show_bench

    show_bench(benchmark, Console())
    return 0


def list_everything() -> int:
    """List the models, data sets, topologies and correctors, and what is on this machine."""
    from equipoise.listing import print_lists

    print_lists(Console())
    return 0


_COMMANDS: dict[str, Callable[..., Any]] = {
    "train": train,
    "compare": compare,
    "hydra": hydra,
    "evaluate": evaluate,
    "attack": attack,
    "export": export,
    "report": report,
    "diagnose": diagnose,
    "analyse": analyse,
    "plan": plan_training,
    "bench": bench,
    "demo": demo,
    "reproduce": reproduce,
    "list": list_everything,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one command and exits with its status; a user's mistake gets one sentence."""
    words = list(sys.argv[1:] if argv is None else argv)
    show_warnings_as_notes()
    words = expanded(_named(words)) or ["--help"]
    try:
        _check(words)
        sys.exit(
            tyro.extras.subcommand_cli_from_dict(
                _COMMANDS,
                prog="equipoise",
                description="Train sparse neural networks from scratch, with corrected gradients "
                "and an honest account of cost.",
                args=words,
            )
        )
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        if os.environ.get("EQUIPOISE_TRACEBACK"):
            raise
        if isinstance(error, OSError) and error.strerror and error.filename:
            _complain(f"{error.filename}: {error.strerror}; check the path or choose another --out")
        _complain(str(error))
    except KeyboardInterrupt:
        _complain("interrupted; run the same command again", status=_STOPPED)


def _check(words: Sequence[str]) -> None:
    """Answers mistakes in the words before they reach the parser."""
    if not words or words[0] in ("-h", "--help") or words[0].startswith("--tyro"):
        return
    if words[0] == "--version":
        from equipoise import __version__

        Console().print(f"equipoise {__version__}", highlight=False)
        sys.exit(0)
    command = words[0]
    if command not in _COMMANDS:
        raise ValueError(
            f"{command!r} is not a command; equipoise has {', '.join(_COMMANDS)}"
            + nearest(command, _COMMANDS)
        )
    check_words(words[1:], _options(command), command, required=_required(command))


def _named(words: list[str]) -> list[str]:
    """`equipoise report FOLDER` means `equipoise report --runs FOLDER`."""
    takes = {"report": "--runs", "diagnose": "--folder", "demo": "--name", "reproduce": "--names"}
    takes |= dict.fromkeys(("evaluate", "attack", "export"), "--run")
    if words[:1] == ["analyse"] and len(words) > 1 and not words[1].startswith("-"):
        place = [] if len(words) < 3 or words[2].startswith("-") else ["--folder"]
        return ["analyse", "--what", words[1], *place, *words[2:]]
    folder = takes.get(words[0]) if words else None
    if folder is None or len(words) < 2 or words[1].startswith("-"):
        return words
    return [words[0], folder, *words[1:]]


def _required(command: str) -> list[str]:
    """Names of the options of a command that have no default."""
    kinds = [k for k in get_type_hints(_COMMANDS[command]).values() if is_dataclass(k)]
    return [
        field.name.replace("_", "-")
        for kind in kinds
        for field in fields(kind)
        if field.default is MISSING and field.default_factory is MISSING
    ]


def _options(command: str) -> dict[str, Any]:
    """Types of the options of a command, by name with dashes."""
    kinds: dict[str, Any] = {}
    for kind in get_type_hints(_COMMANDS[command]).values():
        if kind is Run:
            kinds |= setting_types()
        elif isinstance(kind, type) and kind is not int:
            kinds |= get_type_hints(kind)
    return {name.replace("_", "-"): kind for name, kind in kinds.items()}


def _load_images(run: Run, console: Console) -> Any:
    """Reads the data set; decoding or fetching it for the first time shows a bar."""
    from rich.progress import Progress

    from equipoise.training.build import load_images

    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(f"reading {run.data.dataset}", total=None, visible=False)

        def show(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total, visible=True)

        return load_images(run.data, show)


def _set_threads(threads: int | None) -> None:
    """Limits torch to so many processor threads."""
    if threads is None:
        return
    if threads < 1:
        raise ValueError(f"--threads is at least 1; got {threads}.")
    import torch

    torch.set_num_threads(threads)


def _in_words(num_bytes: int) -> str:
    """A size of a file, in units of 1000 as disks are sold."""
    return f"{num_bytes / 1e6:.1f} MB" if num_bytes >= 1e6 else f"{num_bytes / 1e3:.1f} kB"


def _say_stopped(console: Console, folder: Path, *, overwrite: bool) -> None:
    """How to go on after a stop."""
    command = "the same command, without --overwrite," if overwrite else "the same command"
    console.print(
        f"Stopped and saved in {folder}; run {command} again to go on.",
        highlight=False,
        soft_wrap=True,
    )


def _watching(folder: Path, *, wanted: bool) -> list[Observer]:
    """The TensorBoard writer if it is wanted, or one sentence on how to get it."""
    from equipoise.training.loop import TENSORBOARD
    from equipoise.training.observers import TensorBoard

    try:
        return [TensorBoard(folder / TENSORBOARD)] if wanted else []
    except ImportError:
        raise ImportError(
            "--tensorboard needs the package tensorboard, which is not installed; "
            'run `pip install "equipoise[tensorboard]"`, or leave the option out.'
        ) from None


def _complain(message: str, *, status: int = _USAGE) -> None:
    """Prints one sentence on standard error and exits."""
    Console(stderr=True).print(
        f"equipoise: {message}", style="red", highlight=False, soft_wrap=True, markup=False
    )
    sys.exit(status)
