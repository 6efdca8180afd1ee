"""Gradients of a trained network under noise on its weights: their variance, and what is left."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from equipoise.analyses.gradients import pearson
from equipoise.points import Named, device_of, preserved, trainable, value_and_gradient_at

Which = Literal["active", "all"]
WHICH: tuple[Which, ...] = ("active", "all")
DEVIATION = 0.015
REPLICATES = 3


class Spread:
    r"""Mean and variance of vectors that come one at a time (Welford's recurrence).

    .. math:: \mu_k = \mu_{k-1} + \frac{x_k - \mu_{k-1}}{k}, \qquad
              M_k = M_{k-1} + (x_k - \mu_{k-1})(x_k - \mu_k)

    Args:
        size: Of the vectors.
        device: Where they are.

    Example:
        >>> spread = Spread(2, torch.device("cpu"))
        >>> for x in ([1.0, 5.0], [3.0, 5.0]):
        ...     spread.add(torch.tensor(x))
        >>> spread.mean.tolist(), spread.variance.tolist()
        ([2.0, 5.0], [2.0, 0.0])
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self.count = 0
        self.mean = torch.zeros(size, dtype=torch.float64, device=device)
        self._squares = torch.zeros_like(self.mean)

    def add(self, x: Tensor) -> None:
        """Takes in one vector."""
        self.count += 1
        before = x.double() - self.mean
        self.mean += before / self.count
        self._squares += before * (x.double() - self.mean)

    @property
    def variance(self) -> Tensor:
        """Of each entry, over one less than their number; not a number before the second."""
        return self._squares / (self.count - 1) if self.count > 1 else self._squares * torch.nan


def perturbed_rows(
    model: nn.Module,
    loss_fn: Callable[[Any], Tensor],
    batches: Callable[[], Iterable[Any]],
    masks: Mapping[str, Tensor],
    *,
    deviation: float = DEVIATION,
    replicates: int = REPLICATES,
    seed: int = 0,
    batchnorm: Literal["eval", "train"] = "eval",
    on_batch: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    r"""Variance of gradients over batches, and correlation of the mean with that of no noise.

    .. math:: \theta' = \theta + \epsilon, \; \epsilon_i \sim N(0, \sigma^2), \qquad
              r = \mathrm{corr}\bigl(g(\theta), g(\theta')\bigr), \qquad
              v = \frac1d \sum_i \mathrm{Var}_B\, g_B(\theta')_i

    Noise on weights that are not there makes a sparse network a dense one, so both are measured:
    noise on active weights or on all, and numbers over active coordinates or over all. Parameters
    without a mask are active. The model is not changed, nor are random states.

    Args:
        model: With dense weights, zero where inactive.
        loss_fn: Mean loss of a batch; closes over the model.
        batches: The same batches at each call, each of as many samples.
        masks: Bool by name of the parameter, True = active.
        deviation: Of the noise, in the unit of the weights, at least 0.
        replicates: Draws of the noise, at least 1.
        seed: Of the noise.
        batchnorm: By running statistics and without dropout, or by the batch and with it.
        on_batch: Called after every gradient.

    Returns:
        A row for each draw, each place of the noise and each set of coordinates.

    Raises:
        ValueError: A setting is out of range, or there are fewer than two batches.

    References:
        Figure 1 and table 9 of the AGENT paper, which says a deviation of 0.015 for the latter.
    """
    if replicates < 1 or deviation < 0.0:
        raise ValueError(
            f"there is at least 1 replicate and the deviation is at least 0; got {replicates} and "
            f"{deviation:g}; the paper has 3 and 0.015."
        )
    point = {name: p.detach() for name, p in trainable(model).items()}
    active = torch.cat(
        [masks.get(n, torch.ones_like(p, dtype=torch.bool)).reshape(-1) for n, p in point.items()]
    ).to(device_of(model))
    take = partial(_spread, model, loss_fn, batches, on_batch=on_batch)
    rows = []
    with _mode(model, training=batchnorm == "train"):
        plain = take(point)
        for replicate in range(replicates):
            noise = _noise(point, deviation, seed, replicate)
            found: Spread | None = None
            for perturb in WHICH:
                # Where every weight is active the two are the same.
                if found is None or not bool(active.all()):
                    found = take(_moved(point, noise, masks if perturb == "active" else {}))
                rows += [
                    _row(perturb, chosen, plain, found, active)
                    | {"deviation": deviation, "replicate": replicate}
                    for chosen in WHICH
                ]
    return rows


def _row(
    perturb: Which, coordinates: Which, plain: Spread, found: Spread, active: Tensor
) -> dict[str, Any]:
    """What is written about one draw."""
    chosen = active if coordinates == "active" else torch.ones_like(active)
    return {
        "perturb": perturb,
        "coordinates": coordinates,
        "correlation": pearson(plain.mean[chosen], found.mean[chosen]),
        "variance": float(found.variance[chosen].mean()),
        "batches": found.count,
    }


def _spread(
    model: nn.Module,
    loss_fn: Callable[[Any], Tensor],
    batches: Callable[[], Iterable[Any]],
    point: Named,
    *,
    on_batch: Callable[[], None],
) -> Spread:
    """The gradients of all batches at a point."""
    device = device_of(model)
    spread = Spread(sum(p.numel() for p in point.values()), device)
    for number, batch in enumerate(batches()):
        with preserved(device):
            torch.manual_seed(number)
            _, gradient = value_and_gradient_at(model, point, partial(loss_fn, batch))
        parts = [gradient.get(name, torch.zeros_like(p)).reshape(-1) for name, p in point.items()]
        spread.add(torch.cat(parts))
        on_batch()
    if spread.count < 2:
        raise ValueError(
            f"a variance over batches takes at least 2 of them; got {spread.count}; choose more, "
            "or smaller ones."
        )
    return spread


def _noise(point: Named, deviation: float, seed: int, replicate: int) -> Named:
    """Normal numbers for all parameters, the same on every device."""
    generator = torch.Generator().manual_seed(1_000_003 * seed + replicate)
    return {
        name: (deviation * torch.randn(p.shape, generator=generator)).to(p)
        for name, p in point.items()
    }


def _moved(point: Named, noise: Named, masks: Mapping[str, Tensor]) -> Named:
    """The point with noise, where a mask allows it."""
    return {
        name: p + (noise[name] * masks[name].to(p.device) if name in masks else noise[name])
        for name, p in point.items()
    }


@contextmanager
def _mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """All modules in one mode inside; afterwards each in its own."""
    modes = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
