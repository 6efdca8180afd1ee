"""How soon a loss is reached, and where paired runs end."""

import math

import pytest
from tests.unit.reports.synthetic_runs import record, run

from equipoise.records import EpochRecord
from equipoise.reports.reaching import (
    cost_at_loss,
    end_differences,
    end_of_first_rate,
    median_reach,
    reach_ratio,
)


def rows(*losses: float, cost: float = 1.0, low_from: int = 99) -> list[EpochRecord]:
    return [
        record(
            epoch,
            train_loss=loss,
            training_seconds=10 * cost * epoch,
            learning_rate=0.1 if epoch < low_from else 0.01,
        )
        for epoch, loss in enumerate(losses, start=1)
    ]


def test_the_cost_to_a_loss_lies_between_epochs() -> None:
    found = rows(2.0, 1.0, 1.5)
    assert cost_at_loss(found, 1.5, "data_passes") == pytest.approx(1.5)
    assert cost_at_loss(found, 1.25, "training_seconds") == pytest.approx(17.5)
    assert cost_at_loss(found, 2.5, "data_passes") == 1.0
    assert cost_at_loss(found, 0.5, "data_passes") is None
    assert cost_at_loss(rows(math.nan, 1.0), 1.5, "epoch") == 2.0


def test_the_target_is_the_loss_at_the_end_of_the_first_rate_not_of_the_run() -> None:
    plain = run("plain", 0, rows(2.0, 1.6, 1.2, 1.0, low_from=3))
    assert end_of_first_rate(plain.epochs).epoch == 2
    faster = run("fast", 0, rows(2.0, 1.2, 1.0, 0.9, cost=1.5, low_from=3))
    assert reach_ratio(faster, plain, "epoch") == pytest.approx(1.5 / 2)
    assert reach_ratio(faster, plain, "training_seconds") == pytest.approx(1.5 * 1.5 / 2)
    assert reach_ratio(plain, plain, "epoch") == 1.0


def test_the_median_is_of_all_pairs_or_of_none() -> None:
    plain = [run("plain", seed, rows(2.0, 1.0)) for seed in range(3)]
    arms = [run("arm", s, rows(2.0, loss)) for s, loss in enumerate((0.5, 1.0, 0.75))]
    assert median_reach(arms, plain, "epoch") == pytest.approx((1 + 1 / 1.25) / 2)
    arms[2] = run("arm", 2, rows(2.0, 1.1))
    assert median_reach(arms, plain, "epoch") is None


def test_ends_are_paired_and_what_is_not_finite_is_left_out() -> None:
    plain = [run("plain", s, [record(1, test_accuracy=0.5, train_loss=1.0)]) for s in range(3)]
    arms = [
        run("arm", s, [record(1, test_accuracy=0.5 + 0.01 * s, train_loss=loss)])
        for s, loss in enumerate((0.9, 0.8, math.nan))
    ]
    points, losses = end_differences(arms, plain)
    assert (points.n, losses.n) == (3, 2)
    assert points.mean == pytest.approx(1.0)
    assert losses.mean == pytest.approx(-0.15)
