"""How strongly a recursive corrector leans on its direction of the step before."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from equipoise.correction.coefficients import LossCovariance


class Recursion(Protocol):
    """What `MomentumCorrector` asks of its rule; both numbers depend on past steps only."""

    @property
    def weight(self) -> float:
        """Of the direction before, corrected for the move since; 0 is the plain gradient."""
        ...  # pragma: no cover

    @property
    def factor(self) -> float:
        """Multiplies what the optimizer is given, not the direction that is remembered."""
        ...  # pragma: no cover

    def see(self, squared_norm: float) -> None:
        """Takes in the squared norm of the mini-batch gradient of this step.

        Of several batches that make one step: the mean of what was seen so far.
        """
        ...  # pragma: no cover

    def advance(self) -> None:
        """The next step begins."""
        ...  # pragma: no cover

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes, as plain numbers."""
        ...  # pragma: no cover

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        ...  # pragma: no cover


@dataclass(frozen=True)
class FixedRecursion:
    r"""The same share of the newest gradient at every step.

    .. math:: d_t = g_t + (1 - a)\,(d_{t-1} - g'_t)

    Args:
        share: The a above, in (0, 1]; 1 is the plain gradient.

    Raises:
        ValueError: The share is out of its range.

    Example:
        >>> FixedRecursion(0.25).weight
        0.75
    """

    share: float = 0.1

    def __post_init__(self) -> None:
        if not 0.0 < self.share <= 1.0:
            raise ValueError(
                f"share is that of the newest gradient, in (0, 1]; got {self.share}; 0.1 is usual."
            )

    @property
    def weight(self) -> float:
        """One less the share."""
        return 1.0 - self.share

    @property
    def factor(self) -> float:
        """Always 1."""
        return 1.0

    def see(self, squared_norm: float) -> None:
        """Changes nothing."""

    def advance(self) -> None:
        """Changes nothing."""

    def state_dict(self) -> dict[str, Any]:
        """Empty: nothing changes."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Changes nothing."""


@dataclass
class StormRecursion:
    r"""STORM: step size and share of the newest gradient fall with the gradients seen so far.

    .. math:: \eta_t = \frac{k}{\bigl(w + \sum_{i \le t} \lVert g_i \rVert^2\bigr)^{1/3}},
              \qquad a_{t+1} = \min(1,\, c\,\eta_t^2)

    The optimizer's learning rate stands for k: it is given :math:`\eta_t / k` times the direction.
    With SGD without momentum, decay and schedule at the rate k that is STORM to the letter.

    Args:
        step_size: The k above, above 0; the learning rate that the training starts with.
        strength: The c above, above 0.
        offset: The w above, above 0.

    Raises:
        ValueError: An argument is not above 0 or not finite.

    Example:
        >>> storm = StormRecursion(step_size=0.5, strength=1.0, offset=7.0)
        >>> storm.see(1.0)
        >>> storm.factor
        0.5
        >>> storm.advance()
        >>> storm.weight
        0.9375

    References:
        Cutkosky and Orabona, Momentum-based variance reduction in non-convex SGD (STORM), 2019,
        Alg. 1.
    """

    step_size: float = 0.1
    strength: float = 100.0
    offset: float = 0.1
    _sum: float = field(default=0.0, init=False, repr=False)
    _newest: float = field(default=0.0, init=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("step_size", "strength", "offset"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise ValueError(
                    f"{name} is above 0 and finite; got {getattr(self, name)}; "
                    "the defaults are 0.1, 100 and 0.1."
                )

    @property
    def weight(self) -> float:
        """One less the share, which is that of the step size of the step before."""
        step = self.step_size * self._rate(self._sum)
        return 1.0 - min(1.0, self.strength * step * step)

    @property
    def factor(self) -> float:
        """The step size of this step over k."""
        return self._rate(self._sum + self._newest)

    def see(self, squared_norm: float) -> None:
        """Takes in the squared norm of the gradient of this step, which its step size counts."""
        self._newest = squared_norm

    def advance(self) -> None:
        """Adds the gradient of the step before to the sum."""
        self._sum += self._newest
        self._newest = 0.0

    def state_dict(self) -> dict[str, Any]:
        """The sum so far."""
        return {"sum": self._sum, "newest": self._newest}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self._sum, self._newest = float(state["sum"]), float(state["newest"])

    def _rate(self, total: float) -> float:
        """A step size over k."""
        return float((self.offset + total) ** (-1.0 / 3.0))


@dataclass(frozen=True)
class AgentRecursion:
    r"""The coefficient of AGENT as the weight of the direction before.

    .. math:: d_t = g_t + \gamma c\,(d_{t-1} - g'_t)

    The losses behind the estimate are those of the same batches at the parameters of a step and of
    the step before, collected between two refreshes.

    Args:
        coefficient: Estimates and scales c.

    Example:
        >>> AgentRecursion(LossCovariance(initial=0.5)).weight
        0.05

    References:
        Lei et al., Balance is Essence (AGENT), Table 5, which says no more than "AGENT + MVR".
    """

    coefficient: LossCovariance

    @property
    def weight(self) -> float:
        """The scaled coefficient."""
        return self.coefficient.value

    @property
    def factor(self) -> float:
        """Always 1."""
        return 1.0

    def see(self, squared_norm: float) -> None:
        """Changes nothing."""

    def advance(self) -> None:
        """Changes nothing."""

    def state_dict(self) -> dict[str, Any]:
        """That of the coefficient."""
        return self.coefficient.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.coefficient.load_state_dict(state)
