"""When a run reaches an accuracy, what that saves, and the published averages again."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.records import EpochRecord
from equipoise.reports.gains import (
    accuracies_at,
    accuracy_targets,
    average_gain,
    cost_at_accuracy,
    jitter,
    reduction,
)

synthetic: Any = import_module("tests.unit.reports.synthetic_runs")

# Table 1, test accuracy after 20, 40, 70, 90, 140 and 200 epochs: BSR-Net, and with AGENT.
TABLE_1 = {
    "AT 90": ((55.0, 62.2, 73.1, 73.2, 76.7, 76.6), (63.6, 64.9, 75.1, 74.1, 77.4, 78.1)),
    "AT 99": ((49.8, 54.1, 64.7, 63.7, 68.4, 69.0), (56.4, 57.7, 66.0, 65.8, 69.8, 70.7)),
    "TRADES 90": ((62.0, 65.4, 73.4, 73.0, 76.4, 75.6), (65.0, 66.0, 73.5, 73.6, 76.8, 77.0)),
    "TRADES 99": ((55.7, 60.6, 66.3, 66.2, 70.0, 70.8), (57.6, 58.4, 67.3, 67.5, 69.9, 70.9)),
    "Standard 90": ((70.4, 77.6, 86.8, 87.6, 91.7, 91.8), (81.8, 82.4, 89.7, 89.3, 92.5, 92.6)),
    "Standard 99": ((60.6, 62.6, 79.7, 80.5, 85.7, 85.8), (69.8, 73.7, 83.7, 83.9, 86.9, 87.1)),
}
AVERAGES = {
    "AT 90": 2.73,
    "AT 99": 2.78,
    "TRADES 90": 1.02,
    "TRADES 99": 0.33,
    "Standard 90": 3.73,
    "Standard 99": 5.03,
}


def run(*accuracies: float, seconds: float = 10.0) -> list[EpochRecord]:
    usual = synthetic.record(1)
    return [
        replace(usual, epoch=n, test_accuracy=accuracy, training_seconds=seconds * n)
        for n, accuracy in enumerate(accuracies, start=1)
    ]


@pytest.mark.parametrize("block", TABLE_1)
def test_the_average_gains_of_table_1(block: str) -> None:
    plain, ours = TABLE_1[block]
    assert average_gain(ours, plain) == pytest.approx(AVERAGES[block], abs=0.005)


def test_the_claims_of_five_and_of_eleven_point_four() -> None:
    gains = [average_gain(ours, plain) for plain, ours in TABLE_1.values()]
    assert max(gains) == pytest.approx(5.03, abs=0.005)
    single = [a - b for plain, ours in TABLE_1.values() for a, b in zip(ours, plain, strict=True)]
    assert max(single) == pytest.approx(11.4)


def test_an_average_needs_the_same_budgets() -> None:
    with pytest.raises(ValueError, match="got 1 and 2"):
        average_gain([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="got 0 and 0"):
        average_gain([], [])


def test_the_first_epoch_that_is_good_enough_counts_and_never_is_none() -> None:
    records = run(0.5, 0.7, 0.6, 0.8)
    assert cost_at_accuracy(records, 0.7, "epoch") == 2.0
    assert cost_at_accuracy(records, 0.71, "epoch") == 4.0
    assert cost_at_accuracy(records, 0.71, "training_seconds") == 40.0
    assert cost_at_accuracy(records, 0.81, "epoch") is None


def test_targets_lie_between_the_lowest_start_and_the_best() -> None:
    found = accuracy_targets([run(0.5, 0.57), run(0.52, 0.55)])
    assert found == (0.51, 0.52, 0.53, 0.54, 0.55, 0.56, 0.57)
    assert accuracy_targets([[]]) == ()
    assert accuracy_targets([run(0.501, 0.509)]) == ()


def test_a_reduction_averages_over_targets_that_both_reach() -> None:
    fast, slow = run(0.5, 0.8, 0.9), run(0.4, 0.5, 0.6, 0.8)
    found = reduction(fast, slow, (0.5, 0.6, 0.8, 0.9, 0.95))
    assert [target.reduction for target in found.targets] == pytest.approx(
        [0.5, 1 / 3, 0.5, None, None]
    )
    assert found.mean == pytest.approx((0.5 + 1 / 3 + 0.5) / 3)
    assert (found.reached_by_both, found.only_run, found.only_plain) == (3, 1, 0)
    back = reduction(slow, fast, (0.5, 0.6, 0.8, 0.9, 0.95))
    assert back.mean is not None
    assert back.mean < 0.0
    assert (back.only_run, back.only_plain) == (0, 1)


def test_fewer_epochs_may_take_more_seconds() -> None:
    fast, slow = run(0.5, 0.8, seconds=30.0), run(0.5, 0.6, 0.8, seconds=10.0)
    assert reduction(fast, slow, (0.8,)).mean == pytest.approx(1 / 3)
    assert reduction(fast, slow, (0.8,), "training_seconds").mean == pytest.approx(-1.0)


def test_where_no_target_is_common_there_is_no_mean() -> None:
    found = reduction(run(0.5), run(0.4), (0.5, 0.9))
    assert (found.mean, found.reached_by_both, found.only_run) == (None, 0, 1)


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=8), st.floats(0.0, 1.0))
def test_a_run_saves_nothing_against_itself(accuracies: list[float], target: float) -> None:
    found = reduction(run(*accuracies), run(*accuracies), (target,))
    assert found.mean in (None, 0.0)
    assert (found.mean is None) == (max(accuracies) < target)


def test_accuracies_after_epochs_that_are_missing_are_none() -> None:
    assert accuracies_at(run(0.1, 0.2), (2, 3)) == [0.2, None]


def test_a_steady_rise_has_no_jitter_and_ups_and_downs_have_theirs() -> None:
    assert jitter(run(0.1, 0.2, 0.3, 0.4)) == pytest.approx(0.0)
    assert jitter(run(0.5, 0.6, 0.5, 0.6, 0.5)) == pytest.approx(0.1)
    assert jitter(run(0.9, 0.5, 0.6, 0.7), skip=1) == pytest.approx(0.0)
    assert jitter(run(0.5, 0.6)) is None
