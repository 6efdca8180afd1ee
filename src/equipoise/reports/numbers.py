"""Numbers as readers want them: rounded to what is known, signed where they are differences."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from equipoise.reports.statistics import PairedInterval, Spread

MISSING = "-"
MAX_DECIMALS = 6
RATIO_DECIMALS = 2


def spread(value: Spread, words: Callable[[float], str]) -> str:
    """Mean and deviation with a plus-minus sign; ``-`` where there is no mean."""
    if value.mean is None:
        return MISSING
    if value.deviation is None or value.deviation == 0.0:
        return words(value.mean)
    return f"{words(value.mean)} \u00b1 {words(value.deviation)}"


def effect(
    interval: PairedInterval, *, scale: float = 1.0, decimals: int = 1, unit: str = ""
) -> str:
    """A difference with its interval.

    Args:
        interval: Of paired differences.
        scale: Factor to the shown unit, 100 from fractions to points.
        decimals: Fewest decimals to show; more where an end would be rounded to zero, because
            the sign of an end decides the verdict.
        unit: Written after the mean, with its leading space.

    Returns:
        For example ``"+0.3 points [-0.8, +1.4]"``, only the mean without an interval, or ``-``.

    Example:
        >>> effect(PairedInterval(3, 0.002, -0.008, 0.012, 0.95), scale=100, unit=" points")
        '+0.2 points [-0.8, +1.2]'
    """
    if interval.mean is None:
        return MISSING
    ends = [scale * end for end in (interval.low, interval.high) if end is not None]
    places = max(_places(value, decimals) for value in ends or [scale * interval.mean])
    mean = f"{scale * interval.mean:+.{places}f}{unit}"
    return f"{mean} [{ends[0]:+.{places}f}, {ends[1]:+.{places}f}]" if ends else mean


def ratio(interval: PairedInterval) -> str:
    """A ratio with its interval, for example ``0.59 [0.50, 0.68]``; ``-`` where missing."""
    if interval.mean is None:
        return MISSING
    if interval.low is None or interval.high is None:
        return f"{interval.mean:.{RATIO_DECIMALS}f}"
    mean, low, high = (
        f"{value:.{RATIO_DECIMALS}f}" for value in (interval.mean, interval.low, interval.high)
    )
    return f"{mean} [{low}, {high}]"


def magnitude(value: float) -> str:
    """A count or a time: one decimal below a hundred, none above, thousands apart."""
    if not math.isfinite(value) or value == int(value) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 1 else f"{value:.2g}"


def mib(value: float) -> str:
    """Bytes as MiB."""
    return magnitude(value / 2**20)


def listed(names: Sequence[str]) -> str:
    """A list in words.

    Example:
        >>> listed(["a"]), listed(["a", "b", "c"])
        ('a', 'a, b and c')
    """
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _places(value: float, decimals: int) -> int:
    """Decimals that keep `value` from being shown as zero."""
    places = decimals
    while places < MAX_DECIMALS and value != 0.0 and round(value, places) == 0.0:
        places += 1
    return places
