"""The bar over all runs: weighted by their work, and not flattered by earlier commands."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from equipoise.settings import Run, with_setting
from equipoise.training.arms import Job, News, _Board


def jobs(*weights: float) -> list[Job]:
    return [
        Job(label="arm", run=with_setting(Run(), "seed", seed), folder=Path(), weight=weight)
        for seed, weight in enumerate(weights)
    ]


def test_a_run_that_is_three_times_as_dear_counts_three_times() -> None:
    board = _Board(Console(quiet=True), jobs(1.0, 3.0))
    task = board._progress.tasks[0]
    board._show(News("arm, seed 0", 0.0, ""))
    board._show(News("arm, seed 0", 1.0, ""))
    assert task.completed == pytest.approx(0.25)
    board._show(News("arm, seed 1", 0.5, ""))
    assert task.completed == pytest.approx(0.625)
    assert task.fields["state"] == "1 finished"


def test_what_was_finished_before_gives_no_pace() -> None:
    board = _Board(Console(quiet=True), jobs(1.0, 1.0))
    task = board._progress.tasks[0]
    task.start_time = board._progress.get_time() - 60.0
    board._show(News("arm, seed 0", 1.0, ""))
    assert task.fields["left"] == ""
    board._show(News("arm, seed 1", 0.0, ""))
    board._show(News("arm, seed 1", 0.5, ""))
    assert task.fields["left"] == "1:00 left"
