"""Rules of the ledger: what decides a claim, in code and, made by the same call, in words.

A rule turns what was found into settings, each with an outcome; `verdict_of` turns the outcomes
into one of four words. No rule looks at anything but records, and none knows which answer is
wanted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from equipoise.experiments.store import FoundCell
from equipoise.paper.evidence import Evidence, Found
from equipoise.paper.reading import POINTS, Reading, paired, relative_passes
from equipoise.reports.numbers import effect
from equipoise.reports.statistics import PairedInterval

MIN_PAIRS = 3
"""Fewer pairs of seeds decide nothing."""
LEAST_EFFECT = 1.0
"""Points of accuracy that count as an effect where the paper gives no number."""


class Verdict(StrEnum):
    """What the ledger says of a claim."""

    HOLDS = "holds"
    IN_PART = "holds in part"
    DOES_NOT_HOLD = "does not hold"
    NOT_TESTED = "not tested at this scale"


class Outcome(StrEnum):
    """What one setting says."""

    YES = "yes"
    PARTLY = "partly"
    NO = "no"
    OPEN = "open"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One setting of a claim.

    Args:
        where: Panel and arms.
        outcome: What it says.
        effect: The difference with its interval, in words.
        n: Pairs of seeds behind it.
        passes: Passes of the arm over those of its base; None without runs.
        why: Why it is open; empty otherwise.
        interval: The numbers of `effect`; None where there is no difference.
    """

    where: str
    outcome: Outcome
    effect: str
    n: int
    passes: float | None = None
    why: str = ""
    interval: PairedInterval | None = None


@dataclass(frozen=True)
class Rule:
    """How a claim is decided.

    Args:
        words: For the ledger.
        judge: From what was found to the settings, in order.
        experiments: Names of those that it reads.
    """

    words: str
    judge: Callable[[Evidence], tuple[Measured, ...]]
    experiments: tuple[str, ...]


def verdict_of(measured: Sequence[Measured]) -> Verdict:
    """One word for all settings.

    Args:
        measured: Each setting of a claim.

    Returns:
        Holds: yes everywhere. Does not hold: no somewhere, and yes nowhere. Not tested: neither.
        Holds in part: anything else, so also where some settings are open.

    Example:
        >>> verdict_of([]).value
        'not tested at this scale'
    """
    outcomes = {one.outcome for one in measured}
    if Outcome.YES not in outcomes and Outcome.PARTLY not in outcomes:
        return Verdict.DOES_NOT_HOLD if Outcome.NO in outcomes else Verdict.NOT_TESTED
    return Verdict.HOLDS if outcomes == {Outcome.YES} else Verdict.IN_PART


def beyond(
    interval: PairedInterval, *, by: float = 0.0, expected: float = LEAST_EFFECT
) -> tuple[Outcome, str]:
    """Whether a difference is larger than a bound.

    Args:
        interval: Of the difference, its sign such that the claim is that it is large.
        by: Bound.
        expected: The effect that is claimed; an interval that ends below it says no.

    Returns:
        Yes where the interval lies above `by`; no where it lies below the larger of `by` and
        `expected`; open where it holds both, or there are too few pairs. And why it is open.

    Example:
        >>> beyond(PairedInterval(3, 0.5, 0.2, 0.8, 0.95))[0].value
        'yes'
        >>> beyond(PairedInterval(3, 0.5, -0.2, 0.8, 0.95))[0].value
        'no'
    """
    if too_few := _too_few(interval):
        return Outcome.OPEN, too_few
    assert interval.low is not None
    assert interval.high is not None
    if interval.low > by:
        return Outcome.YES, ""
    if interval.high < max(by, expected):
        return Outcome.NO, ""
    return Outcome.OPEN, f"{interval.n} seeds cannot tell {by:g} from an effect of {expected:g}"


def reaches(interval: PairedInterval, published: float) -> tuple[Outcome, str]:
    """Whether a difference is above zero and as large as the published one.

    Args:
        interval: Of the difference.
        published: Above 0.

    Returns:
        Yes where the interval is above 0 and holds the published number or lies above it; partly
        where it lies between; no where it holds 0 and ends below it; open otherwise.

    Example:
        >>> reaches(PairedInterval(3, 2.0, 1.0, 3.0, 0.95), 5.0)[0].value
        'partly'
    """
    outcome, why = beyond(interval, expected=published)
    if outcome is Outcome.YES and interval.high is not None and interval.high < published:
        return Outcome.PARTLY, ""
    return outcome, why


def equivalent(interval: PairedInterval, margin: float) -> tuple[Outcome, str]:
    """Whether a difference is small.

    Args:
        interval: Of the difference.
        margin: What counts as small, above 0.

    Returns:
        Yes where the whole interval is within the margin; no where it lies wholly outside; open
        otherwise.

    Example:
        >>> equivalent(PairedInterval(3, 0.1, -0.5, 0.7, 0.95), 1.0)[0].value
        'yes'
    """
    if too_few := _too_few(interval):
        return Outcome.OPEN, too_few
    assert interval.low is not None
    assert interval.high is not None
    if -margin < interval.low and interval.high < margin:
        return Outcome.YES, ""
    if interval.low > margin or interval.high < -margin:
        return Outcome.NO, ""
    return Outcome.OPEN, "the interval is neither within nor outside the margin"


Decision = Callable[[PairedInterval], tuple[Outcome, str]]


