"""The claims of the paper, in our own words, each with the rule that decides it.

Rules and margins stand here before the records are seen. A claim that some panel of a figure shows
is judged in every panel that a scale has.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from equipoise.experiments.catalogue import EXPERIMENTS
from equipoise.experiments.values import SCALES, Scale
from equipoise.paper.reading import (
    accuracy_after,
    correlation_of,
    late_correlation,
    log_norm,
    log_variance_of,
    mean_accuracy,
    mean_loss,
    robust_after,
    unsteadiness,
)
from equipoise.paper.rules import (
    Pair,
    Rule,
    above,
    alike,
    all_of,
    below,
    beyond,
    compared,
    not_much_below,
    reaches,
)
from equipoise.paper.special import (
    between,
    explained,
    largest_gain,
    most_saved,
    sooner,
    theorem_1,
    time_ratio,
)

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


_BSR = ("A-BSR-Net", "BSR-Net")
_ITOP = ("A-*", "*")
_BEFORE_DROP = 0.25
"""Share of training with the first rate in the BSR-Net family."""


def _budgets(name: str) -> tuple[float, ...]:
    return EXPERIMENTS[name].budgets


def _each(*experiments: int, arms: tuple[str, str] = _BSR, panels: str = "") -> list[Pair]:
    return [Pair(f"figure-{number}", *arms, panels) for number in experiments]


_HEADLINES = (
    Claim(
        name="average-gain",
        words="At 99 % and standard training AGENT gains 5.0 points on average over the budgets.",
        where="abstract; table 1",
        published="+5.0 points",
        rule=compared(
            [Pair("table-1", *_BSR, "Standard, 99 %")],
            accuracy_after(*_budgets("table-1")),
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
        rule=largest_gain(Pair("table-1", *_BSR), _budgets("table-1"), 11.4),
    ),
    Claim(
        name="fewer-epochs",
        words="AGENT needs up to 52.1 % fewer epochs to the same accuracy.",
        where="abstract; figure 4",
        published="52.1 %",
        rule=most_saved(Pair("figure-4", *_BSR), 52.1),
    ),
    Claim(
        name="fewer-epochs-everywhere",
        words="AGENT needs fewer epochs to the same accuracy in every setting.",
        where="figure 4",
        rule=sooner(_each(4), "epoch", "epochs"),
    ),
    Claim(
        name="fewer-hours",
        words="AGENT needs less time to the same accuracy.",
        where="figures 15 to 21",
        rule=sooner(_each(*range(15, 22)), "training_seconds", "seconds"),
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
            ("set", "SET-ITOP", "5:3", 5 / 3, "figure-3", *_ITOP, "VGG-C, SET-ITOP"),
            ("rigl", "RigL-ITOP", "2:1", 2.0, "figure-3", *_ITOP, "VGG-C, RigL-ITOP"),
            ("bsr", "BSR-Net under AT", "5:4", 5 / 4, "table-1", *_BSR, "AT, 99 %"),
        )
    ),
)

_TABLES = (
    Claim(
        name="table-1",
        words="AGENT raises the clean accuracy of BSR-Net, for every objective and sparsity.",
        where="table 1",
        published="+0.3 to +5.0 points",
        rule=above(Pair("table-1", *_BSR), reading=accuracy_after(*_budgets("table-1"))),
    ),
    Claim(
        name="table-2",
        words="AGENT raises the robust accuracy of BSR-Net at most budgets.",
        where="table 2",
        published="-2.7 to +11.2 points",
        rule=above(Pair("table-2", *_BSR), reading=robust_after(*_budgets("table-2"))),
    ),
    Claim(
        name="small-robust-loss",
        words="Where robust accuracy falls under AGENT, it falls by little.",
        where="appendix E.4; tables 2 and 8",
        rule=not_much_below(
            Pair("table-2", *_BSR),
            Pair("table-8", *_BSR),
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
        rule=above(Pair("table-4", *_BSR), reading=accuracy_after(1.0), expected=2.7),
    ),
    Claim(
        name="table-5",
        words="AGENT raises the accuracy of MVR.",
        where="table 5",
        published="+7.9 to +9.0 points",
        rule=above(
            Pair("table-5", "AGENT+MVR", "MVR"),
            Pair("table-5", "AGENT+MVR (AGENT inside MVR)", "MVR"),
            reading=accuracy_after(*_budgets("table-5")),
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
            Pair("table-8", *_BSR),
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
            reading=accuracy_after(_budgets("table-10")[-1]),
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

_FIGURES = (
    Claim(
        name="figure-1",
        words="The variance of gradients rises with sparsity.",
        where="figure 1 a",
        rule=above(
            Pair("figure-1", "95 %", "0 %"), reading=log_variance_of("active"), expected=0.1
        ),
    ),
    Claim(
        name="figure-3",
        words="AGENT is above plain ITOP training along the way.",
        where="figure 3",
        rule=above(Pair("figure-3", *_ITOP), reading=mean_accuracy()),
    ),
    Claim(
        name="smoother-itop",
        words="Curves with AGENT are smoother.",
        where="figure 3",
        rule=below(Pair("figure-3", *_ITOP), reading=unsteadiness(0.5), expected=0.5),
    ),
    Claim(
        name="smoother-bsr",
        words="Curves of BSR-Net with AGENT are smoother.",
        where="figures 6 to 9",
        rule=below(*_each(6, 7, 8, 9), reading=unsteadiness(_BEFORE_DROP), expected=0.5),
    ),
    Claim(
        name="figure-5",
        words="SVRG is below plain training.",
        where="figure 5",
        rule=below(Pair("figure-5", "SVRG", "*"), reading=mean_accuracy()),
    ),
    Claim(
        name="figure-6-8",
        words="A-BSR-Net is above BSR-Net along the way, in standard training on CIFAR-10.",
        where="figures 6 and 8",
        rule=above(*_each(6, 8), reading=mean_accuracy()),
    ),
    Claim(
        name="figure-7-9",
        words="A-BSR-Net is above BSR-Net along the way, in adversarial training on CIFAR-10.",
        where="figures 7 and 9",
        rule=above(*_each(7, 9), reading=mean_accuracy()),
    ),
    Claim(
        name="figure-10-12",
        words="A-BSR-Net is above BSR-Net along the way, on SVHN and CIFAR-100.",
        where="figures 10, 11 and 12",
        rule=above(*_each(10, 11, 12), reading=mean_accuracy()),
    ),
    Claim(
        name="figure-13",
        words="On ImageNet at 80 % AGENT is ahead early.",
        where="figure 13",
        rule=above(
            Pair("figure-13", "A-RigL-ITOP", "RigL-ITOP", "80 %"), reading=mean_accuracy(0.0, 0.3)
        ),
        scales=("paper",),
    ),
    Claim(
        name="figure-14",
        words="AGENT helps a dense network, too.",
        where="figure 14",
        rule=above(Pair("figure-14", "Dense with AGENT", "Dense"), reading=mean_accuracy()),
    ),
    Claim(
        name="figure-22-collapse",
        words="With gamma 0.5 adversarial training collapses.",
        where="figure 22",
        rule=below(
            Pair("figure-22", "A-BSR-Net, gamma 0.5", "A-BSR-Net, gamma 0.1"),
            reading=accuracy_after(1.0),
            by=COLLAPSE,
        ),
    ),
    Claim(
        name="figure-22-slower",
        words="With gamma 0.01 adversarial training is slower than with 0.1.",
        where="figure 22",
        rule=below(
            Pair("figure-22", "A-BSR-Net, gamma 0.01", "A-BSR-Net, gamma 0.1"),
            reading=mean_accuracy(),
        ),
    ),
    Claim(
        name="figure-23-alike",
        words="In standard training gamma 0.01 and 0.5 do about as well as 0.1.",
        where="figure 23",
        rule=alike(
            Pair("figure-23", "gamma 0.01", "gamma 0.1"),
            Pair("figure-23", "gamma 0.5", "gamma 0.1"),
            reading=accuracy_after(1.0),
            margin=MARGIN,
        ),
    ),
    Claim(
        name="figure-23-worse",
        words="In standard training gamma 0.9 does worse than 0.1.",
        where="figure 23",
        rule=below(Pair("figure-23", "gamma 0.9", "gamma 0.1"), reading=mean_accuracy()),
    ),
    Claim(
        name="figure-24",
        words="SVRG fails in adversarial training.",
        where="figure 24",
        rule=below(
            Pair("figure-24", "BSR-Net+SVRG", "BSR-Net"), reading=accuracy_after(1.0), by=COLLAPSE
        ),
    ),
    Claim(
        name="figure-25",
        words="SVRG is below RigL, and A-RigL above, at 90 % on CIFAR-100.",
        where="figure 25",
        rule=all_of(
            below(Pair("figure-25", "RigL+SVRG", "RigL"), reading=mean_accuracy()),
            above(Pair("figure-25", "A-RigL", "RigL"), reading=mean_accuracy()),
        ),
    ),
    Claim(
        name="figure-26",
        words="Late in training the gradients of sparse networks correlate less over an epoch than "
        "those of a dense one, and the less the sparser.",
        where="figure 26",
        rule=all_of(
            *(
                below(
                    Pair("figure-26", sparsity, "dense", f"dense and {sparsity}"),
                    reading=late_correlation(),
                    expected=0.05,
                )
                for sparsity in ("50 %", "80 %", "90 %", "95 %")
            ),
            between(
                "figure-26",
                ("dense and 95 %", "95 %"),
                ("dense and 50 %", "50 %"),
                late_correlation(),
                lambda interval: beyond(interval, expected=0.05),
                "yes if the interval lies below 0; no if it holds 0 or lies above, and excludes "
                "-0.05",
                sign=-1,
            ),
        ),
    ),
    Claim(
        name="figure-27",
        words="Growth by corrected gradients is ahead until the first drop of the rate, and behind "
        "afterwards.",
        where="figure 27",
        rule=all_of(
            above(Pair("figure-27", "A-RigL-ITOP-G", "A-RigL-ITOP"), reading=mean_accuracy(0, 0.5)),
            below(Pair("figure-27", "A-RigL-ITOP-G", "A-RigL-ITOP"), reading=mean_accuracy(0.5, 1)),
        ),
    ),
    Claim(
        name="figure-28",
        words="AGENT is above Adam.",
        where="figure 28",
        rule=above(Pair("figure-28", "A-*", "Adam"), reading=mean_accuracy()),
    ),
    Claim(
        name="figure-29",
        words="AGENT is above plain training when there are 50 or 100 epochs only.",
        where="figure 29",
        rule=above(Pair("figure-29", "A-SET-ITOP", "SET-ITOP"), reading=mean_accuracy()),
    ),
    Claim(
        name="figure-30",
        words="The smoothing alpha has no influence.",
        where="figure 30",
        rule=alike(
            *(Pair("figure-30", f"alpha {value}", "alpha 0.3") for value in ("0.05", "0.5", "0.9")),
            reading=accuracy_after(1.0),
            margin=MARGIN,
        ),
    ),
    Claim(
        name="figure-31-small",
        words="Small fixed coefficients are slower early than AGENT.",
        where="figure 31",
        rule=below(
            *(Pair("figure-31", f"fixed c = {value}", "A-SET-ITOP") for value in ("0.001", "0.01")),
            reading=mean_accuracy(0.0, 0.5),
        ),
    ),
    Claim(
        name="figure-31-large",
        words="Large fixed coefficients are worse than AGENT throughout.",
        where="figure 31",
        rule=below(
            *(
                Pair("figure-31", f"fixed c = {value}", "A-SET-ITOP")
                for value in ("0.5", "0.8", "1")
            ),
            reading=mean_accuracy(),
        ),
    ),
    Claim(
        name="figure-32",
        words="AGENT has the lower loss when there are 50 or 100 epochs only.",
        where="figure 32",
        rule=below(Pair("figure-32", "A-SET-ITOP", "SET-ITOP"), reading=mean_loss(), expected=0.02),
    ),
    Claim(
        name="figure-33",
        words="AGENT is above both Adam and SVRG.",
        where="figure 33",
        rule=above(
            Pair("figure-33", "A-*", "Adam"),
            Pair("figure-33", "A-*", "SVRG"),
            reading=mean_accuracy(),
        ),
    ),
)

_THEORY = (
    Claim(
        name="theorem-1",
        words="The constant nu of Theorem 1 is larger for AGENT than for SVRG, by the printed "
        "numbers.",
        where="appendix A.6",
        published="0.1 against 0.06 (CIFAR-10), 0.4 against 0.06 (SVHN)",
        rule=theorem_1(),
    ),
)

_CONTROLS = (
    Claim(
        name="batchnorm",
        words="Refreshed BatchNorm statistics alone explain the early gain of the published BSR "
        "code.",
        where="not in the paper",
        rule=explained(
            "table-1",
            "Standard, 99 %",
            ("BSR-Net", "BSR-Net, BatchNorm refreshed", "A-BSR-Net (as its BSR code)"),
            accuracy_after(*_budgets("table-1")[:2]),
            MARGIN,
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
)

CLAIMS: tuple[Claim, ...] = (*_HEADLINES, *_TABLES, *_FIGURES, *_THEORY, *_CONTROLS)
"""All claims, in the order of the ledger."""
assert all(set(claim.scales) <= set(SCALES) for claim in CLAIMS)
