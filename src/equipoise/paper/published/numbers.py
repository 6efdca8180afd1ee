"""What a published number is, and how rows as the paper prints them become numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

Quantity = Literal["accuracy", "robust", "correlation", "norm"]


@dataclass(frozen=True)
class Number:
    """A published number.

    Args:
        value: Accuracies in per cent, the rest as printed.
        deviation: In parentheses in the paper; over how many runs is not said. None without one.
    """

    value: float
    deviation: float | None = None


class Key(NamedTuple):
    """Which number of a table.

    Args:
        panel: Of the cell.
        arm: Of the cell.
        share: Of training after which it was read, in (0, 1]; for a norm the end of its phase.
        quantity: What it is.
    """

    panel: str
    arm: str
    share: float
    quantity: Quantity = "accuracy"


Table = Mapping[Key, Number]


def pairs(numbers: str) -> list[Number]:
    """Numbers with their deviations, as they are printed.

    Args:
        numbers: Separated by blanks; a deviation stands in parentheses after a blank.

    Example:
        >>> pairs("55.0 (1.59) 63.6")
        [Number(value=55.0, deviation=1.59), Number(value=63.6, deviation=None)]
    """
    found: list[Number] = []
    for word in numbers.split():
        if word.startswith("("):
            found[-1] = Number(found[-1].value, float(word.strip("()")))
        else:
            found.append(Number(float(word)))
    return found


def rows(
    columns: Sequence[tuple[str, str, Quantity]], shares: Iterable[float], printed: str
) -> dict[Key, Number]:
    r"""A block of a table with one line for every budget.

    Args:
        columns: Panel, arm and quantity of each column.
        shares: Budget of each line.
        printed: The lines, each with a number for every column.

    Raises:
        ValueError: A line has too many or too few numbers.

    Example:
        >>> table = rows([("VGG-C", "AGENT", "accuracy")], [0.5, 1.0], " 80.1 (0.2)\n 85")
        >>> [key.share for key in table]
        [0.5, 1.0]
    """
    lines = [line for line in printed.strip().splitlines() if line.strip()]
    found: dict[Key, Number] = {}
    for share, line in zip(shares, lines, strict=True):
        for (panel, arm, quantity), number in zip(columns, pairs(line), strict=True):
            found[Key(panel, arm, share, quantity)] = number
    return found
