"""Whether an evaluation by attacks can be believed: flags, each with what it means.

Robust accuracy is an upper bound. It is a loose one, and says nothing about the network, where
the attack fails for reasons of its own; these are the usual ones.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from equipoise.attacks.evaluation import Counted, Plan, attack_batch, keyed_start
from equipoise.attacks.pgd import LOSSES
from equipoise.attacks.pixels import Pixels
from equipoise.attacks.probing import probed
from equipoise.attacks.threat import ThreatModel

_SAME = 1e-4


@dataclass(frozen=True, kw_only=True)
class Flag:
    """One thing that could be wrong with an evaluation.

    Args:
        name: A word or two.
        found: What was found, in words with its number.
        raised: Whether that is wrong.
        raised_if: When the flag is raised.
        explanation: What it means and what to do.
    """

    name: str
    found: str
    raised: bool
    raised_if: str
    explanation: str


def validity_flags(
    model: nn.Module, x: Tensor, y: Tensor, plan: Plan, *, pixels: Pixels | None = None
) -> list[Flag]:
    """Looks for reasons not to believe an evaluation, on some of its images.

    Args:
        model: Takes inputs, returns logits; left as it was.
        x: Some images in [0, 1]; a hundred are enough.
        y: Their labels.
        plan: The evaluation; one restart of it is made here.
        pixels: How inputs are made from images; default: they are the same.

    Returns:
        All flags, raised or not.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Dropout())
        >>> flags = validity_flags(model, torch.rand(9, 1, 2, 2), torch.arange(9) % 3, Plan())
        >>> [flag.name for flag in flags if flag.raised]
        []

    References:
        Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse
        parameter-free attacks" (AutoAttack), 2020. Carlini et al., "On evaluating adversarial
        robustness", 2019.
    """
    network = Counted(model, Pixels() if pixels is None else pixels)
    with probed(model):
        with torch.no_grad():
            first, second = network(x), network(x)
        right = first.argmax(dim=1) == y
        flags = [_randomised(first, second), _probabilities(first)]
        if bool(right.any()):
            flags += _of_gradients(network, x[right], y[right], plan)
    return flags


def _of_gradients(network: Counted, x: Tensor, y: Tensor, plan: Plan) -> list[Flag]:
    """Flags that need images which the network gets right."""
    leaf = x.clone().requires_grad_()
    score = LOSSES[plan.loss]
    (gradient,) = torch.autograd.grad(score(network(leaf), y).sum(), leaf)
    without = int((gradient.flatten(1).abs().amax(dim=1) == 0.0).sum())
    threat, numbers = plan.attack.threat, torch.arange(len(y))
    once = replace(plan, restarts=1)
    left = {
        "noise": _left(network, x, y, _with(once, steps=0)),
        "one step": _left(network, x, y, _with(once, steps=1, step_size=threat.eps)),
        "all steps": _left(network, x, y, once),
        "twice the radius": _left(network, x, y, _with_radius(once, 2.0 * threat.eps)),
        "any image": _left(network, x, y, _anywhere(once, x)),
    }
    start = keyed_start(plan.attack, x, numbers, plan.seed, 0)
    moved = plan.attack.perturb(lambda z: score(network(z), y), x, start)
    with torch.no_grad():
        before, after = (float(score(network(z), y).mean()) for z in (start, moved))
    return [
        _zero_gradients(without, len(y)),
        *_order(left, len(y), moves=plan.attack.steps > 1 and threat.eps > 0.0),
        Flag(
            name="loss",
            found=f"mean loss {before:.4g} at the start, {after:.4g} at the end",
            raised=after < before,
            raised_if="the loss is smaller at the end of the attack than at its start",
            explanation="The attack walks downhill or leaps over the peak: make --step-size "
            "smaller, or take more --steps.",
        ),
    ]


def _left(network: Counted, x: Tensor, y: Tensor, plan: Plan) -> int:
    """Images that are right after one attack."""
    _, alive = attack_batch(network, x, y, torch.arange(len(y)), plan)
    return int(alive[-1].sum())


def _with(plan: Plan, *, steps: int, step_size: float | None = None) -> Plan:
    """The plan with another number of steps."""
    size = plan.attack.step_size if step_size is None else step_size
    return replace(plan, attack=replace(plan.attack, steps=steps, step_size=size))


def _with_radius(plan: Plan, eps: float) -> Plan:
    """The plan with another ball, its steps in proportion."""
    threat = plan.attack.threat
    ratio = eps / threat.eps if threat.eps > 0.0 else 1.0
    attack = replace(
        plan.attack,
        threat=ThreatModel(norm=threat.norm, eps=eps),
        step_size=plan.attack.step_size * ratio,
    )
    return replace(plan, attack=attack)


def _anywhere(plan: Plan, x: Tensor) -> Plan:
    """The plan with a ball that holds every image, and steps that can cross it."""
    radius = 1.0 if plan.attack.threat.norm == "linf" else float(x[0].numel()) ** 0.5
    steps = max(plan.attack.steps, 20)
    attack = replace(
        plan.attack,
        threat=ThreatModel(norm=plan.attack.threat.norm, eps=radius),
        step_size=2.5 * radius / steps,
        steps=steps,
    )
    return replace(plan, attack=attack)


def _randomised(first: Tensor, second: Tensor) -> Flag:
    """Two passes over the same images."""
    scale = float(first.abs().max().clamp_min(1e-12))
    change = float((first - second).abs().max()) / scale
    return Flag(
        name="randomised forward pass",
        found=f"logits of two passes differ by {change:.2g} of the largest",
        raised=not change <= _SAME,
        raised_if=f"they differ by more than {_SAME:g}",
        explanation="The network answers differently every time, so a single gradient is mostly "
        "noise; attack the mean over many passes (expectation over transformations).",
    )


def _probabilities(logits: Tensor) -> Flag:
    """Outputs that have been through a softmax."""
    sums = logits.sum(dim=1)
    known = bool((logits >= 0.0).all()) and bool(((sums - 1.0).abs() < 1e-3).all())
    return Flag(
        name="probabilities",
        found=f"outputs from {float(logits.min()):.3g} to {float(logits.max()):.3g}",
        raised=known,
        raised_if="outputs are not negative and add up to 1",
        explanation="The network ends in a softmax, through which gradients vanish where it is "
        "certain; pass one that returns logits.",
    )


def _zero_gradients(without: int, count: int) -> Flag:
    """Gradients that tell an attack nothing."""
    return Flag(
        name="zero gradients",
        found=f"{without} of {count} images have a gradient of exactly zero",
        raised=without > 0,
        raised_if="there is such an image",
        explanation="An attack by gradients stands still there: the network saturates, rounds, "
        "or hides its gradient. Try --loss margin, and an attack without gradients (Square, in "
        "--method autoattack).",
    )


def _order(left: dict[str, int], count: int, *, moves: bool) -> list[Flag]:
    """What should break more breaks more."""
    weak, strong = min(left["noise"], left["one step"]), left["all steps"]
    return [
        Flag(
            name="more steps",
            found=f"right of {count}: {left['noise']} under noise of this size, "
            f"{left['one step']} after one step, {strong} after all",
            raised=moves and strong > weak,
            raised_if="noise or a single step breaks more images than the whole attack",
            explanation="The weaker attack is the stronger one, so gradients mislead (masking) or "
            "the steps are too long or too few; change --step-size and --steps, try --loss margin.",
        ),
        Flag(
            name="larger radius",
            found=f"right of {count}: {strong} at this radius, {left['twice the radius']} at twice",
            raised=left["twice the radius"] > strong,
            raised_if="twice the radius leaves more images right",
            explanation="Every image of the small ball lies in the large one, so the attack "
            "misses what is there; take more --steps and --restarts.",
        ),
        Flag(
            name="any image",
            found=f"right of {count}: {left['any image']} where any image may be shown",
            raised=left["any image"] > 0.05 * count,
            raised_if="more than 5 % stay right",
            explanation="An attacker who may show anything can show an image of another class. "
            "That this attack does not find one says that its gradients are of no use.",
        ),
    ]
