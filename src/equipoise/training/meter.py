"""The truth meter: what a run has cost so far, part by part, always on."""

from __future__ import annotations

import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch

OUTSIDE_TRAINING = frozenset({"evaluation", "checkpoint", "analysis"})
"""Parts whose time and passes are not training."""

_CLEAR_REFS = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


class Meter:
    """Counts samples sent forward and backward, and the seconds of every part.

    An instance is a `equipoise.measure.Measure`: parts open it as a context. Where contexts nest,
    time belongs to the innermost, so the parts add up to the whole. On an accelerator the times
    are read from events on its stream, without waiting for it in between.

    Args:
        device: Where the model runs.

    Example:
        >>> meter = Meter(torch.device("cpu"))
        >>> with meter("new_gradient", samples=128, forwards=1, backwards=1):
        ...     pass
        >>> meter.forward_samples, meter.backward_samples
        (128, 128)
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._forwards: defaultdict[str, float] = defaultdict(float)
        self._backwards: defaultdict[str, float] = defaultdict(float)
        self._open: list[str] = []
        self._mark: Any = None
        self._pending: list[tuple[str, Any, Any]] = []
        self._peak_before = 0
        self._listeners: list[tuple[str, str, Callable[[], None]]] = []
        reset_peak_memory(device)

    @contextmanager
    def __call__(
        self, part: str, /, *, samples: float = 0.0, forwards: int = 0, backwards: int = 0
    ) -> Iterator[None]:
        """Enters `part`; see `equipoise.measure.Measure`."""
        self._tell("entered", part)
        self._switch()
        self._open.append(part)
        try:
            yield
            self._forwards[part] += samples * forwards
            self._backwards[part] += samples * backwards
        finally:
            self._switch()
            self._open.pop()
        self._tell("left", part)

    @contextmanager
    def listening(
        self, event: Literal["entered", "left"], part: str, call: Callable[[], None]
    ) -> Iterator[None]:
        """Inside, `call` is made whenever a part was entered or left; its time is no training.

        Args:
            event: Before the work of the part, or after it unless that failed.
            part: Name of the part.
            call: Takes nothing; must change nothing that training depends on.

        Example:
            >>> meter = Meter(torch.device("cpu"))
            >>> with meter.listening("left", "refresh", lambda: print("refreshed")):
            ...     with meter("refresh"):
            ...         pass
            refreshed
        """
        listener = (event, part, call)
        self._listeners.append(listener)
        try:
            yield
        finally:
            self._listeners.remove(listener)

    def _tell(self, event: str, part: str) -> None:
        """Calls those who listen for this."""
        for when, where, call in self._listeners:
            if (when, where) == (event, part):
                with self("analysis"):
                    call()

    def seconds(self, part: str) -> float:
        """Wall seconds spent in one part, inner parts left out."""
        self._settle()
        return self._seconds[part]

    @property
    def training_seconds(self) -> float:
        """Wall seconds of all parts but evaluation and checkpoints."""
        self._settle()
        return sum(s for part, s in self._seconds.items() if part not in OUTSIDE_TRAINING)

    @property
    def forward_samples(self) -> int:
        """Samples sent forward for training."""
        return _total(self._forwards)

    @property
    def backward_samples(self) -> int:
        """Samples sent backward for training."""
        return _total(self._backwards)

    def data_passes(self, num_samples: int) -> float:
        """Gradient evaluations of `num_samples` samples: forward 1/3, backward 2/3."""
        return (self.forward_samples + 2 * self.backward_samples) / (3 * num_samples)

    def peak_memory_bytes(self) -> int:
        """Largest resident memory of this process since the meter was made, or was resumed."""
        return max(self._peak_before, _peak_resident_bytes())

    def peak_device_memory_bytes(self) -> int | None:
        """Largest memory allocated on the accelerator; None on CPU."""
        if self._device.type != "cuda":
            return None
        return int(torch.cuda.max_memory_allocated(self._device))

    def state_dict(self) -> dict[str, Any]:
        """All counts and seconds."""
        self._settle()
        return {
            "seconds": dict(self._seconds),
            "forwards": dict(self._forwards),
            "backwards": dict(self._backwards),
            "peak_memory_bytes": self.peak_memory_bytes(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self._seconds = defaultdict(float, state["seconds"])
        self._forwards = defaultdict(float, state["forwards"])
        self._backwards = defaultdict(float, state["backwards"])
        self._peak_before = int(state["peak_memory_bytes"])

    def _switch(self) -> None:
        """Charges the time since the last switch to the innermost open part."""
        now = self._now()
        if self._open and self._device.type == "cuda":
            self._pending.append((self._open[-1], self._mark, now))
        elif self._open:
            self._seconds[self._open[-1]] += now - self._mark
        self._mark = now

    def _now(self) -> Any:
        """A point in time: a number on CPU, a recorded event on an accelerator."""
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def _settle(self) -> None:
        """Turns recorded events into seconds; waits for the accelerator once."""
        if not self._pending:
            return
        torch.cuda.synchronize(self._device)
        for part, start, end in self._pending:
            self._seconds[part] += start.elapsed_time(end) / 1000.0
        self._pending.clear()


def reset_peak_memory(device: torch.device) -> None:
    """Starts the peaks anew where the system can, so that runs in one process do not mix."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    try:
        _CLEAR_REFS.write_text("5")
    except OSError:
        return  # not Linux: the peak of the process is the best there is


def _peak_resident_bytes() -> int:
    """Peak resident memory as the system counts it."""
    if _STATUS.exists():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _total(counts: Mapping[str, float]) -> int:
    """Sum over the parts of training."""
    return round(sum(n for part, n in counts.items() if part not in OUTSIDE_TRAINING))
