"""Norms along a training: right numbers, no trace in the training, and going on."""

from __future__ import annotations

import math
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from equipoise.analyses.along import measuring
from equipoise.analyses.norms import GradientNorms, _means
from equipoise.records import read_rows
from equipoise.training.loop import train
from equipoise.training.session import Session

toy: Any = import_module("tests.unit.training.toy")
near: Any = import_module("tests.unit.analyses.test_correlation")


@pytest.mark.parametrize("name", near.SETUPS)
def test_a_training_ends_bit_for_bit_as_without_it(name: str, tmp_path: Path) -> None:
    near.skip_without_kernels(name)
    plain = near.trained(tmp_path / "plain", near.SETUPS[name])
    path = tmp_path / "watched" / "norms.jsonl"
    assert near.trained(tmp_path / "watched", near.SETUPS[name], GradientNorms(path)) == plain
    states = [toy.stored_state(tmp_path / part) for part in ("plain", "watched")]
    assert not toy.differences(*states)
    rows = read_rows(path)
    assert [(row["epoch"], row["steps"]) for row in rows] == [(1, 5), (2, 5), (3, 5)]
    assert all(row["new"] > 0.0 and row["corrected"] > 0.0 for row in rows)
    assert all((row["new_all"] is None) == (name == "engine") for row in rows)
    assert not path.with_suffix(".pt").exists()


class ByHand(toy.Watcher):
    """What the optimizer was given at every step, and the gradient of the batch alone."""

    def __init__(self) -> None:
        self.corrected: list[float] = []

    def stepped(self, session: Session, samples: int) -> None:
        masks, named = session.topology.masks, session.model.named_parameters()
        given = [
            p.grad * masks.get(name, torch.ones(())) for name, p in named if p.grad is not None
        ]
        self.corrected.append(float(toy.flat(given).norm()))


@pytest.mark.parametrize("corrector", ["none", "svrg", "table", "age", "mvr"])
def test_the_corrected_norm_is_that_of_the_gradient_that_the_optimizer_got(
    corrector: str, tmp_path: Path
) -> None:
    hand = ByHand()
    changes = {"corrector": corrector, "epochs": 2}
    near.trained(tmp_path, changes, GradientNorms(tmp_path / "norms.jsonl"), hand)
    rows = read_rows(tmp_path / "norms.jsonl")
    for number, row in enumerate(rows):
        five = hand.corrected[5 * number : 5 * number + 5]
        assert row["corrected"] == pytest.approx(sum(five) / 5, rel=1e-5)
        if corrector == "none":
            assert (row["new"], row["new_all"]) == (row["corrected"], row["corrected_all"])
        assert row["corrected_all"] > row["corrected"]
    if corrector == "svrg":
        assert rows[1]["new"] != rows[1]["corrected"]


def test_the_new_norm_is_that_of_the_gradient_of_the_batch(tmp_path: Path) -> None:
    session = toy.session(corrector="svrg", epochs=2)
    watch = GradientNorms(tmp_path / "norms.jsonl")
    watch.start(session)
    session.refresh(session.refresh_batches())
    expected = []
    for group in session.batches():
        mask = toy.flat(
            session.topology.masks.get(name, torch.ones_like(p))
            for name, p in session.model.named_parameters()
        )
        expected.append(float((toy.gradient(session, group[0]) * mask).norm()))
        session.train_step(group)
    watch.recorded(session, session.finish_epoch())
    watch.stop()
    (row,) = read_rows(tmp_path / "norms.jsonl")
    assert row["new"] == pytest.approx(sum(expected) / len(expected), rel=1e-5)


def test_at_the_snapshot_the_corrected_norm_is_that_of_the_full_gradient(tmp_path: Path) -> None:
    session = toy.session(corrector="svrg", topology="dense", learning_rate=1e-12)
    watch = GradientNorms(tmp_path / "norms.jsonl")
    watch.start(session)
    session.refresh(session.refresh_batches())
    full = session.corrector.full_gradient
    for group in session.batches():
        session.train_step(group)
    watch.recorded(session, session.finish_epoch())
    (row,) = read_rows(tmp_path / "norms.jsonl")
    assert row["corrected"] == pytest.approx(float(toy.flat(full.values()).norm()), rel=1e-4)
    assert row["new"] > 1.01 * row["corrected"]


@pytest.mark.parametrize("stop_at", [4, 5, 7])
def test_a_stopped_training_goes_on_with_the_same_rows(stop_at: int, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    near.trained(whole, near.SETUPS["agent"], GradientNorms(whole / "rows.jsonl"))
    steps = iter(range(1, 100))
    stopped = train(
        toy.make_run(**near.SETUPS["agent"]),
        parts,
        dataset=toy.images(),
        observers=(GradientNorms(parts / "rows.jsonl"),),
        should_stop=lambda: next(steps) == stop_at,
    )
    assert not stopped.finished
    near.trained(parts, near.SETUPS["agent"], GradientNorms(parts / "rows.jsonl"))
    assert read_rows(parts / "rows.jsonl") == read_rows(whole / "rows.jsonl")


def test_steps_whose_gradient_is_not_finite_do_not_count() -> None:
    steps = torch.tensor([[1.0, 2.0, 3.0, 4.0], [math.inf, 1.0, 1.0, 1.0]])
    assert _means(steps) == {
        "new": 1.0,
        "new_all": 2.0,
        "corrected": 3.0,
        "corrected_all": 4.0,
        "steps": 1,
    }
    assert _means(steps[1:])["new"] is None


def test_steps_of_several_batches_are_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got --accumulate 2; use --accumulate 1"):
        near.trained(tmp_path, {"accumulate": 2}, GradientNorms(tmp_path / "norms.jsonl"))


def test_seconds_of_looking_are_not_seconds_of_training(tmp_path: Path) -> None:
    session = toy.session()
    watch = GradientNorms(tmp_path / "norms.jsonl")
    watch.start(session)
    for group in session.batches():
        session.train_step(group)
    assert session.meter.seconds("analysis") > 0.0
    parts = session.meter.state_dict()["seconds"]
    training = sum(s for part, s in parts.items() if part != "analysis")
    assert session.meter.training_seconds == pytest.approx(training)


def test_names_make_observers(tmp_path: Path) -> None:
    made = measuring(["perturbed_gradients", "gradient_correlation", "gradient_norms"], tmp_path)
    assert [type(each).__name__ for each in made] == ["GradientNorms", "GradientCorrelation"]
    assert not measuring([], tmp_path)
