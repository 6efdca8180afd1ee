"""The slope of current on old batch losses against numpy, and where there is no slope."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from equipoise.correction import loss_regression


def losses(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    old = torch.randn(n, generator=generator, dtype=torch.float64)
    return 0.7 * old + torch.randn(n, generator=generator, dtype=torch.float64), old


@pytest.mark.parametrize("n", [2, 3, 10, 391])
def test_equal_sizes_are_numpys_covariance(n: int) -> None:
    current, old = losses(n)
    covariance = np.cov(current.numpy(), old.numpy())  # ddof 1
    found = loss_regression(current, old, torch.full((n,), 128.0))
    assert found is not None
    assert found.slope == pytest.approx(covariance[0, 1] / covariance[1, 1], rel=1e-12)
    correlation = np.corrcoef(current.numpy(), old.numpy())[0, 1]
    assert found.correlation == pytest.approx(correlation, rel=1e-12)


def test_sizes_count_like_repetitions() -> None:
    current, old = losses(6)
    sizes = [1, 3, 2, 5, 1, 4]
    repeated = np.cov(np.repeat(current.numpy(), sizes), np.repeat(old.numpy(), sizes))
    found = loss_regression(current, old, torch.tensor(sizes))
    assert found is not None
    assert found.slope == pytest.approx(repeated[0, 1] / repeated[1, 1], rel=1e-12)
    unweighted = loss_regression(current, old, torch.ones(6))
    assert unweighted is not None
    assert abs(found.slope - unweighted.slope) > 1e-3


def test_only_the_ratio_of_the_sizes_matters() -> None:
    current, old = losses(6)
    sizes = torch.arange(1.0, 7.0)
    assert loss_regression(current, old, sizes) == pytest.approx(
        loss_regression(current, old, 8 * sizes), rel=1e-12
    )


@pytest.mark.parametrize(("a", "b"), [(1.0, 0.0), (2.5, -3.0), (-0.5, 10.0), (0.0, 1.0)])
def test_a_line_gives_its_slope(a: float, b: float) -> None:
    _, old = losses(20)
    found = loss_regression(a * old + b, old, torch.ones(20))
    assert found is not None
    assert found.slope == pytest.approx(a, abs=1e-12)
    assert found.correlation == pytest.approx(math.copysign(float(a != 0.0), a), abs=1e-6)


def test_independent_losses_give_next_to_nothing() -> None:
    generator = torch.Generator().manual_seed(1)
    current, old = torch.randn(2, 10_000, generator=generator)
    found = loss_regression(current, old, torch.ones(10_000))
    assert found is not None
    assert abs(found.slope) < 0.04  # four standard errors
    assert abs(found.correlation) < 0.04


def test_the_old_losses_are_the_regressor() -> None:
    current, old = losses(50)
    forwards, backwards = (
        loss_regression(a, b, torch.ones(50)) for a, b in [(current, old), (old, current)]
    )
    assert forwards is not None
    assert backwards is not None
    assert forwards.slope != pytest.approx(backwards.slope, rel=0.1)
    assert forwards.slope * backwards.slope == pytest.approx(forwards.correlation**2)


def test_a_common_offset_does_not_spoil_single_precision() -> None:
    _, old = losses(100)
    found = loss_regression((2.0 * old + 3e3).float(), (old + 1e3).float(), torch.ones(100))
    assert found is not None
    assert found.slope == pytest.approx(2.0, abs=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_losses_of_any_precision(dtype: torch.dtype) -> None:
    old = torch.tensor([1.0, 2.0, 4.0], dtype=dtype)
    found = loss_regression(2 * old, old, torch.ones(3))
    assert found == pytest.approx((2.0, 1.0))


@pytest.mark.parametrize(
    ("current", "previous", "sizes"),
    [
        ([], [], []),
        ([1.0], [2.0], [3.0]),
        ([1.0, 2.0], [0.5, 0.5], [1.0, 1.0]),
        ([1.0, 2.0, 3.0], [2.302585, 2.302585, 2.3025851], [1.0, 1.0, 1.0]),
        ([1.0, 2.0], [0.0, 0.0], [1.0, 1.0]),
        ([1.0, math.nan], [1.0, 2.0], [1.0, 1.0]),
        ([1.0, 2.0], [math.inf, 2.0], [1.0, 1.0]),
        ([1.0, 2.0], [1.0, 2.0], [0.0, 0.0]),
        ([1.0, 2.0], [1.0, 2.0], [1.0, math.inf]),
        ([1.0, 2.0], [1.0, 2.0], [1.0, math.nan]),
        ([1.0, 2.0], [1.0, 2.0], [5.0, 0.0]),
    ],
    ids=[
        "no batch",
        "one batch",
        "constant old losses",
        "old losses that differ by rounding",
        "old losses of zero",
        "nan now",
        "infinite before",
        "no weight",
        "infinite weight",
        "nan weight",
        "all the weight on one batch",
    ],
)
def test_there_is_no_estimate(
    current: list[float], previous: list[float], sizes: list[float]
) -> None:
    tensors = (torch.tensor(values) for values in (current, previous, sizes))
    assert loss_regression(*tensors) is None


def test_constant_current_losses_have_slope_and_correlation_zero() -> None:
    assert loss_regression(torch.ones(3), torch.arange(3.0), torch.ones(3)) == (0.0, 0.0)


def test_the_arguments_are_not_changed() -> None:
    current, old = losses(5)
    copies = current.clone(), old.clone()
    sizes = torch.arange(1, 6)
    loss_regression(current, old, sizes)
    assert torch.equal(current, copies[0])
    assert torch.equal(old, copies[1])
    assert torch.equal(sizes, torch.arange(1, 6))
