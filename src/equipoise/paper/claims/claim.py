"""What a claim is, and the bounds that several rules share."""

from __future__ import annotations

from dataclasses import dataclass

from equipoise.experiments.catalogue import EXPERIMENTS
from equipoise.experiments.values import Scale
from equipoise.paper.rules import Pair, Rule

COLLAPSE = 10.0
"""Points of accuracy below which a training has failed against another."""
MARGIN = 1.0
"""Points of accuracy within which a setting counts as without influence."""
ROBUST_MARGIN = 2.0
"""Points of robust accuracy that count as a small loss."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One sentence that can be true or false.

    Args:
        name: Short, for addresses.
        words: The claim, in our own words.
        where: In the paper.
        published: Its number, in words; empty where it is a picture.
        rule: What decides it.
        scales: At which it can be judged at all.
        ours: Whether it is not the paper's but a control of ours.
    """

    name: str
    words: str
    where: str
    published: str = ""
    rule: Rule
    scales: tuple[Scale, ...] = ("cpu", "paper")
    ours: bool = False


BSR = ("A-BSR-Net", "BSR-Net")
ITOP = ("A-*", "*")
"""An arm with AGENT and the one without."""
BEFORE_DROP = 0.25
"""Share of training with the first rate in the BSR-Net family."""


def budgets(name: str) -> tuple[float, ...]:
    """Budgets of a table."""
    return EXPERIMENTS[name].budgets


def each(*experiments: int, arms: tuple[str, str] = BSR, panels: str = "") -> list[Pair]:
    """The same two arms in several figures."""
    return [Pair(f"figure-{number}", *arms, panels) for number in experiments]
