"""Trains the arms of a comparison, one after another or side by side in processes."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from equipoise.arguments import Arm
from equipoise.data import Batch
from equipoise.notes import show_warnings_as_notes
from equipoise.records import COMPARISON, FORMAT, EpochRecord, write_atomically
from equipoise.settings import Run, with_setting
from equipoise.training.loop import CHECKPOINT, MODEL, TENSORBOARD, Outcome, train
from equipoise.training.observers import Observer, TensorBoard, shown_loss
from equipoise.training.progress import Work
from equipoise.training.session import Session
from equipoise.training.signals import StopFlag, held_back, let_through, listening
from equipoise.validation import engine_refusals

_POLL_SECONDS = 0.2
_FLAG = StopFlag()
_LINES: dict[str, Any] = {}
"""In a worker: the queue for its news, and the event by which it is asked to stop."""


def nobody(folder: Path) -> tuple[Observer, ...]:
    """No observers."""
    del folder
    return ()


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run, where it goes, and how much of all the work it is.

    Functions here are those of modules, or partial ones, since they travel to another process.

    Args:
        label: Name of the arm.
        run: The settings.
        folder: Its own.
        weight: Share of the work, against that of the other jobs.
        title: On screen, unique among the jobs; default: label and seed.
        again: Start again whatever is in the folder.
        watching: Makes further observers, in the process that trains.
        trainer: Takes what `train` takes.
    """

    label: str
    run: Run
    folder: Path
    weight: float = 1.0
    title: str | None = None
    again: bool = False
    watching: Callable[[Path], Sequence[Observer]] = field(default=nobody)
    trainer: Callable[..., Outcome] = field(default=train)

    @property
    def name(self) -> str:
        """Unique among the jobs of a comparison."""
        return self.title or f"{self.label}, seed {self.run.loop.seed}"


class News(NamedTuple):
    """What a run tells about itself: how far it is, in [0, 1], and how it goes."""

    name: str
    done: float
    state: str


def plan(arms: Sequence[Arm], seeds: Sequence[int], folder: Path) -> list[Job]:
    """All jobs, seed by seed, so that pairs are complete as early as possible.

    Raises:
        ValueError: Two arms would share a folder.
    """
    folders = [_folder_name(arm.label) for arm in arms]
    shared = [arm.label for arm, name in zip(arms, folders, strict=True) if folders.count(name) > 1]
    if shared:
        raise ValueError(
            f"the arms {' and '.join(shared)} would share one folder, since their names differ in "
            "signs only that a folder cannot have; give them names as in name:topology."
        )
    return [
        Job(
            label=arm.label,
            run=with_setting(arm.run, "seed", seed),
            folder=folder / _folder_name(arm.label) / f"seed{seed}",
        )
        for seed in seeds
        for arm in arms
    ]


def write_plan(jobs: Sequence[Job], folder: Path, baseline: str) -> None:
    """Writes which runs the comparison consists of, before they start."""
    content = {
        "format": FORMAT,
        "baseline": baseline,
        "arms": list(dict.fromkeys(job.label for job in jobs)),
        "seeds": sorted({job.run.loop.seed for job in jobs}),
        "runs": [str(job.folder.relative_to(folder)) for job in jobs],
    }
    write_atomically(folder / COMPARISON, json.dumps(content, indent=2) + "\n")


def default_workers(jobs: Sequence[Job]) -> int:
    """One process a core on CPU; one in all on an accelerator."""
    on_cpu = all(job.run.loop.device == "cpu" for job in jobs) or not torch.cuda.is_available()
    return min(len(jobs), os.cpu_count() or 1) if on_cpu else 1


