"""Those who watch a run show it and change nothing."""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Iterator
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from queue import Queue
from typing import Any

import pytest
import torch
from rich.console import Console

from equipoise.records import RECORDS, read_records
from equipoise.settings import CorrectionSettings
from equipoise.training.arms import _Sender
from equipoise.training.loop import train
from equipoise.training.observers import Bar, TensorBoard
from equipoise.training.refreshing import RefreshSchedule
from equipoise.training.signals import StopFlag

toy = import_module("tests.unit.training.toy")


def console(*, terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=200)


def text(shown: Console) -> str:
    file: Any = shown.file
    return str(file.getvalue())


def trained(
    folder: Path, *observers: Any, stop: int = 99, overwrite: bool = False, **changes: Any
) -> Any:
    left = iter(range(stop - 1))
    run = toy.make_run(**changes)
    return train(
        run,
        folder,
        dataset=toy.images(),
        observers=observers,
        should_stop=lambda: next(left, None) is None,
        overwrite=overwrite,
    )


def test_one_line_an_epoch_where_there_is_no_terminal(tmp_path: Path) -> None:
    shown = console(terminal=False)
    trained(tmp_path, Bar(shown, "name"), corrector="agent")
    lines = text(shown).splitlines()
    records = read_records(tmp_path / RECORDS)
    assert len(lines) == 3
    for line, record in zip(lines, records, strict=True):
        assert line.startswith(f"name: epoch {record.epoch}/3, train loss {record.train_loss:.4f}")
        assert f"{100 * record.test_accuracy:.2f} %" in line
        assert f"{record.data_passes:.2f} passes" in line


@pytest.mark.parametrize("corrector", ["none", "agent", "svrg"])
@pytest.mark.parametrize("stop", [99, 3, 5])
def test_the_bar_ends_full_also_after_a_stop(corrector: str, stop: int, tmp_path: Path) -> None:
    trained(tmp_path, stop=stop, corrector=corrector)
    shown = console(terminal=True)
    bar = Bar(shown, "name")
    if stop == 99:
        tmp_path = tmp_path / "again"
    trained(tmp_path, bar, corrector=corrector)
    task = bar._progress.tasks[0]
    # A step makes a second pass, a refresh one, and the estimate of AGENT a third of one.
    passes = {"none": 1, "agent": 2 + 4 / 3, "svrg": 3}[corrector]
    assert task.completed == task.total == pytest.approx(3 * 72 * passes)
    assert "name" in text(shown)


SCHEDULES = [
    {"corrector": "none"},
    {"corrector": "agent"},
    {"corrector": "svrg"},
    {"corrector": "alpha_svrg"},
    {"corrector": "table"},
    {"corrector": "agent_mvr_oracle"},
    {"corrector": "age", "gate": True},
    {"corrector": "svrg", "refresh_every": 2},
    {"corrector": "svrg", "refresh_steps": 2},
    {"corrector": "svrg", "refresh_steps": 7, "refresh_samples": 20},
    {"corrector": "svrg", "refresh_chance": 0.4},
    {"corrector": "svrg", "correction_mode": "cached", "accumulate": 2},
]


@pytest.mark.parametrize("stop", [99, 4])
@pytest.mark.parametrize("changes", SCHEDULES, ids=lambda c: "-".join(map(str, c.values())))
def test_the_bars_never_go_back_or_beyond_their_end(
    changes: dict[str, Any], stop: int, tmp_path: Path
) -> None:
    """Of one run and of several; by shares that are those of the passes that are made."""
    if stop < 99:
        trained(tmp_path, stop=stop, **changes)
    bar, news = Bar(console(terminal=True), "name"), Queue[Any]()
    seen: list[float] = []

    class Looker(toy.Watcher):  # type: ignore[name-defined]
        def refreshed(self, session: Any, batch: Any) -> None:
            seen.append(bar._progress.tasks[0].completed)

        def stepped(self, session: Any, samples: int) -> None:
            seen.append(bar._progress.tasks[0].completed)

    trained(tmp_path, bar, _Sender("name", news), Looker(), **changes)
    task = bar._progress.tasks[0]
    assert seen == sorted(seen)
    assert seen[-1] <= task.completed == task.total
    steps = [b - a for a, b in pairwise(seen)]
    # A whole refresh that makes no pass, and the batch beside it, at the very most.
    assert max(steps) < (task.total or 0) / 3
    sent = [news.get().done for _ in range(news.qsize())]
    assert sent == sorted(sent)
    assert sent[-1] == 0.999


@pytest.mark.parametrize(
    "changes",
    [{"refresh_every": 2}, {"refresh_steps": 3}, {"refresh_steps": 7}, {"refresh_chance": 0.3}],
)
def test_refreshes_are_counted_where_they_are_due(changes: dict[str, Any]) -> None:
    settings = CorrectionSettings(**changes)
    schedule = RefreshSchedule(settings, steps_per_epoch=5, epochs=4, seed=3)
    due = [schedule.due(step) for step in range(20)]
    assert [schedule.before(step) for step in range(21)] == [sum(due[:step]) for step in range(21)]
    assert schedule.count == sum(due)


def test_watching_changes_nothing(tmp_path: Path) -> None:
    plain = trained(tmp_path / "plain", corrector="agent")
    watched = trained(tmp_path / "watched", Bar(console(terminal=True), "x"), corrector="agent")
    assert list(map(toy.without_time, plain.records)) == list(
        map(toy.without_time, watched.records)
    )
    states = [toy.stored_state(tmp_path / name) for name in ("plain", "watched")]
    assert toy.differences(*states) == []


def test_a_bar_that_was_never_started_can_be_stopped() -> None:
    Bar(console(terminal=True), "name").stop()


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_event_files_hold_every_record_once(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    for stop in (8, 99):
        trained(tmp_path, TensorBoard(tmp_path / "events"), stop=stop, corrector="agent")
    records = read_records(tmp_path / RECORDS)
    for name in ("test_accuracy", "data_passes", "coefficient"):
        expected = [(r.step, pytest.approx(getattr(r, name), rel=1e-6)) for r in records]
        assert scalars(tmp_path / "events", name) == expected
    assert [step for step, _ in scalars(tmp_path / "events", "coefficient_estimate")] == [10, 15]

    trained(tmp_path, TensorBoard(tmp_path / "events"), overwrite=True, epochs=2)
    assert scalars(tmp_path / "events", "data_passes") == [(5, 1.0), (10, 2.0)]


@pytest.fixture
def handlers() -> Iterator[None]:
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_request_is_remembered_and_the_second_is_final(
    number: signal.Signals, handlers: None
) -> None:
    flag = StopFlag()
    os.kill(os.getpid(), signal.SIGURG)  # nothing is installed yet, and this one is harmless
    assert not flag()
    flag.install()
    assert not flag()
    os.kill(os.getpid(), number)
    assert flag()
    assert flag()
    assert signal.getsignal(number) is signal.SIG_DFL
    assert not StopFlag()()


def test_a_run_stops_at_a_request(tmp_path: Path, handlers: None) -> None:
    flag = StopFlag()
    flag.install()

    class Asker(toy.Watcher):  # type: ignore[name-defined]
        def stepped(self, session: Any, samples: int) -> None:
            if session.step == 7:
                os.kill(os.getpid(), signal.SIGINT)

    outcome = train(
        toy.make_run(), tmp_path, dataset=toy.images(), observers=(Asker(),), should_stop=flag
    )
    assert not outcome.finished
    assert torch.load(tmp_path / "checkpoint.pt")["position"]["step"] == 7
