"""Coefficients: how strongly the old gradient corrects the new one.

Everything else is the same for SVRG, alpha-SVRG, a fixed coefficient and AGENT; they differ only
in the object from this module that the corrector is given.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor


class Coefficient(Protocol):
    """What a corrector asks of a coefficient.

    A refresh first calls `advance`. If the coefficient is then `idle`, no snapshot is taken and
    no pass is made until the next refresh. Otherwise, if it `needs_losses`, `observe` follows
    with the losses of the same batches at the current parameters and at the previous snapshot.
    """

    @property
    def needs_losses(self) -> bool:
        """Whether `observe` uses the losses; they cost one forward pass over the batches."""
        ...  # pragma: no cover

    @property
    def value(self) -> float:
        """The weight of the control variate, already scaled; read at every step."""
        ...  # pragma: no cover

    @property
    def idle(self) -> bool:
        """Whether `value` stays 0 until the next refresh whatever is observed."""
        ...  # pragma: no cover

    def advance(self) -> None:
        """A refresh begins."""
        ...  # pragma: no cover

    def observe(self, current: Tensor, previous: Tensor, sizes: Tensor) -> None:
        """Takes in losses at the current parameters and at the previous snapshot.

        Args:
            current: Mean loss of each batch at the current parameters, shape ``(num_batches,)``.
            previous: The same at the previous snapshot, shape ``(num_batches,)``.
            sizes: Samples in each batch, shape ``(num_batches,)``.
        """
        ...  # pragma: no cover

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes, as plain numbers."""
        ...  # pragma: no cover

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        ...  # pragma: no cover


class Regression(NamedTuple):
    """Slope of one sequence of losses on another, and their Pearson correlation."""

    slope: float
    correlation: float


def loss_regression(current: Tensor, previous: Tensor, sizes: Tensor) -> Regression | None:
    r"""Slope and correlation of batch losses at two points, batches weighted by their size.

    .. math:: \hat c = \mathrm{Cov}_B(\ell_B(\theta), \ell_B(\tilde\theta))
                       \,/\, \mathrm{Var}_B(\ell_B(\tilde\theta))

    With equal sizes this is the ratio of the ordinary sample covariance and variance.

    Args:
        current: Losses at the current parameters, shape ``(num_batches,)``.
        previous: Losses at the previous snapshot, shape ``(num_batches,)``.
        sizes: Weights, shape ``(num_batches,)``, positive.

    Returns:
        The estimate, or None where there is none: fewer than two batches, a loss or a weight that
        is not finite, or old losses that differ by no more than rounding.

    Example:
        >>> old = torch.tensor([1.0, 2.0, 4.0])
        >>> loss_regression(3.0 * old + 1.0, old, torch.ones(3)).slope
        3.0

    References:
        Lei et al., Balance is Essence (AGENT), Eq. (4).
    """
    pairs = torch.stack([current, previous]).double().cpu()
    if pairs.shape[1] < 2 or not bool(torch.isfinite(pairs).all()):
        return None
    weights = sizes.double().cpu() / sizes.sum().double().cpu()
    centred = pairs - (pairs * weights).sum(dim=1, keepdim=True)
    var_current, var_previous = ((centred.square() * weights).sum(dim=1)).tolist()
    covariance = float((centred[0] * centred[1] * weights).sum())
    # Losses are single precision: a smaller spread than this is rounding, not batch difficulty.
    rounding = (torch.finfo(torch.float32).eps * float(pairs[1].abs().max())) ** 2
    slope = covariance / var_previous if var_previous > rounding else math.nan
    if not math.isfinite(slope):
        return None
    spread = math.sqrt(var_current * var_previous)
    return Regression(slope, covariance / spread if spread > 0.0 else 0.0)


@dataclass(frozen=True)
class Constant:
    """The same coefficient at every step: 1 is SVRG, 0 is no correction.

    Args:
        constant: Weight of the old gradient, dimensionless, finite.

    Raises:
        ValueError: The constant is not finite.

    Example:
        >>> Constant(1.0).value
        1.0

    References:
        Johnson and Zhang, Accelerating stochastic gradient descent using predictive variance
        reduction, 2013 (1.0); Lei et al. (AGENT), Table 6, "Fixed c" (0.1).
    """

    constant: float

    def __post_init__(self) -> None:
        _require_finite("Constant", self.constant)

    @property
    def needs_losses(self) -> bool:
        """Never."""
        return False

    @property
    def value(self) -> float:
        """The constant."""
        return self.constant

    @property
    def idle(self) -> bool:
        """Whether the constant is 0."""
        return self.constant == 0.0

    def advance(self) -> None:
        """Changes nothing."""

    def observe(self, current: Tensor, previous: Tensor, sizes: Tensor) -> None:
        """Changes nothing."""

    def state_dict(self) -> dict[str, Any]:
        """Empty: nothing changes."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Changes nothing."""


