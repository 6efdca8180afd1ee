import math
from importlib import import_module
from itertools import pairwise

import pytest

from equipoise.reports.curves import (
    COEFFICIENT,
    EPOCHS,
    SECONDS,
    TEST_ACCURACY,
    TRAIN_LOSS,
    column,
    flops_axis,
    is_available,
    is_constant,
    mean_column,
    part_seconds,
    y_axes,
)
from equipoise.reports.palette import PARTS, color_arms

synthetic = import_module("tests.unit.reports.synthetic_runs")
record, run = synthetic.record, synthetic.run


def test_columns_are_scaled_and_missing_values_are_not_a_number() -> None:
    made = run("a", 0, [record(1, test_accuracy=0.5), record(2, train_loss=math.inf)])
    assert column(made, TEST_ACCURACY)[0] == 50.0
    assert math.isnan(column(made, TRAIN_LOSS)[1])
    by_name = {axis.name: axis for axis in y_axes([synthetic.training_run(validation=True)])}
    assert math.isnan(column(made, by_name["validation_loss"])[0])


def test_a_mean_goes_as_far_as_all_runs_have_come() -> None:
    long = run("a", 0, [record(n, training_seconds=10.0 * n) for n in (1, 2, 3)])
    short = run("a", 1, [record(n, training_seconds=20.0 * n) for n in (1, 2)])
    assert mean_column([long, short, run("a", 2, [])], EPOCHS) == [1.0, 2.0]
    assert mean_column([long, short], SECONDS) == [15.0, 30.0]
    assert mean_column([], EPOCHS) == []


def test_only_what_some_run_has_can_be_chosen() -> None:
    plain, checked = synthetic.training_run(), synthetic.training_run("b", validation=True)
    names = {axis.name for axis in y_axes([plain])}
    assert not names & {"validation_loss", "validation_accuracy", "coefficient"}
    assert "validation_accuracy" in {axis.name for axis in y_axes([plain, checked])}
    # A run at chance or worse still shows its accuracy.
    assert TEST_ACCURACY in y_axes([run("a", 0, [record(1, test_accuracy=0.0)])])


def test_constant_means_constant_within_each_run() -> None:
    one = run("a", 0, [record(1, coefficient=0.1), record(2, coefficient=0.1)])
    other = run("a", 1, [record(1, coefficient=0.2)])
    assert is_constant([one, other], COEFFICIENT)
    moving = run("a", 2, [record(1, coefficient=0.2), record(2, coefficient=0.3)])
    assert not is_constant([one, moving], COEFFICIENT)
    assert is_available([one], COEFFICIENT)
    assert not is_available([run("a", 0, [record(1)])], COEFFICIENT)


@pytest.mark.parametrize(
    ("flops", "title"),
    [(5e12, "in 1e12"), (9.99e11, "in 1e9"), (3.0, "in 1e0"), (0.0, "in 1e0"), (2e20, "in 1e18")],
)
def test_flops_have_a_unit_that_keeps_ticks_short(flops: float, title: str) -> None:
    made = run("a", 0, [record(1, training_flops=flops)])
    axis = flops_axis([made])
    assert title in axis.title
    assert column(made, axis)[0] < 1000


def test_parts_of_the_time_add_up_per_epoch() -> None:
    made = run("a", 0, [record(1), record(4)])
    parts = part_seconds([made, run("a", 1, [record(2)])])
    assert list(parts) == [field for field, _, _ in PARTS]
    assert parts["new_gradient_seconds"] == pytest.approx(6.0)
    assert sum(parts.values()) == pytest.approx(10.0)
    assert part_seconds([run("a", 0, [])]) == {}


def test_every_part_of_the_training_time_has_a_colour() -> None:
    whole = {"training_seconds", "evaluation_seconds"}
    fields = {name for name in record().__dataclass_fields__ if name.endswith("_seconds")}
    assert {field for field, _, _ in PARTS} == fields - whole
    assert len({color for _, _, color in PARTS}) == len(PARTS)


def _luminance(color: str) -> float:
    """Relative luminance of WCAG 2."""
    channels = [int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_arms_are_distinct_and_stand_out_from_their_ground() -> None:
    colors = color_arms(["base", *"abcdef"], "base")
    for place, ground in ((0, "#ffffff"), (1, "#14171a")):
        used = [pair[place] for pair in colors.values()]
        assert len(set(used)) == len(used)
        for color in used:
            low, high = sorted((_luminance(color), _luminance(ground)))
            assert (high + 0.05) / (low + 0.05) >= 3.0  # WCAG 2 for graphics


def test_colours_do_not_depend_on_where_the_baseline_stands() -> None:
    first, last = color_arms(["base", "a", "b"], "base"), color_arms(["a", "b", "base"], "base")
    assert first == last
    assert all(left != right for left, right in pairwise(first.values()))
