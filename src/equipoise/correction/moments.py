"""How strongly an old gradient should correct a new one, estimated from dot products alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Numbers = npt.NDArray[np.float64]

_SUMS = ("a", "b", "s", "aa", "ab", "bb")
_FEWEST = 2


@dataclass(frozen=True)
class Evidence:
    """What the estimates come to, over all parameters together.

    Args:
        coefficient: The lower-confidence bound that is used, in [0, 1].
        best: The estimate of the best coefficient, without the bound.
        rho_squared: Share of the variance that the best coefficient removes, in [0, 1].
        variance_ratio: Variance that the used coefficient leaves, as a share of that without.
        samples: Steps behind the estimates, older ones counted less.
    """

    coefficient: float
    best: float
    rho_squared: float
    variance_ratio: float
    samples: float


class Moments:
    r"""Running moments of new and old gradients, parameter by parameter, and what follows.

    With :math:`D` the old gradient minus its known mean and any :math:`v` that does not depend on
    the batch, each step brings, without any further pass,

    .. math:: a = \langle g - v,\, D \rangle, \quad b = \langle D, D \rangle, \quad
              s = \langle g - v,\, g - v \rangle,
              \qquad \mathbb{E}\,a = \operatorname{tr} \operatorname{Cov}, \quad
              \mathbb{E}\,b = \operatorname{tr} \operatorname{Var}

    The best coefficient is :math:`c^* = A / B` of their means. In place of a fixed factor the
    standard error of the ratio is subtracted,

    .. math:: c = \operatorname{clip}\Bigl(\frac{A - z\,\sigma_A}{B}, 0, 1\Bigr), \qquad
              \sigma_A^2 = \frac{\langle (a - c^* b)^2 \rangle}{n}

    and the mean :math:`A` of one parameter is drawn towards the value that the coefficient of the
    whole network gives it, with the weight of `prior` samples. Only what was observed before a
    step enters its coefficient, so that the corrected gradient stays unbiased.

    Args:
        num_groups: Parameters with a coefficient of their own.
        device: Of the coefficients.
        decay: What a step's weight is multiplied by at every later step, in (0, 1).
        confidence: The number z of standard errors, at least 0.
        prior: Samples that the network's coefficient counts as, at least 0.

    Example:
        >>> moments = Moments(1, torch.device("cpu"))
        >>> one = torch.ones(1, dtype=torch.float64)
        >>> for _ in range(3):
        ...     moments.observe(0.5 * one, one, one)
        >>> moments.values().tolist()
        [0.5]
    """

    def __init__(
        self,
        num_groups: int,
        device: torch.device,
        *,
        decay: float = 0.95,
        confidence: float = 1.0,
        prior: float = 4.0,
    ) -> None:
        self.num_groups = num_groups
        self.decay = decay
        self.confidence = confidence
        self.prior = prior
        # The last column is the whole network.
        shape = (len(_SUMS), num_groups + 1)
        self._sums: Numbers = np.zeros(shape)
        self._device = device
        self._weight = 0.0
        self._weight_squared = 0.0
        self._count = 0

    @property
    def samples(self) -> float:
        """Number of equally weighted steps that the estimates are as good as."""
        return self._weight**2 / self._weight_squared if self._count else 0.0

    @property
    def spread(self) -> Tensor | None:
        """Mean of s by parameter, shape ``(num_groups,)``; None before there is enough."""
        if self.samples < 2 * _FEWEST:
            return None
        return torch.from_numpy(self._sums[2, :-1] / self._weight).to(self._device)

    @property
    def old_variance(self) -> float:
        """Mean of b over the network; 0 before there is any."""
        return float(self._sums[1, -1]) / self._weight if self._count else 0.0

    def observe(self, a: Tensor, b: Tensor, s: Tensor) -> None:
        """Takes in one step; each float64 of shape ``(num_groups,)``."""
        one = torch.stack([a, b, s]).cpu().numpy()
        sums = self._sums
        sums *= self.decay
        step = np.empty_like(sums)
        step[:3, :-1] = one
        step[:3, -1] = one.sum(axis=1)
        step[3:5] = step[0] * step[:2]
        step[5] = step[1] * step[1]
        sums += step
        self._weight = self.decay * self._weight + 1.0
        self._weight_squared = self.decay**2 * self._weight_squared + 1.0
        self._count += 1

    def values(self) -> Tensor:
        """The coefficient of every parameter, float64, shape ``(num_groups,)``, in [0, 1]."""
        if self._count < _FEWEST:
            return torch.zeros(self.num_groups, dtype=torch.float64, device=self._device)
        a, b, error = self._estimates()
        n, prior = self.samples, self.prior
        whole = _bounded(a[-1:], b[-1:], self.confidence * error[-1:])
        drawn = (n * a[:-1] + prior * whole * b[:-1]) / (n + prior)
        slack = self.confidence * error[:-1] * n / (n + prior)
        return torch.from_numpy(_bounded(drawn, b[:-1], slack)).to(self._device)

    def evidence(self, used: float | None = None) -> Evidence:
        """What is known of the network as a whole; waits for the accelerator.

        Args:
            used: A coefficient that is used in place of the estimated one.
        """
        if self._count < _FEWEST:
            return Evidence(used or 0.0, 0.0, 0.0, 1.0, self.samples)
        a, b, error = (x[-1:] for x in self._estimates())
        bound = _bounded(a, b, self.confidence * error).item() if used is None else used
        covariance, old, new = a.item(), b.item(), float(self._sums[2, -1] / self._weight)
        best = covariance / old if old > 0.0 else 0.0
        share = max(0.0, covariance) * best / new if new > 0.0 else 0.0
        ratio = 1.0 if new <= 0.0 else 1.0 - (2 * bound * covariance - bound**2 * old) / new
        return Evidence(bound, best, min(1.0, share), max(0.0, ratio), self.samples)

    def state_dict(self) -> dict[str, Any]:
        """The sums, as plain numbers."""
        return {
            "sums": self._sums.tolist(),
            "weight": self._weight,
            "weight_squared": self._weight_squared,
            "count": self._count,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self._sums = np.array(state["sums"], dtype=np.float64)
        self.num_groups = self._sums.shape[1] - 1
        self._weight = float(state["weight"])
        self._weight_squared = float(state["weight_squared"])
        self._count = int(state["count"])

    def _estimates(self) -> tuple[Numbers, Numbers, Numbers]:
        """Means of a and b, and the standard error of a given b; the network is the last."""
        a, b, _, aa, ab, bb = self._sums / self._weight
        best = _ratio(a, b)
        residual = np.maximum(aa - 2.0 * best * ab + best * best * bb, 0.0)
        return a, b, np.sqrt(residual / max(1.0, self.samples - 1.0))


def _ratio(a: Numbers, b: Numbers) -> Numbers:
    """The ratio of two, and 0 where the second is not above 0."""
    return np.divide(a, b, out=np.zeros_like(a), where=b > 0.0)


def _bounded(a: Numbers, b: Numbers, slack: Numbers) -> Numbers:
    """The lower bound of a ratio, in [0, 1]; 0 where there is no old gradient."""
    bounded: Numbers = np.minimum(np.maximum(_ratio(a - slack, b), 0.0), 1.0)
    return bounded
