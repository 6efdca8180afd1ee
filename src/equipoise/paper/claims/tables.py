"""What the tables show."""

from __future__ import annotations

import math

from equipoise.paper.claims.claim import (
    BSR,
    COLLAPSE,
    MARGIN,
    ROBUST_MARGIN,
    Claim,
    budgets,
)
from equipoise.paper.reading import (
    accuracy_after,
    correlation_of,
    log_norm,
    robust_after,
)
from equipoise.paper.rules import (
    Pair,
    above,
    alike,
    below,
    not_much_below,
)

TABLES: tuple[Claim, ...] = (
    Claim(
        name="table-1",
        words="AGENT raises the clean accuracy of BSR-Net, for every objective and sparsity.",
        where="table 1",
        published="+0.3 to +5.0 points",
        rule=above(Pair("table-1", *BSR), reading=accuracy_after(*budgets("table-1"))),
    ),
    Claim(
        name="table-2",
        words="AGENT raises the robust accuracy of BSR-Net at most budgets.",
        where="table 2",
        published="-2.7 to +11.2 points",
        rule=above(Pair("table-2", *BSR), reading=robust_after(*budgets("table-2"))),
    ),
    Claim(
        name="small-robust-loss",
        words="Where robust accuracy falls under AGENT, it falls by little.",
        where="appendix E.4; tables 2 and 8",
        rule=not_much_below(
            Pair("table-2", *BSR),
            Pair("table-8", *BSR),
            reading=robust_after(1.0),
            margin=ROBUST_MARGIN,
        ),
    ),
    Claim(
        name="table-3",
        words="On ImageNet the final accuracy with AGENT is as good as without.",
        where="table 3",
        published="+0.1 points at 80 %, -0.2 at 90 %",
        rule=not_much_below(
            Pair("table-3", "A-RigL-ITOP", "RigL-ITOP"), reading=accuracy_after(1.0), margin=0.5
        ),
        scales=("paper",),
    ),
    Claim(
        name="table-4",
        words="On SVHN under TRADES AGENT raises the final clean accuracy.",
        where="table 4",
        published="+2.7 to +5.0 points",
        rule=above(Pair("table-4", *BSR), reading=accuracy_after(1.0), expected=2.7),
    ),
    Claim(
        name="table-5",
        words="AGENT raises the accuracy of MVR.",
        where="table 5",
        published="+7.9 to +9.0 points",
        rule=above(
            Pair("table-5", "AGENT+MVR", "MVR"),
            Pair("table-5", "AGENT+MVR (AGENT inside MVR)", "MVR"),
            reading=accuracy_after(*budgets("table-5")),
            expected=7.9,
        ),
    ),
    Claim(
        name="table-6",
        words="Without the scaling gamma accuracy collapses against AGENT.",
        where="table 6; no gamma",
        published="-14.0 to -60.7 points at the end",
        rule=below(Pair("table-6", "No gamma", "Ours"), reading=accuracy_after(1.0), by=COLLAPSE),
    ),
    Claim(
        name="fixed-c-fails",
        words="A fixed coefficient stays at chance under AT at 99 %.",
        where="table 6; fixed c",
        published="-60.7 points at the end",
        rule=below(
            Pair("table-6", "Fixed c", "Ours", "AT, 99 %"),
            reading=accuracy_after(1.0),
            by=COLLAPSE,
        ),
    ),
    Claim(
        name="fixed-c-standard",
        words="In standard training a fixed coefficient ends where AGENT does.",
        where="table 6; fixed c",
        published="-0.5 and -0.7 points at the end",
        rule=alike(
            Pair("table-6", "Fixed c", "Ours", "Standard"),
            reading=accuracy_after(1.0),
            margin=MARGIN,
        ),
    ),
    Claim(
        name="table-7",
        words="AGENT raises the final accuracy of RigL at 90 and 99 %.",
        where="table 7",
        published="+0.4 to +0.8 points",
        rule=above(
            Pair("table-7", "A-RigL", "RigL", "%"), reading=accuracy_after(1.0), expected=0.4
        ),
    ),
    Claim(
        name="table-8",
        words="AGENT has more clean accuracy than HYDRA and BSR-Net under TRADES on SVHN.",
        where="table 8",
        published="+1.1 to +6.5 points",
        rule=above(
            Pair("table-8", "A-BSR-Net", "HYDRA"),
            Pair("table-8", *BSR),
            reading=accuracy_after(1.0),
        ),
    ),
    Claim(
        name="table-9-active",
        words="Gradients at perturbed weights correlate less in sparser networks; noise on active "
        "weights.",
        where="table 9; figure 1 b",
        published="-0.44 (RigL) and -0.48 (SET) from dense to 95 %",
        rule=below(Pair("table-9", "95 %", "0 %"), reading=correlation_of("active"), expected=0.44),
    ),
    Claim(
        name="table-9-all",
        words="Gradients at perturbed weights correlate less in sparser networks; noise on pruned "
        "weights too.",
        where="table 9; figure 1 b",
        published="-0.44 (RigL) and -0.48 (SET) from dense to 95 %",
        rule=below(Pair("table-9", "95 %", "0 %"), reading=correlation_of("all"), expected=0.44),
    ),
    Claim(
        name="table-10",
        words="A tenth of the rate instead of gamma ends below AGENT.",
        where="table 10",
        published="-3.1 (VGG-C) and -2.7 (ResNet-34) points at the last budget",
        rule=below(
            Pair("table-10", "Reduce LR", "AGENT"),
            reading=accuracy_after(budgets("table-10")[-1]),
            expected=2.7,
        ),
    ),
    Claim(
        name="table-11",
        words="AGENT leaves the norm of the gradient about as it is.",
        where="table 11",
        published="0.99 to 1.06 times in each phase",
        rule=alike(
            Pair("table-11", "A-RigL-ITOP", "RigL-ITOP"),
            Pair("table-11", "A-SET-ITOP", "SET-ITOP"),
            reading=log_norm(),
            margin=math.log(1.1),
        ),
    ),
)
