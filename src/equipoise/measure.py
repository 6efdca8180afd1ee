"""The one seam through which the parts of a step report what they cost."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Measure(Protocol):
    """Opens a context around one part of training and is told what happens inside.

    Calls may nest; an implementation counts the time of an inner part to the inner part only.
    """

    def __call__(
        self, part: str, /, *, samples: float = 0.0, forwards: int = 0, backwards: int = 0
    ) -> AbstractContextManager[object]:
        """Enters `part`.

        Args:
            part: Name of the part, for example ``"old_gradient"``.
            samples: Samples in the batch that is evaluated inside.
            forwards: Forward passes over those samples.
            backwards: Backward passes over those samples.
        """
        ...  # pragma: no cover


def unmeasured(
    part: str, /, *, samples: float = 0.0, forwards: int = 0, backwards: int = 0
) -> AbstractContextManager[object]:
    """Measures nothing; the default everywhere.

    Example:
        >>> with unmeasured("refresh"):
        ...     pass
    """
    del part, samples, forwards, backwards
    return nullcontext()
