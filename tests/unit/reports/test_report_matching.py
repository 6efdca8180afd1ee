from importlib import import_module
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.records import EpochRecord, RunRecords
from equipoise.reports import at_cost, at_epochs, at_flops, at_passes, at_seconds
from equipoise.reports.matching import Cost, is_not_annealed, match_pair

synthetic = import_module("tests.unit.reports.synthetic_runs")
record, run = synthetic.record, synthetic.run


def three_epochs(label: str = "a", seed: int = 0, *, factor: float = 1.0) -> RunRecords:
    rows = [
        record(
            epoch,
            data_passes=factor * epoch,
            training_flops=factor * 100.0 * epoch,
            training_seconds=factor * 10.0 * epoch,
            learning_rate=0.1 / epoch,
        )
        for epoch in (1, 2, 3)
    ]
    return RunRecords(Path(label), {"label": label, "seed": seed}, rows)


def epoch_of(found: EpochRecord | None) -> int:
    assert found is not None
    return found.epoch


def test_the_last_record_within_the_budget_is_taken() -> None:
    one = three_epochs()
    assert epoch_of(at_epochs(one, 2)) == 2
    assert epoch_of(at_epochs(one, 99)) == 3
    assert epoch_of(at_passes(one, 2.9)) == 2
    assert epoch_of(at_flops(one, 299.0)) == 2
    assert epoch_of(at_flops(one, 300.0)) == 3
    assert epoch_of(at_seconds(one, 10.0)) == 1


def test_a_budget_below_the_first_epoch_is_missing() -> None:
    one = three_epochs()
    assert at_seconds(one, 9.9) is None
    assert at_flops(one, 0.0) is None
    assert at_epochs(run("a", 0, []), 5) is None


def test_sums_in_another_order_do_not_lose_an_epoch() -> None:
    total = sum([0.1] * 10)  # a little less than one
    assert epoch_of(at_flops(run("a", 0, [record(1, training_flops=1.0)]), total)) == 1


@given(
    st.lists(st.floats(0.1, 10.0), min_size=1, max_size=8),
    st.floats(0.0, 60.0),
    st.sampled_from([Cost.PASSES, Cost.FLOPS, Cost.SECONDS]),
)
def test_nothing_within_the_budget_is_left_unused(
    steps: list[float], budget: float, cost: Cost
) -> None:
    rows = [record(n, **{cost.field: sum(steps[:n])}) for n in range(1, len(steps) + 1)]
    found = at_cost(run("a", 0, rows), cost, budget)
    used = 0 if found is None else found.epoch
    assert found is None or getattr(found, cost.field) <= budget * (1 + 1e-8)
    assert all(getattr(row, cost.field) > budget for row in rows[used:])


@pytest.mark.parametrize("cost", list(Cost))
def test_the_budget_of_a_pair_is_the_smaller_final_cost(cost: Cost) -> None:
    cheap, dear = three_epochs("cheap"), three_epochs("dear", factor=1.4)
    pair = match_pair(dear, cheap, cost)
    assert pair.budget == {"epochs": 3, "passes": 3, "flops": 300, "seconds": 30}[cost]
    assert epoch_of(pair.baseline) == 3
    assert epoch_of(pair.arm) == (3 if cost is Cost.EPOCHS else 2)
    assert pair.arm_is_cut is (cost is not Cost.EPOCHS)
    assert pair.baseline_is_cut is False


def test_equal_epochs_cut_the_longer_run() -> None:
    short = run("short", 0, [record(1), record(2)])
    pair = match_pair(short, three_epochs("long"), Cost.EPOCHS)
    assert (epoch_of(pair.arm), epoch_of(pair.baseline)) == (2, 2)
    assert (pair.arm_is_cut, pair.baseline_is_cut) == (False, True)


def test_an_arm_without_an_epoch_in_the_budget_is_missing_and_not_cut() -> None:
    pair = match_pair(three_epochs("dear", factor=10.0), three_epochs("cheap"), Cost.SECONDS)
    assert pair.arm is None
    assert pair.arm_is_cut is False


def test_annealing_is_read_from_the_learning_rate() -> None:
    rows = three_epochs().epochs
    assert is_not_annealed(rows[0], rows[-1])
    assert not is_not_annealed(rows[-1], rows[-1])


def test_a_pair_shares_its_seed_and_has_records() -> None:
    with pytest.raises(ValueError, match="shares its seed"):
        match_pair(three_epochs(seed=0), three_epochs(seed=1), Cost.EPOCHS)
    with pytest.raises(ValueError, match="no completed epoch"):
        match_pair(three_epochs(), run("b", 0, []), Cost.EPOCHS)
