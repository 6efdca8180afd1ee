"""The paper's theory against its own numbers, and against formulas in closed form."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.analyses.theory import (
    SLIPS,
    Parabola,
    agent_bound,
    svrg_bound,
    theorem1_constants,
    variance_parabola,
)

CIFAR = {"samples": 50_000, "batch": 128}
SVHN = {"samples": 73_257, "batch": 128}


def test_the_published_constants_for_cifar() -> None:
    ours = theorem1_constants(**CIFAR, coefficient=0.1, alpha=2 / 3, mu=0.1)
    svrg = theorem1_constants(**CIFAR, coefficient=1.0, alpha=2 / 3, mu=0.1)
    assert ours.epoch_length == svrg.epoch_length == 3906
    assert ours.nu == pytest.approx(0.0987, abs=5e-5)  # printed as 0.1
    assert svrg.nu == pytest.approx(0.0645, abs=5e-5)  # printed as 0.06


@pytest.mark.parametrize("alpha", [2 / 3, 0.75, 0.9, 1.0])
def test_any_exponent_gives_them_to_the_digit_that_is_printed(alpha: float) -> None:
    ours = theorem1_constants(**CIFAR, coefficient=0.1, alpha=alpha, mu=0.1)
    svrg = theorem1_constants(**CIFAR, coefficient=1.0, alpha=alpha, mu=0.1)
    assert 0.094 <= ours.nu <= 0.0997
    assert 0.058 <= svrg.nu <= 0.0657


def test_with_the_true_epoch_length_svrg_would_do_better_than_printed() -> None:
    found = theorem1_constants(**CIFAR, coefficient=1.0, alpha=2 / 3, mu=0.1, epoch_length=390)
    assert found.nu == pytest.approx(0.097, abs=5e-4)


def test_the_pair_printed_for_svhn_has_no_common_mu() -> None:
    at = {mu: theorem1_constants(**SVHN, coefficient=1.0, alpha=0.9, mu=mu) for mu in (0.1, 0.4)}
    ours = theorem1_constants(**SVHN, coefficient=0.1, alpha=0.9, mu=0.4)
    assert ours.nu == pytest.approx(0.39, abs=0.005)  # printed as 0.4
    assert at[0.1].nu == pytest.approx(0.06, abs=0.006)  # printed as 0.06
    assert at[0.4].nu < 0.0
    assert svrg_bound(at[0.4], gap=1.0, steps=1) == math.inf
    assert agent_bound(at[0.4], gap=1.0, steps=1, sigma=1.0) == (math.inf, math.inf)


@pytest.mark.parametrize(("alpha", "square"), [(2 / 3, 0.067), (0.9, 0.84), (1.0, 2.5)])
def test_the_noise_that_makes_the_second_term_what_is_printed(alpha: float, square: float) -> None:
    found = theorem1_constants(**CIFAR, coefficient=0.1, alpha=alpha, mu=0.1)
    _, noise = agent_bound(found, gap=1.0, steps=1, sigma=math.sqrt(square))
    assert noise == pytest.approx(1e-5, rel=0.05)


@given(
    c=st.floats(0.0, 1.5),
    mu=st.floats(0.05, 0.9),
    alpha=st.floats(0.2, 0.7),
    smoothness=st.floats(0.01, 100.0),
)
def test_the_recursion_ends_at_the_geometric_sum(
    c: float, mu: float, alpha: float, smoothness: float
) -> None:
    samples, batch = 1000, 10
    found = theorem1_constants(
        samples=samples, batch=batch, coefficient=c, alpha=alpha, mu=mu, smoothness=smoothness
    )
    eta, zeta, m = found.step_size, found.zeta, found.epoch_length
    growth = eta * zeta + 4 * c**2 * eta**2 * smoothness**2 / batch
    closed = 2 * c**2 * eta**2 * smoothness**3 / batch * math.expm1(m * math.log1p(growth)) / growth
    assert found.first == pytest.approx(closed, rel=1e-6, abs=1e-300)
    # The smoothness is a unit: what has no unit does not know it.
    plain = theorem1_constants(samples=samples, batch=batch, coefficient=c, alpha=alpha, mu=mu)
    assert found.nu == pytest.approx(plain.nu, rel=1e-9, abs=1e-12)
    assert found.kappa == pytest.approx(plain.kappa, rel=1e-9)
    assert found.kappa >= m * (1 - 1e-12)


def test_without_old_gradients_the_constants_are_those_of_plain_descent() -> None:
    found = theorem1_constants(**CIFAR, coefficient=0.0, alpha=2 / 3, mu=0.1)
    assert found.first == 0.0
    assert found.kappa == found.epoch_length
    assert found.nu == pytest.approx(0.1 * (1 - found.step_size), rel=1e-12)


def test_the_step_size_and_mu_say_the_same() -> None:
    one = theorem1_constants(**CIFAR, coefficient=0.1, alpha=2 / 3, mu=0.1, smoothness=2.0)
    other = theorem1_constants(
        **CIFAR, coefficient=0.1, alpha=2 / 3, step_size=one.step_size, smoothness=2.0
    )
    assert other.mu == pytest.approx(0.1)
    assert other.nu == pytest.approx(one.nu)


def test_bounds_fall_with_the_number_of_steps() -> None:
    found = theorem1_constants(**CIFAR, coefficient=1.0, alpha=2 / 3, mu=0.1)
    first, noise = agent_bound(found, gap=2.0, steps=100, sigma=1.0)
    later, same = agent_bound(found, gap=2.0, steps=200, sigma=1.0)
    assert (later, same) == (pytest.approx(first / 2), noise)
    # A step of AGENT counts for a batch in the theorem, one of SVRG for a sample.
    assert svrg_bound(found, gap=2.0, steps=100) == pytest.approx(128 * first)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"alpha": 0.0}, r"alpha is an exponent in \(0, 1\]; got 0"),
        ({"coefficient": -1.0}, "at least 0; got -1"),
        ({"mu": None}, "got neither"),
        ({"step_size": 0.1}, "got both"),
        ({"mu": 1.0}, r"mu is in \(0, 1\); got 1"),
        ({"batch": 0}, "got 0 of 50000"),
        ({"smoothness": 0.0}, "above 0 and finite; got 0"),
    ],
)
def test_a_number_out_of_range_gets_one_sentence(changes: dict[str, float], words: str) -> None:
    usual = {**CIFAR, "coefficient": 0.1, "alpha": 2 / 3, "mu": 0.1}
    with pytest.raises(ValueError, match=words):
        theorem1_constants(**(usual | changes))  # type: ignore[arg-type]


def test_slips_name_their_place_once_each() -> None:
    assert len({(slip.place, slip.printed) for slip in SLIPS}) == len(SLIPS) == 11
    assert all(slip.printed != slip.right for slip in SLIPS)


@given(st.floats(0.1, 10.0), st.floats(0.1, 10.0), st.floats(-3.0, 3.0), st.floats(-5.0, 5.0))
def test_the_parabola_is_lowest_at_the_best_coefficient(
    a3: float, v: float, k: float, c: float
) -> None:
    best = k / v
    lowest = variance_parabola(a3, v, k, best)
    assert variance_parabola(a3, v, k, c) == pytest.approx(lowest + v * (c - best) ** 2)
    # As far from the best as nothing is, on the other side.
    assert variance_parabola(a3, v, k, 2 * best) == pytest.approx(a3)


def test_figure_2_shows_an_estimate_that_harms_and_a_tenth_of_it_that_helps() -> None:
    picture = Parabola()
    points = picture.points()
    assert picture.estimate > 2 * picture.best
    assert points["estimate"][1] > picture.a3 > points["scaled"][1] > points["best"][1]
    assert points["scaled"][0] == pytest.approx(0.1 * points["estimate"][0])


def test_the_theory_does_not_load_torch() -> None:
    code = "import sys, equipoise.analyses.theory; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
