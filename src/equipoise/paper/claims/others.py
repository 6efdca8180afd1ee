"""The theory, and controls of ours that the paper does not have."""

from __future__ import annotations

from equipoise.paper.claims.claim import (
    MARGIN,
    Claim,
    budgets,
)
from equipoise.paper.reading import (
    accuracy_after,
)
from equipoise.paper.rules import (
    Pair,
    above,
    alike,
)
from equipoise.paper.special import (
    explained,
    theorem_1,
)

THEORY: tuple[Claim, ...] = (
    Claim(
        name="theorem-1",
        words="The constant nu of Theorem 1 is larger for AGENT than for SVRG, by the printed "
        "numbers.",
        where="appendix A.6",
        published="0.1 against 0.06 (CIFAR-10), 0.4 against 0.06 (SVHN)",
        rule=theorem_1(),
    ),
)

CONTROLS: tuple[Claim, ...] = (
    Claim(
        name="batchnorm",
        words="Refreshed BatchNorm statistics alone explain the early gain of the published BSR "
        "code.",
        where="not in the paper",
        rule=explained(
            "table-1",
            "Standard, 99 %",
            ("BSR-Net", "BSR-Net, BatchNorm refreshed", "A-BSR-Net (as its BSR code)"),
            accuracy_after(*budgets("table-1")[:2]),
            MARGIN,
        ),
        ours=True,
    ),
    Claim(
        name="batchnorm-alone",
        words="Refreshed BatchNorm statistics raise the early accuracy of plain BSR-Net, with no "
        "correction at all.",
        where="not in the paper",
        rule=above(
            Pair("table-1", "BSR-Net, BatchNorm refreshed", "BSR-Net", "Standard, 99 %"),
            reading=accuracy_after(*budgets("table-1")[:2]),
        ),
        ours=True,
    ),
    Claim(
        name="itop-code",
        words="AGENT as its ITOP code has it, slips included, ends where AGENT as described does.",
        where="not in the paper",
        rule=alike(
            Pair("figure-3", "A-SET-ITOP (as its ITOP code)", "A-SET-ITOP", "VGG-C, SET-ITOP"),
            reading=accuracy_after(1.0),
            margin=MARGIN,
        ),
        ours=True,
    ),
    Claim(
        name="clipping",
        words="Clipping gradients raises the final accuracy of plain RigL-ITOP, with no correction "
        "at all.",
        where="not in the paper; written when the plain clipped runs were there",
        rule=above(
            Pair("figure-3", "RigL-ITOP, clipped", "RigL-ITOP", "VGG-C, RigL-ITOP"),
            reading=accuracy_after(1.0),
        ),
        ours=True,
    ),
    Claim(
        name="clipped-agent",
        words="With clipping, AGENT ends above plain RigL-ITOP.",
        where="not in the paper; written before the clipped runs of AGENT",
        rule=above(
            Pair("figure-3", "A-RigL-ITOP, clipped", "RigL-ITOP, clipped", "VGG-C, RigL-ITOP"),
            reading=accuracy_after(1.0),
        ),
        ours=True,
    ),
)
