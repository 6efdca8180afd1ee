"""A warning where gradients explode as weights are grown."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from equipoise.settings import OptimizerSettings, Run
from equipoise.training.loop import train
from equipoise.training.session import Session
from equipoise.training.spikes import SpikeWatch


def watched(
    norms: Iterable[float], rewired: Iterable[int] = (), clip: float | None = None
) -> list[str]:
    """The warnings about steps with gradients of these norms, and rewirings in some of them."""
    topology = SimpleNamespace(num_rewirings=0)
    session = SimpleNamespace(
        step=0,
        topology=topology,
        run=Run(optimization=OptimizerSettings(clip_norm=clip)),
    )
    watch = SpikeWatch()
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        watch.start(cast(Session, session))
        for step, norm in enumerate(norms, start=1):
            session.step = step
            topology.num_rewirings += step in rewired
            session.moving_gradients = lambda norm=norm: [torch.tensor([norm])]
            watch.stepped(cast(Session, session), 1)
    return [str(one.message) for one in found]


def test_the_step_after_a_rewiring_is_looked_at() -> None:
    (text,) = watched([1.0] * 34 + [500.0] + [1.0] * 5, rewired={34})
    assert "at step 35 the gradient is 500 times as long as usual (5e+02 against 1)" in text
    assert "--clip-norm 2 " in text


def test_it_is_said_once() -> None:
    assert len(watched([1.0] * 34 + [500.0] * 100, rewired={34, 50, 70})) == 1


def test_other_steps_are_looked_at_every_ten() -> None:
    assert watched([1.0] * 39 + [500.0]) != []
    assert watched([1.0] * 38 + [500.0]) == []


@pytest.mark.parametrize("far", [99.0, float("nan"), float("inf")])
def test_what_is_not_far_or_not_finite_is_left_alone(far: float) -> None:
    assert watched([1.0] * 34 + [far], rewired={34}) == []


def test_too_few_looks_are_no_usual_norm() -> None:
    assert watched([1.0] * 24 + [500.0], rewired={24}) == []
    assert watched([0.0] * 34 + [500.0], rewired={34}) == []


def test_the_gradient_of_a_rewiring_step_does_not_count() -> None:
    """It is that of the weights before, or of all of them."""
    assert watched([1.0] * 39 + [500.0, 1.0], rewired={40}) == []


def test_where_every_step_rewires_nothing_is_looked_at() -> None:
    assert watched([1.0] * 40 + [500.0] * 40, rewired=range(1, 81)) == []


def test_nothing_is_said_where_gradients_are_clipped() -> None:
    assert watched([1.0] * 34 + [500.0], rewired={34}, clip=2.0) == []


def test_a_training_is_watched(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    norms = iter([1.0] * 5 + [1e4] * 1000)
    monkeypatch.setattr(
        "equipoise.training.spikes.get_total_norm", lambda _: torch.tensor(next(norms))
    )
    run = Run()
    run = replace(run, loop=replace(run.loop, epochs=6), sparse=replace(run.sparse, interval=20))
    with pytest.warns(RuntimeWarning, match="times as long as usual"):
        train(run, tmp_path)
