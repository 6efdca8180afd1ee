"""Published settings by name: the words of the command line that stand for them.

A recipe is put before the words that are typed, so whatever is typed beside it wins. Lengths are
fractions of training, so a recipe keeps its shape when `--epochs` is changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

RecipeName = Literal["bsr", "bsr_ori", "ref_bsr"]

_SAMPLED = (
    *("--topology", "bsr", "--sparsity", "0.99", "--inputs", "pixels"),
    *("--dataset", "cifar10", "--model", "vgg16", "--epochs", "200", "--batch-size", "128"),
    *("--optimizer", "sgdw", "--momentum", "0.9", "--weight-decay", "0.001"),
    *("--schedule", "piecewise"),
)
_FAIR = (
    *_SAMPLED,
    *("--learning-rate", "0.04", "--milestones", "0.25", "0.5", "--drop-factors", "0.1", "0.005"),
    *("--noise", "agent"),
)
RECIPES: dict[str, tuple[str, ...]] = {
    # One set of rate, schedule, noise and BatchNorm for all arms; correctors are added by name.
    "bsr": _FAIR,
    "bsr_ori": (
        *_SAMPLED,
        *("--learning-rate", "0.1", "--milestones", "0.5", "0.75", "--drop-factors", "0.1", "0.01"),
        *("--noise", "original"),
    ),
    "ref_bsr": (
        *_FAIR,
        *("--corrector", "ref_bsr", "--correction-mask", "all", "--batchnorm", "refreshed"),
    ),
}
"""Settings of BSR-Net as AGENT's experiments share them, as BSR-Net published them, and with what
the published code of AGENT does besides."""
assert set(RECIPES) == set(get_args(RecipeName))


def expanded(words: Sequence[str]) -> list[str]:
    """The words of a command with those of its recipe before them.

    Args:
        words: The command first; ``--recipe NAME`` or ``--recipe=NAME`` anywhere after it.

    Returns:
        The same words where there is no recipe, or none of that name.

    Example:
        >>> words = expanded(["train", "--recipe", "bsr_ori", "--epochs", "3"])
        >>> words[:3], words[-4:]
        (['train', '--topology', 'bsr'], ['--recipe', 'bsr_ori', '--epochs', '3'])
    """
    for position, word in enumerate(words):
        name = None
        if word == "--recipe" and position + 1 < len(words):
            name = words[position + 1]
        elif word.startswith("--recipe="):
            name = word.partition("=")[2]
        if name in RECIPES:
            return [words[0], *RECIPES[name], *words[1:]]
    return list(words)
