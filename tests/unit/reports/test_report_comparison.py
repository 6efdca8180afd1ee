import math
from importlib import import_module
from typing import Any

import pytest

from equipoise.reports import Comparison, Cost, Verdict, compare_runs, epochs_to_loss, summarize_arm
from equipoise.reports.comparison import MatchedComparison

synthetic = import_module("tests.unit.reports.synthetic_runs")
record, run = synthetic.record, synthetic.run


def arm(label: str, accuracies: list[float], *, epochs: int = 4, cost: float = 1.0) -> list[Any]:
    """One run per accuracy, which is that of the last epoch; a quarter of it after the first."""
    return [
        run(
            label,
            seed,
            [
                record(
                    epoch,
                    test_accuracy=accuracy * epoch / epochs,
                    train_loss=4.0 - epoch,
                    data_passes=cost * epoch,
                    training_flops=cost * 1000.0 * epoch,
                    training_seconds=cost * 10.0 * epoch,
                )
                for epoch in range(1, epochs + 1)
            ],
        )
        for seed, accuracy in enumerate(accuracies)
    ]


def matched(comparison: Comparison, cost: Cost) -> MatchedComparison:
    return next(found for found in comparison.against[0].matchings if found.cost is cost)


def test_hand_written_rows_give_the_hand_computed_difference() -> None:
    comparison = compare_runs(
        arm("b", [0.42, 0.53, 0.61], cost=2.0) + arm("a", [0.40, 0.50, 0.60]), "a"
    )
    equal_epochs = matched(comparison, Cost.EPOCHS).differences[0]
    assert equal_epochs.interval.n == 3
    assert equal_epochs.interval.mean == pytest.approx(0.02)
    # deviation 0.01, t(2) = 4.3027, half-width 4.3027 * 0.01 / sqrt(3)
    assert equal_epochs.interval.half_width == pytest.approx(0.024841, abs=1e-6)
    assert equal_epochs.verdict is Verdict.NO_DIFFERENCE
    # At equal FLOPs b is read at epoch 2 of 4: half of its accuracy.
    equal_flops = matched(comparison, Cost.FLOPS).differences[0]
    assert equal_flops.interval.mean == pytest.approx((0.21 + 0.265 + 0.305) / 3 - 0.5)
    assert equal_flops.verdict is Verdict.WORSE
    assert comparison.against[0].pass_ratio == pytest.approx(2.0)


def test_a_lower_loss_is_better() -> None:
    better = [run("b", seed, [record(1, train_loss=1.0 + seed)]) for seed in range(3)]
    worse = [run("a", seed, [record(1, train_loss=1.5 + 1.01 * seed)]) for seed in range(3)]
    loss = matched(compare_runs(better + worse, "a"), Cost.EPOCHS).differences[1]
    assert loss.interval.mean == pytest.approx(-0.51)
    assert loss.verdict is Verdict.BETTER


def test_an_arm_against_a_copy_of_itself_is_no_difference_anywhere() -> None:
    runs = arm("a", [0.4, 0.5]) + arm("b", [0.4, 0.5])
    for found in compare_runs(runs, "a").against[0].matchings:
        for difference in found.differences:
            assert difference.interval.mean == 0.0
            assert difference.verdict is Verdict.NO_DIFFERENCE


def test_the_baseline_comes_first_and_the_others_by_name() -> None:
    runs = arm("m", [0.1]) + arm("z", [0.1]) + arm("a", [0.1])
    comparison = compare_runs(runs, "m")
    assert [found.label for found in comparison.arms] == ["m", "a", "z"]
    assert [found.label for found in comparison.against] == ["a", "z"]


def test_seeds_of_one_arm_only_are_counted_and_left_out() -> None:
    comparison = compare_runs(arm("b", [0.1, 0.2, 0.9, 0.9])[1:] + arm("a", [0.1, 0.2]), "a")
    found = comparison.against[0]
    assert found.seeds == (1,)
    assert found.seeds_only_in_arm == (2, 3)
    assert found.seeds_only_in_baseline == (0,)
    only_pair = found.matchings[0].differences[0]
    assert only_pair.interval.mean == pytest.approx(0.0)
    assert only_pair.verdict is Verdict.NOT_ENOUGH_SEEDS


def test_what_does_not_fit_the_budget_is_missing_and_not_zero() -> None:
    comparison = compare_runs(
        arm("b", [0.4, 0.5], cost=9.0) + arm("a", [0.4, 0.5]), "a", confidence=0.9
    )
    found = matched(comparison, Cost.FLOPS).differences[0]
    assert found.num_missing == 2
    assert found.interval.mean is None
    assert found.verdict is Verdict.NOT_ENOUGH_SEEDS


