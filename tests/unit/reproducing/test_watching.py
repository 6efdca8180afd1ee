"""Weights that are kept along a training, attacks on them, and the lengths of HYDRA's phases."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from equipoise.attacks.settings import Attacking
from equipoise.experiments.families import changed
from equipoise.experiments.values import Cell, Experiment
from equipoise.records import read_rows
from equipoise.reproducing.attacks import ATTACKS, attack_run
from equipoise.reproducing.tasks import ROBUST, Task, epoch_file, tasks_of
from equipoise.reproducing.watching import KeptEpochs, forget_measured, phases_of, watchers
from equipoise.settings import Run
from equipoise.training.loop import MODEL, train

RUN = changed(
    Run(), model="mlp", width=0.1, train_samples=256, test_samples=64, batch_size=32,
    epochs=4, interval=4, engine="dense", inputs="pixels",
)  # fmt: skip
ATTACK = Attacking(steps=2, restarts=1, samples=16, eps=0.5)


def attacked_task() -> Task:
    cell = Cell(panel="p", arm="a", run=RUN, attacked=(0.25, 0.3, 0.5, 1.0))
    experiment = Experiment(name="table-0", title="", quantity="", cells=lambda _: (cell,))
    (task,) = tasks_of([experiment], "smoke", [0])
    return task


def weights(path: Path) -> torch.Tensor:
    state = torch.load(path, weights_only=True)
    return torch.cat([value.flatten() for value in state.values() if value.is_floating_point()])


def test_weights_are_those_of_the_epoch_and_training_is_the_same(tmp_path: Path) -> None:
    train(RUN, tmp_path / "plain")
    folder = tmp_path / "kept"
    train(RUN, folder, observers=watchers(folder, measures=(), epochs=(1, 2)))
    assert {path.name for path in folder.glob("epoch-*.pt")} == {epoch_file(1), epoch_file(2)}
    assert torch.equal(weights(folder / MODEL), weights(tmp_path / "plain" / MODEL))
    parts = [weights(folder / name) for name in (epoch_file(1), epoch_file(2), MODEL)]
    assert not torch.equal(parts[0], parts[1])
    assert not torch.equal(parts[1], parts[2])


def test_a_kill_between_an_epoch_and_its_file_loses_nothing(tmp_path: Path) -> None:
    class Killed(KeptEpochs):
        def recorded(self, *_: object) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(RUN, tmp_path, observers=(Killed(tmp_path, (1,)),))
    assert not (tmp_path / epoch_file(1)).exists()
    train(RUN, tmp_path, observers=watchers(tmp_path, measures=(), epochs=(1,)))
    there = tmp_path / "whole"
    train(RUN, there, observers=watchers(there, measures=(), epochs=(1,)))
    assert torch.equal(weights(tmp_path / epoch_file(1)), weights(there / epoch_file(1)))


def test_every_share_gets_the_row_of_its_epoch(tmp_path: Path) -> None:
    task = attacked_task()
    watching = watchers(tmp_path, measures=(), epochs=task.early_epochs)
    train(task.run, tmp_path, observers=watching)
    for shares in ((0.25, 0.3, 0.5), (1.0,)):
        attack_run(task, tmp_path, shares, ATTACK, data_dir=None, device="cpu")
    rows = read_rows(tmp_path / ROBUST)
    assert [(row["share"], row["epoch"]) for row in rows] == [
        (0.25, 1), (0.3, 1), (0.5, 2), (1.0, 4),
    ]  # fmt: skip
    assert {row["samples"] for row in rows} == {16}
    assert all(row["robust_accuracy"] <= row["clean_accuracy"] for row in rows)
    assert rows[0] | {"share": 0} == rows[1] | {"share": 0}
    assert not list(tmp_path.glob("epoch-*.pt"))


def test_an_attack_that_moves_nothing_finds_the_accuracy_of_the_epoch(tmp_path: Path) -> None:
    task = attacked_task()
    watching = watchers(tmp_path, measures=(), epochs=task.early_epochs)
    records = train(task.run, tmp_path, observers=watching).records
    idle = Attacking(steps=1, restarts=1, eps=0.0)
    attack_run(task, tmp_path, task.shares, idle, data_dir=None, device="cpu")
    rows = read_rows(tmp_path / ROBUST)
    found = [row["clean_accuracy"] for row in rows]
    assert found == pytest.approx([records[row["epoch"] - 1].test_accuracy for row in rows])
    assert len(set(found)) > 1
    assert [row["robust_accuracy"] for row in rows] == found


def test_the_published_attack_is_the_largest() -> None:
    paper = ATTACKS["paper"]
    assert (paper.steps, paper.restarts, paper.samples) == (50, 10, None)
    assert paper.length_of_step == pytest.approx(2.5 * 8 / 255 / 50)
    assert {attack.eps for attack in ATTACKS.values()} == {8 / 255}


def test_a_run_that_starts_again_forgets_what_was_measured(tmp_path: Path) -> None:
    for name in (ROBUST, "gradient_norms.jsonl", "records.jsonl", epoch_file(3), MODEL):
        (tmp_path / name).write_text(json.dumps({}))
    forget_measured(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"records.jsonl", MODEL}


@pytest.mark.parametrize("epochs", [3, 12, 20, 220])
def test_the_phases_of_hydra_are_all_of_the_training(epochs: int) -> None:
    lengths = phases_of(epochs)
    assert sum(lengths.values()) == epochs
    assert min(lengths.values()) >= 1
