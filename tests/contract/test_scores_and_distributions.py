"""What every score and every distribution owes its callers; a new one adds its name here."""

import math
from typing import Any

import pytest
import torch

from equipoise.topology import (
    active_counts,
    distribution_names,
    er,
    erk,
    gradient_magnitude,
    uniform,
    uniform_noise,
    weight_magnitude,
)

SCORES = [weight_magnitude, gradient_magnitude, uniform_noise]
DISTRIBUTIONS = [uniform, er, erk]

SHAPES = {
    "one": (7,),
    "matrix": (12, 20),
    "narrow": (1, 300),
    "bilinear": (3, 4, 5),
    "kernel": (8, 4, 3, 3),
    "volume": (4, 2, 3, 3, 3),
}


def test_the_tables_are_complete() -> None:
    assert sorted(d.__name__ for d in DISTRIBUTIONS) == sorted(distribution_names())


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("shape", [(5,), (3, 4), (4, 3, 2, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_score_is_one_finite_number_per_weight_and_changes_nothing(
    score: Any, shape: Any, dtype: Any
) -> None:
    weight = torch.nn.Parameter(torch.randn(shape).to(dtype))
    gradient = torch.randn(shape).to(dtype)
    mask = torch.rand(shape) < 0.5
    before = weight.detach().clone(), gradient.clone(), mask.clone()
    state = torch.get_rng_state()
    scores = score(weight, gradient, mask, torch.Generator().manual_seed(0))
    assert scores.shape == shape
    assert scores.device == weight.device
    assert scores.is_floating_point()
    assert not scores.requires_grad
    assert bool(scores.isfinite().all())
    assert torch.equal(state, torch.get_rng_state())
    after = weight.detach(), gradient, mask
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("score", SCORES)
def test_a_score_depends_on_its_arguments_only(score: Any) -> None:
    weight, gradient, mask = torch.randn(6, 6), torch.randn(6, 6), torch.rand(6, 6) < 0.5
    one = score(weight, gradient, mask, torch.Generator().manual_seed(4))
    torch.rand(3)
    two = score(weight, gradient, mask, torch.Generator().manual_seed(4))
    assert torch.equal(one, two)


def test_noise_follows_the_generator_and_not_the_dtype_or_the_layout() -> None:
    shape = (4, 3, 2, 2)
    draws = []
    for weight in (
        torch.zeros(shape),
        torch.zeros(shape, dtype=torch.float64),
        torch.zeros(shape, dtype=torch.bfloat16),
        torch.zeros(shape).to(memory_format=torch.channels_last),
    ):
        generator = torch.Generator().manual_seed(2)
        draws.append(uniform_noise(weight, weight, weight == 0, generator))
    assert all(torch.equal(draws[0], other) for other in draws)
    assert bool(((draws[0] >= 0) & (draws[0] < 1)).all())
    generator = torch.Generator().manual_seed(2)
    weight = torch.zeros(shape)
    first, second = (uniform_noise(weight, weight, weight == 0, generator) for _ in range(2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("density", [0.05, 0.1, 0.37, 0.5, 0.9, 0.999, 1.0])
def test_a_distribution_hits_its_target_and_stays_in_range(distribution: Any, density: Any) -> None:
    got = distribution(SHAPES, density)
    sizes = {name: math.prod(shape) for name, shape in SHAPES.items()}
    assert list(got) == list(SHAPES)
    assert all(0.0 < value <= 1.0 for value in got.values())
    reached = sum(got[name] * sizes[name] for name in sizes) / sum(sizes.values())
    assert reached == pytest.approx(density, rel=1e-9)
    total = round(density * sum(sizes.values()))
    assert sum(active_counts(SHAPES, got, total).values()) == total


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_a_distribution_does_not_depend_on_the_order_of_the_layers(distribution: Any) -> None:
    forward = distribution(SHAPES, 0.2)
    backward = distribution(dict(reversed(SHAPES.items())), 0.2)
    assert {n: pytest.approx(v, rel=1e-12) for n, v in forward.items()} == backward


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_more_density_is_more_in_every_layer(distribution: Any) -> None:
    low, high = distribution(SHAPES, 0.1), distribution(SHAPES, 0.3)
    assert all(low[name] <= high[name] for name in SHAPES)
    assert all(value == 1.0 for value in distribution(SHAPES, 1.0).values())


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_a_distribution_of_nothing_is_nothing(distribution: Any) -> None:
    assert distribution({}, 0.5) == {}
