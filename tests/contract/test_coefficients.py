"""What every coefficient promises to a corrector."""

from __future__ import annotations

import copy
import io
import math
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import equipoise.correction
from equipoise.correction import (
    AgeAdaptive,
    Coefficient,
    Constant,
    LinearDecay,
    LossCovariance,
)

TABLE: dict[str, Callable[[], Coefficient]] = {
    "SVRG": lambda: Constant(1.0),
    "fixed": lambda: Constant(0.1),
    "negative": lambda: Constant(-0.5),
    "none": lambda: Constant(0.0),
    "alpha-SVRG": lambda: LinearDecay(0.75, 4),
    "decay from 0": lambda: LinearDecay(0.0, 4),
    "decay of one refresh": lambda: LinearDecay(1.0, 1),
    "decay from below": lambda: LinearDecay(-0.3, 5),
    "AGENT": LossCovariance,
    "no gamma": lambda: LossCovariance(scaling=1.0),
    "gamma of 0": lambda: LossCovariance(scaling=0.0),
    "unsmoothed": lambda: LossCovariance(smoothing=1.0),
    "clipped": lambda: LossCovariance(clip=(0.0, 1.0)),
    "by age": AgeAdaptive,
    "by age, gated": lambda: AgeAdaptive(gate=True),
    "clipped above 0": lambda: LossCovariance(clip=(0.2, 0.4)),
}
NAMES = pytest.mark.parametrize("name", TABLE)


def losses(seed: int, n: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    current, previous, sizes = torch.rand(3, n, generator=generator)
    return current + previous, previous, sizes + 0.5


def refresh(coefficient: Coefficient, seed: int) -> None:
    """What a corrector does with a coefficient at a refresh."""
    coefficient.advance()
    if coefficient.needs_losses and not coefficient.idle:
        coefficient.observe(*losses(seed))


ODD: dict[str, tuple[Tensor, Tensor, Tensor]] = {
    "no batch": (torch.zeros(0), torch.zeros(0), torch.zeros(0)),
    "one batch": (torch.ones(1), torch.ones(1), torch.ones(1)),
    "nan": (torch.tensor([math.nan, 1.0]), torch.tensor([1.0, 2.0]), torch.ones(2)),
    "infinity": (torch.tensor([1.0, 2.0]), torch.tensor([-math.inf, 1.0]), torch.ones(2)),
    "equal": (torch.tensor([1.0, 2.0]), torch.ones(2), torch.ones(2)),
    "no weight": (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0]), torch.zeros(2)),
    "infinite weight": (torch.arange(2.0), torch.arange(2.0), torch.tensor([1.0, math.inf])),
    "huge": (torch.tensor([3e38, -3e38]), torch.tensor([-3e38, 3e38]), torch.ones(2)),
    "tiny": (torch.tensor([3e38, 0.0]), torch.tensor([1e-44, 0.0]), torch.ones(2)),
    "double": (
        torch.tensor([1e300, -1e300], dtype=torch.float64),
        torch.tensor([1e-150, 0.0], dtype=torch.float64),
        torch.ones(2),
    ),
    "whole numbers": (torch.arange(3), torch.arange(3), torch.arange(1, 4)),
}


def test_every_public_coefficient_is_in_the_table() -> None:
    public = {
        value
        for value in vars(equipoise.correction).values()
        if isinstance(value, type) and hasattr(value, "observe") and value is not Coefficient
    }
    assert {type(make()) for make in TABLE.values()} == public


@NAMES
def test_the_properties_have_their_types(name: str) -> None:
    coefficient = TABLE[name]()
    for seed in range(6):
        assert isinstance(coefficient.value, float)
        assert math.isfinite(coefficient.value)
        assert isinstance(coefficient.idle, bool)
        assert isinstance(coefficient.needs_losses, bool)
        refresh(coefficient, seed)


@NAMES
def test_an_idle_coefficient_is_0_until_the_next_refresh_whatever_it_sees(name: str) -> None:
    coefficient = TABLE[name]()
    for seed in range(8):
        coefficient.advance()
        if coefficient.idle:
            assert coefficient.value == 0.0
            coefficient.observe(*losses(seed))
            assert coefficient.value == 0.0
            assert coefficient.idle
        elif coefficient.needs_losses:
            coefficient.observe(*losses(seed))


