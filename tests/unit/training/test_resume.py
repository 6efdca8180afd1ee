"""A training that was stopped or killed anywhere ends bit for bit like one that never was."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from equipoise.data import Batch, Dataset
from equipoise.records import RECORDS, EpochRecord, read_records
from equipoise.training import loop
from equipoise.training.checkpoint import save_checkpoint
from equipoise.training.correcting import CACHE
from equipoise.training.loop import CHECKPOINT, MODEL, train
from equipoise.training.session import Session

toy = import_module("tests.unit.training.toy")

SETUPS: dict[str, dict[str, Any]] = {
    "set": {"topology": "set", "interval": 2},
    "rigl agent": {"topology": "rigl", "interval": 2, "corrector": "agent"},
    "rigl_itop no_gamma adamw": {
        "topology": "rigl_itop",
        "interval": 3,
        "corrector": "no_gamma",
        "optimizer": "adamw",
        "learning_rate": 3e-3,
        "mask_sampling": "bernoulli",
        "clip_norm": 1.0,
    },
    "svrg sgdw every second epoch": {
        "topology": "set_itop",
        "interval": 4,
        "corrector": "svrg",
        "optimizer": "sgdw",
        "refresh_every": 2,
        "schedule": "cosine",
        "warmup": 0.3,
        "epochs": 4,
    },
    "alpha_svrg fresh": {"corrector": "alpha_svrg", "refresh_draw": "fresh", "augment": "yes"},
    "agent fp16": {"corrector": "agent", "precision": "fp16", "topology": "set", "interval": 3},
    "agent validation accumulate": {
        "corrector": "agent",
        "validation": 0.25,
        "accumulate": 2,
        "topology": "rigl",
        "interval": 2,
        "growth_signal": "corrected",
    },
    "dense": {"topology": "dense"},
    "at agent attacked": {
        "objective": "at",
        "attack_steps": 2,
        "corrector": "agent",
        "snapshot": "adversarial",
        "topology": "rigl",
        "interval": 3,
    },
    "bsr agent": {
        "topology": "bsr",
        "corrector": "agent",
        "optimizer": "sgdw",
        "learning_rate": 0.04,
        "weight_decay": 1e-3,
    },
    "bsr all svrg": {
        "topology": "bsr",
        "corrector": "svrg",
        "correction_mask": "all",
        "snapshot": "clean_noaug",
        "noise": "original",
    },
    "trades agent": {"objective": "trades", "attack_steps": 2, "corrector": "agent"},
    "svrg cached": {
        "corrector": "svrg",
        "correction_mode": "cached",
        "topology": "set",
        "interval": 3,
    },
    "agent cached on disk": {"corrector": "agent", "correction_mode": "cached", "cache": "disk"},
    "svrg at random": {"corrector": "svrg", "refresh_chance": 0.3, "topology": "set"},
    "agent by steps, sub-sample": {
        "corrector": "agent",
        "refresh_steps": 3,
        "refresh_samples": 20,
        "keep": "active",
        "topology": "rigl",
        "interval": 2,
    },
    "mvr": {"corrector": "mvr", "topology": "set", "interval": 2},
    "mvr_fixed accumulate adamw": {
        "corrector": "mvr_fixed",
        "accumulate": 2,
        "optimizer": "adamw",
        "topology": "rigl",
        "interval": 2,
    },
    "agent_mvr sgdw": {"corrector": "agent_mvr", "optimizer": "sgdw", "scaling": 1.0},
    "agent_mvr_oracle": {"corrector": "agent_mvr_oracle", "topology": "rigl", "interval": 3},
    "ref_itop": {"corrector": "ref_itop", "topology": "set_itop", "interval": 4},
    "ref_bsr sgdw": {"corrector": "ref_bsr", "optimizer": "sgdw"},
    "table on disk accumulate": {
        "corrector": "table",
        "table_on_disk": True,
        "partition_epochs": 2,
        "augment": "yes",
        "topology": "set",
        "interval": 2,
        "accumulate": 2,
        "batch_size": 8,
    },
    "table fp16": {"corrector": "table", "table_precision": "int4", "precision": "fp16"},
    "age gated": {"corrector": "age", "gate": True, "topology": "set", "interval": 3},
}
DROPOUT: dict[str, Any] = {
    "model": "wrn_22_2",
    "width": 0.25,
    "dropout": 0.3,
    "batch_size": 24,
    "epochs": 2,
    "topology": "rigl",
    "interval": 2,
    "corrector": "agent",
}


class Killed(Exception):
    """Stands for a process that ends without notice."""


def steps_of(changes: dict[str, Any]) -> int:
    """Optimizer steps of one epoch."""
    return int(toy.session(**changes).steps_per_epoch)


class Case:
    """One setup with its uninterrupted training."""

    def __init__(self, changes: dict[str, Any], folder: Path, data: Dataset | None = None) -> None:
        self.run = toy.make_run(**changes)
        self.data = toy.images() if data is None else data
        self.steps = Session(self.run, self.data, folder=folder).steps_per_epoch
        self.whole = folder / "whole"
        outcome = self.train(self.whole)
        assert outcome.finished
        assert not outcome.resumed
        self.records = outcome.records

    def train(self, folder: Path, **options: Any) -> Any:
        """A call of `train` after someone else has used the global random numbers."""
        torch.manual_seed(987654321)
        return train(self.run, folder, dataset=self.data, **options)

    def stop_after(self, folder: Path, steps: int) -> Any:
        """Asks to stop after so many steps of this call."""
        left = iter(range(steps - 1))
        return self.train(folder, should_stop=lambda: next(left, None) is None)

    def kill(self, folder: Path, watcher: Any, seconds: float = 0.0) -> None:
        """Trains until the observer raises."""
        with pytest.raises(Killed):
            self.train(folder, observers=(watcher,), checkpoint_seconds=seconds)

    def check(self, folder: Path) -> None:
        """Goes on to the end, which is that of the uninterrupted training."""
        outcome = self.train(folder)
        assert outcome.finished
        left, right = torch.load(self.whole / MODEL), torch.load(folder / MODEL)
        assert toy.differences(left, right) == []
        states = [toy.stored_state(each) for each in (self.whole, folder)]
        assert toy.differences(*states) == []
        assert outcome.records == read_records(folder / RECORDS)
        plain = [list(map(toy.without_time, r)) for r in (self.records, outcome.records)]
        assert plain[0] == plain[1]
        seconds = [record.training_seconds for record in outcome.records]
        assert seconds == sorted(seconds)


@pytest.fixture(scope="module")
def make_case(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    """Cases by name, each trained once."""
    return cache(lambda name: Case(SETUPS[name], tmp_path_factory.mktemp("whole")))


@pytest.fixture(params=SETUPS)
def case(request: pytest.FixtureRequest, make_case: Callable[[str], Case]) -> Case:
    return make_case(request.param)


@pytest.fixture
def agent(make_case: Callable[[str], Case]) -> Case:
    return make_case("rigl agent")


@pytest.fixture(autouse=True, scope="module")
def quick_disk() -> Iterator[None]:
    """Nobody pulls the plug here, so nothing need be forced to the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


