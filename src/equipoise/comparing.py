"""What a comparison is made of, read from the words of the command line."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from equipoise.arguments import Arm, parse_arm
from equipoise.options import Comparison
from equipoise.settings import Run, with_setting
from equipoise.validation import validate


def arms_of(comparison: Comparison, run: Run) -> list[Arm]:
    """The arms, each checked before anything is trained.

    Args:
        comparison: The options.
        run: What the arms share.

    Raises:
        ValueError: There are fewer than two, two of one name, or a setting is wrong.
    """
    if comparison.num_seeds < 1:
        raise ValueError(f"--num-seeds is at least 1; got {comparison.num_seeds}; 3 is usual.")
    if comparison.workers is not None and comparison.workers < 1:
        raise ValueError(f"--workers is at least 1; got {comparison.workers}.")
    arms = [parse_arm(text, run) for text in comparison.arms]
    labels = [arm.label for arm in arms]
    if len(arms) < 2 or len(set(labels)) < len(labels):
        raise ValueError(
            f"--arms takes two or more arms with different names; got {' '.join(labels) or 'none'}"
            "; name them as name:topology+corrector,setting=value."
        )
    for arm in arms:
        validate(arm.run)
    return arms


def comparison_folder(run: Run, arms: Sequence[Arm]) -> Path:
    """A readable folder name that the same comparison finds again.

    Args:
        run: What the arms share.
        arms: All of them.
    """
    # The seed of a run is not part of it: more seeds later join the same comparison.
    identities = [with_setting(arm.run, "seed", 0).identity + arm.label for arm in arms]
    digest = hashlib.sha256("/".join(identities).encode()).hexdigest()[:8]
    names = "-vs-".join(arm.label.partition(",")[0] for arm in arms)
    return Path("runs") / f"{run.data.dataset}-{run.network.model}-{names}-{digest}"
