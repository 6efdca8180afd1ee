import math
from typing import Any

import pytest

from equipoise.topology.distributions import (
    active_counts,
    distribution_named,
    distribution_names,
    er,
    erk,
    uniform,
)


def conv(out: int, inp: int, kernel: int = 3) -> tuple[int, int, int, int]:
    return (out, inp, kernel, kernel)


# Every row: shape, density at 0.1, density at 0.01.
VGG_C = [
    (conv(64, 3), 1.00000, 0.39443),
    (conv(64, 64), 0.35476, 0.03394),
    (conv(128, 64), 0.26210, 0.02507),
    (conv(128, 128), 0.17341, 0.01659),
    (conv(256, 128), 0.12906, 0.01235),
    (conv(256, 256), 0.08571, 0.00820),
    (conv(256, 256, 1), 0.76545, 0.07323),
    (conv(512, 256), 0.06404, 0.00613),
    (conv(512, 512), 0.04261, 0.00408),
    (conv(512, 512, 1), 0.38198, 0.03654),
    (conv(512, 512), 0.04261, 0.00408),
    (conv(512, 512), 0.04261, 0.00408),
    (conv(512, 512, 1), 0.38198, 0.03654),
    ((512, 2048), 0.23827, 0.02279),
    ((512, 512), 0.38124, 0.03647),
    ((10, 512), 1.00000, 0.95191),
]
VGG_16 = [
    (conv(64, 3), 1.00000, 0.58678),
    (conv(64, 64), 0.51803, 0.05049),
    (conv(128, 64), 0.38272, 0.03730),
    (conv(128, 128), 0.25322, 0.02468),
    (conv(256, 128), 0.18846, 0.01837),
    (conv(256, 256), 0.12516, 0.01220),
    (conv(256, 256), 0.12516, 0.01220),
    (conv(512, 256), 0.09351, 0.00911),
    *[(conv(512, 512), 0.06222, 0.00606)] * 5,
    ((256, 2048), 0.62627, 0.06104),
    ((256, 256), 1.00000, 0.10851),
    ((10, 256), 1.00000, 1.00000),
]
WRN_28_4 = [
    (conv(16, 3), 1.00000, 0.42127),
    (conv(64, 16), 0.71567, 0.06793),
    (conv(64, 64), 0.27878, 0.02646),
    (conv(64, 16, 1), 1.00000, 0.58293),
    *[(conv(64, 64), 0.27878, 0.02646)] * 6,
    (conv(128, 64), 0.20596, 0.01955),
    (conv(128, 128), 0.13627, 0.01293),
    (conv(128, 64, 1), 1.00000, 0.17239),
    *[(conv(128, 128), 0.13627, 0.01293)] * 6,
    (conv(256, 128), 0.10142, 0.00963),
    (conv(256, 256), 0.06735, 0.00639),
    (conv(256, 128, 1), 0.90343, 0.08575),
    *[(conv(256, 256), 0.06735, 0.00639)] * 6,
    ((10, 256), 1.00000, 0.75639),
]
TABLES = {"vgg-c": VGG_C, "vgg-16": VGG_16, "wrn-28-4": WRN_28_4}
NUM_ACTIVE = {  # at densities 0.1 and 0.01
    "vgg-c": (1_130_771, 113_077),
    "vgg-16": (1_530_285, 153_028),
    "wrn-28-4": (584_184, 58_418),
}


def shapes_of(table: Any) -> Any:
    return {f"layer{i}": row[0] for i, row in enumerate(table)}


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize(("column", "density"), [(1, 0.1), (2, 0.01)])
def test_erk_reproduces_the_published_densities(name: Any, column: Any, density: Any) -> None:
    table = TABLES[name]
    got = erk(shapes_of(table), density)
    for value, row in zip(got.values(), table, strict=True):
        assert value == pytest.approx(row[column], abs=6e-6)


