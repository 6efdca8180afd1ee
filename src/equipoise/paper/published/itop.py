"""Tables 5, 10 and 11: the ITOP family, as printed."""

from __future__ import annotations

from equipoise.paper.published.numbers import Key, Quantity, Table, pairs

_PANEL = "VGG-C, SET-ITOP"


def _line(panel: str, arm: str, epochs: tuple[int, ...], numbers: str) -> Table:
    """One arm after several of 250 epochs."""
    quantity: Quantity = "norm" if epochs == _PHASES else "accuracy"
    return {
        Key(panel, arm, epoch / 250, quantity): number
        for epoch, number in zip(epochs, pairs(numbers), strict=True)
    }


_PHASES = (50, 100, 150, 200, 250)
_AFTER = (20, 40, 70, 90, 140, 200)
_TENTH = (20, 80, 130, 180, 240)

TABLE_5: Table = {
    **_line(_PANEL, "MVR", _AFTER, "62.6 66.8 69.8 71.2 73.5 74.4"),
    **_line(_PANEL, "AGENT+MVR", _AFTER, "71.6 75.7 77.9 79.1 82.3 82.3"),
}
TABLE_10: Table = {
    **_line("VGG-C", "Reduce LR", _TENTH, "76.5 81.3 84.6 85.5 85.5"),
    **_line("VGG-C", "AGENT", _TENTH, "76.1 81.5 87.6 87.1 88.6"),
    **_line("ResNet-34", "Reduce LR", _TENTH, "81.4 85.9 89.3 89.5 89.8"),
    **_line("ResNet-34", "AGENT", _TENTH, "83.0 85.6 92.0 92.3 92.5"),
}
TABLE_11: Table = {
    **_line("VGG-C", "RigL-ITOP", _PHASES, "3.23 2.40 2.19 3.04 3.47"),
    **_line("VGG-C", "A-RigL-ITOP", _PHASES, "3.19 2.43 2.29 3.16 3.54"),
    **_line("VGG-C", "SET-ITOP", _PHASES, "3.25 2.79 2.89 4.21 4.62"),
    **_line("VGG-C", "A-SET-ITOP", _PHASES, "3.27 2.85 2.96 4.22 4.88"),
}

ITOP: dict[str, Table] = {"table-5": TABLE_5, "table-10": TABLE_10, "table-11": TABLE_11}
