"""Optimizers and learning rates, from settings."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from equipoise.settings import OptimizerSettings


class SGDW(Optimizer):
    r"""SGD with heavy-ball momentum and decoupled weight decay.

    .. math:: \theta \leftarrow (1 - \lambda_t)\,\theta, \qquad
              v \leftarrow \mu v - \eta_t \hat g, \qquad \theta \leftarrow \theta + v

    The decay is not multiplied by the learning rate but follows its schedule:
    :math:`\lambda_t = \lambda\, \eta_t / \eta_0`. The learning rate is inside the velocity, so an
    old velocity keeps its size when the rate drops.

    Args:
        params: Parameters or groups of them.
        lr: Learning rate, at least 0.
        momentum: In [0, 1).
        weight_decay: Fraction of every weight removed in a step at the initial rate, in [0, 1).

    Raises:
        ValueError: An argument is out of its range.

    Example:
        >>> weight = nn.Parameter(torch.tensor([1.0]))
        >>> optimizer = SGDW([weight], lr=0.1, momentum=0.9, weight_decay=0.5)
        >>> weight.grad = torch.tensor([1.0])
        >>> optimizer.step()
        >>> weight.data
        tensor([0.4000])

    References:
        Loshchilov and Hutter, Decoupled weight decay regularization, 2019, Alg. 1, in the form
        that BSR-Net uses.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
    ) -> None:
        if lr < 0.0 or not 0.0 <= momentum < 1.0 or not 0.0 <= weight_decay < 1.0:
            raise ValueError(
                "SGDW takes lr >= 0, momentum in [0, 1) and weight_decay in [0, 1); "
                f"got {lr}, {momentum}, {weight_decay}."
            )
        super().__init__(
            params,
            {"lr": lr, "base_lr": lr, "momentum": momentum, "weight_decay": weight_decay},
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; `closure`, if given, computes the loss and the gradients first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            rate = group["lr"]
            base = group["base_lr"]
            decay = group["weight_decay"] * (rate / base if base > 0.0 else 0.0)
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "velocity" not in state:
                    state["velocity"] = torch.zeros_like(parameter)
                velocity: Tensor = state["velocity"]
                velocity.mul_(group["momentum"]).sub_(parameter.grad, alpha=rate)
                parameter.mul_(1.0 - decay).add_(velocity)
        return loss


def build_optimizer(
    parameters: Iterable[nn.Parameter],
    settings: OptimizerSettings,
    *,
    masked: Iterable[nn.Parameter] = (),
) -> Optimizer:
    """The optimizer of a run, at its initial learning rate.

    Args:
        parameters: All trainable parameters.
        settings: Kind, rate, momentum and decay.
        masked: Those that stand for a weight with two dimensions and more, whatever they have.
    """
    every = list(parameters)
    matrices = {id(p) for p in masked}
    free = [p for p in every if p.ndim < 2 and id(p) not in matrices]
    free = [] if settings.decay == "all" else free
    held = {id(p) for p in free}
    groups: list[dict[str, Any]] = [{"params": [p for p in every if id(p) not in held]}]
    if free:
        groups.append({"params": free, "weight_decay": 0.0})
    rate, decay = settings.learning_rate, settings.weight_decay
    if settings.optimizer == "adam":
        return torch.optim.Adam(groups, lr=rate, weight_decay=decay)
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=rate, weight_decay=decay)
    if settings.optimizer == "sgdw":
        return SGDW(groups, lr=rate, momentum=settings.momentum, weight_decay=decay)
    return torch.optim.SGD(
        groups,
        lr=rate,
        momentum=settings.momentum,
        weight_decay=decay,
        nesterov=settings.nesterov and settings.momentum > 0.0,
    )


def rate_factor(step: int, total_steps: int, settings: OptimizerSettings) -> float:
    r"""What the initial learning rate is multiplied by at one step.

    Args:
        step: Completed optimizer steps, from 0.
        total_steps: Steps in the whole training.
        settings: Schedule, milestones, drop factor and warm-up.

    Returns:
        During warm-up ``step / warmup_steps``, from 0; afterwards the schedule.

    Example:
        >>> settings = OptimizerSettings()
        >>> [round(rate_factor(step, 100, settings), 4) for step in (0, 49, 50, 75)]
        [1.0, 1.0, 0.1, 0.01]
    """
    warmup_steps = round(settings.warmup * total_steps)
    if step < warmup_steps:
        return step / warmup_steps
    if settings.schedule == "constant":
        return 1.0
    if settings.schedule == "cosine":
        progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
    # Rounded, since 0.29 * 100 is a little less than 29, and 0.07 * 100 a little more than 7.
    passed = sum(step >= round(m * total_steps, 6) for m in settings.milestones)
    if settings.drop_factors:
        return (1.0, *settings.drop_factors)[passed]
    return float(settings.drop_factor**passed)