@pytest.mark.parametrize(
    ("name", "density", "scale"),
    [
        ("vgg-c", 0.01, 9.3367),
        ("vgg-c", 0.1, 97.597),
        ("wrn-28-4", 0.01, 7.2796),
        ("wrn-28-4", 0.1, 76.693),
    ],
)
def test_erk_reproduces_the_published_scale(name: Any, density: Any, scale: Any) -> None:
    shapes = shapes_of(TABLES[name])
    got = erk(shapes, density)
    free = next(layer for layer, value in got.items() if value < 1.0)
    assert got[free] * math.prod(shapes[free]) / sum(shapes[free]) == pytest.approx(scale, rel=1e-4)


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize(("column", "density"), [(0, 0.1), (1, 0.01)])
def test_counts_on_real_networks_are_exact(name: Any, column: Any, density: Any) -> None:
    shapes = shapes_of(TABLES[name])
    total = sum(math.prod(shape) for shape in shapes.values())
    counts = active_counts(shapes, erk(shapes, density), round(density * total))
    assert sum(counts.values()) == NUM_ACTIVE[name][column]
    assert all(1 <= counts[layer] <= math.prod(shape) for layer, shape in shapes.items())


def test_layers_of_equal_shape_are_treated_alike() -> None:
    shapes = {"a": (2, 2), "b": (40, 40), "c": (2, 2), "d": (40, 40)}
    got = erk(shapes, 0.3)
    assert got["a"] == got["c"] == 1.0
    assert got["b"] == got["d"] < 1.0


def test_er_ignores_the_kernel_and_erk_does_not() -> None:
    same = {"a": (32, 16, 3, 3), "b": (32, 16, 5, 5), "c": (512, 512)}
    got = er(same, 0.05)
    assert got["a"] == got["b"]
    got = erk(same, 0.05)
    assert got["a"] > got["b"]


def test_er_and_erk_agree_on_matrices() -> None:
    shapes = {"a": (300, 784), "b": (100, 300), "c": (10, 100)}
    assert er(shapes, 0.05) == erk(shapes, 0.05)


@pytest.mark.parametrize("distribution", [uniform, er, erk])
@pytest.mark.parametrize("density", [0.0, -0.1, 1.1, math.nan])
def test_a_density_outside_its_range_is_refused(distribution: Any, density: Any) -> None:
    with pytest.raises(ValueError, match=r"density is the fraction of weights kept, in \(0, 1\]"):
        distribution({"a": (3, 3)}, density)


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"unknown distribution 'ERKK', .* did you mean 'erk'\."):
        distribution_named("ERKK")
    with pytest.raises(ValueError, match=r"'erk', 'er', 'uniform'; choose one of them"):
        distribution_named("????")


def test_every_name_is_a_distribution() -> None:
    assert {distribution_named(name) for name in distribution_names()} == {uniform, er, erk}


def test_remainders_go_to_the_largest_then_to_the_first() -> None:
    shapes = {"a": (10,), "b": (10,), "c": (10,)}
    assert active_counts(shapes, {"a": 0.26, "b": 0.26, "c": 0.28}) == {"a": 3, "b": 2, "c": 3}


def test_every_layer_keeps_a_weight_at_the_expense_of_the_largest_sparse_one() -> None:
    shapes = {"tiny": (2,), "large": (1000,), "dense": (5,)}
    counts = active_counts(shapes, {"tiny": 0.0, "large": 0.05, "dense": 1.0})
    assert counts == {"tiny": 1, "large": 49, "dense": 5}


def test_products_that_miss_a_whole_number_by_rounding_count_as_whole() -> None:
    assert active_counts({"a": (100,), "b": (100,)}, {"a": 0.29, "b": 0.57}) == {"a": 29, "b": 57}


@pytest.mark.parametrize("total", [1, 7])
def test_a_total_that_cannot_be_reached_is_refused(total: Any) -> None:
    with pytest.raises(ValueError, match=rf"{total} active weights cannot be spread over 2 layers"):
        active_counts({"a": (3,), "b": (3,)}, {"a": 0.5, "b": 0.5}, total)


def test_densities_for_other_layers_are_refused() -> None:
    with pytest.raises(ValueError, match="c is named on one side only"):
        active_counts({"a": (3,)}, {"a": 0.5, "c": 0.5})
    with pytest.raises(ValueError, match=r"gave a a density of 1\.5"):
        active_counts({"a": (3,)}, {"a": 1.5})
