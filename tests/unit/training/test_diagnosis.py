"""A diagnosis against correlations that are known, and on a small training."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

import pytest
import torch

from equipoise.reports.diagnosis import write_diagnosis
from equipoise.training.diagnosis import (
    AtAge,
    begun_session,
    compare,
    diagnose,
    recommend,
    session_of_folder,
)
from equipoise.training.loop import train

toy = import_module("tests.unit.training.toy")


def at(age: int, rho_squared: float) -> AtAge:
    return AtAge(
        age=age,
        path=age,
        rho_squared=rho_squared,
        best_coefficient=1.0,
        left_published=1.0,
        variance=1.0,
        signal=1.0,
    )


@pytest.mark.parametrize(("slope", "noise"), [(1.0, 0.0), (0.5, 0.0), (2.0, 1.0), (1.0, 3.0)])
def test_correlation_and_coefficient_are_those_of_the_gradients(slope: float, noise: float) -> None:
    generator = torch.Generator().manual_seed(0)
    old = torch.randn(24, 2000, generator=generator)
    new = slope * old + noise * torch.randn(24, 2000, generator=generator)
    found = compare(new, (old, None), 4, 0.4)
    expected = slope**2 / (slope**2 + noise**2)
    assert found.best_coefficient == pytest.approx(slope, abs=0.03)
    assert found.rho_squared == pytest.approx(expected, abs=0.03)
    left = 1 - expected * (2 * 0.1 - 0.01)
    assert found.left_published == pytest.approx(left, abs=0.03)


def test_weights_that_were_not_there_count_as_variance_that_stays() -> None:
    generator = torch.Generator().manual_seed(0)
    new = torch.randn(24, 2000, generator=generator)
    valid = torch.arange(2000) < 1000
    found = compare(new, (new * valid, valid), 4, 0.4)
    assert found.rho_squared == pytest.approx(0.5, abs=0.03)


def test_the_recommendation_follows_the_break_even_rules() -> None:
    assert recommend([at(1, 1.0), at(100, 0.3)], 100, 10**6)[0] == "table"
    assert recommend([at(1, 1.0), at(100, 0.02)], 100, 10**6)[0] == "none"
    assert recommend([at(1, 1.0), at(99, 0.9), at(100, 0.02)], 100, 10**6)[0] == "age"
    assert "int4" in recommend([at(1, 1.0), at(100, 0.5)], 100, 3 * 2**30)[1]


def test_a_folder_is_read_and_not_changed_and_the_page_is_written(tmp_path: Path) -> None:
    run = toy.make_run(topology="set", interval=2, learning_rate=0.01)
    train(run, tmp_path / "run", dataset=toy.images())
    session = toy.session(topology="set", interval=2, learning_rate=0.01)
    for _ in range(2):
        for group in session.batches():
            session.train_step(group)
        session.finish_epoch()
    before = {n: p.detach().clone() for n, p in session.model.named_parameters()}
    found = diagnose(session, num_batches=4)
    assert [each.age for each in found.ages] == [1, 2, 4, 5]
    assert found.epoch == 2
    assert all(0.0 <= each.rho_squared <= 1.0 for each in found.ages)
    assert found.ages[0].rho_squared > 0.5  # a step apart, at a low rate
    assert any(not torch.equal(p, before[n]) for n, p in session.model.named_parameters())
    pages = write_diagnosis(found.as_plain(), tmp_path / "found.html")
    text = pages[0].read_text()
    assert "<svg" in text
    assert "<script" not in text
    assert json.loads(pages[1].read_text())["mode"] == found.mode


def test_measuring_does_not_disturb_the_training() -> None:
    """The steps in between are those of a training that is not looked at."""
    ends = []
    for looked_at in (True, False):
        session = toy.session(topology="set", interval=2)
        if looked_at:
            diagnose(session, num_batches=4)
        else:
            for group in session.batches():
                session.train_step(group)
        ends.append([t.clone() for t in session.model.state_dict().values()])
    assert all(map(torch.equal, *ends))


def test_mistakes_get_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no run with a checkpoint"):
        session_of_folder(tmp_path, data_dir=None, device="cpu")
    with pytest.raises(ValueError, match="takes at least 4 batches; got 3"):
        diagnose(toy.session(), num_batches=3)


def test_a_session_is_begun() -> None:
    run = toy.make_run(dataset="digits", train_samples=64, test_samples=16)
    assert begun_session(run, 1).epoch == 1
