"""Times of things that are compared, taken in turns so that a slow moment hits them alike."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple, TypeVar

Clock = Callable[[], "Lap"]
Kind = Literal["wall", "cpu"]
Name = TypeVar("Name")


class Lap(NamedTuple):
    """Seconds on the wall, and of all processor cores together."""

    wall: float
    cpu: float


class Arm(NamedTuple):
    """One of the things that are compared.

    Args:
        step: What is timed.
        prepare: Called before each lap, and not timed.
    """

    step: Callable[[], object]
    prepare: Callable[[], object] = lambda: None


class Ratio(NamedTuple):
    """Median, least and largest of the ratios of the rounds."""

    median: float
    low: float
    high: float


def process_clock() -> Lap:
    """What time it is for this process."""
    return Lap(time.perf_counter(), time.process_time())


def interleaved(
    arms: Mapping[Name, Arm],
    *,
    rounds: int,
    warmup: int = 1,
    least_seconds: float = 0.0,
    clock: Clock = process_clock,
) -> dict[Name, list[Lap]]:
    """Seconds a step of every arm in every round; the arms take turns, every other round backwards.

    Args:
        arms: By name.
        rounds: In which every arm has one lap, at least 1.
        warmup: Laps of one step before them that do not count, at least 1.
        least_seconds: An arm with shorter steps does several of them in a lap.
        clock: Tells the time.

    Returns:
        By name, one entry a round; seconds are those of one step.
    """
    if rounds < 1 or warmup < 1:
        raise ValueError(f"rounds and warmup are at least 1; got {rounds} and {warmup}.")
    counts = {}
    for name, arm in arms.items():
        shortest = min(_lap(arm, 1, clock).wall for _ in range(warmup))
        counts[name] = steps_in(least_seconds, shortest)
    laps: dict[Name, list[Lap]] = {name: [] for name in arms}
    for number in range(rounds):
        for name in list(arms)[:: -1 if number % 2 else 1]:
            laps[name].append(_lap(arms[name], counts[name], clock))
    return laps


def steps_in(seconds: float, step: float) -> int:
    """How many steps of that length fill the seconds; at least 1, and no more than 10,000.

    Example:
        >>> steps_in(0.2, 0.06), steps_in(0.2, 5.0)
        (4, 1)
    """
    return max(1, min(10_000, math.ceil(seconds / step))) if step > 0.0 else 10_000


def ratio(above: Iterable[float], below: Iterable[float]) -> Ratio:
    """Ratios round by round.

    Args:
        above: One number a round.
        below: As many.

    Example:
        >>> ratio([6.0, 4.0, 9.0], [2.0, 2.0, 3.0])
        Ratio(median=3.0, low=2.0, high=3.0)
    """
    found = [a / b for a, b in zip(above, below, strict=True)]
    return Ratio(statistics.median(found), min(found), max(found))


def seconds(laps: Sequence[Lap], kind: Kind) -> list[float]:
    """The seconds of one kind.

    Example:
        >>> seconds([Lap(1.0, 2.0)], "cpu")
        [2.0]
    """
    return [getattr(lap, kind) for lap in laps]


def fastest(laps: Mapping[str, Sequence[Lap]], names: Iterable[str], kind: Kind) -> str:
    """The one of these arms with the shortest median time.

    Args:
        laps: Of all arms.
        names: Of those that are asked about.
        kind: Of time.
    """
    return min(names, key=lambda name: statistics.median(seconds(laps[name], kind)))


def _lap(arm: Arm, steps: int, clock: Clock) -> Lap:
    """Time of one step, from several."""
    arm.prepare()
    begin = clock()
    for _ in range(steps):
        arm.step()
    end = clock()
    return Lap((end.wall - begin.wall) / steps, (end.cpu - begin.cpu) / steps)
