"""Recipes are settings: valid, as published, and yielding to what is typed."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest

from equipoise import cli
from equipoise.arguments import check_words
from equipoise.recipes import RECIPES, expanded
from equipoise.settings import Run
from equipoise.training.optimizers import rate_factor
from equipoise.validation import validate

EPOCHS = (0, 49, 50, 100, 150)
cli_fixtures = import_module("tests.cli.conftest")
settled, call = cli_fixtures.settled, cli_fixtures.call


@pytest.fixture
def run_of(monkeypatch: pytest.MonkeyPatch, call: Callable[..., Any]) -> Callable[..., Run]:
    """The run that `equipoise train` would get."""
    got: list[Run] = []

    def run(*words: str) -> Run:
        import functools

        original = cli.train

        @functools.wraps(original)
        def stub(run: Run, output: Any) -> int:
            got.append(run)
            return 0

        monkeypatch.setitem(cli._COMMANDS, "train", stub)
        assert call("train", *words).code == 0
        return got[-1]

    return run


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_made_of_options_and_is_valid(
    name: str, run_of: Callable[..., Run]
) -> None:
    for command in ("train", "compare", "plan"):
        check_words(RECIPES[name], cli._options(command), command)
    validate(run_of("--recipe", name))


def rates(run: Run) -> list[float]:
    settings = run.optimization
    return [settings.learning_rate * rate_factor(epoch, 200, settings) for epoch in EPOCHS]


def test_the_fair_recipe_is_as_published(run_of: Callable[..., Run]) -> None:
    run = run_of("--recipe", "bsr")
    assert rates(run) == pytest.approx([0.04, 0.04, 0.004, 0.0002, 0.0002])
    assert (run.loop.epochs, run.optimization.weight_decay) == (200, 1e-3)
    assert (run.sparse.noise, run.data.inputs, run.loop.batchnorm) == ("agent", "pixels", "running")


def test_the_original_recipe_is_as_published(run_of: Callable[..., Run]) -> None:
    run = run_of("--recipe=bsr_ori")
    assert rates(run) == pytest.approx([0.1, 0.1, 0.1, 0.01, 0.001])
    assert run.sparse.noise == "original"


def test_arms_of_the_fair_recipe_differ_in_the_corrector_alone(run_of: Callable[..., Run]) -> None:
    from dataclasses import replace

    plain, agent = run_of("--recipe", "bsr"), run_of("--recipe", "bsr", "--corrector", "agent")
    assert replace(agent, correction=plain.correction) == plain


def test_what_is_typed_wins(run_of: Callable[..., Run]) -> None:
    run = run_of("--epochs", "3", "--milestones", "0.5", "--drop-factors", "0.2", "--recipe", "bsr")
    assert (run.loop.epochs, run.optimization.milestones) == (3, (0.5,))
    assert run.sparse.topology == "bsr"


def test_an_unknown_recipe_gets_a_sentence(call: Callable[..., Any]) -> None:
    result = call("train", "--recipe", "bsr_orig")
    assert result.code == 2
    assert "did you mean bsr_ori?" in result.err
    assert expanded(["train", "--recipe"]) == ["train", "--recipe"]
