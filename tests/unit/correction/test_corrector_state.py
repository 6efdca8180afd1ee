"""A run that is saved in the middle of an epoch and resumed is the run that was not."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from equipoise.correction import (
    Coefficient,
    Constant,
    GradientCorrector,
    LinearDecay,
    LossCovariance,
)

COEFFICIENTS: dict[str, Callable[[], Coefficient]] = {
    "Constant": lambda: Constant(0.7),
    "LinearDecay": lambda: LinearDecay(0.5, 3),
    "LossCovariance": LossCovariance,
    "clipped": lambda: LossCovariance(clip=(0.2, 1.0)),
}


def draw(*sizes: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, 4, generator=generator) for n in sizes]


BATCHES = draw(6, 6, 6, 3)


class Run:
    """A small training run: everything that a checkpoint holds."""

    def __init__(self, coefficient: Coefficient, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.model = nn.Sequential(
            nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.3), nn.Tanh(), nn.Linear(6, 1)
        )
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3
        )
        self.corrector: GradientCorrector[Tensor] = GradientCorrector(
            self.model, lambda x: self.model(x).square().mean(), coefficient
        )

    def go(self, first: int, last: int) -> None:
        """Steps `first` to `last` of the run, with a refresh at the start of every epoch."""
        for step in range(first, last):
            if step % len(BATCHES) == 0:
                self.corrector.refresh(BATCHES)
            self.optimizer.zero_grad()
            self.corrector.backward(BATCHES[step % len(BATCHES)])
            self.optimizer.step()

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "corrector": self.corrector.state_dict(),
            "stream": torch.get_rng_state(),
        }

    def load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.corrector.load_state_dict(state["corrector"])
        torch.set_rng_state(state["stream"])


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


@pytest.mark.parametrize("stop", [0, 2, 4, 6, 10, 12])
@pytest.mark.parametrize("name", COEFFICIENTS)
def test_resuming_anywhere_continues_bit_for_bit(name: str, stop: int) -> None:
    whole = Run(COEFFICIENTS[name]())
    whole.go(0, 16)
    expected = copy.deepcopy(whole.state())

    first = Run(COEFFICIENTS[name]())
    first.go(0, stop)
    saved = through_a_file(first.state())
    second = Run(COEFFICIENTS[name](), seed=99)
    second.load(saved)
    assert same(second.corrector.state_dict(), first.corrector.state_dict())
    assert second.corrector.coefficient_value == first.corrector.coefficient_value
    second.go(stop, 16)
    assert same(second.state(), expected)


def test_the_state_holds_plain_values_only() -> None:
    run = Run(LossCovariance())
    run.go(0, 6)

    def leaves(value: Any) -> list[Any]:
        if isinstance(value, dict):
            return [leaf for part in value.values() for leaf in leaves(part)]
        return [value]

    state = run.corrector.state_dict()
    assert {type(leaf) for leaf in leaves(state)} <= {Tensor, float, int, str, type(None)}
    assert state["format"] == 1
    assert state["num_refreshes"] == 2


def test_a_loaded_state_is_a_copy() -> None:
    run = Run(Constant(1.0))
    run.go(0, 2)
    state = copy.deepcopy(run.corrector.state_dict())
    other = Run(Constant(1.0))
    other.corrector.load_state_dict(state)
    for part in ("snapshot", "full_gradient"):
        for tensor in state[part].values():
            tensor.zero_()
    assert same(other.corrector.state_dict(), run.corrector.state_dict())
    assert float(other.corrector.snapshot["0.weight"].abs().sum()) > 0.0


def test_a_state_that_was_taken_earlier_does_not_follow_the_training() -> None:
    """Steps and refreshes make new tensors; they do not write into those that were given out."""
    run = Run(LossCovariance())
    run.go(0, 6)
    state = run.corrector.state_dict()
    taken = copy.deepcopy(state)
    run.go(6, 12)
    assert same(state, taken)


def test_a_state_may_be_loaded_over_an_older_one() -> None:
    run, other = Run(Constant(1.0)), Run(Constant(1.0))
    other.go(0, 4)
    other.corrector.load_state_dict(run.corrector.state_dict())
    assert other.corrector.snapshot == other.corrector.full_gradient == {}
    assert other.corrector.coefficient_value == 0.0


@pytest.mark.parametrize("format_", [None, 0, 2, "1"])
def test_another_format_is_refused(format_: Any) -> None:
    run = Run(Constant(1.0))
    state = run.corrector.state_dict() | {"format": format_}
    with pytest.raises(ValueError, match=f"has format {format_}, expected 1; load it with"):
        run.corrector.load_state_dict(state)


def test_an_empty_state_is_refused() -> None:
    with pytest.raises(ValueError, match="has format None, expected 1"):
        Run(Constant(1.0)).corrector.load_state_dict({})


@pytest.mark.parametrize(
    ("model", "named"),
    [
        (nn.Sequential(nn.Linear(4, 7), nn.BatchNorm1d(7), nn.Tanh(), nn.Linear(7, 1)), "0.bias"),
        (nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6)), "4.bias"),
        (
            nn.Sequential(
                nn.Linear(4, 6),
                nn.BatchNorm1d(6),
                nn.Tanh(),
                nn.Tanh(),
                nn.Linear(6, 1),
                nn.Linear(1, 1),
            ),
            "5.bias, 5.weight",
        ),
    ],
    ids=["other shapes", "fewer layers", "more layers"],
)
def test_the_state_of_another_model_is_refused_and_nothing_is_loaded(
    model: nn.Module, named: str
) -> None:
    run = Run(LinearDecay(0.5, 4))
    run.go(0, 6)
    corrector: GradientCorrector[Tensor] = GradientCorrector(
        model, lambda x: model(x).square().mean(), LinearDecay(0.5, 4)
    )
    corrector.refresh([torch.randn(5, 4)])
    before = copy.deepcopy(corrector.state_dict())
    with pytest.raises(ValueError, match=f"snapshot does not fit this model at {named}"):
        corrector.load_state_dict(run.corrector.state_dict())
    assert same(corrector.state_dict(), before)


def test_a_full_gradient_of_another_model_is_refused() -> None:
    run = Run(Constant(1.0))
    run.go(0, 2)
    state = copy.deepcopy(run.corrector.state_dict())
    state["full_gradient"]["0.weight"] = torch.zeros(1, 1)
    with pytest.raises(ValueError, match=r"full_gradient does not fit this model at 0\.weight"):
        run.corrector.load_state_dict(state)


@pytest.mark.parametrize(
    ("saved", "given"),
    [(Constant(1.0), LinearDecay(0.5, 3)), (LinearDecay(0.5, 3), LossCovariance())],
    ids=["Constant into LinearDecay", "LinearDecay into LossCovariance"],
)
def test_the_state_of_another_coefficient_is_refused_and_nothing_is_loaded(
    saved: Coefficient, given: Coefficient
) -> None:
    run, other = Run(saved), Run(given)
    run.go(0, 2)
    before = copy.deepcopy(other.corrector.state_dict())
    with pytest.raises(ValueError, match=f"for the coefficient {type(given).__name__};"):
        other.corrector.load_state_dict(run.corrector.state_dict())
    assert same(other.corrector.state_dict(), before)


def test_a_parameter_that_was_frozen_after_the_refresh_does_not_prevent_resuming() -> None:
    def freeze(run: Run) -> None:
        run.model[0].weight.requires_grad_(False)

    whole = Run(Constant(0.7))
    whole.go(0, 2)
    freeze(whole)
    saved = through_a_file(whole.state())
    whole.go(2, 4)
    resumed = Run(Constant(0.7), seed=99)
    freeze(resumed)
    resumed.load(saved)
    resumed.go(2, 4)
    assert same(resumed.state()["model"], whole.state()["model"])
    assert same(resumed.corrector.state_dict(), whole.corrector.state_dict())


def test_a_double_precision_full_gradient_survives() -> None:
    model = nn.Linear(4, 1, dtype=torch.bfloat16)
    corrector: GradientCorrector[Tensor] = GradientCorrector(
        model, lambda x: model(x).square().mean(), Constant(1.0)
    )
    corrector.refresh([x.bfloat16() for x in BATCHES])
    assert corrector.full_gradient["weight"].dtype == torch.float32
    loaded: GradientCorrector[Tensor] = GradientCorrector(
        model, lambda x: model(x).square().mean(), Constant(1.0)
    )
    loaded.load_state_dict(through_a_file(corrector.state_dict()))
    assert loaded.full_gradient["weight"].dtype == torch.float32
    assert loaded.snapshot["weight"].dtype == torch.bfloat16
    assert same(loaded.state_dict(), corrector.state_dict())
