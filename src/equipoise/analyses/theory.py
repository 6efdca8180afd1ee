"""The paper's theory as functions of numbers: Theorem 1, and the parabola of the variance.

Torch is not needed here, and nothing is trained.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Theorem1:
    r"""The constants of Theorem 1 for one coefficient.

    Args:
        smoothness: :math:`L`, of the loss, above 0.
        samples: :math:`N`, in the training set.
        batch: :math:`n`, in a mini-batch.
        coefficient: :math:`c`, weight of the old gradient; 1 is SVRG.
        mu: :math:`\mu`, which sets the step size.
        alpha: :math:`\alpha` in (0, 1], the exponent of the step size. It is not the smoothing
            factor of the coefficient, for which the paper uses the same letter.
        step_size: :math:`\eta = \mu n / (L N^\alpha)`.
        zeta: :math:`\zeta = L / N^{\alpha/2}`.
        epoch_length: :math:`m`, steps between two snapshots.
        first: :math:`b_0`, where the backward recursion ends.
        smallest: :math:`\varphi = \min_t \Phi_t`.
        nu: :math:`\nu = \varphi L N^\alpha / n`; larger is better, and where it is not above 0
            there is no bound.
        kappa: :math:`\kappa = \sum_t (L + 2 b_{t+1}) / L`, about the epoch length if the
            coefficient is small.
    """

    smoothness: float
    samples: int
    batch: int
    coefficient: float
    mu: float
    alpha: float
    step_size: float
    zeta: float
    epoch_length: int
    first: float
    smallest: float
    nu: float
    kappa: float


def theorem1_constants(
    *,
    samples: int,
    batch: int,
    coefficient: float,
    alpha: float,
    mu: float | None = None,
    step_size: float | None = None,
    smoothness: float = 1.0,
    epoch_length: int | None = None,
) -> Theorem1:
    r"""Runs the recursion of Theorem 1 backwards through an epoch.

    .. math:: b_m &= 0, \qquad b_t = b_{t+1}\Bigl(1 + \eta\zeta + \frac{4 c^2 \eta^2 L^2}{n}\Bigr)
                  + \frac{2 c^2 \eta^2 L^3}{n} \\
              \Phi_t &= \eta - \frac{b_{t+1} \eta}{\zeta} - \eta^2 L - 2 b_{t+1} \eta^2

    Neither :math:`\nu` nor :math:`\kappa` depends on the smoothness where `mu` is given.

    Args:
        samples: In the training set, at least 1.
        batch: In a mini-batch, at least 1.
        coefficient: Weight of the old gradient, at least 0.
        alpha: Exponent, in (0, 1].
        mu: In (0, 1); either this or the step size.
        step_size: Above 0, and so small that mu is in (0, 1).
        smoothness: Of the loss, above 0.
        epoch_length: Steps between two snapshots; None for :math:`N^{3\alpha/2} / (\mu n)` as in
            the theorem. The true one is samples over batch.

    Raises:
        ValueError: A number is outside its range.

    Example:
        >>> cifar = {"samples": 50_000, "batch": 128, "alpha": 2 / 3}
        >>> found = theorem1_constants(**cifar, coefficient=0.1, mu=0.1)
        >>> found.epoch_length, round(found.nu, 4)
        (3906, 0.0987)

    References:
        AGENT, Theorem 1 and appendix A.6; Reddi et al., "Stochastic variance reduction for
        nonconvex optimization", 2016.
    """
    _check(samples=samples, batch=batch, smoothness=smoothness)
    if not 0.0 < alpha <= 1.0:
        raise ValueError(f"alpha is an exponent in (0, 1]; got {alpha:g}; the paper has 2/3.")
    if coefficient < 0.0:
        raise ValueError(f"coefficient is at least 0; got {coefficient:g}; the paper has 0.1.")
    if (mu is None) == (step_size is None):
        raise ValueError(
            "Theorem 1 needs either mu or a step size, of which one follows from the other; got "
            f"{'neither' if mu is None else 'both'}; give one of them."
        )
    power: float = samples**alpha
    if mu is None:
        assert step_size is not None
        mu = step_size * smoothness * power / batch
    if not 0.0 < mu < 1.0:
        raise ValueError(
            f"mu is in (0, 1); got {mu:.3g}; choose a smaller step size, or another smoothness."
        )
    eta, zeta = mu * batch / (smoothness * power), smoothness / samples ** (alpha / 2)
    steps = int(samples ** (1.5 * alpha) / (mu * batch)) if epoch_length is None else epoch_length
    steps = max(1, steps)
    square = coefficient**2 * eta**2 * smoothness**2 / batch
    growth, source = 1.0 + eta * zeta + 4.0 * square, 2.0 * square * smoothness
    later, total, smallest = 0.0, 0.0, math.inf
    for _ in range(steps):
        phi = eta - later * eta / zeta - eta**2 * smoothness - 2.0 * later * eta**2
        smallest = min(smallest, phi)
        total += smoothness + 2.0 * later
        later = later * growth + source
    return Theorem1(
        smoothness=smoothness,
        samples=samples,
        batch=batch,
        coefficient=coefficient,
        mu=mu,
        alpha=alpha,
        step_size=eta,
        zeta=zeta,
        epoch_length=steps,
        first=later,
        smallest=smallest,
        nu=smallest * smoothness * power / batch,
        kappa=total / smoothness,
    )


def agent_bound(
    constants: Theorem1, *, gap: float, steps: int, sigma: float
) -> tuple[float, float]:
    r"""The two terms of the bound on the squared gradient norm for AGENT.

    .. math:: E\lVert \nabla \ell \rVert^2 \le \frac{(\ell_0 - \ell^*) L N^\alpha}{T n \nu}
              + \frac{2 \kappa \mu^2 \sigma^2}{N^\alpha m \nu}

    Args:
        constants: Of its coefficient.
        gap: Loss at the start less the smallest one, at least 0.
        steps: :math:`T`, of the whole training. The paper says epochs in the theorem, and counts
            steps in its proof.
        sigma: Bound on the norm of the noise of a gradient, at least 0.

    Returns:
        Both; infinite where nu is not above 0.

    Example:
        >>> cifar = {"samples": 50_000, "batch": 128, "alpha": 2 / 3}
        >>> found = theorem1_constants(**cifar, coefficient=0.1, mu=0.1)
        >>> _, noise = agent_bound(found, gap=2.3, steps=10_000, sigma=0.067**0.5)
        >>> f"{noise:.0e}"
        '1e-05'
    """
    if constants.nu <= 0.0:
        return math.inf, math.inf
    power: float = constants.samples**constants.alpha
    first = gap * constants.smoothness * power / (steps * constants.batch * constants.nu)
    noise = 2.0 * constants.kappa * constants.mu**2 * sigma**2
    return first, noise / (power * constants.epoch_length * constants.nu)


def svrg_bound(constants: Theorem1, *, gap: float, steps: int) -> float:
    r"""The bound for SVRG that the paper compares with.

    .. math:: E\lVert \nabla \ell \rVert^2 \le \frac{(\ell_0 - \ell^*) L N^\alpha}{T \nu^*}

    Args:
        constants: Of the coefficient 1.
        gap: As in `agent_bound`.
        steps: As in `agent_bound`.

    Returns:
        Infinite where nu is not above 0.
    """
    if constants.nu <= 0.0:
        return math.inf
    power: float = constants.samples**constants.alpha
    return gap * constants.smoothness * power / (steps * constants.nu)


def _check(*, samples: int, batch: int, smoothness: float) -> None:
    """Ranges of the counts and of the smoothness."""
    if samples < 1 or not 1 <= batch <= samples:
        raise ValueError(
            f"a batch has 1 to {max(1, samples)} of the samples; got {batch} of {samples}; "
            "CIFAR-10 in the paper is 128 of 50000."
        )
    if not 0.0 < smoothness < math.inf:
        raise ValueError(f"smoothness is above 0 and finite; got {smoothness:g}; 1 is usual.")


@dataclass(frozen=True, kw_only=True)
class Slip:
    """A place of the printed theory that cannot stand as it is.

    Args:
        place: In the paper.
        printed: What is there.
        right: What is meant, or follows.
    """

    place: str
    printed: str
    right: str


SLIPS: tuple[Slip, ...] = (
    Slip(
        place="Remarks 4 and 6",
        printed="the first calls a smaller nu better, the second a larger one",
        right="a larger nu is better: it divides both terms",
    ),
    Slip(
        place="Appendix A, bound on b_0",
        printed="an exponent of 1/(4c^2 + 1)",
        right="the exponent is 4c^2 + 1",
    ),
    Slip(
        place="Lemma 2",
        printed="the term eta ||g||^2 with the wrong sign",
        right="it is subtracted: a step along the gradient lowers the loss",
    ),
    Slip(
        place="Assumptions",
        printed="strong convexity",
        right="nothing in the proof uses it",
    ),
    Slip(
        place="Proof of Theorem 1, definition of nu",
        printed="phi at least nu/(L N^alpha) in one place and n nu/(L N^alpha) in another",
        right="the second: it is the one that gives the published values",
    ),
    Slip(
        place="Appendix A.6",
        printed="a batch size m of 128 or 573",
        right="m is the number of steps in an epoch; 573 is 73257 images over batches of 128",
    ),
    Slip(
        place="Proof of Theorem 1, noise term",
        printed="no factor (1 - c)^2",
        right="it belongs there, is at most 1 for c in [0, 2], and was dropped without a word",
    ),
    Slip(
        place="Proof of Theorem 1, last step",
        printed="the final loss at most the smallest one",
        right="the other way round",
    ),
    Slip(
        place="Lemma 4",
        printed="the recursion of b with eta and L^2",
        right="eta^2 and L^3, as where it is derived",
    ),
    Slip(
        place="Theorem 1",
        printed="T epochs",
        right="T steps: snapshots times the steps between them",
    ),
    Slip(
        place="Appendix A.6, SVHN",
        printed="nu of 0.4 for AGENT beside 0.06 for SVRG",
        right="no single mu gives both: at mu = 0.4 there is no bound for SVRG, and 0.06 needs "
        "about mu = 0.1",
    ),
)
"""Found by working through the printed proof."""


@dataclass(frozen=True, kw_only=True)
class Parabola:
    r"""The variance of a corrected gradient as a function of the coefficient.

    .. math:: V(c) = a_3 + c^2 v - 2 c k

    Args:
        a3: Variance of the new gradient.
        v: Variance of the old one.
        k: Their covariance.
        estimate: An estimate of the best coefficient that is too large.
        gamma: What it is scaled by.
    """

    a3: float = 1.0
    v: float = 1.0
    k: float = 0.3
    estimate: float = 0.9
    gamma: float = 0.1

    @property
    def best(self) -> float:
        """The coefficient at the bottom, ``k / v``."""
        return self.k / self.v

    def points(self) -> dict[str, tuple[float, float]]:
        """Coefficient and variance without correction, at the best, the estimate and the scaled.

        Example:
            >>> {name: round(v, 3) for name, (_, v) in Parabola().points().items()}
            {'none': 1.0, 'best': 0.91, 'estimate': 1.27, 'scaled': 0.954}
        """
        places = {
            "none": 0.0,
            "best": self.best,
            "estimate": self.estimate,
            "scaled": self.gamma * self.estimate,
        }
        return {n: (c, variance_parabola(self.a3, self.v, self.k, c)) for n, c in places.items()}


def variance_parabola(a3: float, v: float, k: float, c: float) -> float:
    r"""Variance of a gradient corrected with coefficient `c`: :math:`a_3 + c^2 v - 2 c k`.

    Below :math:`a_3` for c between 0 and twice the best one, ``k / v``.

    Example:
        >>> variance_parabola(1.0, 2.0, 1.0, 0.5)
        0.5
    """
    return a3 + c**2 * v - 2.0 * c * k
