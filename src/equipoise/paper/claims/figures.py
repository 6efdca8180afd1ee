"""What the figures show."""

from __future__ import annotations

from equipoise.paper.claims.claim import (
    BEFORE_DROP,
    COLLAPSE,
    ITOP,
    MARGIN,
    Claim,
    each,
)
from equipoise.paper.reading import (
    accuracy_after,
    late_correlation,
    log_variance_of,
    mean_accuracy,
    mean_loss,
    unsteadiness,
)
from equipoise.paper.rules import (
    Pair,
    above,
    alike,
    all_of,
    below,
    beyond,
)
from equipoise.paper.special import (
    between,
)

FIGURES: tuple[Claim, ...] = (
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
        rule=above(Pair("figure-3", *ITOP), reading=mean_accuracy()),
    ),
    Claim(
        name="smoother-itop",
        words="Curves with AGENT are smoother.",
        where="figure 3",
        rule=below(Pair("figure-3", *ITOP), reading=unsteadiness(0.5), expected=0.5),
    ),
    Claim(
        name="smoother-bsr",
        words="Curves of BSR-Net with AGENT are smoother.",
        where="figures 6 to 9",
        rule=below(*each(6, 7, 8, 9), reading=unsteadiness(BEFORE_DROP), expected=0.5),
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
        rule=above(*each(6, 8), reading=mean_accuracy()),
    ),
    Claim(
        name="figure-7-9",
        words="A-BSR-Net is above BSR-Net along the way, in adversarial training on CIFAR-10.",
        where="figures 7 and 9",
        rule=above(*each(7, 9), reading=mean_accuracy()),
    ),
    Claim(
        name="figure-10-12",
        words="A-BSR-Net is above BSR-Net along the way, on SVHN and CIFAR-100.",
        where="figures 10, 11 and 12",
        rule=above(*each(10, 11, 12), reading=mean_accuracy()),
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