@dataclass(frozen=True)
class Pair:
    """Two arms that are compared in every panel of an experiment that has both.

    Args:
        experiment: Name.
        arm: What is judged.
        base: What it is compared with; both may have a `*` for the panel's own beginning.
        panels: A panel counts if it contains this text.
    """

    experiment: str
    arm: str
    base: str
    panels: str = ""


def compared(
    pairs: Sequence[Pair],
    reading: Reading,
    decide: Decision,
    words: str,
    *,
    sign: int = 1,
) -> Rule:
    """The difference of two arms, in every panel.

    Args:
        pairs: Which arms.
        reading: What is compared.
        decide: From an interval to an outcome.
        words: What `decide` asks for.
        sign: -1 where the claim is that the arm is lower.
    """
    listed = "; ".join(dict.fromkeys(_named(pair) for pair in pairs))

    def judge(evidence: Evidence) -> tuple[Measured, ...]:
        measured = []
        for pair in pairs:
            for place, arm, base in cells_of(evidence.found[pair.experiment], pair):
                interval = paired(arm, base, reading)
                outcome, why = decide(interval if sign == 1 else turned(interval))
                measured.append(
                    Measured(
                        where=place,
                        outcome=outcome,
                        effect=in_words(interval, reading.unit),
                        n=interval.n,
                        passes=relative_passes(arm, base),
                        why=why,
                        interval=interval,
                    )
                )
        return tuple(measured)

    return Rule(
        f"{reading.words}; {listed}: {words}",
        judge,
        tuple(dict.fromkeys(pair.experiment for pair in pairs)),
    )


def above(
    *pairs: Pair, reading: Reading, by: float = 0.0, expected: float = LEAST_EFFECT, sign: int = 1
) -> Rule:
    """The first arm is above the second, or with a sign of -1 below, by more than a bound."""
    side, other = ("above", "below") if sign == 1 else ("below", "above")
    bound = f"{sign * by:+g}" if by else "0"
    larger = max(by, expected)
    return compared(
        pairs,
        reading,
        lambda interval: beyond(interval, by=by, expected=expected),
        f"yes if the interval lies {side} {bound}; no if it holds {bound} or lies {other}, and "
        f"excludes an effect of {sign * larger:+g}",
        sign=sign,
    )


def below(*pairs: Pair, reading: Reading, by: float = 0.0, expected: float = LEAST_EFFECT) -> Rule:
    """The first arm is below the second, by more than a bound."""
    return above(*pairs, reading=reading, by=by, expected=expected, sign=-1)


def alike(*pairs: Pair, reading: Reading, margin: float) -> Rule:
    """The arms differ by less than a margin."""
    shown = f"{margin:g} {reading.unit}".strip()
    if reading.unit == "ratio":
        shown = f"{100 * (math.exp(margin) - 1):.0f} %"
    return compared(
        pairs,
        reading,
        lambda interval: equivalent(interval, margin),
        f"yes if the whole interval is within {shown} of equality, no if it is wholly outside",
    )


def not_much_below(*pairs: Pair, reading: Reading, margin: float) -> Rule:
    """The first arm is at most a margin below the second."""
    return compared(
        pairs,
        reading,
        lambda interval: beyond(interval, by=-margin, expected=-margin),
        f"yes if the interval lies above {-margin:g}, no if it lies below",
    )


def all_of(*rules: Rule) -> Rule:
    """Several rules together; the settings of each count."""
    return Rule(
        ". And: ".join(rule.words for rule in rules),
        lambda evidence: tuple(one for rule in rules for one in rule.judge(evidence)),
        tuple(dict.fromkeys(name for rule in rules for name in rule.experiments)),
    )


def cells_of(found: Found, pair: Pair) -> list[tuple[str, FoundCell, FoundCell]]:
    """Where in words, arm and base, of every panel that has both.

    Args:
        found: The experiment of the pair.
        pair: Which arms.
    """
    made = []
    for panel in found.panels:
        if pair.panels not in panel:
            continue
        topology = panel.rpartition(", ")[2]
        arm = found.cell(panel, pair.arm.replace("*", topology))
        base = found.cell(panel, pair.base.replace("*", topology))
        if arm is not None and base is not None:
            made.append((f"{panel}: {arm.cell.arm} - {base.cell.arm}", arm, base))
    return made


def turned(interval: PairedInterval) -> PairedInterval:
    """The interval of the differences the other way round."""
    mean, low, high = interval.mean, interval.low, interval.high
    return PairedInterval(
        interval.n,
        None if mean is None else -mean,
        None if high is None else -high,
        None if low is None else -low,
        interval.confidence,
    )


def in_words(interval: PairedInterval, unit: str) -> str:
    """A difference with its interval; logarithms as ratios."""
    if unit != "ratio":
        return effect(
            interval, decimals=1 if unit in (POINTS, "%") else 3, unit=f" {unit}".rstrip()
        )
    if interval.mean is None:
        return "-"
    mean = f"{math.exp(interval.mean):.2f} times"
    if interval.low is None or interval.high is None:
        return mean
    return f"{mean} [{math.exp(interval.low):.2f}, {math.exp(interval.high):.2f}]"


def _too_few(interval: PairedInterval) -> str:
    """Why an interval decides nothing; empty where it does."""
    if interval.n == 0:
        return "no runs"
    if interval.n < MIN_PAIRS:
        return f"{interval.n} of at least {MIN_PAIRS} pairs of seeds"
    return ""


def _named(pair: Pair) -> str:
    """Experiment and arms in words."""
    where = f"{pair.experiment} ({pair.panels})" if pair.panels else pair.experiment
    return f"{where}, {pair.arm} less {pair.base}"
