"""Colours and dashes that stay apart for colour-blind readers, on white and on dark.

The hues are those of Okabe and Ito (2008); dashes repeat the distinction without colour.
"""

from __future__ import annotations

from collections.abc import Sequence

# The baseline is neutral, so that every hue is a claim against it.
BASELINE_LIGHT = "#3a3a3a"
BASELINE_DARK = "#d8d8d8"
LIGHT = ("#0072b2", "#d55e00", "#009e73", "#b0578d", "#a97400", "#2f8fc4")
DARK = ("#56b4e9", "#ff8a3d", "#2fc99a", "#e39ac4", "#f0c13d", "#9ad4f5")
DASHES = ("solid", "dashed", "dotdash", "dotted")

PARTS = (
    ("new_gradient_seconds", "New gradients", "#0072b2"),
    ("old_gradient_seconds", "Old gradients (snapshot)", "#d55e00"),
    ("refresh_seconds", "Snapshots and full gradients", "#e69f00"),
    ("attack_seconds", "Attacks on training images", "#7a3b00"),
    ("optimizer_seconds", "Optimizer", "#009e73"),
    ("topology_seconds", "Topology", "#cc79a7"),
    ("data_seconds", "Data", "#56b4e9"),
    ("other_seconds", "Everything else", "#8c8c8c"),
)


def color_arms(labels: Sequence[str], baseline: str | None) -> dict[str, tuple[str, str]]:
    """Gives every arm a colour for a light and one for a dark ground.

    Args:
        labels: Arms in the order of the legend.
        baseline: The arm that is drawn neutral; None without a comparison.

    Returns:
        Two colours as ``#rrggbb`` per label. Hues repeat after six arms, dashes do not with them.
    """
    others = [label for label in labels if label != baseline]
    hues = {
        label: (LIGHT[place % len(LIGHT)], DARK[place % len(DARK)])
        for place, label in enumerate(others)
    }
    return {label: hues.get(label, (BASELINE_LIGHT, BASELINE_DARK)) for label in labels}


def arm_dash(position: int) -> str:
    """Dash of an arm by its position among all arms, from 0."""
    return DASHES[position % len(DASHES)]
