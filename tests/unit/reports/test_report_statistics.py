import math
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from equipoise.reports import PairedInterval, Verdict, mean_and_deviation, paired_interval

numbers = st.floats(-1e6, 1e6, allow_nan=False)


@given(st.lists(numbers, min_size=2, max_size=12))
def test_mean_and_deviation_agree_with_the_standard_library(values: list[float]) -> None:
    spread = mean_and_deviation(values)
    assert spread.n == len(values)
    assert spread.mean == pytest.approx(statistics.fmean(values), rel=1e-9, abs=1e-9)
    assert spread.deviation == pytest.approx(statistics.stdev(values), rel=1e-6, abs=1e-6)


def test_nothing_has_no_mean_and_one_value_no_deviation() -> None:
    assert mean_and_deviation([]).mean is None
    assert mean_and_deviation([3.0]).mean == 3.0
    assert mean_and_deviation([3.0]).deviation is None


def test_a_value_that_is_not_finite_is_not_hidden_in_a_mean() -> None:
    spread = mean_and_deviation([1.0, math.nan, math.inf])
    assert spread.mean is not None
    assert math.isnan(spread.mean)


@given(st.lists(numbers, min_size=2, max_size=12), st.floats(0.01, 0.99))
def test_interval_contains_the_sample_mean(values: list[float], confidence: float) -> None:
    interval = paired_interval(values, confidence)
    assert interval.low is not None
    assert interval.high is not None
    assert interval.mean is not None
    assert interval.low <= interval.mean <= interval.high


@given(st.lists(numbers, min_size=2, max_size=8), st.floats(0.05, 0.9))
def test_more_confidence_is_never_narrower(values: list[float], confidence: float) -> None:
    narrow, wide = paired_interval(values, confidence), paired_interval(values, confidence + 0.05)
    assert narrow.half_width is not None
    assert wide.half_width is not None
    assert narrow.half_width <= wide.half_width


@given(st.lists(st.tuples(numbers, numbers), min_size=3, max_size=10))
def test_interval_agrees_with_scipy(pairs: list[tuple[float, float]]) -> None:
    differences = [arm - baseline for arm, baseline in pairs]
    if statistics.stdev(differences) < 1e-3:
        return  # scipy warns that a paired test of constants is imprecise
    expected = stats.ttest_rel(*zip(*pairs, strict=True)).confidence_interval(0.9)
    interval = paired_interval(differences, 0.9)
    assert interval.low == pytest.approx(expected.low, rel=1e-6, abs=1e-6)
    assert interval.high == pytest.approx(expected.high, rel=1e-6, abs=1e-6)


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    generator = random.Random(0)
    trials = 4000
    covered = 0
    for _ in range(trials):
        interval = paired_interval([generator.gauss(0.7, 2.0) for _ in range(3)], 0.9)
        assert interval.low is not None
        assert interval.high is not None
        covered += interval.low <= 0.7 <= interval.high
    # Five standard errors of a binomial share.
    assert covered / trials == pytest.approx(0.9, abs=5 * math.sqrt(0.9 * 0.1 / trials))


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_direction_of_the_metric_decides_the_verdict(higher_is_better: bool) -> None:
    up, down = paired_interval([1.0, 1.1, 0.9]), paired_interval([-1.0, -1.1, -0.9])
    good, bad = (up, down) if higher_is_better else (down, up)
    assert good.verdict(higher_is_better=higher_is_better) is Verdict.BETTER
    assert bad.verdict(higher_is_better=higher_is_better) is Verdict.WORSE


def test_an_interval_with_zero_in_it_or_at_its_end_is_no_difference() -> None:
    inside = paired_interval([1.0, -1.0, 0.5])
    at_the_end = PairedInterval(3, 1.0, 0.0, 2.0, 0.95)
    for interval in (inside, at_the_end):
        for higher_is_better in (True, False):
            verdict = interval.verdict(higher_is_better=higher_is_better)
            assert verdict is Verdict.NO_DIFFERENCE


@pytest.mark.parametrize("values", [[], [5.0]])
def test_fewer_than_two_pairs_have_no_interval(values: list[float]) -> None:
    interval = paired_interval(values)
    assert (interval.low, interval.high, interval.half_width) == (None, None, None)
    assert interval.verdict(higher_is_better=True) is Verdict.NOT_ENOUGH_SEEDS


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95, -0.5])
def test_confidence_outside_of_zero_to_one_is_refused(confidence: float) -> None:
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        paired_interval([1.0, 2.0], confidence)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_differences_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="finite differences"):
        paired_interval([1.0, value])
