"""The numbers of the abstract, and what an epoch costs."""

from __future__ import annotations

from equipoise.paper.claims.claim import (
    BSR,
    ITOP,
    Claim,
    budgets,
    each,
)
from equipoise.paper.reading import (
    accuracy_after,
)
from equipoise.paper.rules import (
    Pair,
    compared,
    reaches,
)
from equipoise.paper.special import (
    largest_gain,
    most_saved,
    sooner,
    time_ratio,
)

HEADLINES: tuple[Claim, ...] = (
    Claim(
        name="average-gain",
        words="At 99 % and standard training AGENT gains 5.0 points on average over the budgets.",
        where="abstract; table 1",
        published="+5.0 points",
        rule=compared(
            [Pair("table-1", *BSR, "Standard, 99 %")],
            accuracy_after(*budgets("table-1")),
            lambda interval: reaches(interval, 5.0),
            "yes if the interval lies above 0 and holds 5 or more, partly if it ends below that, "
            "no if it holds 0 and ends below 5",
        ),
    ),
    Claim(
        name="largest-gain",
        words="The largest gain at a budget is 11.4 points.",
        where="table 1 (standard, 90 %, 20 epochs)",
        published="+11.4 points",
        rule=largest_gain(Pair("table-1", *BSR), budgets("table-1"), 11.4),
    ),
    Claim(
        name="fewer-epochs",
        words="AGENT needs up to 52.1 % fewer epochs to the same accuracy.",
        where="abstract; figure 4",
        published="52.1 %",
        rule=most_saved(Pair("figure-4", *BSR), 52.1),
    ),
    Claim(
        name="fewer-epochs-everywhere",
        words="AGENT needs fewer epochs to the same accuracy in every setting.",
        where="figure 4",
        rule=sooner(each(4), "epoch", "epochs"),
    ),
    Claim(
        name="fewer-hours",
        words="AGENT needs less time to the same accuracy.",
        where="figures 15 to 21",
        rule=sooner(each(*range(15, 22)), "training_seconds", "seconds"),
    ),
    *(
        Claim(
            name=f"time-{topology}",
            words=f"An epoch with AGENT takes {ratio} of the time of plain {words}.",
            where="appendix B.16",
            published=ratio,
            rule=time_ratio(Pair(experiment, arm, base, panel), value),
        )
        for topology, words, ratio, value, experiment, arm, base, panel in (
            ("set", "SET-ITOP", "5:3", 5 / 3, "figure-3", *ITOP, "VGG-C, SET-ITOP"),
            ("rigl", "RigL-ITOP", "2:1", 2.0, "figure-3", *ITOP, "VGG-C, RigL-ITOP"),
            ("bsr", "BSR-Net under AT", "5:4", 5 / 4, "table-1", *BSR, "AT, 99 %"),
        )
    ),
)
