"""Rules that are not one difference of two arms in every panel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any

from equipoise.analyses.theory import theorem1_constants
from equipoise.experiments.store import FoundCell
from equipoise.paper.evidence import Evidence
from equipoise.paper.reach import reductions
from equipoise.paper.reading import (
    Reading,
    accuracy_after,
    log_seconds,
    paired,
    relative_passes,
)
from equipoise.paper.rules import (
    MIN_PAIRS,
    Decision,
    Measured,
    Outcome,
    Pair,
    Rule,
    beyond,
    cells_of,
    equivalent,
    in_words,
    reaches,
    turned,
)
from equipoise.reports.statistics import PairedInterval, paired_interval

STEADY = 1.5
"""Seconds that differ by more than this factor between seeds say nothing about the cost."""


def largest_gain(pair: Pair, shares: Sequence[float], published: float) -> Rule:
    """The largest gain at any budget of any panel.

    Args:
        pair: Which arms.
        shares: The budgets.
        published: In points.
    """

    def judge(evidence: Evidence) -> tuple[Measured, ...]:
        found = []
        places = cells_of(evidence.found[pair.experiment], pair)
        for (place, arm, base), share in product(places, shares):
            where = f"{place}, after {100 * share:g} %"
            found.append((where, arm, base, paired(arm, base, accuracy_after(share))))
        return _best(found, published, "points")

    return Rule(
        f"test accuracy after each budget of {pair.experiment}, {pair.arm} less {pair.base}, the "
        f"largest over budgets and panels (which favours the claim): {_REACHES.format(published)}",
        judge,
        (pair.experiment,),
    )


def most_saved(pair: Pair, published: float, field: str = "epoch") -> Rule:
    """The largest mean reduction of epochs over panels.

    Args:
        pair: Which arms.
        published: In per cent.
        field: A cumulative cost of a record, or ``epoch``.
    """

    def judge(evidence: Evidence) -> tuple[Measured, ...]:
        places = cells_of(evidence.found[pair.experiment], pair)
        return _best(
            [(where, arm, base, _saved(arm, base, field)) for where, arm, base in places],
            published,
            "%",
        )

    return Rule(
        f"epochs that {pair.arm} needs less than {pair.base} in {pair.experiment}, in per cent, "
        "mean over whole per cents of test accuracy that both reach, the largest over panels "
        f"(which favours the claim): {_REACHES.format(published)}",
        judge,
        (pair.experiment,),
    )


def sooner(pairs: Sequence[Pair], field: str, what: str) -> Rule:
    """Fewer epochs, or seconds, until an accuracy, in every panel.

    Args:
        pairs: Which arms.
        field: A cumulative cost of a record, or ``epoch``.
        what: Its name in words.
    """
    timed = field == "training_seconds"

    def judge(evidence: Evidence) -> tuple[Measured, ...]:
        measured = []
        for pair in pairs:
            for where, arm, base in cells_of(evidence.found[pair.experiment], pair):
                interval = _saved(arm, base, field)
                outcome, why = beyond(interval, expected=10.0)
                one = _measured(where, arm, base, interval, "%", outcome, why)
                measured.append(_if_steady(one, arm, base) if timed else one)
        return tuple(measured)

    listed = ", ".join(dict.fromkeys(pair.experiment for pair in pairs))
    return Rule(
        f"{what} that the arm with AGENT needs less than plain training in {listed}, in per cent, "
        "mean over whole per cents of test accuracy that both reach: yes if the interval lies "
        "above 0; no if it holds 0 or lies below, and excludes 10 %" + (_STEADY if timed else ""),
        judge,
        tuple(dict.fromkeys(pair.experiment for pair in pairs)),
    )


def time_ratio(pair: Pair, published: float) -> Rule:
    """How many times as long an epoch takes.

    Args:
        pair: Which arms.
        published: Ratio in the paper.
    """

    def judge(evidence: Evidence) -> tuple[Measured, ...]:
        measured = []
        for where, arm, base in cells_of(evidence.found[pair.experiment], pair):
            interval = paired(arm, base, log_seconds())
            shift = math.log(published)
            moved = replace(
                interval,
                mean=_less(interval.mean, shift),
                low=_less(interval.low, shift),
                high=_less(interval.high, shift),
            )
            outcome, why = equivalent(moved, math.log(1.25))
            one = _measured(where, arm, base, interval, "ratio", outcome, why)
            measured.append(_if_steady(one, arm, base))
        return tuple(measured)

    return Rule(
        f"training seconds of an epoch in {pair.experiment} ({pair.panels}), {pair.arm} over "
        f"{pair.base}: yes if the whole interval is within a quarter of {published:.2f} times, no "
        f"if it is wholly outside{_STEADY}",
        judge,
        (pair.experiment,),
    )


def between(
    experiment: str,
    arm: tuple[str, str],
    base: tuple[str, str],
    reading: Reading,
    decide: Decision,
    words: str,
    *,
    sign: int = 1,
) -> Rule:
    """The difference of two cells that need not share a panel.

    Args:
        experiment: Name.
        arm: Panel and arm of what is judged.
        base: And of what it is compared with.
        reading: What is compared.
        decide: From an interval to an outcome.
        words: What `decide` asks for.
        sign: -1 where the claim is that the arm is lower.
    """

    def judge(evidence: Evidence) -> tuple[Measured, ...]:
        found = evidence.found[experiment]
        ours, other = found.cell(*arm), found.cell(*base)
        if ours is None or other is None:
            return ()
        interval = paired(ours, other, reading)
        outcome, why = decide(interval if sign == 1 else turned(interval))
        where = f"{arm[0]}: {arm[1]} - {base[0]}: {base[1]}"
        return (_measured(where, ours, other, interval, reading.unit, outcome, why),)

    return Rule(
        f"{reading.words}; {experiment}, {arm[1]} less {base[1]}: {words}", judge, (experiment,)
    )


def explained(
    experiment: str, panel: str, arms: tuple[str, str, str], reading: Reading, margin: float
) -> Rule:
    """Whether a control explains the gain of the published code.

    Args:
        experiment: Name.
        panel: Of the three arms.
        arms: Plain, control, and the published code.
        reading: What is compared.
        margin: What may be left over, in points.
    """
    plain, control, code = arms

    def judge(evidence: Evidence) -> tuple[Measured, ...]:
        found = evidence.found[experiment]
        cells = [found.cell(panel, arm) for arm in arms]
        if any(cell is None for cell in cells):
            return ()
        base, ours, published = (cell for cell in cells if cell is not None)
        gain = paired(ours, base, reading)
        rest = paired(published, ours, reading)
        left, left_why = equivalent(rest, margin)
        gained, why = beyond(gain)
        return (
            _measured(f"{panel}: {control} - {plain}", ours, base, gain, "points", gained, why),
            _measured(
                f"{panel}: {code} - {control}", published, ours, rest, "points", left, left_why
            ),
        )

    return Rule(
        f"{reading.words}; {experiment} ({panel}): yes if {control} less {plain} lies above 0, and "
        f"if the whole interval of {code} less {control} is within {margin:g} points of equality",
        judge,
        (experiment,),
    )


def theorem_1() -> Rule:
    """The constants of Theorem 1, computed from the recursion; no run is needed."""

    def judge(evidence: Evidence) -> tuple[Measured, ...]:
        del evidence
        measured = []
        for where, ours, svrg, settings in _THEOREM_1:
            found = [theorem1_constants(**settings, coefficient=c).nu for c in (0.1, 1.0)]
            same = [
                round(one, len(str(printed)) - 2)
                for one, printed in zip(found, (ours, svrg), strict=True)
            ]
            measured.append(
                Measured(
                    where=where,
                    outcome=Outcome.YES if same == [ours, svrg] else Outcome.NO,
                    effect=f"nu {found[0]:.4f} (AGENT), {found[1]:.4f} (SVRG); "
                    f"printed {ours}, {svrg}",
                    n=0,
                )
            )
        return tuple(measured)

    return Rule(
        "nu by the recursion of the theorem, with a coefficient of 0.1 for AGENT and 1 for SVRG, "
        "batches of 128, alpha 2/3 for CIFAR-10 and 0.9 for SVHN: yes where both round to the "
        "printed numbers, no elsewhere",
        judge,
        (),
    )


_CIFAR_10 = {"samples": 50_000, "batch": 128, "alpha": 2 / 3, "mu": 0.1}
_SVHN = {"samples": 73_257, "batch": 128, "alpha": 0.9}
_THEOREM_1: tuple[tuple[str, float, float, dict[str, Any]], ...] = (
    ("CIFAR-10, mu 0.1, epochs as long as in the theorem", 0.1, 0.06, _CIFAR_10),
    ("CIFAR-10, mu 0.1, the true 390 steps", 0.1, 0.06, {**_CIFAR_10, "epoch_length": 390}),
    ("SVHN, mu 0.4 for both", 0.4, 0.06, {**_SVHN, "mu": 0.4}),
    ("SVHN, mu 0.1 for both", 0.4, 0.06, {**_SVHN, "mu": 0.1}),
)
_REACHES = (
    "yes if the interval lies above 0 and holds {0:g} or more, partly if it ends below that, no if "
    "it holds 0 and ends below {0:g}"
)
_STEADY = (
    f"; open where the seconds of the seeds of an arm differ by a factor above {STEADY:g}, as on a "
    "shared machine"
)


def _best(
    found: Sequence[tuple[str, FoundCell, FoundCell, PairedInterval]], published: float, unit: str
) -> tuple[Measured, ...]:
    """The setting with the largest mean, judged against a published number."""
    known = [one for one in found if one[3].mean is not None]
    chosen = max(known, key=lambda one: one[3].mean or 0.0) if known else None
    if chosen is None:
        return tuple(
            _measured(where, arm, base, interval, unit, Outcome.OPEN, "no runs")
            for where, arm, base, interval in found[:1]
        )
    where, arm, base, interval = chosen
    outcome, why = reaches(interval, published)
    return (_measured(where, arm, base, interval, unit, outcome, why),)


def _saved(arm: FoundCell, base: FoundCell, field: str) -> PairedInterval:
    """Interval of the reductions."""
    return paired_interval(list(reductions(arm, base, field).values()))


def _measured(
    where: str,
    arm: FoundCell,
    base: FoundCell,
    interval: PairedInterval,
    unit: str,
    outcome: Outcome,
    why: str,
) -> Measured:
    """A setting with its effect in words and its cost."""
    return Measured(
        where=where,
        outcome=outcome,
        effect=in_words(interval, unit),
        n=interval.n,
        passes=relative_passes(arm, base),
        why=why,
        interval=interval,
    )


def _if_steady(one: Measured, *cells: FoundCell) -> Measured:
    """The setting, open where the seconds of some arm jump from seed to seed."""
    for cell in cells if one.n >= MIN_PAIRS else ():
        seconds = log_seconds().of(cell).values()
        factor = math.exp(max(seconds) - min(seconds)) if seconds else 1.0
        if factor > STEADY:
            why = f"seconds of {cell.cell.arm} differ {factor:.1f} times between seeds"
            return replace(one, outcome=Outcome.OPEN, why=why)
    return one


def _less(value: float | None, shift: float) -> float | None:
    return None if value is None else value - shift