def test_a_loss_that_is_not_finite_is_left_out_and_counted() -> None:
    b = arm("b", [0.4, 0.5, 0.6])
    b[2] = run("b", 2, [record(epoch, train_loss=math.nan) for epoch in range(1, 5)])
    comparison = compare_runs(b + arm("a", [0.4, 0.5, 0.6]), "a")
    loss = matched(comparison, Cost.EPOCHS).differences[1]
    assert (loss.num_not_finite, loss.interval.n) == (1, 2)
    assert matched(comparison, Cost.EPOCHS).differences[0].interval.n == 3
    assert comparison.against[0].reach.num_never == 1


def test_a_baseline_that_diverged_gives_nothing_to_reach() -> None:
    a = [run("a", 0, [record(1, train_loss=math.inf)])]
    reach = compare_runs(a + arm("b", [0.4]), "a").against[0].reach
    # A loss of infinity is reached at once by the arm, but is no target.
    assert (reach.num_without_target, reach.epochs.n) == (1, 0)


def test_runs_without_records_are_named_and_enter_nothing() -> None:
    empty = run("b", 7, [])
    comparison = compare_runs([*arm("b", [0.4]), empty, *arm("a", [0.4])], "a")
    assert comparison.arms[1].empty_seeds == (7,)
    assert comparison.arms[1].seeds == (0,)
    assert comparison.against[0].seeds == (0,)
    nothing = compare_runs([run("b", 0, []), *arm("a", [0.4])], "a")
    assert nothing.against[0].pass_ratio is None
    assert nothing.arms[1].test_accuracy.mean is None


def test_summaries_are_of_the_last_epoch_and_per_epoch() -> None:
    rows = [record(1, test_accuracy=0.9), record(2, test_accuracy=0.4, data_passes=6.0)]
    summary = summarize_arm([run("a", 0, rows, run={"epochs": 3})])
    assert summary.test_accuracy.mean == pytest.approx(0.4)
    assert summary.passes_per_epoch.mean == pytest.approx(3.0)
    assert summary.unfinished_seeds == (0,)
    assert summary.peak_device_memory_bytes.n == 0


def test_epochs_to_a_loss_are_interpolated() -> None:
    made = run("a", 0, [record(n, train_loss=loss) for n, loss in ((1, 3.0), (2, 2.0), (3, 1.0))])
    assert epochs_to_loss(made, 1.5) == (2.5, 2.5)
    assert epochs_to_loss(made, 2.0) == (2.0, 2.0)
    assert epochs_to_loss(made, 9.0) == (1.0, 1.0)
    assert epochs_to_loss(made, 0.5) is None
    recovered = run("a", 0, [record(1, train_loss=math.nan), record(2, train_loss=1.0)])
    assert epochs_to_loss(recovered, 1.5) == (2.0, 2.0)


def test_reach_is_a_ratio_of_epochs_and_of_passes() -> None:
    slow = [run("a", s, [record(n, train_loss=5.0 - n) for n in (1, 2, 3, 4)]) for s in (0, 1)]
    fast = [
        run("b", s, [record(n, train_loss=5.0 - 2 * n, data_passes=3.0 * n) for n in (1, 2, 3, 4)])
        for s in (0, 1)
    ]
    reach = compare_runs(slow + fast, "a").against[0].reach
    assert reach.epochs.mean == pytest.approx(0.5)
    assert reach.passes.mean == pytest.approx(1.5)
    assert reach.num_never == 0


def test_devices_of_the_pairs_are_collected() -> None:
    runs = [run("a", 0, [record(1)], device="cpu"), run("b", 0, [record(1)], device="cuda:0")]
    assert compare_runs(runs, "a").against[0].devices == ("cpu", "cuda:0")


def test_mistakes_are_answered_with_one_sentence() -> None:
    with pytest.raises(ValueError, match=r"no run has the label 'c'; .*\['a', 'b'\]"):
        compare_runs(arm("a", [0.1]) + arm("b", [0.1]), "c")
    with pytest.raises(ValueError, match="nothing to compare"):
        compare_runs(arm("a", [0.1]), "a")
    with pytest.raises(ValueError, match="there is no run"):
        compare_runs([], "a")
    with pytest.raises(ValueError, match="both 'a' with seed 0"):
        compare_runs([*arm("a", [0.1]), *arm("a", [0.2]), *arm("b", [0.1])], "a")