WHEN: dict[str, Callable[[int, int], int]] = {
    "first step": lambda steps, total: 1,
    "middle of an epoch": lambda steps, total: steps + 2,
    "last step of an epoch": lambda steps, total: steps,
    "first step of an epoch": lambda steps, total: 2 * steps + 1,
    "just before the end": lambda steps, total: total - 1,
    "last step": lambda steps, total: total,
}


def check_stop(case: Case, count: int, folder: Path) -> None:
    outcome = case.stop_after(folder, count)
    assert not outcome.finished
    assert len(outcome.records) == (count - 1) // case.steps
    assert toy.stored_state(folder)["position"]["step"] == count
    assert not (folder / MODEL).exists()
    case.check(folder)


@pytest.mark.parametrize("when", ["middle of an epoch", "last step of an epoch"])
def test_stopping_on_request(case: Case, when: str, tmp_path: Path) -> None:
    check_stop(case, WHEN[when](case.steps, case.steps * case.run.loop.epochs), tmp_path)


@pytest.mark.parametrize("when", WHEN)
def test_stopping_at_any_step(when: str, agent: Case, tmp_path: Path) -> None:
    check_stop(agent, WHEN[when](agent.steps, agent.steps * agent.run.loop.epochs), tmp_path)


def test_stored_gradients_are_gone_when_the_training_is_over(
    make_case: Callable[[str], Case], tmp_path: Path
) -> None:
    case = make_case("agent cached on disk")
    case.stop_after(tmp_path, case.steps + 2)
    assert (tmp_path / CACHE).stat().st_size > 0
    case.check(tmp_path)
    assert not (tmp_path / CACHE).exists()


def test_lost_gradients_are_computed_again(
    make_case: Callable[[str], Case], tmp_path: Path
) -> None:
    """The weights end alike; the passes that it took are counted."""
    case = make_case("agent cached on disk")
    case.stop_after(tmp_path, case.steps + 2)
    (tmp_path / CACHE).unlink()
    outcome = case.train(tmp_path)
    left, right = torch.load(case.whole / MODEL), torch.load(tmp_path / MODEL)
    assert toy.differences(left, right) == []
    lost = 16 + 16 + 8  # images of the batches that were left of that epoch
    extra = outcome.records[-1].backward_samples - case.records[-1].backward_samples
    assert extra == lost


