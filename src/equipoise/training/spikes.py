"""Says when gradients explode as weights are grown."""

from __future__ import annotations

import math
import statistics
import warnings
from collections import deque

from torch.nn.utils import get_total_norm

from equipoise.data import Batch
from equipoise.records import EpochRecord
from equipoise.training.session import Session

_EVERY = 10  # steps between two looks at the usual norm
_KEPT = 50
_FEWEST = 3
_FAR = 100.0


class SpikeWatch:
    """Warns once if the gradient becomes far longer than usual and nothing clips it.

    So it does where weights are grown into BatchNorm channels that are nearly dead: their outputs
    hardly vary, BatchNorm divides by how little they do, and growth by gradient picks just those
    weights. A single step of that kind can undo an epoch. The norm of the gradient of the moving
    weights is looked at in every tenth step, and in the first step after a rewiring.

    Nothing is changed. Where every step rewires, or clipping is on, nothing is looked at.
    """

    def __init__(self) -> None:
        self._usual: deque[float] = deque(maxlen=_KEPT)
        self._rewirings = 0
        self._due = False
        self._done = False

    def start(self, session: Session) -> None:
        """Begins to look on."""
        self._rewirings = session.topology.num_rewirings
        self._done = self._done or session.run.optimization.clip_norm is not None

    def refreshed(self, session: Session, batch: Batch) -> None:
        """Does nothing."""

    def stepped(self, session: Session, samples: int) -> None:
        """Looks at the gradient of the step, if it is time to."""
        del samples
        if self._done:
            return
        before, self._rewirings = self._rewirings, session.topology.num_rewirings
        if self._rewirings != before:  # the gradient is that of the weights before
            self._due = True
            return
        if not self._due and session.step % _EVERY:
            return
        self._due = False
        norm = float(get_total_norm(session.moving_gradients()))
        if not math.isfinite(norm):
            return
        usual = statistics.median(self._usual) if len(self._usual) >= _FEWEST else 0.0
        if norm > _FAR * usual > 0.0:
            self._warn(session.step, norm, usual)
        self._usual.append(norm)

    def recorded(self, session: Session, record: EpochRecord) -> None:
        """Does nothing."""

    def stop(self) -> None:
        """Nothing to close."""

    def _warn(self, step: int, norm: float, usual: float) -> None:
        """Says it, and looks no further."""
        self._done = True
        warnings.warn(
            f"at step {step} the gradient is {norm / usual:,.0f} times as long as usual "
            f"({norm:.2g} against {usual:.2g}), as it becomes where weights are grown into "
            f"BatchNorm channels that are nearly dead; --clip-norm {2 * usual:.2g} keeps such "
            "steps short, and --topology set grows fewer weights of that kind.",
            RuntimeWarning,
            stacklevel=4,
        )
