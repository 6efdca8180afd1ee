"""What the words and columns of a report mean."""

from __future__ import annotations

GLOSSARY = (
    (
        "Seeds, mean, interval",
        "Two runs with the same seed form a pair. A difference is the arm minus the baseline, "
        "averaged over the pairs; the bracket is Student's interval for that average. Each "
        "interval stands alone: with many of them some exclude zero by chance.",
    ),
    (
        "Better, worse, no difference",
        "Better and worse: zero lies outside the interval. No difference: zero lies inside, which "
        "does not prove that both are equal. Not enough seeds: fewer than two pairs.",
    ),
    (
        "At equal epochs, FLOPs, seconds",
        "In each pair the budget is the smaller of the two final costs, and each run is read at "
        "its last epoch within it. A run that is cut this way had planned its learning rate for "
        "longer.",
    ),
    ("Test accuracy", "After the last epoch, never the best epoch; a point is one percent."),
    ("Training loss", "Mean of the batch losses of an epoch, each taken before its step."),
    (
        "Data passes",
        "Gradient evaluations of the whole training set, a forward counted as 1/3 and a backward "
        "as 2/3; a plain epoch is 1.",
    ),
    (
        "Training FLOPs",
        "Theoretical operations of training with active weights only; hardware that cannot skip "
        "the inactive ones does more.",
    ),
    ("Training time", "Wall time of training on the machine of the run, evaluation left out."),
    ("Sparsity", "Share of the weights that can be masked and are inactive."),
    ("Exploration", "Share of the weights that can be masked and were ever active."),
    ("Coefficient", "Weight of the old gradient in the corrected gradient; 0 is a plain step."),
    ("Peak memory", "Largest resident memory of the process, or memory on the accelerator."),
)