class KilledAt:
    """Raises when the so-many-th step is over; the checkpoint is then one step older."""

    def __init__(self, method: str, count: int) -> None:
        self.left = count
        for name in ("start", "refreshed", "stepped", "recorded"):
            setattr(self, name, self.count if name == method else self.nothing)

    def nothing(self, *passed: Any) -> None:
        """Goes on."""

    def count(self, *passed: Any) -> None:
        self.left -= 1
        if self.left <= 0:
            raise Killed

    def stop(self) -> None:
        """Nothing to close."""


def check_kill(case: Case, step: int, seconds: float, folder: Path) -> None:
    case.kill(folder, KilledAt("stepped", step), seconds)
    if seconds == 0.0 and step > 1:
        assert toy.stored_state(folder)["position"]["step"] == step - 1
    else:
        assert (folder / CHECKPOINT).exists() == (step > case.steps)
    case.check(folder)


@pytest.mark.parametrize("seconds", [0.0, 1e9], ids=["step by step", "epoch by epoch"])
def test_a_kill_in_the_second_epoch(case: Case, seconds: float, tmp_path: Path) -> None:
    check_kill(case, case.steps + 2, seconds, tmp_path)


@pytest.mark.parametrize("seconds", [0.0, 1e9], ids=["step by step", "epoch by epoch"])
@pytest.mark.parametrize("step", [1, 2, 5, 6, 11, 15])
def test_a_kill_at_any_step(step: int, seconds: float, agent: Case, tmp_path: Path) -> None:
    check_kill(agent, step, seconds, tmp_path)


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_a_kill_between_epochs(epoch: int, agent: Case, tmp_path: Path) -> None:
    agent.kill(tmp_path, KilledAt("recorded", epoch))
    position = toy.stored_state(tmp_path)["position"]
    assert (position["epoch"], position["batch"]) == (epoch, 0)
    assert not (tmp_path / MODEL).exists()
    agent.check(tmp_path)


def test_one_after_another(case: Case, tmp_path: Path) -> None:
    """Many interruptions of one training, each where the last one left it."""
    case.stop_after(tmp_path, 1)
    case.kill(tmp_path, KilledAt("recorded", 1), 1e9)
    case.kill(tmp_path, KilledAt("stepped", 1))
    case.kill(tmp_path, KilledAt("stepped", 2))
    case.stop_after(tmp_path, case.steps - 1)
    assert toy.stored_state(tmp_path)["position"]["batch"] > 0
    case.kill(tmp_path, KilledAt("stepped", 1), 1e9)
    case.check(tmp_path)


@pytest.mark.parametrize("batch", [1, 4, 5, 7])
def test_a_kill_during_a_refresh(batch: int, tmp_path: Path, agent: Case) -> None:
    """The first refresh of AGENT makes no pass; so these are in the second and third."""
    agent.kill(tmp_path, KilledAt("refreshed", batch))
    expected = 1 if batch <= 5 else 2
    assert toy.stored_state(tmp_path)["position"]["epoch"] == expected
    agent.check(tmp_path)


def test_a_kill_before_the_first_step(tmp_path: Path, agent: Case) -> None:
    agent.kill(tmp_path, KilledAt("start", 1))
    assert not (tmp_path / CHECKPOINT).exists()
    agent.check(tmp_path)


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_a_kill_between_the_record_and_its_checkpoint(
    epoch: int, agent: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [epoch]

    def failing(*passed: Any) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Killed
        save_checkpoint(*passed)

    monkeypatch.setattr(loop, "save_checkpoint", failing)
    with pytest.raises(Killed):
        agent.train(tmp_path)
    monkeypatch.undo()
    assert len(read_records(tmp_path / RECORDS)) == epoch
    agent.check(tmp_path)


def test_a_kill_while_the_model_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, agent: Case
) -> None:

    def failing(state: Any, file: Any) -> None:
        file.write(b"half of a model")
        raise Killed

    def only_model(state: Any, file: Any, save: Any = torch.save) -> None:
        (failing if MODEL in file.name else save)(state, file)

    monkeypatch.setattr(torch, "save", only_model)
    with pytest.raises(Killed):
        agent.train(tmp_path)
    monkeypatch.undo()
    assert not (tmp_path / MODEL).exists()
    agent.check(tmp_path)


def test_a_stop_after_every_single_step(agent: Case, tmp_path: Path) -> None:
    calls = 0
    while not (tmp_path / MODEL).exists():
        agent.stop_after(tmp_path, 1)
        calls += 1
        assert calls < 100
    assert calls == agent.steps * agent.run.loop.epochs + 1
    agent.check(tmp_path)


def test_a_kill_at_every_second_step(tmp_path: Path, agent: Case) -> None:
    kills = 0
    while kills < 100:
        try:
            agent.train(tmp_path, observers=(KilledAt("stepped", 2),), checkpoint_seconds=0.0)
        except Killed:
            kills += 1
            continue
        break
    assert kills == agent.steps * agent.run.loop.epochs - 1
    agent.check(tmp_path)


