"""Stopping politely: an interrupt lets the current step finish and a checkpoint be saved."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def listening() -> Iterator[StopFlag]:
    """A flag that listens inside; afterwards signals are answered as before.

    Example:
        >>> with listening() as flag:
        ...     flag()
        False
    """
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    flag = StopFlag()
    flag.install()
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def held_back() -> Iterator[None]:
    """Holds signals back inside; processes that are started here do so until `let_through`.

    Example:
        >>> with held_back():
        ...     signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())
        True
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def let_through() -> None:
    """Delivers what was held back, now and from now on."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
