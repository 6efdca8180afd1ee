"""Those who watch a run show it and change nothing."""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from equipoise.records import RECORDS, read_records
from equipoise.training.loop import train
from equipoise.training.observers import Bar, TensorBoard
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
    assert task.completed == task.total == 3 * 72 * (1 if corrector == "none" else 2)
    assert "name" in text(shown)


@pytest.mark.parametrize("corrector", ["none", "agent", "svrg"])
def test_the_bar_never_goes_back_or_beyond_its_end(corrector: str, tmp_path: Path) -> None:
    bar, seen = Bar(console(terminal=True), "name"), []

    class Looker(toy.Watcher):  # type: ignore[name-defined]
        def stepped(self, session: Any, samples: int) -> None:
            seen.append(bar._progress.tasks[0].completed)

    trained(tmp_path, bar, Looker(), corrector=corrector)
    assert seen == sorted(seen)
    assert len(seen) == 15
    assert max(seen) <= (bar._progress.tasks[0].total or 0)


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
