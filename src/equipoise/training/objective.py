"""From settings to the objective of a run."""

from __future__ import annotations

import warnings

from equipoise.attacks.pgd import PGD
from equipoise.attacks.pixels import Pixels
from equipoise.attacks.threat import ThreatModel
from equipoise.measure import Measure
from equipoise.objectives import (
    AdversarialTraining,
    Attacker,
    Mart,
    Objective,
    Standard,
    Trades,
)
from equipoise.settings import ObjectiveSettings, Run
from equipoise.training.build import Images


def pixels_of(images: Images) -> Pixels:
    """How the inputs of a network are made from images with pixels in [0, 1]."""
    return Pixels(tuple(images.mean), tuple(images.std))


def build_objective(run: Run, images: Images, measure: Measure) -> Objective:
    """The objective of a run; attacks move pixels, whatever the network's inputs are."""
    settings, smoothing = run.robust, run.optimization.label_smoothing
    _warn_of_no_attack(settings)
    if settings.objective == "standard":
        return Standard(label_smoothing=smoothing)
    near = settings.objective in ("trades", "mart")
    attack = PGD(
        threat=ThreatModel(norm=settings.norm, eps=settings.eps),
        step_size=settings.step_size,
        steps=settings.attack_steps,
        start="near" if near else "ball",
    )
    attacker = Attacker(attack=attack, pixels=pixels_of(images), measure=measure)
    match settings.objective:
        case "at":
            return AdversarialTraining(attacker=attacker, label_smoothing=smoothing)
        case "mixed":
            return AdversarialTraining(attacker=attacker, share=0.5, label_smoothing=smoothing)
        case "trades":
            return Trades(attacker=attacker, beta=settings.beta, label_smoothing=smoothing)
        case "mart":
            return Mart(attacker=attacker, beta=settings.beta)


def _warn_of_no_attack(settings: ObjectiveSettings) -> None:
    """Says which settings of an attack change nothing."""
    idle = {
        "standard": ("norm", "eps", "step_size", "attack_steps", "beta"),
        "at": ("beta",),
        "mixed": ("beta",),
    }.get(settings.objective, ())
    usual = ObjectiveSettings()
    given = [name for name in idle if getattr(settings, name) != getattr(usual, name)]
    if settings.objective == "standard" and settings.snapshot == "adversarial":
        given.append("snapshot")
    if given:
        names = " and ".join("--" + name.replace("_", "-") for name in given)
        warnings.warn(
            f"{names} {'has' if len(given) == 1 else 'have'} no effect with --objective "
            f"{settings.objective}; choose at, trades or mart, or leave them out.",
            UserWarning,
            stacklevel=3,
        )
