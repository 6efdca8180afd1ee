"""Gradients of a session's batches that leave no trace in its training."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from equipoise.correction.columns import Columns, grown, route
from equipoise.data import Batch
from equipoise.points import (
    Named,
    position_names,
    positions_of,
    preserved,
    trainable,
    value_and_gradient_at,
)
from equipoise.training import build
from equipoise.training.session import Session

STREAM = "analysis"


def pearson(x: Tensor, y: Tensor) -> float | None:
    r"""Pearson's correlation of two vectors.

    .. math:: r = \frac{\sum_i (x_i - \bar x)(y_i - \bar y)}
                       {\sqrt{\sum_i (x_i - \bar x)^2 \sum_i (y_i - \bar y)^2}}

    Args:
        x: Any shape; sums are taken in double precision.
        y: As many numbers.

    Returns:
        In [-1, 1]; None where there is none: a vector is constant, empty or not finite.

    Example:
        >>> pearson(torch.tensor([0.0, 1.0, 0.0, 1.0]), torch.tensor([0.0, 0.0, 1.0, 1.0]))
        0.0
        >>> pearson(torch.tensor([1.0, 2.0]), torch.ones(2)) is None
        True
    """
    if x.numel() == 0:
        return None
    a, b = (t.double().flatten() - t.double().mean() for t in (x, y))
    product = float(torch.linalg.vector_norm(a)) * float(torch.linalg.vector_norm(b))
    if not (0.0 < product < math.inf):
        return None
    return min(1.0, max(-1.0, float(a @ b) / product))


def batches_of(session: Session) -> Iterator[Batch]:
    """All training batches in an order and with an augmentation that training never uses.

    The same ones each time, so that two gradients differ by their points alone.
    """
    loop = session.run.loop
    # Draws of training and refreshes are below this number.
    draw = None if session.loader.locked else 2 * loop.epochs + session.total_steps + 1
    return session.loader.epoch(0, stream=STREAM, draw=draw)


def point_of(model: nn.Module) -> Named:
    """A copy of the trainable parameters, with the positions of compact ones."""
    names = position_names(model)
    positions = {names[name]: index for name, index in positions_of(model).items()}
    return {name: p.detach().clone() for name, p in trainable(model).items()} | positions


def gradient_at(session: Session, point: Mapping[str, Tensor], batch: Batch, number: int) -> Named:
    """Gradient of the objective on a batch that was not attacked; nothing of the session moves.

    Args:
        session: In training mode.
        point: From `point_of`, now or at another time of the training.
        batch: From `batches_of`.
        number: Of the batch; seeds its dropout, so that it is the same each time.

    Returns:
        By name, times the loss scale of the session.
    """
    loss = partial(session.objective.loss, session.model, batch)
    scale = session.scaler.get_scale()
    with preserved(session.device), build.autocast(session.run.loop, session.device):
        torch.manual_seed(number)
        _, gradient = value_and_gradient_at(session.model, point, loss, scale=scale)
    return gradient


@contextmanager
def training_mode(model: nn.Module) -> Iterator[None]:
    """Training mode inside; afterwards every module is in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.train()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def common_entries(
    old: Tensor, before: Columns, new: Tensor, now: Columns
) -> tuple[Tensor, Tensor]:
    """The entries of two gradients that were active then and are now, in the same order.

    Args:
        old: Shape ``(before.num_padded,)``.
        before: What was active then.
        new: Shape ``(now.num_padded,)``.
        now: What is active now.

    Returns:
        Two 1-D tensors of one length.
    """
    places = now.places[~grown(before, now)[now.places]]
    return old[route(before, now)[places]], new[places]


def whole(gradient: Named, model: nn.Module) -> Tensor | None:
    """All coordinates as one vector; None for a model that has no masked ones."""
    if positions_of(model):
        return None
    parts = [
        (gradient[name] if name in gradient else torch.zeros_like(p)).detach().float().reshape(-1)
        for name, p in trainable(model).items()
    ]
    return torch.cat(parts)
