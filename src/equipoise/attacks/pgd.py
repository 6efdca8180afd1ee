"""Projected gradient descent: the attack that others are measured by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from equipoise.attacks.threat import ThreatModel

Score = Callable[[Tensor], Tensor]
"""Images to one number per sample, shape (n,), that the attack makes large."""

LossName = Literal["cross_entropy", "margin"]
_SMALL_NOISE = 0.001


@dataclass(frozen=True, kw_only=True)
class PGD:
    r"""Follows the gradient of a score uphill and back into the ball.

    .. math:: x_{t+1} = \Pi\bigl(x_t + \alpha\, \mathrm{up}(\nabla_x \ell(x_t))\bigr)

    where up is the sign for "linf" and the direction for "l2". The last point is the answer, as
    in the published evaluations.

    Args:
        threat: The ball.
        step_size: Length of a step in the norm, in pixels of [0, 1].
        steps: Number of steps, at least 0.
        start: Where it begins: anywhere in the ball, or next to the image (normal noise of
            standard deviation 0.001, as TRADES does), or at the image.

    Raises:
        ValueError: A number is out of its range.

    Example:
        >>> attack = PGD(threat=ThreatModel(norm="linf", eps=0.1), step_size=0.1, steps=1,
        ...              start="image")
        >>> attack.perturb(lambda x: -x.sum(dim=1), torch.tensor([[0.5, 0.05]]))
        tensor([[0.4000, 0.0000]])

    References:
        Madry et al., "Towards deep learning models resistant to adversarial attacks", 2018.
    """

    threat: ThreatModel = field(default_factory=ThreatModel)
    step_size: float = 2 / 255
    steps: int = 10
    start: Literal["ball", "near", "image"] = "ball"

    def __post_init__(self) -> None:
        """Refuses settings outside of their ranges."""
        if self.steps < 0 or not self.step_size >= 0.0:
            raise ValueError(
                "PGD takes steps of at least 0 and a step_size of at least 0; "
                f"got {self.steps} and {self.step_size}."
            )

    def begin(self, x: Tensor) -> Tensor:
        """Where to start from, by the global random numbers of the images' device.

        Args:
            x: Images in [0, 1], shape (n, ...).

        Returns:
            Images in the ball and in [0, 1], same shape.
        """
        if self.start == "image" or self.threat.eps == 0.0:
            return x.detach().clone()
        if self.start == "near":
            return self.threat.project(x + _SMALL_NOISE * torch.randn_like(x), x)
        uniform = torch.rand_like(x)
        normal = torch.randn_like(x) if self.threat.norm == "l2" else uniform
        return (x + self.threat.fill(uniform, normal)).clamp_(0.0, 1.0)

    def perturb(self, score: Score, x: Tensor, start: Tensor | None = None) -> Tensor:
        """Images in the ball at which the score is large.

        Args:
            score: Differentiable; samples must not see one another.
            x: Images in [0, 1], shape (n, ...); not changed.
            start: Where to begin; default: `begin`.

        Returns:
            Detached images in the ball around `x` and in [0, 1], same shape.
        """
        moved = self.begin(x) if start is None else start.detach()
        for _ in range(self.steps if self.threat.eps > 0.0 else 0):
            moved.requires_grad_()
            with torch.enable_grad():
                total = score(moved).sum()
            (gradient,) = torch.autograd.grad(total, moved)
            with torch.no_grad():
                moved = self.threat.project(
                    moved + self.step_size * self.threat.uphill(gradient), x
                )
        return moved.detach()


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of every sample, shape (n,), in single precision."""
    return functional.cross_entropy(logits.float(), labels, reduction="none")


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """By how much the best wrong logit exceeds the right one, shape (n,); above 0: broken.

    Its gradient does not fade where the network is certain, as that of cross-entropy does.

    Example:
        >>> margin(torch.tensor([[3.0, 1.0]]), torch.tensor([0]))
        tensor([-2.])

    References:
        Carlini and Wagner, "Towards evaluating the robustness of neural networks", 2017.
    """
    logits = logits.float()
    right = logits.gather(1, labels[:, None]).squeeze(1)
    wrong = logits.scatter(1, labels[:, None], -torch.inf).amax(dim=1)
    return wrong - right


def towards(logits: Tensor, targets: Tensor) -> Tensor:
    """How close every sample is to be taken for its target, shape (n,)."""
    return -cross_entropy(logits, targets)


def divergence(clean: Tensor, logits: Tensor) -> Tensor:
    r"""Kullback-Leibler divergence :math:`KL(p \| q)` of every sample, shape (n,).

    Args:
        clean: Logits of p, shape (n, classes).
        logits: Logits of q, same shape.

    Example:
        >>> divergence(torch.zeros(1, 2), torch.zeros(1, 2))
        tensor([0.])
    """
    p, q = clean.float().log_softmax(dim=1), logits.float().log_softmax(dim=1)
    return functional.kl_div(q, p, reduction="none", log_target=True).sum(dim=1)


LOSSES: dict[LossName, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": cross_entropy,
    "margin": margin,
}
"""What an untargeted attack makes large, by name."""
