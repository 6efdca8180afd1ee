"""What each coefficient is worth after a given history."""

from __future__ import annotations

import math

import pytest
import torch

from equipoise.correction import Constant, LinearDecay, LossCovariance

OLD = torch.tensor([1.0, 2.0, 4.0, 3.0])
ONES = torch.ones(4)


def observe_slope(coefficient: LossCovariance, slope: float) -> None:
    coefficient.advance()
    coefficient.observe(slope * OLD + 1.0, OLD, ONES)


@pytest.mark.parametrize("constant", [1.0, 0.1, -2.0, 0.0])
def test_a_constant_is_itself(constant: float) -> None:
    coefficient = Constant(constant)
    assert coefficient.value == constant
    assert coefficient.idle == (constant == 0.0)
    assert not coefficient.needs_losses


def test_svrg_has_no_smoothing_and_no_scaling() -> None:
    coefficient = Constant(1.0)
    coefficient.advance()
    coefficient.observe(OLD, 2 * OLD, ONES)
    assert coefficient.value == 1.0


@pytest.mark.parametrize("constant", [math.nan, math.inf, -math.inf])
def test_a_constant_is_finite(constant: float) -> None:
    with pytest.raises(ValueError, match="Constant takes a finite number"):
        Constant(constant)
    with pytest.raises(ValueError, match="LinearDecay takes a finite number"):
        LinearDecay(constant, 3)
    with pytest.raises(ValueError, match="LossCovariance takes a finite number"):
        LossCovariance(scaling=constant)


def test_linear_decay_reaches_zero_at_the_last_refresh_and_stays() -> None:
    decay = LinearDecay(0.75, 4)
    assert decay.value == 0.75
    values, idle = [], []
    for _ in range(6):
        decay.advance()
        values.append(decay.value)
        idle.append(decay.idle)
    assert values == [0.75, 0.5, 0.25, 0.0, 0.0, 0.0]
    assert idle == [False, False, False, True, True, True]


@pytest.mark.parametrize("num_refreshes", [2, 3, 7, 10, 49, 250])
def test_linear_decay_is_exactly_zero_and_idle_at_the_end(num_refreshes: int) -> None:
    decay = LinearDecay(1 / 3, num_refreshes)
    for _ in range(num_refreshes - 1):
        decay.advance()
        assert decay.value > 0.0
    decay.advance()
    assert decay.value == 0.0
    assert decay.idle


def test_linear_decay_may_be_negative() -> None:
    decay = LinearDecay(-0.5, 2)
    decay.advance()
    assert decay.value == -0.5
    decay.advance()
    assert decay.idle


@pytest.mark.parametrize("num_refreshes", [0, -3])
def test_linear_decay_needs_a_refresh(num_refreshes: int) -> None:
    with pytest.raises(ValueError, match=f"at least 1; got {num_refreshes}"):
        LinearDecay(0.5, num_refreshes)


def test_the_published_sequence() -> None:
    """With an estimate of 1 at every refresh: 0.1 (1 - 0.7^k)."""
    coefficient = LossCovariance()
    values = [coefficient.value]
    for _ in range(4):
        observe_slope(coefficient, 1.0)
        values.append(coefficient.value)
    assert values == pytest.approx([0.0, 0.03, 0.051, 0.0657, 0.07599], abs=1e-12)
    assert coefficient.estimate == pytest.approx(1.0)


def test_smoothing_weighs_the_new_estimate() -> None:
    coefficient = LossCovariance(scaling=1.0, smoothing=0.25)
    observe_slope(coefficient, 2.0)
    assert coefficient.value == pytest.approx(0.5)
    observe_slope(coefficient, -1.0)
    assert coefficient.value == pytest.approx(0.75 * 0.5 - 0.25)
    assert coefficient.estimate == pytest.approx(-1.0)
    assert coefficient.correlation == pytest.approx(-1.0)


def test_a_smoothing_of_one_is_the_estimate() -> None:
    coefficient = LossCovariance(scaling=1.0, smoothing=1.0)
    for slope in (2.0, 0.25):
        observe_slope(coefficient, slope)
        assert coefficient.value == pytest.approx(slope)


def test_scaling_only_multiplies() -> None:
    scaled, plain = LossCovariance(scaling=0.1), LossCovariance(scaling=1.0)
    for slope in (0.4, 1.7, -0.2):
        for coefficient in (scaled, plain):
            observe_slope(coefficient, slope)
        assert scaled.value == pytest.approx(0.1 * plain.value)
        assert scaled.smoothed == plain.smoothed


@pytest.mark.parametrize(("slope", "used"), [(3.0, 1.0), (-3.0, 0.0), (0.5, 0.5)])
def test_clip_bounds_what_is_used_and_not_what_is_remembered(slope: float, used: float) -> None:
    coefficient = LossCovariance(scaling=0.5, smoothing=1.0, clip=(0.0, 1.0))
    observe_slope(coefficient, slope)
    assert coefficient.value == pytest.approx(0.5 * used)
    assert coefficient.smoothed == pytest.approx(slope)


def test_without_a_clip_the_coefficient_is_free() -> None:
    coefficient = LossCovariance(scaling=1.0, smoothing=1.0)
    observe_slope(coefficient, -0.25)
    assert coefficient.value == pytest.approx(-0.25)


@pytest.mark.parametrize(
    "previous", [torch.ones(4), torch.tensor([1.0, math.nan, 2.0, 3.0])], ids=["constant", "nan"]
)
def test_an_estimate_that_cannot_be_made_changes_nothing_and_warns(
    previous: torch.Tensor,
) -> None:
    coefficient = LossCovariance()
    observe_slope(coefficient, 1.0)
    before = coefficient.value
    with pytest.warns(RuntimeWarning, match=r"cannot be estimated and stays 0\.03;"):
        coefficient.observe(OLD, previous, ONES)
    assert coefficient.value == before
    assert coefficient.estimate is None
    assert coefficient.correlation is None
    observe_slope(coefficient, 1.0)
    assert coefficient.value == pytest.approx(0.051)


def test_a_scaling_of_zero_is_idle_and_needs_nothing() -> None:
    coefficient = LossCovariance(scaling=0.0)
    assert coefficient.idle
    assert not coefficient.needs_losses
    assert not LossCovariance().idle
    assert LossCovariance().needs_losses


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"scaling": -0.1}, r"scaling is at least 0; got -0\.1"),
        ({"smoothing": 0.0}, r"in \(0, 1\]; got 0\.0"),
        ({"smoothing": 1.1}, r"in \(0, 1\]; got 1\.1"),
        ({"smoothing": math.nan}, r"in \(0, 1\]; got nan"),
        ({"clip": (1.0, 0.0)}, r"low <= high; got \(1\.0, 0\.0\)"),
        ({"clip": (math.nan, 1.0)}, r"low <= high; got \(nan, 1\.0\)"),
    ],
)
def test_arguments_out_of_range(arguments: dict[str, float], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        LossCovariance(**arguments)  # type: ignore[arg-type]
