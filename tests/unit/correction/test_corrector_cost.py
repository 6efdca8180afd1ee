"""What the corrector reports to be its cost, against passes that are really counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from equipoise.correction import (
    Coefficient,
    Constant,
    GradientCorrector,
    LinearDecay,
    LossCovariance,
    NoCorrection,
)

SIZES = (8, 8, 8, 3)
PLAIN = 3.0 * sum(SIZES)  # a forward pass counts 1, a backward pass 2, per sample


class Entry(NamedTuple):
    part: str
    samples: float
    forwards: int
    backwards: int

    @property
    def units(self) -> float:
        return self.samples * (self.forwards + 2 * self.backwards)


class Ledger:
    """A measure that remembers what it was told, and checks that bodies do not overlap."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.open = 0

    @contextmanager
    def __call__(
        self, part: str, /, *, samples: float = 0.0, forwards: int = 0, backwards: int = 0
    ) -> Iterator[None]:
        assert self.open == 0
        self.open += 1
        try:
            yield
        finally:
            self.open -= 1
        self.entries.append(Entry(part, samples, forwards, backwards))

    def units(self, *parts: str) -> float:
        return sum(e.units for e in self.entries if not parts or e.part in parts)


class Odometer(torch.autograd.Function):
    """The identity; counts the samples that pass it in either direction."""

    counts: ClassVar[Counter[str]] = Counter()

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        Odometer.counts["forward"] += len(x)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        Odometer.counts["backward"] += len(gradient)
        return gradient


class Counted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Any:
        return Odometer.apply(self.layer(x))


def run(make_corrector: Any, epochs: int) -> tuple[list[float], list[float], Ledger]:
    """Pass units of each epoch: as reported, and as counted in the model."""
    model, ledger = Counted(), Ledger()
    generator = torch.Generator().manual_seed(1)
    batches = [torch.randn(n, 4, generator=generator) for n in SIZES]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    corrector = make_corrector(model, lambda x: model(x).square().mean(), measure=ledger)
    reported, counted = [], []
    for _ in range(epochs):
        Odometer.counts.clear()
        already = ledger.units()
        corrector.refresh(batches)
        for x in batches:
            optimizer.zero_grad()
            corrector.backward(x)
            optimizer.step()
        reported.append(ledger.units() - already)
        counted.append(Odometer.counts["forward"] + 2.0 * Odometer.counts["backward"])
    return reported, counted, ledger


def corrected(coefficient: Coefficient) -> Any:
    return lambda model, loss_fn, measure: GradientCorrector(
        model, loss_fn, coefficient, measure=measure
    )


@pytest.mark.parametrize(
    ("make", "epochs"),
    [
        pytest.param(NoCorrection, [1, 1], id="plain"),
        pytest.param(corrected(LossCovariance()), [1, 10 / 3, 10 / 3, 10 / 3], id="AGENT"),
        pytest.param(corrected(LossCovariance(scaling=1.0)), [1, 10 / 3, 10 / 3], id="no gamma"),
        pytest.param(corrected(LossCovariance(scaling=0.0)), [1, 1, 1], id="gamma of 0"),
        pytest.param(corrected(Constant(1.0)), [3, 3, 3], id="SVRG"),
        pytest.param(corrected(Constant(0.1)), [3, 3], id="fixed"),
        pytest.param(corrected(Constant(0.0)), [1, 1], id="constant 0"),
        pytest.param(corrected(LinearDecay(0.75, 3)), [3, 3, 1, 1], id="alpha-SVRG"),
    ],
)
def test_the_cost_of_an_epoch(make: Any, epochs: list[float]) -> None:
    reported, counted, _ = run(make, len(epochs))
    assert reported == pytest.approx([PLAIN * ratio for ratio in epochs])
    assert counted == pytest.approx(reported)


def test_the_parts_of_a_corrected_epoch() -> None:
    _, _, ledger = run(corrected(LossCovariance()), 2)
    second = ledger.entries[len(SIZES) :]
    refresh, steps = second[: 2 * len(SIZES)], second[2 * len(SIZES) :]
    assert refresh == [
        entry for n in SIZES for entry in (Entry("refresh", n, 1, 1), Entry("refresh", n, 1, 0))
    ]
    assert steps == [
        entry
        for n in SIZES
        for entry in (Entry("new_gradient", n, 1, 1), Entry("old_gradient", n, 1, 1))
    ]
    assert ledger.entries[: len(SIZES)] == [Entry("new_gradient", n, 1, 1) for n in SIZES]


def test_a_coefficient_of_zero_skips_the_old_gradient() -> None:
    for coefficient in (Constant(0.0), LossCovariance(scaling=0.0), LinearDecay(0.0, 5)):
        _, _, ledger = run(corrected(coefficient), 3)
        assert {entry.part for entry in ledger.entries} == {"new_gradient"}


def test_the_samples_are_those_that_batch_size_gives() -> None:
    model, ledger = Counted(), Ledger()
    corrector: GradientCorrector[Any] = GradientCorrector(
        model,
        lambda pair: model(pair["x"]).square().mean(),
        Constant(1.0),
        batch_size=lambda pair: pair["n"],
        measure=ledger,
    )
    corrector.refresh([{"x": torch.ones(3, 4), "n": 30.0}], weights=[7.0])
    corrector.backward({"x": torch.ones(3, 4), "n": 20.0})
    assert [entry.samples for entry in ledger.entries] == [30.0, 20.0, 20.0]


def test_an_epoch_of_agent_holds_two_copies_of_the_parameters() -> None:
    model = Counted()
    corrector: GradientCorrector[Any] = GradientCorrector(
        model, lambda x: model(x).square().mean(), Constant(1.0)
    )
    corrector.refresh([torch.ones(3, 4)])
    held = [*corrector.snapshot.values(), *corrector.full_gradient.values()]
    assert sum(t.numel() for t in held) == 2 * sum(p.numel() for p in model.parameters())


def test_a_corrector_that_is_never_refreshed_says_so_once() -> None:
    model = nn.Linear(1, 1)
    corrector: GradientCorrector[Any] = GradientCorrector(
        model, lambda x: model(x).mean(), Constant(1.0)
    )
    x = torch.ones(1, 1)
    for _ in range(999):
        corrector.backward(x)
    with pytest.warns(UserWarning, match=r"called 1000 times without a refresh\(\)") as warned:
        corrector.backward(x)
    assert len(warned) == 1
    assert warned[0].filename == __file__  # it points at the caller's line
    for _ in range(1001):
        corrector.backward(x)


@pytest.mark.parametrize("coefficient", [Constant(1.0), Constant(0.0), LossCovariance()], ids=str)
def test_a_corrector_that_was_refreshed_does_not_remind(coefficient: Coefficient) -> None:
    model = nn.Linear(1, 1)
    corrector: GradientCorrector[Any] = GradientCorrector(
        model, lambda x: model(x).mean(), coefficient
    )
    x = torch.ones(1, 1)
    corrector.refresh([x])
    for _ in range(1001):
        corrector.backward(x)
