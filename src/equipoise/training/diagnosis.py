"""What correction could do for a training: measured on its own network and data."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from equipoise.correction.columns import Columns, columns_of, grown, route
from equipoise.correction.rows import row_bytes
from equipoise.data import Batch
from equipoise.points import preserved, trainable, value_and_gradient_at
from equipoise.records import MANIFEST, read_run
from equipoise.settings import Run, from_plain, with_setting
from equipoise.training import build
from equipoise.training.checkpoint import load_checkpoint
from equipoise.training.loop import CHECKPOINT
from equipoise.training.session import Session

_TABLE_COST = 1.05  # of an epoch with a table, in plain epochs
_SNAPSHOT_COST = 3.0
_PUBLISHED = 0.1
_ROOM = 1 << 30  # bytes that a table may take without a word


@dataclass(frozen=True, kw_only=True)
class AtAge:
    """Gradients of the same batches at two points of a training.

    Args:
        age: Optimizer steps between the two.
        path: Sum of the learning rates of these steps.
        rho_squared: Share of the variance that the best coefficient removes, in [0, 1].
        best_coefficient: Covariance over the old variance.
        left_published: Variance left by a coefficient of 0.1 times the best, as a share.
        variance: Of a batch's new gradient, over the active weights (trace of the covariance).
        signal: Squared norm of the mean new gradient, freed of the noise of that mean, at least 0.
    """

    age: int
    path: float
    rho_squared: float
    best_coefficient: float
    left_published: float
    variance: float
    signal: float


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What was measured and what follows.

    Args:
        label: Of the run.
        epoch: Completed epochs of the training when it was looked at.
        learning_rate: At that moment.
        steps_per_epoch: Which is the age of a stored gradient.
        num_batches: Batches that everything was measured on.
        ages: The measurements, youngest first.
        table_bytes: Of a table of one epoch's batches in int8.
        mode: Recommended corrector: "table", "age" or "none".
        options: For `equipoise train`.
        reasons: Sentences.
    """

    label: str
    epoch: int
    learning_rate: float
    steps_per_epoch: int
    num_batches: int
    ages: tuple[AtAge, ...]
    table_bytes: int
    mode: str
    options: str
    reasons: tuple[str, ...]

    def as_plain(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def session_of_folder(folder: Path, *, data_dir: Path | None, device: str) -> Session:
    """The session of a run as its last checkpoint left it; the folder is only read.

    Raises:
        ValueError: The folder holds no run or no checkpoint.
    """
    if not (folder / MANIFEST).exists() or not (folder / CHECKPOINT).exists():
        raise ValueError(
            f"{folder} holds no run with a checkpoint; pass the folder that a training wrote, or "
            "leave it out to look at a training with the settings of the command line."
        )
    run = with_setting(from_plain(read_run(folder).manifest["run"]), "device", device)
    run = replace(run, data=replace(run.data, data_dir=data_dir, download=False))
    state = load_checkpoint(folder / CHECKPOINT)
    session = Session(run, begun=state)
    session.load_state_dict(state)
    return session


def begun_session(run: Run, epochs: int, on_step: Callable[[], None] = lambda: None) -> Session:
    """A session of these settings after some epochs of training."""
    session = Session(run)
    for _ in range(min(epochs, run.loop.epochs)):
        _start_epoch(session)
        for group in session.batches():
            session.train_step(group)
            on_step()
        session.finish_epoch()
    return session


def diagnose(
    session: Session,
    *,
    num_batches: int = 24,
    on_step: Callable[[], None] = lambda: None,
) -> Diagnosis:
    """Takes gradients of some batches now and again while the session trains for an epoch.

    The batches look alike each time (augmentation and dropout are repeated). Only weights that are
    active at both points are compared. The session is trained on by up to an epoch.

    Args:
        session: Between two epochs.
        num_batches: Batches to measure on, at least 4.
        on_step: Called after each step of training and each measured batch.

    Raises:
        ValueError: Too few batches.
    """
    if num_batches < 4 or len(session.loader) < 4:
        raise ValueError(
            f"a diagnosis takes at least 4 batches; got {min(num_batches, len(session.loader))} of "
            f"the {len(session.loader)} in an epoch; ask for more, or choose a smaller batch size."
        )
    if session.epoch >= session.run.loop.epochs:
        # One epoch more, at the last learning rate.
        session.epoch -= 1
        session.step -= session.steps_per_epoch
    epoch, rate = session.epoch, float("nan")
    probes = _probes(session, num_batches)
    old_columns = columns_of(session.model, session.topology.masks)
    old = _gradients(session, probes, old_columns, on_step)
    found: list[AtAge] = []
    path = 0.0
    marks = _marks(session.steps_per_epoch)
    _start_epoch(session)
    for age, group in enumerate(session.batches(), start=1):
        session.train_step(group)
        on_step()
        rate = float(session.optimizer.param_groups[0]["lr"]) if age == 1 else rate
        path += float(session.optimizer.param_groups[0]["lr"])
        if age in marks:
            columns = columns_of(session.model, session.topology.masks)
            new = _gradients(session, probes, columns, on_step)
            found.append(compare(new, _carried(old, old_columns, columns), age, path))
    size = len(session.loader) * row_bytes(old_columns.num_padded, "int8")
    mode, options, reasons = recommend(found, session.steps_per_epoch, size)
    return Diagnosis(
        label=session.run.label,
        epoch=epoch,
        learning_rate=rate,
        steps_per_epoch=session.steps_per_epoch,
        num_batches=len(probes),
        ages=tuple(found),
        table_bytes=size,
        mode=mode,
        options=options,
        reasons=reasons,
    )


def compare(new: Tensor, old: tuple[Tensor, Tensor | None], age: int, path: float) -> AtAge:
    """Covariances of gradients of the same batches at two points.

    Args:
        new: Shape ``(num_batches, num_padded)``.
        old: The same at the earlier point, and where it means something.
        age: Steps between.
        path: Sum of learning rates between.

    Returns:
        The unbiased estimates; the squared correlation is freed of what chance gives it.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
        >>> round(compare(x, (2 * x, None), 1, 0.1).best_coefficient, 3)
        0.5
    """
    earlier, valid = old
    both = new if valid is None else new * valid
    n = len(new)
    x, y = (t.double() - t.double().mean(dim=0) for t in (both, earlier))
    var_x, var_y, cov = (float((a * b).sum()) / (n - 1) for a, b in ((x, x), (y, y), (x, y)))
    all_new = new.double() - new.double().mean(dim=0)
    variance = float(all_new.square().sum()) / (n - 1)
    signal = max(0.0, float(new.double().mean(dim=0).square().sum()) - variance / n)
    best = cov / var_y if var_y > 0.0 else 0.0
    rho_squared = min(1.0, max(0.0, cov) * best / var_x) if var_x > 0.0 else 0.0
    # What is not corrected (grown weights) keeps its variance.
    share = var_x / variance if variance > 0.0 else 1.0
    used = _PUBLISHED * best
    left = 1.0 - (2 * used * cov - used**2 * var_y) / variance if variance > 0.0 else 1.0
    return AtAge(
        age=age,
        path=path,
        rho_squared=rho_squared * share,
        best_coefficient=best,
        left_published=left,
        variance=variance,
        signal=signal,
    )


def recommend(
    ages: list[AtAge], steps_per_epoch: int, table_bytes: int
) -> tuple[str, str, tuple[str, ...]]:
    """Which corrector pays, its options, and why.

    A mode that costs as much as kappa plain epochs pays where it removes more variance than batches
    kappa times as large would: a share of more than 1 - 1 / kappa.

    Example:
        >>> def at(age, rho): return AtAge(age=age, path=age, rho_squared=rho, best_coefficient=1,
        ...     left_published=1, variance=1, signal=1)
        >>> recommend([at(1, 0.9), at(100, 0.4)], 100, 10**6)[0]
        'table'
        >>> recommend([at(1, 0.9), at(100, 0.01)], 100, 10**6)[0]
        'none'
    """
    last = ages[-1].rho_squared
    mean = _mean_over_epoch(ages, steps_per_epoch)
    gain, snapshot = 1 - last, 1 - mean
    needs, needs_snapshot = 1 - 1 / _TABLE_COST, 1 - 1 / _SNAPSHOT_COST
    reasons = [
        f"A stored gradient is {steps_per_epoch} steps old when it is used; at that age it removes "
        f"up to {100 * last:.0f} % of the variance (leaves {100 * gain:.0f} %). It pays above "
        f"{100 * needs:.0f} %, because an epoch with a table costs about {_TABLE_COST:.2f}.",
        f"A snapshot an epoch removes up to {100 * mean:.0f} % on average over the epoch (leaves "
        f"{100 * snapshot:.0f} %). It pays above {100 * needs_snapshot:.0f} %, because it costs "
        f"{_SNAPSHOT_COST:.0f} passes.",
    ]
    # What chance makes of no correlation is far below this.
    if last > max(needs, 0.1):
        precision = "int8" if table_bytes <= _ROOM else "int4"
        reasons.append(
            f"The table takes {table_bytes / 1e6:.0f} MB in int8; samples keep their batch and "
            "their augmentation for 8 epochs at a time (--partition-epochs)."
        )
        if table_bytes > 2 * _ROOM:
            reasons.append("Even in int4 that is much: --table-on-disk keeps it in files.")
        return "table", f"--corrector table --table-precision {precision}", tuple(reasons)
    if mean > needs_snapshot:
        return "age", "--corrector age", tuple(reasons)
    reasons.append("Neither pays here; look again after the learning rate has dropped.")
    return "none", "--corrector none", tuple(reasons)


def _mean_over_epoch(ages: list[AtAge], steps: int) -> float:
    """Mean of the removable share over the ages 1 to `steps`, by straight lines in between."""
    total, before = ages[0].rho_squared * ages[0].age, ages[0]
    for here in ages[1:]:
        total += (here.age - before.age) * (here.rho_squared + before.rho_squared) / 2
        before = here
    return total / max(1, min(steps, before.age))


def _marks(steps: int) -> set[int]:
    """Ages at which gradients are compared: powers of two, and a whole epoch."""
    return {2**k for k in range(int(math.log2(steps)) + 1)} | {steps}


def _start_epoch(session: Session) -> None:
    """A refresh, if one is due."""
    if session.refresh_is_due:
        session.refresh(session.refresh_batches())


def _probes(session: Session, count: int) -> list[Batch]:
    """Whole batches of another order than those that are trained on."""
    drawn: list[Batch] = []
    for batch in session.loader.epoch(session.epoch, stream="diagnosis"):
        if batch.size == session.loader.batch_size and len(drawn) < count:
            drawn.append(session.objective.prepare(session.model, batch))
    return drawn


def _gradients(
    session: Session, probes: list[Batch], columns: Columns, on_step: Callable[[], None]
) -> Tensor:
    """Gradients of the active weights, one row a batch; the model stays as it is."""
    session.model.train()
    point = {name: p.detach() for name, p in trainable(session.model).items()}
    rows = []
    for number, batch in enumerate(probes):
        with preserved(session.device), build.autocast(session.run.loop, session.device):
            torch.manual_seed(number)  # the same dropout for a batch each time
            loss = partial(session.objective.loss, session.model, batch)
            _, gradient = value_and_gradient_at(session.model, point, loss)
        rows.append(columns.gather(gradient, torch.float32))
        on_step()
    return torch.stack(rows)


def _carried(old: Tensor, before: Columns, now: Columns) -> tuple[Tensor, Tensor | None]:
    """Earlier gradients at the columns of now, and where those were active then."""
    if before.same_form(now) and torch.equal(before.ids, now.ids):
        return old, None
    valid = ~(grown(before, now) | now.padding)
    return old[:, route(before, now)] * valid, valid
