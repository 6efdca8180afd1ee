"""Tables 3, 7 and 9: RigL and ImageNet, as printed."""

from __future__ import annotations

from equipoise.paper.published.numbers import Key, Table, pairs

TABLE_3: Table = {
    Key(panel, arm, 1.0): number
    for panel, numbers in (
        ("80 %", "75.5 (0.10) 75.6 (0.12)"),
        ("90 %", "73.6 (0.12) 73.4 (0.11)"),
    )
    for arm, number in zip(("RigL-ITOP", "A-RigL-ITOP"), pairs(numbers), strict=True)
}

_COLUMNS = tuple(
    f"{data}, {how}" for data in ("CIFAR-10", "CIFAR-100") for how in ("dense", "90 %", "99 %")
)
TABLE_7: Table = {
    Key(panel, arm, 1.0): number
    for arm, numbers in (
        (
            "RigL",
            "95.0 (0.26) 94.2 (0.22) 92.5 (0.33) 73.1 (0.17) 71.6 (0.26) 66.0 (0.19)",
        ),
        (
            "A-RigL",
            "95.2 (0.24) 95.0 (0.21) 93.1 (0.25) 72.9 (0.19) 72.1 (0.20) 66.4 (0.14)",
        ),
    )
    for panel, number in zip(_COLUMNS, pairs(numbers), strict=True)
}

_SPARSITIES = ("0 %", "50 %", "80 %", "90 %", "95 %")
TABLE_9: Table = {
    Key(panel, arm, 1.0, "correlation"): number
    for panel, numbers in (
        ("RigL", ".6005 .4564 .3217 .1886 .1590"),
        ("SET", ".6005 .4535 .2528 .1763 .1195"),
    )
    for arm, number in zip(_SPARSITIES, pairs(numbers), strict=True)
}

RIGL: dict[str, Table] = {"table-3": TABLE_3, "table-7": TABLE_7, "table-9": TABLE_9}
