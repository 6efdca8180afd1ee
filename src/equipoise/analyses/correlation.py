"""How alike the gradients of an epoch and of the one before are, along a training."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from equipoise.analyses.gradients import (
    batches_of,
    common_entries,
    gradient_at,
    pearson,
    point_of,
    training_mode,
    whole,
)
from equipoise.correction.columns import Columns, columns_from, columns_of
from equipoise.correction.gradients import add_weighted
from equipoise.data import Batch
from equipoise.points import Named, position_names, positions_of
from equipoise.records import EpochRecord, read_rows, write_rows
from equipoise.training.checkpoint import load_checkpoint, save_checkpoint
from equipoise.training.session import Session


@dataclass(frozen=True, kw_only=True)
class _Moment:
    """The end of an epoch.

    Args:
        epoch: Completed epochs.
        point: The parameters.
        columns: What was active.
        active: Full gradient, shape ``(columns.num_padded,)``.
        all: The same over all coordinates; None where the others have no gradient.
    """

    epoch: int
    point: Named
    columns: Columns
    active: Tensor
    all: Tensor | None


@dataclass
class _Pairs:
    """Correlations of the gradients of single batches at two points."""

    active: list[float] = field(default_factory=list)
    all: list[float] = field(default_factory=list)


class GradientCorrelation:
    r"""Writes the correlation of successive gradients, one row an epoch from the second on.

    .. math:: r_s = \mathrm{corr}(\tilde g_s, \tilde g_{s-1}), \qquad
              \tilde g_s = \frac1N \sum_b n_b \nabla \ell_b(\theta_s)

    where :math:`\theta_s` are the parameters after epoch :math:`s`. Both gradients are those of
    the same batches with the same augmentation and dropout, BatchNorm normalises by the batch, and
    attacks have no part. Weights, running statistics, random numbers and the meter are not
    changed: a training ends bit for bit as without it. Its own cost is written beside it.

    Rows have ``full``, over coordinates active at both times, ``full_all``, over all coordinates
    (null for a network of active weights only), ``batch`` and ``batch_all``, means of the
    correlation over single batches, and ``extra_passes``, the passes over the data that were
    needed so far. What is kept for the next epoch is in a file of the same name with ``.pt``.

    Args:
        path: Of the rows, in the folder of the run.
        pairs: Batches for the correlation of single batches, at least 1.
        batches: For the full gradient; None for all.

    Raises:
        ValueError: A number of batches is below 1.

    References:
        Figure 26 of the AGENT paper.
    """

    def __init__(self, path: Path, *, pairs: int = 10, batches: int | None = None) -> None:
        if pairs < 1 or (batches is not None and batches < 1):
            raise ValueError(
                f"pairs and batches are numbers of batches, at least 1; got {pairs} and {batches}; "
                "leave them out for the usual ones."
            )
        self._path = path
        self._kept = path.with_suffix(".pt")
        self._pairs = pairs
        self._batches = batches
        self._rows: list[dict[str, Any]] = []
        self._before: _Moment | None = None
        self._passes = 0.0

    def start(self, session: Session) -> None:
        """Goes on from the last measured epoch; what a kill has cut off is measured now."""
        self._before, self._passes = None, 0.0
        if session.epoch == 0:
            self._kept.unlink(missing_ok=True)
        elif self._kept.exists():
            self._load(session)
        known = session.epoch if self._before is None else self._before.epoch
        rows = read_rows(self._path) if session.epoch > 0 else []
        self._rows = [row for row in rows if row["epoch"] <= known]
        if self._before is None and self._rows:
            self._passes = float(self._rows[-1]["extra_passes"])
        write_rows(self._path, self._rows)
        if session.epoch == 0 or (self._before is not None and known == session.epoch):
            return
        if session.batch == 0:
            self._measure(session)
        else:
            # In the middle of an epoch its beginning is gone, and with it one row.
            self._before = None

    def refreshed(self, session: Session, batch: Batch) -> None:
        """Does nothing."""

    def stepped(self, session: Session, samples: int) -> None:
        """Does nothing."""

    def recorded(self, session: Session, record: EpochRecord) -> None:
        """Measures, between two epochs and outside every part of the meter."""
        del record
        self._measure(session)

    def stop(self) -> None:
        """Forgets what was kept in memory."""
        self._before = None

    def _measure(self, session: Session) -> None:
        """The gradient of now against the last one."""
        before = self._before
        if before is not None and before.epoch != session.epoch - 1:
            before = None
        with training_mode(session.model):
            now, pairs = self._gradients(session, before)
        if before is not None:
            self._rows.append(_row(before, now, pairs) | {"extra_passes": self._passes})
        # A kill between the two leaves a row too many, which is measured again.
        write_rows(self._path, self._rows)
        self._before = now
        self._save(now)

    def _gradients(self, session: Session, before: _Moment | None) -> tuple[_Moment, _Pairs]:
        """The full gradient, and of some batches the correlation with that of the last point."""
        model = session.model
        columns = columns_of(model, session.topology.masks)
        point, old_point = point_of(model), _seen_from(session, before)
        total: Named = {}
        pairs, samples, extra = _Pairs(), 0, 0
        for number, batch in enumerate(islice(batches_of(session), self._batches)):
            new = gradient_at(session, point, batch, number)
            add_weighted(total, new, float(batch.size))
            samples += batch.size
            if before is None or old_point is None or number >= self._pairs:
                continue
            old = gradient_at(session, old_point, batch, number)
            extra += batch.size
            there = before.columns.gather(old, torch.float32)
            here = columns.gather(new, torch.float32)
            _append(pairs.active, pearson(*common_entries(there, before.columns, here, columns)))
            dense_old, dense_new = whole(old, model), whole(new, model)
            if dense_old is not None and dense_new is not None:
                _append(pairs.all, pearson(dense_old, dense_new))
        full = {name: tensor / samples for name, tensor in total.items()}
        self._passes += (samples + extra) / session.loader.num_samples
        moment = _Moment(
            epoch=session.epoch,
            point=point,
            columns=columns,
            active=columns.gather(full, torch.float32),
            all=whole(full, model),
        )
        return moment, pairs

    def _save(self, now: _Moment) -> None:
        """What the next epoch, perhaps of another process, compares with."""
        state = {
            "epoch": now.epoch,
            "point": now.point,
            "ids": now.columns.ids,
            "active": now.active,
            "all": now.all,
            "passes": self._passes,
        }
        save_checkpoint(self._kept, state)

    def _load(self, session: Session) -> None:
        """Reads it, unless it is of a later moment than the session."""
        state = load_checkpoint(self._kept)
        if state["epoch"] > session.epoch:
            return
        device = session.device
        self._passes = float(state["passes"])
        self._before = _Moment(
            epoch=int(state["epoch"]),
            point={name: tensor.to(device) for name, tensor in state["point"].items()},
            columns=columns_from(session.model, state["ids"]),
            active=state["active"].to(device),
            all=None if state["all"] is None else state["all"].to(device),
        )


def _row(before: _Moment, now: _Moment, pairs: _Pairs) -> dict[str, Any]:
    """What is written about two successive moments."""
    both = common_entries(before.active, before.columns, now.active, now.columns)
    return {
        "epoch": now.epoch,
        "full": pearson(*both),
        "full_all": _of_two(before.all, now.all),
        "batch": fmean(pairs.active) if pairs.active else None,
        "batch_all": fmean(pairs.all) if pairs.all else None,
    }


def _of_two(old: Tensor | None, new: Tensor | None) -> float | None:
    """Their correlation, where there are both."""
    return None if old is None or new is None else pearson(old, new)


def _append(found: list[float], correlation: float | None) -> None:
    """Adds a correlation, if there is one."""
    if correlation is not None:
        found.append(correlation)


def _seen_from(session: Session, before: _Moment | None) -> Named | None:
    """The last point, with today's own tensors for positions that are still the same."""
    if before is None:
        return None
    names, point = position_names(session.model), dict(before.point)
    for name, index in positions_of(session.model).items():
        if torch.equal(index, point[names[name]]):
            point[names[name]] = index
    return point
