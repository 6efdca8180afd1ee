"""How long the gradients of a training are, before and after their correction."""

from __future__ import annotations

import math
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from equipoise.data import Batch
from equipoise.points import positions_of
from equipoise.records import EpochRecord, read_rows, write_rows
from equipoise.training.checkpoint import load_checkpoint, save_checkpoint
from equipoise.training.session import Session

_NAMES = ("new", "new_all", "corrected", "corrected_all")


class GradientNorms:
    r"""Writes the mean norm of the gradients of an epoch's steps, one row an epoch.

    .. math:: \frac1m \sum_t \lVert g_t \rVert_2, \qquad \frac1m \sum_t \lVert \hat g_t \rVert_2

    ``new`` is that of the mini-batch as it comes from the objective, ``corrected`` that which the
    optimizer is given, both before weight decay and clipping, over the active coordinates of all
    trainable parameters; ``new_all`` and ``corrected_all`` over all of them (null for a network
    of active weights only). ``steps`` counts the steps behind a mean: those whose gradient is
    finite. The training is not changed and its seconds are not charged.

    After a stop it goes on; a process that was killed loses the steps of the epoch that it was in.

    Args:
        path: Of the rows, in the folder of the run.

    References:
        Table 11 of the AGENT paper.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._kept = path.with_suffix(".pt")
        self._session: Session | None = None
        self._listening = ExitStack()
        self._rows: list[dict[str, Any]] = []
        self._new = torch.zeros(2)
        self._steps: list[Tensor] = []

    def start(self, session: Session) -> None:
        """Begins to look on, from the step that the session is at.

        Raises:
            ValueError: Steps are made of several batches, so no pass has the gradient of one.
        """
        if session.run.loop.accumulate != 1:
            raise ValueError(
                "gradient_norms are measured where a step is one batch; got --accumulate "
                f"{session.run.loop.accumulate}; use --accumulate 1, or measure something else."
            )
        self._session = session
        rows = read_rows(self._path) if session.epoch > 0 else []
        self._rows = [row for row in rows if row["epoch"] <= session.epoch]
        write_rows(self._path, self._rows)
        self._steps = self._kept_steps(session)
        meter = session.meter
        self._listening.enter_context(meter.listening("left", "new_gradient", self._look_at_new))
        self._listening.enter_context(meter.listening("entered", "optimizer", self._look_at_both))

    def refreshed(self, session: Session, batch: Batch) -> None:
        """Does nothing."""

    def stepped(self, session: Session, samples: int) -> None:
        """Does nothing."""

    def recorded(self, session: Session, record: EpochRecord) -> None:
        """Writes the row of the epoch."""
        del session
        steps = torch.stack(self._steps) if self._steps else torch.zeros(0, len(_NAMES))
        self._rows.append({"epoch": record.epoch} | _means(steps.cpu().double()))
        self._steps = []
        write_rows(self._path, self._rows)
        self._kept.unlink(missing_ok=True)

    def stop(self) -> None:
        """Looks away; keeps what it has of an epoch that is not over."""
        self._listening.close()
        if self._session is not None and self._steps:
            steps = torch.stack(self._steps)
            save_checkpoint(self._kept, {"epoch": self._session.epoch, "steps": steps})
        self._session, self._steps = None, []

    def _kept_steps(self, session: Session) -> list[Tensor]:
        """The norms of the steps of this epoch so far, if an earlier process kept them."""
        if not self._kept.exists() or session.batch == 0:
            return []
        kept = load_checkpoint(self._kept)
        if kept["epoch"] != session.epoch:
            return []
        return list(kept["steps"][: session.batch].to(session.device))

    def _look_at_new(self) -> None:
        """After the backward pass of a batch."""
        assert self._session is not None
        self._new = norms_of(self._session)

    def _look_at_both(self) -> None:
        """Before the optimizer sees the gradient."""
        assert self._session is not None
        self._steps.append(torch.cat([self._new, norms_of(self._session)]))


@torch.no_grad()
def norms_of(session: Session) -> Tensor:
    """Norm of ``p.grad`` over active coordinates and over all, without the loss scale.

    Returns:
        Shape ``(2,)``, float32; the second is not a number where there are active ones only.
    """
    active = session.moving_gradients()
    everywhere = [p.grad for p in session.model.parameters() if p.grad is not None]
    scale = session.scaler.get_scale()
    both = [_norm(active, session.device), _norm(everywhere, session.device)]
    if positions_of(session.model):
        both[1] = torch.full_like(both[0], torch.nan)
    return torch.stack(both) / scale


def _norm(tensors: list[Tensor], device: torch.device) -> Tensor:
    """Euclidean norm of all numbers, shape ``()``."""
    if not tensors:
        return torch.zeros((), device=device)
    return nn.utils.get_total_norm(tensors).float()


def _means(steps: Tensor) -> dict[str, Any]:
    """Mean of each column over the steps whose gradients are finite."""
    finite = steps[torch.isfinite(steps[:, 0]) & torch.isfinite(steps[:, 2])]
    columns = zip(_NAMES, finite.T, strict=True)
    means: dict[str, Any] = {}
    for name, column in columns:
        mean = float(column.mean()) if column.numel() else math.nan
        means[name] = mean if math.isfinite(mean) else None
    return means | {"steps": len(finite)}
