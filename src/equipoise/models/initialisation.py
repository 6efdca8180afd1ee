"""Random initial weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

from torch import nn

from equipoise.models.settings import Init

if TYPE_CHECKING:
    from collections.abc import Iterable


def initialise_(layers: Iterable[nn.Module], init: Init) -> None:
    """Draws the weights of convolutions and linear layers anew.

    Mathematics: weights from N(0, 2 / fan), where fan is ``out * kh * kw`` for
    ``"kaiming_fan_out"`` and ``in * kh * kw`` for ``"kaiming_fan_in"``; biases are 0.

    Contract: ``"default"`` leaves everything as it is; modules that are neither `Conv2d` nor
    `Linear` are never changed, and containers are not entered.

    Args:
        layers: Modules to initialise, in the order of drawing.
        init: Which distribution to draw from.

    Raises:
        ValueError: `init` is not one of the three words.

    Example:
        >>> layer = nn.Linear(4, 2)
        >>> initialise_([layer], "kaiming_fan_in")
        >>> layer.bias.tolist()
        [0.0, 0.0]

    References:
        He et al., "Delving Deep into Rectifiers", ICCV 2015, equations 10 and 14.
    """
    if init not in get_args(Init):
        known = ", ".join(repr(word) for word in get_args(Init))
        raise ValueError(f"unknown init {init!r}; choose one of {known}")
    if init == "default":
        return
    mode: Literal["fan_in", "fan_out"] = "fan_out" if init == "kaiming_fan_out" else "fan_in"
    for layer in layers:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, mode=mode, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
