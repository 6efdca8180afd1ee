"""Means, paired intervals and verdicts: the arithmetic behind every comparison."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """What a paired interval says about an arm, in words that a table can show."""

    BETTER = "better"
    WORSE = "worse"
    NO_DIFFERENCE = "no difference"
    NOT_ENOUGH_SEEDS = "not enough seeds"


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation of a few numbers.

    Args:
        n: How many numbers.
        mean: None when there is none.
        deviation: With n - 1 in the denominator; None below two numbers.
    """

    n: int
    mean: float | None
    deviation: float | None


@dataclass(frozen=True)
class PairedInterval:
    """Mean of paired differences and the interval around it.

    Args:
        n: Number of pairs.
        mean: None when there is no pair.
        low: Lower end of the interval; None below two pairs.
        high: Upper end of the interval; None below two pairs.
        confidence: Coverage of the interval, in (0, 1).
    """

    n: int
    mean: float | None
    low: float | None
    high: float | None
    confidence: float

    @property
    def half_width(self) -> float | None:
        """Half the length of the interval: about the smallest effect that it could show."""
        if self.low is None or self.high is None:
            return None
        return (self.high - self.low) / 2

    def verdict(self, *, higher_is_better: bool) -> Verdict:
        """Reads the interval as an answer.

        Args:
            higher_is_better: True for an accuracy, False for a loss or a cost.

        Returns:
            ``BETTER`` or ``WORSE`` when zero lies outside the interval, ``NO_DIFFERENCE`` when it
            lies inside, ``NOT_ENOUGH_SEEDS`` without an interval.

        Example:
            >>> paired_interval([0.9, 1.0, 1.1]).verdict(higher_is_better=False).value
            'worse'
        """
        if self.low is None or self.high is None:
            return Verdict.NOT_ENOUGH_SEEDS
        if self.low <= 0.0 <= self.high:
            return Verdict.NO_DIFFERENCE
        return Verdict.BETTER if (self.low > 0.0) == higher_is_better else Verdict.WORSE


def mean_and_deviation(values: Iterable[float]) -> Spread:
    """Mean and sample standard deviation.

    ``mean = sum(x) / n`` and ``deviation = sqrt(sum((x - mean)^2) / (n - 1))``. Numbers that are
    not finite make both not finite; nothing is left out.

    Args:
        values: Any number of values, in one unit.

    Returns:
        A `Spread` in that unit.

    Example:
        >>> mean_and_deviation([1.0, 2.0, 3.0])
        Spread(n=3, mean=2.0, deviation=1.0)
    """
    numbers = [float(value) for value in values]
    if not numbers:
        return Spread(0, None, None)
    if not all(math.isfinite(number) for number in numbers):
        return Spread(len(numbers), math.nan, math.nan if len(numbers) > 1 else None)
    # A mean outside the range of its own values, by rounding alone, would look like an error.
    mean = min(max(math.fsum(numbers) / len(numbers), min(numbers)), max(numbers))
    if len(numbers) < 2:
        return Spread(1, mean, None)
    squares = math.fsum((number - mean) ** 2 for number in numbers)
    return Spread(len(numbers), mean, math.sqrt(squares / (len(numbers) - 1)))


def paired_interval(differences: Iterable[float], confidence: float = 0.95) -> PairedInterval:
    """Student's t interval for the mean of paired differences.

    ``mean +- t * deviation / sqrt(n)`` with the ``(1 + confidence) / 2`` quantile t of Student's
    distribution with n - 1 degrees of freedom. It assumes that the differences are independent
    and roughly normal; it is not corrected for looking at several metrics.

    Args:
        differences: Arm minus baseline, one finite number per pair.
        confidence: Coverage, in (0, 1).

    Returns:
        The interval; without ends below two pairs.

    Raises:
        ValueError: `confidence` is outside (0, 1), or a difference is not finite.

    Example:
        >>> interval = paired_interval([0.1, 0.3, 0.2])
        >>> print(f"{interval.mean:.2f} [{interval.low:.2f}, {interval.high:.2f}]")
        0.20 [-0.05, 0.45]
    """
    if not 0.0 < confidence < 1.0:
        raise ValueError(
            f"confidence is a probability strictly between 0 and 1; got {confidence}; "
            "pass 0.95 for the usual interval."
        )
    numbers = [float(difference) for difference in differences]
    if not all(math.isfinite(number) for number in numbers):
        raise ValueError(
            f"an interval needs finite differences; got {numbers}; "
            "leave out, and count, the pairs that diverged."
        )
    spread = mean_and_deviation(numbers)
    if spread.mean is None or spread.deviation is None:
        return PairedInterval(spread.n, spread.mean, None, None, confidence)
    from scipy import stats  # here, so that reading records does not load scipy

    quantile = float(stats.t.ppf((1.0 + confidence) / 2.0, spread.n - 1))
    half = quantile * spread.deviation / math.sqrt(spread.n)
    return PairedInterval(spread.n, spread.mean, spread.mean - half, spread.mean + half, confidence)
