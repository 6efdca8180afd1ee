"""How a refresh is done, where published codes do it in different ways."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class RefreshOptions:
    """Each default is what is right; each other value is what some published code does.

    Args:
        weighting: Batches count by their samples, or all alike, so that a short last one counts
            as much as a full one.
        compares_with: The losses behind an estimate are those at the previous snapshot, or, by an
            oversight, those at the current parameters, which makes every estimate 1.
        updates_buffers: The pass of a refresh moves the running statistics of BatchNorm, as a
            second training pass would. It is then made even where no gradient is needed.
        adds_leftover: The sum of a refresh begins with the gradient of the last batch that was
            trained on, which somebody forgot to clear; needs the weighting "batches".

    Raises:
        ValueError: `adds_leftover` without its weighting.

    Example:
        >>> RefreshOptions().compares_with
        'previous'
    """

    weighting: Literal["samples", "batches"] = "samples"
    compares_with: Literal["previous", "current"] = "previous"
    updates_buffers: bool = False
    adds_leftover: bool = False

    def __post_init__(self) -> None:
        if self.adds_leftover and self.weighting != "batches":
            raise ValueError(
                'adds_leftover adds one batch to a sum of batches; got weighting="samples"; '
                'set weighting="batches", or leave adds_leftover out.'
            )