@dataclass
class LinearDecay:
    r"""Falls linearly from `start` at the first refresh to exactly 0 at the last one.

    .. math:: c_k = c_0 \,\Bigl(1 - \frac{k}{K - 1}\Bigr),\qquad k = 0, \dots, K - 1

    Constant between two refreshes, as in alpha-SVRG. With one refresh it stays at `start`.

    Args:
        start: Coefficient after the first refresh, finite.
        num_refreshes: Refreshes over the whole training, at least 1.

    Raises:
        ValueError: An argument is out of its range.

    Example:
        >>> decay = LinearDecay(0.75, num_refreshes=4)
        >>> values = []
        >>> for _ in range(4):
        ...     decay.advance()
        ...     values.append(decay.value)
        >>> values
        [0.75, 0.5, 0.25, 0.0]

    References:
        Yin et al., A coefficient makes SVRG effective (alpha-SVRG), 2025.
    """

    start: float
    num_refreshes: int
    _seen: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        _require_finite("LinearDecay", self.start)
        if self.num_refreshes < 1:
            raise ValueError(
                f"num_refreshes is the number of refreshes in the training, at least 1; got "
                f"{self.num_refreshes}; with one refresh an epoch pass the number of epochs."
            )

    @property
    def needs_losses(self) -> bool:
        """Never."""
        return False

    @property
    def value(self) -> float:
        """The coefficient since the latest refresh."""
        if self.num_refreshes == 1:
            return self.start
        done = max(self._seen - 1, 0) / (self.num_refreshes - 1)
        return self.start * max(0.0, 1.0 - done)

    @property
    def idle(self) -> bool:
        """Whether the line has reached 0."""
        return self.value == 0.0

    def advance(self) -> None:
        """Moves one refresh along the line."""
        self._seen += 1

    def observe(self, current: Tensor, previous: Tensor, sizes: Tensor) -> None:
        """Changes nothing."""

    def state_dict(self) -> dict[str, Any]:
        """The number of refreshes so far."""
        return {"seen": self._seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self._seen = int(state["seen"])


@dataclass
class LossCovariance:
    r"""AGENT: the regression of current on old batch losses, smoothed and scaled.

    .. math:: c_s = (1 - \alpha)\, c_{s-1}
                    + \alpha\, \frac{\mathrm{Cov}_B(\ell_B(\theta), \ell_B(\tilde\theta))}
                                    {\mathrm{Var}_B(\ell_B(\tilde\theta))},
              \qquad \text{used as } \gamma\, c_s

    One estimate a refresh, against the previous snapshot; none at the first refresh, where there
    is no previous snapshot. An estimate that cannot be made (losses not finite, or without
    spread) leaves the coefficient as it is and warns.

    Args:
        scaling: The factor gamma, at least 0; 1 is "no gamma".
        smoothing: Weight alpha of the new estimate in the moving average, in (0, 1].
        clip: Bounds for the smoothed estimate before scaling; None leaves it free. The paper
            states [0, 1], none of its published codes clips.
        initial: The smoothed estimate before there is any; the paper has 0, two of its published
            codes 0.1.

    Raises:
        ValueError: An argument is out of its range.

    Example:
        >>> coefficient = LossCovariance()
        >>> old = torch.tensor([1.0, 2.0, 4.0])
        >>> coefficient.observe(old, old, torch.ones(3))
        >>> round(coefficient.value, 4)
        0.03

    References:
        Lei et al., Balance is Essence (AGENT), Eq. (4), Alg. 1, Sec. 4.2.
    """

    scaling: float = 0.1
    smoothing: float = 0.3
    clip: tuple[float, float] | None = None
    initial: float = 0.0
    smoothed: float = field(default=0.0, init=False)
    estimate: float | None = field(default=None, init=False)
    correlation: float | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        _require_finite("LossCovariance", self.scaling)
        _require_finite("LossCovariance", self.initial)
        self.smoothed = self.initial
        if self.scaling < 0.0:
            raise ValueError(
                f"scaling is at least 0; got {self.scaling}; the published value is 0.1."
            )
        if not 0.0 < self.smoothing <= 1.0:
            raise ValueError(
                f"smoothing is the weight of the new estimate, in (0, 1]; got {self.smoothing}; "
                "the published value is 0.3."
            )
        if self.clip is not None and not self.clip[0] <= self.clip[1]:
            raise ValueError(
                f"clip is (low, high) with low <= high; got {self.clip}; the paper's is (0, 1)."
            )

    @property
    def needs_losses(self) -> bool:
        """Always, unless the scaling is 0."""
        return self.scaling != 0.0

    @property
    def value(self) -> float:
        """The smoothed, clipped and scaled estimate."""
        smoothed = self.smoothed
        if self.clip is not None:
            smoothed = min(max(smoothed, self.clip[0]), self.clip[1])
        return self.scaling * smoothed

    @property
    def idle(self) -> bool:
        """Whether the scaling is 0."""
        return self.scaling == 0.0

    def advance(self) -> None:
        """Changes nothing: the estimate comes with the losses."""

    def observe(self, current: Tensor, previous: Tensor, sizes: Tensor) -> None:
        """Moves the smoothed estimate towards the regression of these losses."""
        regression = loss_regression(current, previous, sizes)
        if regression is None:
            self.estimate = self.correlation = None
            warnings.warn(
                "the losses at the previous snapshot are not finite or do not differ between "
                "batches, so the coefficient cannot be estimated and stays "
                f"{self.value:g}; check for divergence if this repeats.",
                RuntimeWarning,
                stacklevel=2,
            )
            return
        self.estimate, self.correlation = regression
        self.smoothed = (1.0 - self.smoothing) * self.smoothed + self.smoothing * self.estimate

    def state_dict(self) -> dict[str, Any]:
        """The smoothed estimate and the latest raw one."""
        return {
            "smoothed": self.smoothed,
            "estimate": self.estimate,
            "correlation": self.correlation,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.smoothed = float(state["smoothed"])
        self.estimate = state["estimate"]
        self.correlation = state["correlation"]


def _require_finite(name: str, number: float) -> None:
    """Refuses NaN and infinity, which would silently destroy every gradient."""
    if not math.isfinite(number):
        raise ValueError(f"{name} takes a finite number; got {number}; SVRG is Constant(1.0).")
