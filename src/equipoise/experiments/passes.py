"""What a run will cost, before it is trained: passes from the settings, time from other runs."""

from __future__ import annotations

from collections.abc import Mapping

from equipoise.experiments.values import Scale
from equipoise.settings import CorrectorName, Run

_AT_ONCE = ("ref_itop", "ref_rigl")
"""Estimate at the first refresh, against other weights."""
PUBLISHED = ("ref_itop", "ref_rigl", "ref_bsr")
"""Keep inactive weights, so the engine cannot run them."""
_ESTIMATING = ("agent", "no_gamma", "reduce_lr", *PUBLISHED)
_CONSTANT = ("svrg", "fixed", "alpha_svrg")
_FORWARD, _ATTACK_STEP = 1 / 3, 2 / 3

_PASS_AT_CPU: Mapping[str, float] = {
    "vgg_c": 6.0,
    "resnet34": 13.5,
    "vgg16": 10.5,
    "resnet18": 13.5,
    "wrn_28_4": 23.5,
    "resnet50": 20.0,
}
"""Seconds of a pass at 99 % by the engine on one core of the machine that it was tried on."""
_BY_MASKS = 3.5
"""How many times as long a pass takes without the engine, about."""


def rough_seconds(run: Run, scale: Scale) -> float | None:
    """Seconds of a run on one core, to within a factor of two or three.

    Args:
        run: Any run of the catalogue.
        scale: Its scale; only for `cpu` something is known.
    """
    if scale != "cpu" or run.network.model not in _PASS_AT_CPU:
        return None
    by_masks = run.sparse.topology == "dense" or run.correction.corrector in PUBLISHED
    slower = 1.0 + 4.5 * max(0.0, 0.99 - run.sparse.sparsity)
    factor = _BY_MASKS if by_masks else min(_BY_MASKS, slower)
    # Of few channels, layers cost what starting them costs.
    factor *= 0.45 if run.network.width < 0.25 else 1.0
    return _PASS_AT_CPU[run.network.model] * factor * expected_passes(run)


def expected_passes(run: Run) -> float:
    """Passes over the training images that a run takes, roughly: a forward pass is a third.

    Args:
        run: Any run of the catalogue.

    Example:
        >>> from equipoise.experiments.families import changed
        >>> expected_passes(changed(Run(), epochs=20))
        20.0
        >>> round(expected_passes(changed(Run(), epochs=20, corrector="agent")), 2)
        64.33
    """
    gradient, attack = _objective(run)
    first, later = _extra(run.correction.corrector, gradient, run.correction.correction_mode)
    epochs = run.loop.epochs
    return epochs * (gradient + attack) + first + (epochs - 1) * later


def _objective(run: Run) -> tuple[float, float]:
    """Passes of a gradient, and of the attack before it."""
    steps = run.robust.attack_steps * _ATTACK_STEP
    match run.robust.objective:
        case "standard":
            return 1.0, 0.0
        case "mixed":
            return 1.0, steps / 2
        case "trades":
            return 2.0, steps + _FORWARD
        case "mart":
            return 2.0, steps
        case _:
            return 1.0, steps


def _extra(corrector: CorrectorName, gradient: float, mode: str) -> tuple[float, float]:
    """Passes that a corrector adds to the first epoch, and to every other."""
    old = 0.0 if mode == "cached" else gradient
    if corrector in _ESTIMATING:
        # A refresh is over clean images; once there is something to compare with, it has the old
        # losses besides. Nothing is corrected before there is an estimate.
        later = 1.0 + _FORWARD + old
        if corrector in _AT_ONCE:
            return later, later
        return (1.0 if corrector == "ref_bsr" else 0.0), later
    if corrector in _CONSTANT:
        return 1.0 + old, 1.0 + old
    if corrector == "agent_mvr_oracle":
        return gradient, 1.0 + _FORWARD + 2 * gradient
    if corrector == "agent_mvr":
        return 0.0, gradient
    if corrector in ("mvr", "mvr_fixed"):
        return gradient, gradient
    return 0.0, 0.0
