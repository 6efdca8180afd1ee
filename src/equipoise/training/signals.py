"""Stopping politely: an interrupt lets the current step finish and a checkpoint be saved."""

from __future__ import annotations

import signal
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopFlag:
    """Becomes true when the process is asked to stop; a second request stops it at once.

    Example:
        >>> flag = StopFlag()
        >>> flag()
        False
    """

    def __init__(self) -> None:
        self._raised = False

    def __call__(self) -> bool:
        """Whether a stop was asked for."""
        return self._raised

    def install(self) -> None:
        """Listens to SIGINT and SIGTERM from now on; main thread only."""
        for number in _SIGNALS:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """Remembers the first request; restores the usual answer for the next."""
        del frame
        self._raised = True
        signal.signal(number, signal.SIG_DFL)