def run_jobs(
    jobs: Sequence[Job],
    console: Console,
    *,
    workers: int,
    overwrite: bool = False,
    tensorboard: bool = False,
) -> bool:
    """Trains all jobs with progress on `console`; whether all are finished.

    What is finished already is not trained again; an interrupt saves every run in progress.

    Args:
        jobs: From `plan`.
        console: Where to show progress.
        workers: Processes, at least 1; each gets its share of the processor's threads.
        overwrite: Start every run again.
        tensorboard: Write event files too.

    Raises:
        ValueError: A setting is wrong, or a folder holds another run.
        FileNotFoundError: The data are not on this machine.
        RuntimeError: A process died.
    """
    threads = max(1, torch.get_num_threads() // workers)
    try:
        _decide_engine(jobs, threads, overwrite=overwrite)
    except KeyboardInterrupt:
        return False  # nothing has begun, so there is nothing to save
    board = _Board(console, jobs)
    context = multiprocessing.get_context("spawn")
    # A simple queue has no thread of its own, so a finished run has sent all that it had to say.
    news, stop = context.SimpleQueue(), context.Event()
    with (
        listening() as asked,
        board,
        ProcessPoolExecutor(workers, context, _prepare, (threads, news, stop)) as pool,
    ):
        with held_back():  # a process can stop politely once it is set up
            futures = [pool.submit(_work, job, overwrite, tensorboard) for job in jobs]
        try:
            board.follow(news, futures, asked, stop)
        except BrokenProcessPool as error:
            raise RuntimeError(
                "a training process died, perhaps for want of memory; what was saved is kept, "
                "so run the same command again with --workers 1."
            ) from error
        return all(not future.cancelled() and future.result() for future in futures)


def _decide_engine(jobs: Sequence[Job], threads: int, *, overwrite: bool) -> None:
    """Times the kernels once for all jobs alike, so that the arms of a pair decide alike.

    What is found is remembered on this machine; processes that timed them side by side would
    disturb each other.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        seen = set()
        for job in jobs:
            # Nothing else of a run changes what the kernels do.
            run, loop = job.run, job.run.loop
            masks = (run.sparse.sparsity, run.sparse.distribution)
            kind = (run.network, run.data, loop.batch_size, loop.engine, masks)
            begun = (job.folder / CHECKPOINT).exists() or (job.folder / MODEL).exists()
            kept = begun and not (overwrite or job.again)
            decided = kept or loop.engine == "dense" or engine_refusals(run)
            if not decided and kind not in seen:
                seen.add(kind)
                Session(run)
    finally:
        torch.set_num_threads(before)


def _prepare(threads: int, news: Any, stop: Any) -> None:
    """Sets up a worker process."""
    torch.set_num_threads(threads)
    show_warnings_as_notes()
    _LINES.update(news=news, stop=stop)
    _FLAG.install()
    let_through()


def _asked_to_stop() -> bool:
    """Whether this worker, or the process that began it, was asked to stop."""
    return _FLAG() or bool(_LINES["stop"].is_set())


def _work(job: Job, overwrite: bool, tensorboard: bool) -> bool:  # noqa: FBT001
    """Trains one job in a worker process."""
    if _asked_to_stop():
        return False
    observers: list[Observer] = [_Sender(job.name, _LINES["news"]), *job.watching(job.folder)]
    if tensorboard:
        observers.append(TensorBoard(job.folder / TENSORBOARD))
    outcome = job.trainer(
        job.run,
        job.folder,
        label=job.label,
        observers=tuple(observers),
        should_stop=_asked_to_stop,
        overwrite=overwrite or job.again,
    )
    if outcome.finished:
        _LINES["news"].put(News(job.name, 1.0, _summary(outcome.records[-1])))
    return outcome.finished


class _Sender:
    """An observer that sends news to the process that shows them."""

    def __init__(self, name: str, news: Any) -> None:
        self._name = name
        self._news = news
        self._accuracy = "  -  "
        self._sent = -1.0

    def start(self, session: Session) -> None:
        self._work = Work(session)
        self._send(session, force=True)

    def refreshed(self, session: Session, batch: Batch) -> None:
        self._work.refreshed(batch.size)
        self._send(session)

    def stepped(self, session: Session, samples: int) -> None:
        del samples
        self._work.stepped()
        self._send(session)

    def recorded(self, session: Session, record: EpochRecord) -> None:
        self._accuracy = f"{100 * record.test_accuracy:5.2f}"
        self._send(session, force=True)

    def stop(self) -> None:
        """Nothing to close."""

    def _send(self, session: Session, *, force: bool = False) -> None:
        """Sends the state at every half per cent of progress."""
        # 1 is said once, when the weights are stored.
        done = min(self._work.done(session) / self._work.total, 0.999)
        if not force and done - self._sent < 0.005:
            return
        self._sent = done
        epoch, epochs = session.epochs_before + session.epoch, session.epochs_in_all
        state = (
            f"epoch {min(epoch + 1, epochs)}/{epochs}  loss {shown_loss(session)}"
            f"  acc {self._accuracy} %  c {session.corrector.coefficient_value:.3f}"
        )
        self._news.put(News(self._name, done, state))


class _Board:
    """One bar for all, and one for every run in progress."""

    def __init__(self, console: Console, jobs: Sequence[Job]) -> None:
        self._console = console
        self._done = dict.fromkeys((job.name for job in jobs), 0.0)
        self._found: dict[str, float] = {}
        self._weights = {job.name: job.weight for job in jobs}
        self._tasks: dict[str, TaskID] = {}
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._all = self._progress.add_task(f"{len(jobs)} runs", total=1.0, state="", left="")

    def __enter__(self) -> _Board:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def follow(
        self, news: Any, futures: Sequence[Future[bool]], asked: StopFlag, stop: Any
    ) -> None:
        """Shows news until all futures are done; raises what a run raised."""
        while not all(future.done() for future in futures):
            if not news.empty():
                self._show(news.get())
                continue
            failed = any(f.done() and not f.cancelled() and f.exception() for f in futures)
            if (asked() or failed) and not stop.is_set():
                stop.set()
                for future in futures:
                    future.cancel()
                self._console.print("stopping after the current steps; everything is saved ...")
            time.sleep(_POLL_SECONDS)
        while not news.empty():
            self._show(news.get())
        for future in futures:
            if not future.cancelled():
                future.result()

    def _share(self, done: Mapping[str, float]) -> float:
        """Of all the work, in [0, 1]."""
        total = sum(self._weights.values())
        return sum(self._weights[name] * share for name, share in done.items()) / total

    def _show(self, item: News) -> None:
        """Moves the bars; prints a line at the end of a run."""
        self._done[item.name] = item.done
        # What an earlier, interrupted command has done took no time of this one.
        self._found.setdefault(item.name, item.done)
        overall, before = self._share(self._done), self._share(self._found)
        finished = sum(done >= 1.0 for done in self._done.values())
        left = time_left(self._progress.tasks[0].elapsed or 0.0, before, overall)
        self._progress.update(self._all, completed=overall, state=f"{finished} finished", left=left)
        if item.done >= 1.0:
            if item.name in self._tasks:
                self._progress.update(self._tasks.pop(item.name), visible=False)
            self._console.print(f"{item.name}: {item.state}", highlight=False, soft_wrap=True)
            return
        if item.name not in self._tasks:
            self._tasks[item.name] = self._progress.add_task(
                f"  {item.name}", total=1.0, state="", left=""
            )
        self._progress.update(self._tasks[item.name], completed=item.done, state=item.state)


def time_left(elapsed: float, before: float, now: float) -> str:
    """How long the rest takes at the pace so far.

    Args:
        elapsed: Seconds since the start.
        before: Share of the work that was done then, in [0, 1].
        now: Share that is done now.

    Returns:
        Minutes and seconds; nothing while there is no pace.

    Example:
        >>> time_left(60.0, 0.5, 0.75), time_left(0.0, 0.0, 0.0)
        ('1:00 left', '')
    """
    if not elapsed or now <= before:
        return ""
    seconds = elapsed * (1.0 - now) / (now - before)
    return f"{int(seconds // 60)}:{int(seconds % 60):02d} left"


def _summary(record: EpochRecord) -> str:
    """How a finished run ended."""
    return (
        f"test accuracy {100 * record.test_accuracy:.2f} %, train loss {record.train_loss:.4f}, "
        f"{record.data_passes:.1f} passes, {record.training_seconds:.1f} s"
    )


def _folder_name(label: str) -> str:
    """A label as a folder: readable, and never a path of its own."""
    kept = "".join(c if c.isalnum() or c in "+-_.=" else "_" for c in label)
    return kept.lstrip(".") or "arm"
