"""The verdict of the demonstration of correction, in sentences that follow from its numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from equipoise.reports.demonstration import FIXED_PARTITION, Against, Demonstration, Reading
from equipoise.reports.numbers import (
    MISSING,
    RATIO_DECIMALS,
    effect,
    listed,
    magnitude,
    ratio,
    spread,
)
from equipoise.reports.statistics import PairedInterval, Verdict
from equipoise.reports.tables import Table

FEW = 3  # below so many pairs an interval is too wide to be of use
# Columns of the whole table: cost and the way to plain's loss; then the rest.
_PARTS = ((0, 1, 2, 3, 4, 6, 7, 8), (0, 1, 5, 9, 10, 11, 12))
_WIDEST = (12, 16)  # characters in a line of a cell that leave room for all columns


def verdicts(found: Demonstration) -> list[str]:
    """What the numbers say, gains and missing gains alike.

    Args:
        found: The measurements.

    Returns:
        Sentences: speed of the arm that is shown, its controls, its variance, the published
        method, plain training with equal compute, test accuracy, and how much n pairs can tell.
    """
    return [
        *(sentence for reading in found.of_kind("ours") for sentence in _ours(found, reading)),
        *(_versus(against) for against in found.against),
        _controls(found),
        *_variances(found),
        *(sentence for reading in found.of_kind("published") for sentence in _published(reading)),
        *(_equal_compute(found, reading) for reading in found.of_kind("equal compute")),
        *_accuracies(found),
        *_limits(found),
    ]


def demonstration_table(found: Demonstration) -> Table:
    """One row per arm, with n and cost in each.

    Args:
        found: The measurements.

    Returns:
        Ratios and differences with their 95 % intervals; notes say what the columns are.
    """
    plain = found.readings[0]
    return Table(
        title=f"Arms on {plain.n} paired seeds",
        columns=(
            "Arm",
            "n",
            "Epochs",
            "Passes",
            "Seconds",
            "Variance left (%)",
            "Epochs to plain's loss",
            "Passes to it",
            "Seconds to it",
            f"Training loss, epoch {found.phase}",
            "against plain",
            "Test accuracy (%)",
            "against plain (points)",
        ),
        rows=tuple(_row(reading) for reading in found.readings),
        notes=(
            f"Plain's loss: its training loss at the end of its first learning rate, epoch "
            f"{found.phase}, {found.target:.4f} on average; epochs, passes and seconds to it are "
            "ratios to plain's, below 1 is sooner.",
            "Variance left: of a batch's gradient, at the end of the first learning rate, as the "
            "corrector in use has it.",
            "In brackets: 95 % intervals of the mean over paired seeds. Seconds are those of "
            "training, measured while other runs trained beside.",
        ),
    )


def page_tables(found: Demonstration) -> list[Table]:
    """The same in two tables, each narrow enough for a window of usual width.

    Args:
        found: The measurements.

    Returns:
        Cost and the way to plain's loss; then variance, loss and accuracy, with the notes.
    """
    whole = demonstration_table(found)
    cost, results = (_columns(whole, places) for places in _PARTS)
    return [
        replace(cost, title=f"{whole.title}: cost, and the way to plain's loss", notes=()),
        replace(results, title=f"{whole.title}: variance, loss and accuracy"),
    ]


def narrow_tables(found: Demonstration) -> list[Table]:
    """The same in two tables, each narrow enough for a terminal of 80 columns.

    Args:
        found: The measurements.

    Returns:
        Cost and the way to plain's loss; then variance, loss and accuracy.
    """
    heads = (
        *("Arm", "n", "Epochs", "Passes", "Seconds", "Left", "Epochs to", "Passes to"),
        *("Seconds to", "Loss", "less plain", "Acc.", "less plain's"),
    )
    titles = (
        f"Cost, and to plain's training loss of epoch {found.phase} ({found.target:.4f}), as "
        "ratios",
        f"Variance left (%) and loss at epoch {found.phase}, test accuracy at the end (%)",
    )
    whole = replace(demonstration_table(found), columns=heads, notes=())
    parts = ((0, 1, *_PARTS[0][3:]), _PARTS[1])
    return [
        _stacked(replace(_columns(whole, places), title=title), widest)
        for title, places, widest in zip(titles, parts, _WIDEST, strict=True)
    ]


def _columns(table: Table, places: Sequence[int]) -> Table:
    """Some of the columns."""
    return replace(
        table,
        columns=tuple(table.columns[place] for place in places),
        rows=tuple(tuple(row[place] for place in places) for row in table.rows),
    )


def _stacked(table: Table, widest: int) -> Table:
    """Every cell in lines as short as its numbers allow."""
    return replace(
        table,
        rows=tuple(
            (row[0], *("\n".join(_lines(cell, widest)) for cell in row[1:])) for row in table.rows
        ),
    )


def _lines(cell: str, widest: int) -> list[str]:
    """A mean, its spread or interval below it, and what is to be said of it.

    Example:
        >>> _lines("0.80 [0.72, 0.88], never in 1 of 3", 12)
        ['0.80', '[0.72, 0.88]', 'never 1 of 3']
        >>> _lines("-0.00021 [-0.00043, +0.00001]", 16)
        ['-0.00021', '[-0.00043,', '+0.00001]']
    """
    marked = cell.replace(", never in ", "\nnever ").replace("never in ", "never ")
    for mark in ("[", "\u00b1", "("):
        marked = marked.replace(f" {mark}", f"\n{mark}")
    short: list[str] = []
    for line in marked.split("\n"):
        parts = line if len(line) <= widest else line.replace(", ", ",\n").replace(" of", "\nof")
        short += parts.split("\n")
    return short


def _row(reading: Reading) -> tuple[str, ...]:
    """The cells of one arm."""
    plain = reading.member.kind == "plain"
    return (
        reading.member.name,
        str(reading.n),
        str(reading.epochs),
        f"{reading.passes:.1f}",
        magnitude(reading.seconds) + (" (engine)" if reading.engine else ""),
        MISSING if reading.variance is None else f"{100 * reading.variance.left:.0f}",
        *(_reach_cell(reading, cost) for cost in ("epochs", "passes", "seconds")),
        spread(reading.loss, lambda value: f"{value:.4f}"),
        MISSING if plain else effect(reading.loss_difference, decimals=3),
        spread(reading.accuracy, lambda value: f"{value:.2f}"),
        MISSING if plain else effect(reading.accuracy_difference, decimals=2),
    )


def _reach_cell(reading: Reading, cost: str) -> str:
    """A ratio, and in how many pairs it was never reached."""
    reached = reading.reached[cost]
    if not reached.num_never:
        return ratio(reached.ratio)
    never = "never" if reached.ratio.n == 0 else f"{ratio(reached.ratio)}, never"
    return f"{never} in {reached.num_never} of {reading.n}"


def _ours(found: Demonstration, reading: Reading) -> Iterable[str]:
    """How soon, and whether that is a gain."""
    name, reached = reading.member.name, reading.reached
    if reached["epochs"].num_never:
        yield (
            f"{name} never reached plain's training loss at the end of the first learning rate in "
            f"{reached['epochs'].num_never} of {reading.n} seeds: no gain."
        )
    if reached["epochs"].ratio.mean is None:
        return
    alone = next((r for r in found.readings if r.member.name == FIXED_PARTITION), None)
    control = ""
    if alone is not None and alone.reached["epochs"].ratio.mean is not None:
        control = (
            f"; the fixed partition alone in {ratio(alone.reached['epochs'].ratio)} of the epochs"
            f" and {ratio(alone.reached['seconds'].ratio)} of the seconds"
        )
    yield (
        f"{name} reached plain's training loss at the end of the first learning rate "
        f"({found.target:.3f}, epoch {found.phase}) in {ratio(reached['epochs'].ratio)} of the "
        f"epochs, {ratio(reached['passes'].ratio)} of the passes and "
        f"{ratio(reached['seconds'].ratio)} of the seconds{control}."
    )
    gains = [f"in {cost} {_gain(reached[cost].ratio)}" for cost in ("epochs", "seconds")]
    yield f"Against plain that is {' and '.join(gains)}."


def _gain(interval: PairedInterval) -> str:
    """What a ratio of costs says, 1 being the same."""
    if interval.low is None or interval.high is None:
        return "a ratio of one pair, which says nothing about chance"
    settled = _settled(interval)
    if settled != "open":
        return {"sooner": "a gain", "later": "a loss"}[settled]
    if interval.low <= 1.0 <= interval.high:
        return f"no difference that n = {interval.n} can tell from chance"
    return f"no clear {'gain' if interval.high < 1.0 else 'loss'}, since the interval ends at 1.00"


def _versus(against: Against) -> str:
    """Ours against one control: loss at equal epochs, and seconds."""
    n = against.loss.n
    words = {
        Verdict.BETTER: "lower",
        Verdict.WORSE: "higher",
        Verdict.NO_DIFFERENCE: "no difference that can be told from chance",
        Verdict.NOT_ENOUGH_SEEDS: "no interval",
    }[against.loss.verdict(higher_is_better=False)]
    seconds = (
        ""
        if against.seconds.mean is None
        else (f"; it took {ratio(against.seconds)} times the control's seconds to plain's loss")
    )
    return (
        f"Against the control {against.member.name} ({against.member.what}), training loss at "
        f"equal epochs {effect(against.loss, decimals=3)}, {words}, lower in "
        f"{against.num_lower} of {n} seeds{seconds}."
    )


def _controls(found: Demonstration) -> str:
    """In seconds: which controls are later, which sooner, and which cannot be told apart."""
    names: dict[str, list[str]] = {"sooner": [], "later": [], "open": []}
    for against in found.against:
        if against.seconds.mean is not None:
            names[_settled(against.seconds)].append(against.member.name)
    if not any(names.values()):
        return "No control reached plain's loss in the same seeds, so nothing is said of seconds."
    ours = found.of_kind("ours")[0].member.name
    parts = [
        f"{ours} was {side} than {listed(names[side])}"
        for side in ("sooner", "later")
        if names[side]
    ]
    if names["open"]:
        parts.append(f"n = {len(found.seeds)} cannot tell {ours} from {listed(names['open'])}")
    sentence = f"In seconds to plain's loss {', '.join(parts)}"
    if names["later"] or names["open"]:
        return f"{sentence}: what is gained over plain, if anything, can be had more simply."
    return f"{sentence}: no control does as well."


def _settled(interval: PairedInterval) -> str:
    """Whether a ratio of costs, as it is printed, is below 1, above 1, or neither for sure."""
    if interval.low is None or interval.high is None:
        return "open"
    if round(interval.high, RATIO_DECIMALS) < 1.0:
        return "sooner"
    return "later" if round(interval.low, RATIO_DECIMALS) > 1.0 else "open"


def _variances(found: Demonstration) -> Iterable[str]:
    """What became of the variance."""
    for reading in found.readings:
        variance = reading.variance
        if variance is None:
            continue
        end = ""
        if variance.left_at_end is not None:
            end = f", and {100 * variance.left_at_end:.0f} % at the end of training"
        source = "as it has seen itself" if variance.source == "records" else "by the probe"
        yield (
            f"At the end of the first learning rate {reading.member.name}, with coefficient "
            f"{variance.coefficient:.2f}, left {100 * variance.left:.0f} % of the variance of a "
            f"batch's gradient (the best coefficient {100 * (1 - variance.removable):.0f} %; "
            f"{source}){end}."
        )


def _published(reading: Reading) -> Iterable[str]:
    """The method as published."""
    reached, name = reading.reached, reading.member.name
    if reached["epochs"].ratio.mean is None:
        yield f"{name} never reached plain's training loss at the end of the first learning rate."
        return
    yield (
        f"{name}, as published (n = {reading.n}), reached the same loss in "
        f"{ratio(reached['epochs'].ratio)} of the epochs, but in "
        f"{ratio(reached['passes'].ratio)} of the passes and "
        f"{ratio(reached['seconds'].ratio)} of the seconds of plain: in epochs "
        f"{_gain(reached['epochs'].ratio)}, in seconds {_gain(reached['seconds'].ratio)}."
    )


def _equal_compute(found: Demonstration, reading: Reading) -> str:
    """Plain training with the compute of the dearest corrector."""
    dearest, difference = found.dearest, found.longer_less_dearest
    name = dearest.member.name
    words = {
        Verdict.BETTER: "plain training makes more of the same compute",
        Verdict.WORSE: f"{name} makes more of the same compute",
        Verdict.NO_DIFFERENCE: "no difference that can be told from chance",
        Verdict.NOT_ENOUGH_SEEDS: "no interval",
    }[difference.verdict(higher_is_better=True)]
    return (
        f"Given as much compute as {name} ({dearest.passes:.1f} passes, "
        f"{magnitude(dearest.seconds)} s), plain training does {reading.epochs} epochs "
        f"({reading.passes:.1f} passes, {magnitude(reading.seconds)} s): its test accuracy less "
        f"that of {name} is {effect(difference, decimals=2, unit=' points')}: {words}."
    )


def _accuracies(found: Demonstration) -> Iterable[str]:
    """Test accuracy at the end, of what is shown and of its controls."""
    parts = [
        f"{reading.member.name} "
        f"{effect(reading.accuracy_difference, decimals=2, unit=' points')}"
        f" ({reading.accuracy_difference.verdict(higher_is_better=True).value})"
        for reading in found.readings
        if reading.member.kind in ("ours", "published", "control")
    ]
    yield f"Test accuracy at the end against plain: {'; '.join(parts)}."


def _limits(found: Demonstration) -> Iterable[str]:
    """How much n pairs can tell, and what is left out."""
    n = len(found.seeds)
    for reading in found.of_kind("ours"):
        half = reading.accuracy_difference.half_width
        if half is not None:
            yield (
                f"With n = {n} a difference in test accuracy below about {half:.1f} points would "
                f"not be seen for {reading.member.name}."
            )
    if n < FEW:
        yield (
            f"n = {n} is too small to tell anything from chance; --num-seeds {FEW} or more goes "
            "on from here."
        )
    for reading in found.readings:
        if reading.n < n:
            yield f"{reading.member.name} has {reading.n} of the {n} seeds only."
        if reading.num_diverged:
            yield (
                f"{reading.member.name} diverged in {reading.num_diverged} of {reading.n} runs, "
                "which are in no interval."
            )


def _percent(reading: Reading) -> str:
    """Mean accuracy."""
    assert reading.accuracy.mean is not None
    return f"{reading.accuracy.mean:.2f}"
