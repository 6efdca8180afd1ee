import dataclasses
import math
import warnings
from typing import Any

import pytest

from equipoise.topology.rewiring import Rewiring, rigl, rigl_itop, set_itop, set_rewiring
from equipoise.topology.scores import gradient_magnitude, uniform_noise, weight_magnitude

STEPS_PER_EPOCH = 352


@pytest.mark.parametrize(
    ("epochs", "random_growth", "gradient_growth"), [(250, 58, 22), (100, 23, 8), (50, 11, 4)]
)
def test_the_long_interval_plans_rewire_as_often_as_published(
    epochs: Any, random_growth: Any, gradient_growth: Any
) -> None:
    total = epochs * STEPS_PER_EPOCH
    for plan, expected in (
        (set_itop(total), random_growth),
        (rigl_itop(total), gradient_growth),
    ):
        assert plan.num_rewirings == expected
        assert sum(plan.due(step) for step in range(total + 1)) == expected


def test_the_cosine_goes_to_its_floor() -> None:
    plan = rigl_itop(88_000)
    got = [plan.fraction_at(88_000 * quarter // 4) for quarter in range(5)]
    assert got == pytest.approx([0.5, 0.4275, 0.2525, 0.0775, 0.005], abs=5e-5)
    assert plan.fraction_at(10**9) == pytest.approx(0.005)


def test_rigl_stops_at_three_quarters() -> None:
    plan = rigl(88_000)
    assert plan.stop_steps == 66_000
    assert plan.fraction_at(0) == 0.3
    assert plan.fraction_at(33_000) == pytest.approx(0.15)
    assert plan.fraction_at(66_000) == pytest.approx(0.0)
    assert plan.due(66_000)
    assert not plan.due(66_100)
    assert not plan.due(0)
    assert not plan.due(150)
    assert plan.num_rewirings == 660


def test_the_other_schedules() -> None:
    linear = set_rewiring(100, interval=10, stop=1.0, schedule="linear", prune_fraction_end=0.1)
    assert [linear.fraction_at(s) for s in (0, 50, 100)] == pytest.approx([0.3, 0.2, 0.1])
    constant = set_rewiring(100, interval=10, schedule="constant")
    assert [constant.fraction_at(s) for s in (0, 50, 100)] == [0.3, 0.3, 0.3]


def test_lengths_are_steps_as_whole_numbers_and_shares_as_floats() -> None:
    plan = set_rewiring(1000, interval=0.05, stop=0.5)
    assert (plan.interval_steps, plan.stop_steps) == (50, 500)
    plan = set_rewiring(1000, interval=1, stop=400)
    assert (plan.interval_steps, plan.stop_steps) == (1, 400)
    plan = set_rewiring(1000, interval=1.0, stop=1.0)
    assert (plan.interval_steps, plan.num_rewirings) == (1000, 1)
    assert set_rewiring(10, interval=0.001).interval_steps == 1


def test_presets_differ_in_growth_and_in_the_step() -> None:
    assert set_rewiring(1000).grow is uniform_noise
    assert rigl(1000).grow is gradient_magnitude
    assert rigl(1000).drop is weight_magnitude
    assert [p(10_000).replaces_step for p in (set_rewiring, rigl, set_itop, rigl_itop)] == [
        False,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize("preset", [set_rewiring, rigl, set_itop, rigl_itop])
def test_every_field_of_a_preset_can_be_overridden(preset: Any) -> None:
    other = {
        "grow": weight_magnitude,
        "drop": uniform_noise,
        "interval": 7,
        "stop": 0.6,
        "prune_fraction": 0.2,
        "prune_fraction_end": 0.1,
        "schedule": "linear",
        "signal": "corrected",
        "replaces_step": True,
    }
    # The default interval would warn in so short a run; the override must come first.
    plan = preset(40, **other)
    assert dataclasses.asdict(plan) == {"total_steps": 40, **other}


def test_plans_are_values() -> None:
    plan = rigl(1000)
    assert plan == rigl(1000)
    assert dataclasses.replace(plan, interval=50).num_rewirings == 15
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.interval = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"total_steps": 0}, r"total_steps is the length .*; got 0\."),
        ({"total_steps": True}, r"total_steps .*; got True\."),
        ({"total_steps": 10.0}, r"total_steps .*; got 10\.0\."),
        ({"interval": True}, r"interval is a whole number .*; got True\."),
        ({"interval": 0}, r"interval .*; got 0\."),
        ({"interval": 100.0}, r"interval .*; got 100\.0; for 100 steps pass 100\."),
        ({"interval": math.nan}, r"interval .*; got nan\."),
        ({"stop": 0.0}, r"stop is a whole number .*; got 0\.0\."),
        ({"stop": 1.5}, r"stop .*; got 1\.5\."),
        ({"stop": False}, r"stop .*; got False\."),
        ({"stop": "half"}, r"stop .*; got 'half'\."),
        ({"prune_fraction": 0.0}, r"prune_fraction .* got 0\.0; for a static topology"),
        ({"prune_fraction": 30}, r"prune_fraction .* got 30;"),
        ({"prune_fraction_end": -0.1}, r"prune_fraction_end .* got -0\.1\."),
        ({"schedule": "cubic"}, r"schedule is one of 'cosine', .*; got 'cubic'\."),
        ({"signal": "momentum"}, r"signal is one of 'raw', 'corrected'; got 'momentum'\."),
    ],
)
def test_settings_outside_their_range_are_refused(settings: Any, message: Any) -> None:
    with pytest.raises(ValueError, match=message):
        Rewiring(**{"total_steps": 1000, "grow": uniform_noise, **settings})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stop": 2000}, r"stop=2000 lies beyond the training of 1000 steps"),
        ({"interval": 800}, r"an interval of 800 steps is longer than the 750 steps"),
        ({"interval": 100, "stop": 50}, r"an interval of 100 steps is longer than the 50 steps"),
        ({"schedule": "constant", "prune_fraction_end": 0.1}, "prune_fraction_end has no effect"),
    ],
)
def test_settings_without_effect_are_warned_of_at_the_line_of_the_user(
    settings: Any, message: Any
) -> None:
    with pytest.warns(UserWarning, match=message) as caught:
        Rewiring(total_steps=1000, grow=uniform_noise, **settings)
    assert [warning.filename for warning in caught] == [__file__]


def test_ordinary_settings_do_not_warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Rewiring(total_steps=1000, grow=uniform_noise)
        rigl(88_000)