@NAMES
def test_a_coefficient_that_needs_no_losses_ignores_them(name: str) -> None:
    coefficient = TABLE[name]()
    if coefficient.needs_losses:
        return
    for seed in range(6):
        coefficient.advance()
        before = coefficient.value
        coefficient.observe(*losses(seed))
        assert coefficient.value == before


def test_the_table_has_coefficients_of_either_need() -> None:
    assert {make().needs_losses for make in TABLE.values()} == {True, False}
    assert {make().idle for make in TABLE.values()} == {True, False}


@NAMES
def test_reading_changes_nothing(name: str) -> None:
    coefficient = TABLE[name]()
    refresh(coefficient, 0)
    before = copy.deepcopy(coefficient.state_dict())
    values = {(coefficient.value, coefficient.idle, coefficient.needs_losses) for _ in range(5)}
    assert len(values) == 1
    assert coefficient.state_dict() == before


@NAMES
def test_the_value_changes_at_a_refresh_only(name: str) -> None:
    """Nothing that is evaluated during an epoch may move it, or the correction were biased."""
    coefficient = TABLE[name]()
    refresh(coefficient, 0)
    before = coefficient.value
    torch.rand(10)
    coefficient.state_dict()
    assert coefficient.value == before


@NAMES
@pytest.mark.parametrize("refreshes", [0, 1, 3])
def test_a_state_round_trip_continues_alike(name: str, refreshes: int) -> None:
    first, second = TABLE[name](), TABLE[name]()
    for seed in range(refreshes):
        refresh(first, seed)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    assert second.state_dict() == first.state_dict()
    for seed in range(10, 14):
        assert (second.value, second.idle) == (first.value, first.idle)
        refresh(first, seed)
        refresh(second, seed)


@NAMES
def test_loading_overwrites_what_was_there(name: str) -> None:
    first, second = TABLE[name](), TABLE[name]()
    for seed in range(2):
        refresh(second, seed)
    second.load_state_dict(first.state_dict())
    assert (second.value, second.idle) == (first.value, first.idle)


@NAMES
def test_a_state_that_was_given_out_stays(name: str) -> None:
    coefficient = TABLE[name]()
    refresh(coefficient, 0)
    state = coefficient.state_dict()
    taken = copy.deepcopy(state)
    refresh(coefficient, 1)
    assert state == taken


@NAMES
@pytest.mark.parametrize("odd", ODD)
def test_odd_losses_neither_raise_nor_poison(name: str, odd: str) -> None:
    coefficient = TABLE[name]()
    refresh(coefficient, 0)
    for _ in range(2):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            coefficient.advance()
            coefficient.observe(*ODD[odd])
        assert math.isfinite(coefficient.value)
    refresh(coefficient, 1)
    assert math.isfinite(coefficient.value)


@NAMES
def test_the_losses_are_neither_changed_nor_held(name: str) -> None:
    coefficient = TABLE[name]()
    observed = losses(0)
    copies = [t.clone() for t in observed]
    coefficient.advance()
    coefficient.observe(*observed)
    assert all(torch.equal(a, b) for a, b in zip(observed, copies, strict=True))
    before = coefficient.value, copy.deepcopy(coefficient.state_dict())
    for t in observed:
        t.fill_(math.nan)
    assert (coefficient.value, coefficient.state_dict()) == before


@NAMES
def test_two_of_a_kind_are_independent(name: str) -> None:
    first, second = TABLE[name](), TABLE[name]()
    fresh = second.value, copy.deepcopy(second.state_dict())
    refresh(first, 0)
    refresh(first, 1)
    assert (second.value, second.state_dict()) == fresh


@NAMES
def test_a_thousand_refreshes_stay_finite(name: str) -> None:
    coefficient = TABLE[name]()
    for seed in range(1000):
        refresh(coefficient, seed % 7)
    assert math.isfinite(coefficient.value)
