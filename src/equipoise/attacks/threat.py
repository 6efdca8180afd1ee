"""Threat models: by how much an image may be changed; pure geometry on images in [0, 1]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Norm = Literal["linf", "l2"]


@dataclass(frozen=True, kw_only=True)
class ThreatModel:
    r"""The images that an attacker may show instead of one.

    .. math:: \{x' \in [0, 1]^d : \lVert x' - x \rVert_p \le \epsilon\}

    Args:
        norm: "linf" bounds every pixel, "l2" the length of the whole change.
        eps: The radius, at least 0, in units of images with pixels in [0, 1].

    Raises:
        ValueError: The norm is unknown or the radius negative.

    Example:
        >>> ThreatModel(norm="linf", eps=8 / 255).label
        'Linf 0.03137 (8/255)'
    """

    norm: Norm = "linf"
    eps: float = 8 / 255

    def __post_init__(self) -> None:
        """Refuses what is no ball."""
        if self.norm not in ("linf", "l2"):
            raise ValueError(f"norm is one of 'linf', 'l2'; got {self.norm!r}.")
        if not self.eps >= 0.0:
            raise ValueError(
                f"eps is a radius of at least 0 for pixels in [0, 1]; got {self.eps}; "
                "for 8 of 255 grey values pass 8 / 255."
            )

    @property
    def label(self) -> str:
        """Norm and radius for people, in grey values where that is a round number."""
        norm, values = {"linf": "Linf", "l2": "L2"}[self.norm], self.eps * 255
        whole = self.norm == "linf" and abs(values - round(values)) < 1e-6 and self.eps > 0
        return f"{norm} {self.eps:.4g}" + (f" ({round(values)}/255)" if whole else "")

    def project(self, moved: Tensor, x: Tensor) -> Tensor:
        """The point of the ball, and of [0, 1], for an image outside; a new tensor.

        For "linf" this is the nearest point. For "l2" the change is shortened first and the image
        then clipped, which can only shorten the change further.

        Args:
            moved: Images, shape (n, ...).
            x: The images at the centres, same shape, in [0, 1].

        Example:
            >>> ball = ThreatModel(norm="linf", eps=0.25)
            >>> ball.project(torch.tensor([[0.9, -0.4]]), torch.tensor([[0.5, 0.125]]))
            tensor([[0.7500, 0.0000]])
        """
        change = moved - x
        if self.norm == "linf":
            change = change.clamp(-self.eps, self.eps)
        else:
            lengths = _lengths(change)
            change = change * (self.eps / lengths.clamp_min(1e-12)).clamp_max(1.0)
        return (x + change).clamp_(0.0, 1.0)

    def uphill(self, gradient: Tensor) -> Tensor:
        """The step of size 1 in the norm along which a loss with this gradient grows fastest.

        Args:
            gradient: Of the loss, shape (n, ...). Where that of a sample is zero, so is the step.
        """
        if self.norm == "linf":
            return gradient.sign()
        return gradient / _lengths(gradient).clamp_min(1e-12)

    def fill(self, uniform: Tensor, normal: Tensor) -> Tensor:
        """Changes that fill the ball evenly, made from random numbers.

        Args:
            uniform: In [0, 1), shape (n, ...).
            normal: Standard normal, same shape; read for "l2" only.

        Returns:
            Changes, same shape; added to an image they still have to be clipped to [0, 1].
        """
        if self.norm == "linf":
            return (2.0 * uniform - 1.0) * self.eps
        # The length of a uniform point of a ball in d dimensions is u^(1/d) of the radius.
        first = uniform.flatten(1)[:, :1].view(-1, *(1,) * (uniform.ndim - 1))
        length = first.pow(1.0 / uniform[0].numel()).mul(self.eps)
        return self.uphill(normal) * length


def _lengths(change: Tensor) -> Tensor:
    """Euclidean length per sample, shape (n, 1, ...)."""
    flat: Tensor = torch.linalg.vector_norm(change.flatten(1), dim=1)
    return flat.view(-1, *(1,) * (change.ndim - 1))