@pytest.fixture(scope="module")
def dropout_case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    data = toy.images(48, 16, 16)
    return Case(DROPOUT, tmp_path_factory.mktemp("dropout"), data)


@pytest.mark.parametrize("step", [1, 3])
def test_stopping_a_network_with_dropout(dropout_case: Case, step: int, tmp_path: Path) -> None:
    assert dropout_case.steps == 2
    dropout_case.stop_after(tmp_path, step)
    dropout_case.check(tmp_path)


def test_killing_a_network_with_dropout(dropout_case: Case, tmp_path: Path) -> None:
    dropout_case.kill(tmp_path, KilledAt("stepped", 4))
    dropout_case.check(tmp_path)


def test_dropout_draws_random_numbers(dropout_case: Case, tmp_path: Path) -> None:
    """So that the tests above would notice if these were not restored."""
    dropout_case.stop_after(tmp_path, 3)
    state = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    state["random"]["cpu"] = torch.Generator().manual_seed(1).get_state()
    torch.save(state, tmp_path / CHECKPOINT)
    with pytest.raises(AssertionError):
        dropout_case.check(tmp_path)


@pytest.mark.parametrize(
    "part",
    ["optimizer", "topology generator", "snapshot", "full_gradient", "coefficient", "buffers"],
)
def test_every_part_of_the_state_matters(part: str, tmp_path: Path, agent: Case) -> None:
    agent.stop_after(tmp_path, 2 * agent.steps - 2)
    state = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    corrector = state["corrector"]
    if part == "optimizer":
        next(iter(state["optimizer"]["state"].values()))["momentum_buffer"].mul_(1.01)
    elif part == "topology generator":
        state["topology"]["generator"] = torch.Generator().manual_seed(1).get_state()
    elif part == "coefficient":
        numbers = corrector["coefficient"]
        numbers |= {n: v * 1.01 for n, v in numbers.items() if isinstance(v, float)}
    elif part == "buffers":
        state["model"]["layers.1.running_mean"].add_(0.01)
    else:
        next(iter(corrector[part].values())).add_(0.01)
    torch.save(state, tmp_path / CHECKPOINT)
    with pytest.raises(AssertionError):
        agent.check(tmp_path)


def test_costs_accumulate_over_stops(tmp_path: Path, agent: Case) -> None:
    """Counts are exact; seconds and memory are never below those of the part before the stop."""
    agent.stop_after(tmp_path, agent.steps + 3)
    before = torch.load(tmp_path / CHECKPOINT, weights_only=True)["meter"]
    before["seconds"]["refresh"] += 100.0
    before["peak_memory_bytes"] = 2**45
    state = torch.load(tmp_path / CHECKPOINT, weights_only=True) | {"meter": before}
    torch.save(state, tmp_path / CHECKPOINT)
    records = agent.train(tmp_path).records
    assert records[0].refresh_seconds < 100.0 < records[1].refresh_seconds
    assert records[1].training_seconds > 100.0
    assert records[-1].peak_memory_bytes == 2**45
    assert records[-1].data_passes == pytest.approx(1 + 2 * 10 / 3)


class Noted:
    """Notes what an observer is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def start(self, session: Session) -> None:
        self.told.append(("start", session.step))

    def refreshed(self, session: Session, batch: Batch) -> None:
        self.told.append(("refreshed", session.epoch))

    def stepped(self, session: Session, samples: int) -> None:
        self.told.append(("stepped", session.step, samples))

    def recorded(self, session: Session, record: EpochRecord) -> None:
        self.told.append(("recorded", record.epoch, session.epoch))

    def stop(self) -> None:
        self.told.append("stop")


def test_observers_are_told_everything_once(tmp_path: Path, agent: Case) -> None:
    noted = Noted()
    agent.stop_after(tmp_path, 4)
    agent.train(tmp_path, observers=(noted,))
    epochs: list[Any] = []
    for epoch in (1, 2):
        epochs += [("refreshed", epoch)] * 5
        epochs += [("stepped", 5 * epoch + n, 16 if n < 5 else 8) for n in range(1, 6)]
        epochs += [("recorded", epoch + 1, epoch + 1)]
    first = [("start", 4), ("stepped", 5, 8), ("recorded", 1, 1)]
    assert noted.told == [*first, *epochs, "stop"]


@pytest.mark.parametrize("method", ["start", "refreshed", "stepped", "recorded"])
def test_observers_are_told_of_the_end_of_a_failure(
    method: str, tmp_path: Path, agent: Case
) -> None:
    noted = Noted()
    with pytest.raises(Killed):
        agent.train(tmp_path, observers=(noted, KilledAt(method, 1)))
    assert noted.told[-1] == "stop"
    assert noted.told.count("stop") == 1
